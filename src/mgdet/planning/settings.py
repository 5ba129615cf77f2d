"""What a person sets by name, as in `schedule.epochs`, over what a plan or a recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mgdet.config import Config
from mgdet.errors import UserError, nearest
from mgdet.sections import Section


def apply_settings(config: Config, settings: Mapping[str, Any]) -> None:
    """Sets fields of a config by their names with dots.

    Args:
        config: is changed.
        settings: e.g. `{"schedule.epochs": 3, "inherit": False}`; lists are taken for tuples.

    Raises:
        UserError: there is no such setting, or its value is wrong.
    """
    for name, value in settings.items():
        section_name, dot, field = name.rpartition(".")
        section: Any = config
        if dot:
            section = getattr(config, section_name, None)
            if section_name == "teacher" and section is None:
                raise UserError(f"{name} is given, but there is no teacher")
            if not isinstance(section, Section):
                sections = [key for key in _names(config) if isinstance(getattr(config, key), Section)]
                raise UserError(f"there is no setting '{name}'{nearest(section_name, sections)}")
        setattr(section, field, value)


def section_with(section: Any, prefix: str, settings: Mapping[str, Any]) -> Any:
    """A copy of a section with those of the settings whose names begin with `prefix` and a dot.

    Raises:
        UserError: it has no such setting, or a value is wrong.
    """
    copy = replace(section)
    for name, value in settings.items():
        first, _, field = name.partition(".")
        if first == prefix and field:
            setattr(copy, field, value)
    return copy


def _names(config: Config) -> list[str]:
    return [str(name) for name in config.__dataclass_fields__]
