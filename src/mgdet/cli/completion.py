"""`mgdet --print-completion SHELL`: a script that completes commands, recipes, options and their values.

It holds all words itself, so that completing starts no Python.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from string import Template
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from mgdet.errors import UserError, nearest
from mgdet.recipes import RECIPES

OF_MGDET = ("--help", "--version", "--print-completion")
FROM_RECIPE = ("train", "check", "test")
"""Commands whose first word is a recipe."""
OR_FILE = ("check", "test")
"""Those whose first word can be a file, too."""
_POSITIONAL = get_args(tyro.conf.Positional[str])[1]
_NAMED = type(tyro.conf.arg())


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a command.

    names: as they are typed; a flag has a second one that turns it off.
    words: the values that it can have; empty where it can have others.
    files: can a value be a file or a folder?
    most: how many values it takes, 0 for a flag; -1: any number.
    """

    names: tuple[str, ...]
    words: tuple[str, ...] = ()
    files: bool = False
    most: int = 1


def completion(shell: str, commands: Sequence[str]) -> str:
    """The script for a shell.

    Args:
        shell: bash, zsh or fish.
        commands: the commands, each with its module in `mgdet.cli`.

    Raises:
        UserError: there is no script for this shell.
    """
    if shell not in SCRIPTS:
        given = f"--print-completion is '{shell}'" if shell else "--print-completion needs a shell"
        raise UserError(f"{given}{nearest(shell, SCRIPTS)}")
    options = {command: list(options_of(command)) for command in commands}
    return SCRIPTS[shell](options)


def options_of(command: str) -> Iterator[Option]:
    """All options of a command, from the dataclass of its arguments, or from several where it has several forms."""
    module = importlib.import_module(f"mgdet.cli.{command}")
    own = [
        kind for _, kind in inspect.getmembers(module, dataclasses.is_dataclass) if kind.__module__ == module.__name__
    ]
    options = {option.names: option for kind in own for option in _options(kind, "")}
    yield from options.values()
    yield Option(("--help",), most=0)


def _options(section: Any, prefix: str) -> Iterator[Option]:
    hints = get_type_hints(section, include_extras=True)
    for entry in dataclasses.fields(section):
        kind, name = hints[entry.name], entry.name.replace("_", "-")
        if get_origin(kind) is Annotated:
            kind, *marks = get_args(kind)
            if _POSITIONAL in marks:
                continue
            given = [getattr(mark, "name", None) for mark in marks if isinstance(mark, _NAMED)]
            name = next((each for each in given if each is not None), name)
        inner = next((part for part in _parts(kind) if dataclasses.is_dataclass(part)), None)
        if inner is not None:
            yield from _options(inner, f"{prefix}{name}." if name else prefix)
        elif kind is bool:
            yield Option((f"--{prefix}{name}", f"--{prefix}no-{name}"), most=0)
        else:
            yield _option(f"--{prefix}{name}", kind)


def _option(name: str, kind: Any) -> Option:
    """An option with values of a type."""
    most = 1
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        most = -1 if kinds[-1] is Ellipsis else len(kinds)
        kind = kinds[0]
    words: list[str] = []
    for part in _parts(kind):
        if get_origin(part) is Literal:
            words += map(str, get_args(part))
        elif part is bool:
            words += ["True", "False"]
        elif part is type(None):
            words += ["None"]
    return Option((name,), tuple(words), files=str in _parts(kind), most=most)


def _parts(kind: Any) -> tuple[Any, ...]:
    """The types of a union; any other type alone."""
    return get_args(kind) if get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def _spelled(options: Sequence[Option]) -> str:
    return " ".join(name for option in options for name in option.names)


class _Script(Template):
    """Shells use the dollar themselves."""

    delimiter = "@@"


COMMON = """\
# What may follow: sets offer (words), files (may it be a file?) and, for an option, most (values; -1: any number).
_mgdet_names() { case $1 in
    @@names
esac; }
_mgdet_first() { case $1 in
    @@first
esac; }
_mgdet_values() { case "$1 $2" in
    @@values
esac; }
# _mgdet_look WORD ... CURRENT: the words from the command on, and the one that is completed.
_mgdet_look() {
    offer= files=0 most=0
    local command=$1 option= count=0
    if [ $# -eq 1 ]; then offer='@@commands'; return; fi
    shift
    if [ "$command" = --print-completion ]; then offer='@@shells'; return; fi
    if [ $# -eq 1 ]; then
        case $1 in -*) ;; *) _mgdet_first "$command" ;; esac
        if [ -n "$offer" ]; then return; fi
    fi
    while [ $# -gt 1 ]; do
        case $1 in
            --*) option=$(printf %s "$1" | tr _ -) count=0 ;;
            *) count=$((count + 1)) ;;
        esac
        shift
    done
    case $1 in -*) _mgdet_names "$command"; return ;; esac
    if [ -n "$option" ]; then
        _mgdet_values "$command" "$option"
        if [ "$most" -lt 0 ] || [ "$count" -lt "$most" ]; then return; fi
    fi
    _mgdet_names "$command"
    files=1
}
"""

BASH = """\
# Completes mgdet in bash. In ~/.bashrc: source <(mgdet --print-completion bash)
@@common
_mgdet() {
    local offer files most i word current=${COMP_WORDS[COMP_CWORD]} given=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [ "${COMP_WORDS[i]}" != = ]; then given+=("${COMP_WORDS[i]}"); fi
    done
    if [ "$current" = = ]; then current=; fi
    case $current in --*) current=${current//_/-} ;; esac
    _mgdet_look "${given[@]}" "$current"
    COMPREPLY=($(compgen -W "$offer" -- "$current"))
    if [ "$files" = 1 ]; then
        compopt -o filenames 2> /dev/null
        while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$current")
    fi
}
complete -F _mgdet mgdet
"""

ZSH = """\
#compdef mgdet
# Completes mgdet in zsh. In ~/.zshrc, after compinit: source <(mgdet --print-completion zsh)
@@common
_mgdet() {
    emulate -L zsh
    local offer files most current=${words[CURRENT]}
    local -a given=("${(@)words[2,CURRENT-1]}")
    if [[ $current == --*=* ]]; then
        given+=("${current%%=*}") current=${current#*=}
        compset -P '*='
    fi
    _mgdet_look "${given[@]}" "$current"
    if [[ -n $offer ]]; then compadd -M 'm:_=-' -- ${=offer}; fi
    if [[ $files == 1 && $current != -* ]]; then _files; fi
}
compdef _mgdet mgdet
"""


def _case_script(text: str, options: dict[str, list[Option]]) -> str:
    """A script for bash or zsh, which read the branches of a `case` alike."""
    branches = {
        "names": [f"{command}) offer='{_spelled(own)}' ;;" for command, own in options.items()],
        "first": [
            f"{command}) offer='{' '.join(RECIPES)}' files={int(command in OR_FILE)} ;;"
            for command in options
            if command in FROM_RECIPE
        ],
        "values": [
            f"'{command} {name}') most={option.most} files={int(option.files)} offer='{' '.join(option.words)}' ;;"
            for command, own in options.items()
            for option in own
            for name in option.names
            if option.most
        ],
    }
    words = {"commands": " ".join((*options, *OF_MGDET)), "shells": " ".join(SCRIPTS)}
    common = _Script(COMMON).substitute(words | {key: "\n    ".join(lines) for key, lines in branches.items()})
    return _Script(text).substitute(common=common.rstrip())


def _fish_script(options: dict[str, list[Option]]) -> str:
    """One line for each option, which is how fish is told."""
    lines = [
        "# Completes mgdet in fish: mgdet --print-completion fish > ~/.config/fish/completions/mgdet.fish",
        f"complete -c mgdet -n __fish_use_subcommand -f -a '{' '.join((*options, *OF_MGDET))}'",
        f"complete -c mgdet -n '__fish_seen_argument -l print-completion' -f -a '{' '.join(SCRIPTS)}'",
    ]
    for command, own in options.items():
        here = f"complete -c mgdet -n '__fish_seen_subcommand_from {command}"
        if command in FROM_RECIPE:
            alone = "" if command in OR_FILE else " -f"
            lines.append(f"{here}; and test (count (commandline -opc)) -eq 2'{alone} -a '{' '.join(RECIPES)}'")
        for option in own:
            value = "" if not option.most else " -r -F" if option.files else f" -x -a '{' '.join(option.words)}'"
            lines += [f"{here}' -l {name.removeprefix('--')}{value}" for name in option.names]
    return "\n".join(lines) + "\n"


SCRIPTS: dict[str, Callable[[dict[str, list[Option]]], str]] = {
    "bash": partial(_case_script, BASH),
    "zsh": partial(_case_script, ZSH),
    "fish": _fish_script,
}
