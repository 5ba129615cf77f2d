"""What values of annotation files mean: numbers, boxes and flags, also where they are written as text."""

from __future__ import annotations

import math

FARTHEST = 2.0**31
"""No coordinate of an image lies farther out, in pixels."""
_WORDS = {"": False, "false": False, "no": False, "none": False, "null": False, "true": True, "yes": True}


def number(value: object) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and (len(value) > 40 or "_" in value):
        return None
    try:
        result = float(value)
    except (ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def four_numbers(value: object) -> tuple[float, float, float, float] | None:
    """A box of four finite numbers, as a list or as the text of one; None for anything else."""
    if isinstance(value, str):
        value = value.strip().strip("[]()").split(",")
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    x, y, width, height = (number(v) for v in value)
    if x is None or y is None or width is None or height is None:
        return None
    return (x, y, width, height) if max(map(abs, (x, y, width, height))) < FARTHEST else None


def truth(value: object) -> bool | None:
    """Yes or no, as flag, number or word; missing and empty are no, None is neither."""
    if isinstance(value, str):
        word = value.strip().lower()
        parsed = number(word)
        return _WORDS.get(word) if parsed is None else parsed != 0
    if value is None or value in ([], {}):
        return False
    if isinstance(value, int | float):
        return None if isinstance(value, float) and math.isnan(value) else bool(value)
    return None


def integer_of(text: str) -> int | None:
    """The integer that a text is, or None."""
    stripped = text.strip()
    return int(stripped) if len(stripped) < 100 and stripped.isascii() and stripped.lstrip("-").isdecimal() else None
