"""What the commands share: reading options, with errors as one sentence, and printing."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from mgdet.config import Config
from mgdet.config.file import CONFIG_FILE, find_config, load_config
from mgdet.engine.schedule import check_given
from mgdet.errors import UserError
from mgdet.recipes import RECIPES, load_recipe

Arguments = TypeVar("Arguments")
Devices = int | Literal["all"]
COMMAND_STYLE = (tyro.conf.AvoidSubcommands,)


@dataclass(frozen=True, slots=True)
class Start:
    """What a command starts from: the config of a recipe, or that of a file.

    config: its settings, before the options.
    words: how the user names it, for usage lines: the recipe, or `--config FILE`.
    rest: the other arguments.
    file: where the config was read; None for a recipe.
    """

    config: Config
    words: str
    rest: list[str]
    file: Path | None = None

    def folder(self, *, resume: bool) -> Path:
        """Where a run goes that is given no folder: `runs/` and the name of the recipe or of the file.

        A run's own `config.json` resumes that run, and else starts a new one beside it: `runs/NAME-2`, and so on.
        """
        if self.file is None:
            return Path("runs", self.words.replace(":", "."))
        if self.file.name != CONFIG_FILE:
            return Path("runs", self.file.stem)
        if resume:
            return self.file.parent
        name, number = self.file.resolve().parent.name, 2
        while Path("runs", f"{name}-{number}").exists():
            number += 1
        return Path("runs", f"{name}-{number}")


def recipe_or_file(arguments: list[str], command: str) -> Start:
    """Takes the recipe, which comes first, or reads the file that `--config` names.

    Raises:
        UserError: neither is given, or both are; or the recipe or the file cannot be read.
    """
    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if given := option_value(arguments, "--config"):
        if recipe in RECIPES:
            raise UserError(f"the recipe {recipe} and --config {given} are both given; leave one of them out")
        file = find_config(given)
        return Start(load_config(file), f"--config {given}", arguments, file)
    if recipe:
        if is_foreign(recipe):
            raise UserError(
                f"{recipe} is a detector of another library and no recipe; mgdet distill {recipe} DATA distills from "
                f"it, and mgdet test {recipe} --data.root DATA measures it"
            )
        if recipe not in RECIPES and Path(recipe).exists():
            raise UserError(
                f"{recipe} is a file or folder and no recipe; --config {recipe} takes the settings of a run, and "
                f"mgdet distill {recipe} DATA distills from a teacher"
            )
        return Start(load_recipe(recipe), recipe, arguments[1:])
    first = next(iter(RECIPES))
    if any(argument in ("-h", "--help") for argument in arguments):
        return Start(load_recipe(first), first, arguments)
    other = ", or TEACHER DATA" if command == "check" else ""
    raise UserError(f"mgdet {command} needs a recipe first, e.g. mgdet {command} {first}, or --config FILE{other}")


def is_foreign(name: str) -> bool:
    """Is it SOURCE:NAME of another library?"""
    if ":" not in name:
        return False  # without an import, which takes seconds
    from mgdet.detectors.foreign import names_library

    return names_library(name)


def option_value(arguments: Sequence[str], option: str) -> str:
    """The value of an option that is read before the others; empty where it is not given."""
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return ""


def take_auto(arguments: Sequence[str], option: str) -> tuple[list[str], bool]:
    """The arguments without `OPTION auto`, and whether it was there: a setting itself is always a number."""
    if option_value(arguments, option) != "auto":
        return list(arguments), False
    place = next(i for i, argument in enumerate(arguments) if argument in (option, f"{option}=auto"))
    return [*arguments[:place], *arguments[place + (2 if arguments[place] == option else 1) :]], True


def given_settings(arguments: Sequence[str], config: object) -> dict[str, Any]:
    """The settings of a config, or of a command's arguments, that options name, with their values as they now are.

    Args:
        arguments: all that was typed, e.g. `--train.batch 4 --no-inherit --student.no-norm-eval`.
        config: as the options were read into it.
    """
    settings: dict[str, Any] = {}
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0].replace("-", "_")
            section, _, field = name.rpartition(".")
            for own in (field, field.removeprefix("no_")):
                place: Any = getattr(config, section, None) if section else config
                if own in getattr(place, "__dataclass_fields__", {}) and not is_dataclass(getattr(place, own)):
                    settings[f"{section}.{own}" if section else own] = getattr(place, own)
    return settings


def check_schedule(arguments: Sequence[str], config: Config, folder: Path, *, resume: bool) -> None:
    """Refuses settings of a schedule's other shape, but in a run that is resumed: an earlier version took them.

    Args:
        arguments: all that was typed.
        config: as the options were read into it.
        folder: of the run.
        resume: a run in the folder is to be resumed.

    Raises:
        UserError: one of them would be ignored.
    """
    if not (resume and (folder / CONFIG_FILE).is_file()):
        check_given(config.schedule, given_settings(arguments, config))


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
    if missing := re.findall(r"^[│ ] {5}([A-Z]\S*) *│?$", complaint, re.MULTILINE):
        return f"mgdet {command} needs {' and '.join(missing)} (mgdet {command} --help says what that is)"
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
    text = re.sub(
        r"^(--\S+): no type matching (.+) could be instantiated from \['(.*?)'\].*$",
        lambda found: f"{found[1]} is '{found[3]}'; give {_kinds(found[2])}",
        text,
    )
    meant = next((line.split()[0].strip(",|") for line in lines[rule:] if re.match(r"--\w", line)), "")
    if text.startswith("Unrecognized options") and meant:
        text += f"; did you mean {meant}?"
    return f"{text} (mgdet {command} --help lists all options)" if text else f"mgdet {command} cannot be read"


def _kinds(metavar: str) -> str:
    """What tyro writes as INT|{all}, in words."""
    words = {"INT": "a whole number", "FLOAT": "a number", "STR": "text"}
    return " or ".join(words.get(kind, kind.strip("{}").replace(",", " or ")) for kind in metavar.split("|"))


def count_devices(devices: Devices) -> int:
    """How many processes `--devices` asks for; all: one for each GPU, or one where there is none.

    Raises:
        UserError: it is less than one.
    """
    if devices == "all":
        import torch

        return max(1, torch.cuda.device_count())
    if devices < 1:
        raise UserError(f"--devices is {devices}; give 1 or more, or all")
    return devices


def say(text: str) -> None:
    """Prints one line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
