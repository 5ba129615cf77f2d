"""The config that MMDetection writes into a checkpoint as Python text, read without running any of it."""

from __future__ import annotations

import ast
import contextlib
import io
import math
import operator
import re
import sys
import tokenize
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from mgdet.interop.names import shown

LONGEST, MOST_VALUES = 1 << 20, 1 << 20
"""Letters of the longest config text that is read, and how many values may be in it where every name is written out.

A config with a thousand class names has a fifth of either.
"""
LARGEST = 1 << 53
DEEPEST = 500
"""How many operators may follow one another in an expression where Python itself does not look."""
BASE, DELETE = "_base_", "_delete_"
PATH = re.compile(r"^[^\s#'\"()=]+\.py[ \t]*$", re.MULTILINE)
"""The name of each file above what it holds, in texts from before mmcv wrote one of all files."""
ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Unknown:
    """What only running the text could tell."""


UNKNOWN = Unknown()


def read_settings(text: str) -> dict[str, Any]:
    """The assignments of a config text.

    Numbers, strings, lists, tuples, dicts, `dict(...)`, earlier names and arithmetic of numbers have values; whatever
    else stands there is `UNKNOWN`. A text of several files is read as MMDetection does: the dicts of a file that names
    others as its base change theirs.

    Raises:
        ValueError: the text is no Python, or larger than any config.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text):,} letters, more than any config")
    try:
        reader = _Reader()
        for part in PATH.split(text):
            reader.read(part)
        return {name: value for name, value in reader.settings.items() if name != BASE}
    except (RecursionError, MemoryError):  # what Python's own parser says of texts that nest too deep, too
        raise ValueError("it nests too deep") from None


def get(settings: object, *path: str | int) -> Any:
    """What lies behind names and places inside of one another; `UNKNOWN` where one of them is missing."""
    for name in path:
        inside = isinstance(settings, Mapping) and name in settings
        if not inside and not (isinstance(settings, list | tuple) and isinstance(name, int) and name < len(settings)):
            return UNKNOWN
        settings = settings[name]  # type: ignore[index]
    return settings


class _Reader:
    """Reads one file after another. Values that names repeat count each time, so that no text can unfold without end.

    settings: what has been assigned so far.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._count = 0

    def read(self, text: str) -> None:
        before = dict(self.settings)
        for statement in _statements(text):
            if isinstance(statement, ast.Assign):
                start = self._count
                value = self._value(statement.value)
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        self.settings[target.id], self._sizes[target.id] = value, self._count - start
        if BASE in self.settings and self.settings[BASE] is not before.get(BASE):
            for name, value in self.settings.items():
                if name in before and value is not before[name]:
                    self.settings[name] = _merge(before[name], value)

    def _value(self, node: ast.expr) -> Any:
        self._add(1)
        match node:
            case ast.Constant(value=int() as value) if abs(value) > LARGEST:
                return UNKNOWN
            case ast.Constant(value=(None | bool() | int() | float() | str()) as value):
                return value
            case ast.Tuple(elts=items):
                return tuple(self._value(item) for item in items)
            case ast.List(elts=items):
                return [self._value(item) for item in items]
            case ast.Dict(keys=keys, values=values):
                names = [None if key is None else self._value(key) for key in keys]
                return _dict(list(zip(names, map(self._value, values))))
            case ast.Call(func=ast.Name(id="dict"), args=args, keywords=keywords):
                pairs = [(None, self._value(arg)) for arg in args]
                return _dict([*pairs, *((keyword.arg, self._value(keyword.value)) for keyword in keywords)])
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return _number(operator.sub, 0, self._value(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                return _number(ARITHMETIC[type(op)], self._value(left), self._value(right))
            case ast.Name(id="inf"):
                return math.inf
            case ast.Name(id=name):
                self._add(self._sizes.get(name, 0))
                return self.settings.get(name, UNKNOWN)
        return UNKNOWN

    def _add(self, number: int) -> None:
        self._count += number
        if self._count > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES:,} values, more than any config")


def _statements(text: str) -> list[ast.stmt]:
    if sys.version_info < (3, 11):
        _refuse_chains(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text).body
    except (SyntaxError, ValueError) as error:  # the latter for letters that no file can hold
        raise ValueError(f"it is no Python: {shown(error.msg if isinstance(error, SyntaxError) else error)}") from None


def _refuse_chains(text: str) -> None:
    """Refuses texts like `a.b.b.b...` or `1+1+1...`, which end Python 3.10 with a segmentation fault."""
    lengths = [0]  # of the chain at each level of brackets
    with contextlib.suppress(tokenize.TokenError, SyntaxError):  # such texts are refused before they are nested
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NEWLINE or token.string in (",", ":", "=", ";"):
                lengths[-1] = 0
            elif token.string in ("(", "[", "{"):
                lengths[-1] += 1
                lengths.append(0)
            elif token.string in (")", "]", "}"):
                lengths[1:] = lengths[1:-1]
            elif token.type == tokenize.OP:
                lengths[-1] += 1
            if lengths[-1] > DEEPEST:
                raise RecursionError


def _dict(items: list[tuple[Any, Any]]) -> Any:
    """A dict of names and values; a value without a name is a dict whose items join."""
    result: dict[str, Any] = {}
    for name, value in items:
        if isinstance(name, str):
            result[name] = value
        elif name is None and isinstance(value, Mapping):
            result |= value
        elif name is None:
            return UNKNOWN
    return result


def _number(function: Callable[[float, float], float], left: object, right: object) -> Any:
    """What arithmetic gives, by way of floats, so that no text can make a number of a million digits."""
    if not all(isinstance(side, int | float) and not isinstance(side, bool) for side in (left, right)):
        return UNKNOWN
    try:
        result = function(float(left), float(right))  # type: ignore[arg-type]
    except ArithmeticError:
        return UNKNOWN
    whole = isinstance(left, int) and isinstance(right, int) and math.isfinite(result) and result.is_integer()
    return int(result) if whole else result


def _merge(base: object, own: object) -> Any:
    """What a file makes of its base's value: dicts change it, unless they say that they replace it."""
    if not isinstance(base, Mapping) or not isinstance(own, Mapping) or own.get(DELETE):
        return own
    merged = dict(base)
    for name, value in own.items():
        merged[name] = _merge(base[name], value) if name in base else value
    return merged
