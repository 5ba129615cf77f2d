"""What the commands share: reading options, with errors as one sentence, and printing."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from typing import Any, TypeVar

import tyro

from mgdet.errors import UserError
from mgdet.recipes import RECIPES

Arguments = TypeVar("Arguments")
COMMAND_STYLE = (tyro.conf.AvoidSubcommands,)


def recipe_first(arguments: list[str], command: str) -> tuple[str, list[str]]:
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if any(argument in ("-h", "--help") for argument in arguments):
        return next(iter(RECIPES)), arguments
    raise UserError(f"mgdet {command} needs a recipe first, e.g. mgdet {command} {next(iter(RECIPES))}")


def parse(kind: type[Arguments], arguments: list[str], command: str, default: Arguments | None = None) -> Arguments:
    """tyro's parsing, with its errors as one sentence.

    Raises:
        UserError: the options cannot be read.
    """
    options: dict[str, Any] = {"default": default} if default is not None else {}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=arguments, prog=f"mgdet {command}", config=COMMAND_STYLE, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_sentence(complaint.getvalue(), command)) from None


def _sentence(complaint: str, command: str) -> str:
    """The message in tyro's frame, in one sentence, and the option that it thinks was meant.

    Where the terminal has no UTF-8 the frame is of hyphens, and its title stands above the first line of them.
    """
    lines = [line.strip("│ ") for line in complaint.splitlines() if not line.startswith(("╭", "╰"))]
    lines = [line for line in lines if line]
    rules = [i for i, line in enumerate(lines) if set(line) <= {"─", "-"}]
    if "╭" not in complaint and rules:
        lines = lines[rules[0] + 1 :]
        rules = [rule - rules[0] - 1 for rule in rules[1:]]
    rule = rules[0] if rules else len(lines)
    text = " ".join(lines[:rule]).rstrip(".")
    text = re.sub(r"^Error parsing (?:config\.)?(?:(\w+): (?=\1\.))?", "", text)
    text = re.sub(
        r"^(--\S+): (?:invalid literal|could not convert).*: '(.*)'$", r"\1 is '\2', which is not a number", text
    )
    meant = next((line.split()[0].strip(",|") for line in lines[rule:] if re.match(r"--\w", line)), "")
    if text.startswith("Unrecognized options") and meant:
        text += f"; did you mean {meant}?"
    return f"{text} (mgdet {command} --help lists all options)" if text else f"mgdet {command} cannot be read"


def check_devices(devices: int) -> None:
    if devices < 1:
        raise UserError(f"--devices is {devices}; give 1 or more")


def say(text: str) -> None:
    """Prints one line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
