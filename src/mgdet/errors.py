"""What goes wrong because of what the user gave us, said in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message names the thing, its value and the nearest valid choice.

    The command line prints the message alone and leaves with exit code 2.
    """


class TrainingError(RuntimeError):
    """A run that cannot go on: the message says where and why. The command line leaves with exit code 1."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Says which of `choices` was probably meant: `"; did you mean 'x'?"`, or the choices themselves."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; the choices are {', '.join(choices)}" if choices else ""
