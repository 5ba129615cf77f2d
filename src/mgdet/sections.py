"""Groups of settings that check themselves wherever they are set, and that are read from plain values."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import MISSING
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mgdet.errors import UserError, nearest


def require(condition: bool, message: str) -> None:
    """Raises a `UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


class Section:
    """A group of settings. A wrong value is refused where it is set, in the constructor or by assignment.

    What two settings must be together is checked in the constructor and, because they are changed one after the
    other, once more before a run starts.

    Raises:
        UserError: a value is of another type, or out of its range.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        self.check_together()

    def __setattr__(self, name: str, value: Any) -> None:
        own: Any = type(self)
        kinds = _kinds(own)
        if name not in kinds:
            raise UserError(f"{title(own)} has no setting '{name}'{nearest(name, kinds)}")
        before = getattr(self, name, None)
        object.__setattr__(self, name, read(kinds[name], value, f"{title(own)}.{name}"))
        if all(hasattr(self, other) for other in kinds):  # else the constructor is still at work
            try:
                self.check_values()
            except UserError:
                object.__setattr__(self, name, before)
                raise

    def check_values(self) -> None:
        """Checks each setting by itself."""

    def check_together(self) -> None:
        """Checks what settings must be together."""


@lru_cache
def _kinds(section: type) -> dict[str, Any]:
    """The types of a section's settings by name."""
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def title(section: type) -> str:
    """The name of a section in sentences: `data` for `DataConfig`, `config` for `Config`."""
    return section.__name__.removesuffix("Config").lower() or "config"


def plain(value: Any) -> Any:
    """Dicts, lists and scalars, ready for JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def finite(value: Any) -> Any:
    """As `plain`, with None for infinities and NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(kind: Any, value: Any, where: str) -> Any:
    """`value`, checked against the type `kind` and turned into it; `where` names it in errors."""
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_section(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        return _read_union(args, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) == len(value):
            return tuple(read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value)))
    elif origin is Literal:
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
        if isinstance(value, str):
            raise UserError(f"{where} is '{value}'{nearest(value, map(str, args))}")
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    name = kind.__name__ if isinstance(kind, type) and origin is None else str(kind)
    raise UserError(f"{where} is {value!r}, not {name}")


def _read_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """`value` as the first of several types that it fits."""
    if value is None and type(None) in kinds:
        return None
    problems = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return read(kind, value, where)
            except UserError as error:
                problems.append(str(error))
    raise UserError(" or: ".join(dict.fromkeys(problems)))


def _read_section(kind: Any, values: Any, where: str) -> Any:
    if isinstance(values, kind):
        return values
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}, not a section")
    kinds = _kinds(kind)
    for name in values:
        if name not in kinds:
            raise UserError(f"{where} has no field '{name}'{nearest(name, kinds)}")
    for entry in dataclasses.fields(kind):
        if entry.name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise UserError(f"{where} lacks the field '{entry.name}'")
    return kind(**{name: read(kinds[name], value, f"{where}.{name}") for name, value in values.items()})
