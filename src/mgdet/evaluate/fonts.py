"""Fonts that can write a text, in whatever script it is."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import ImageFont

_UNSUITABLE = ("emoji", "lastresort", "blank")
"""In names of fonts that have a glyph for every letter, or none that can be scaled."""


def readable(names: Sequence[str]) -> tuple[str, ...]:
    """Names as they can be drawn, in one line: `#i` for the i-th where no font here has all of its letters."""
    return tuple(" ".join(name.split()) if can_write(name) else f"#{index}" for index, name in enumerate(names))


def can_write(text: str) -> bool:
    """Does a font here have all letters of a text?"""
    return _file(_letters(text)) is not None


@lru_cache(maxsize=256)
def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that writes a text, `size` pixels high; DejaVu Sans Bold, which comes with matplotlib, where it can."""
    return ImageFont.truetype(_file(_letters(text)) or _dejavu(), size)


def _letters(text: str) -> frozenset[str]:
    """What needs a glyph: no spaces, no marks that only steer how others look."""
    return frozenset(letter for letter in text if unicodedata.category(letter) not in ("Zs", "Cf", "Cc"))


def _dejavu() -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"


@lru_cache(maxsize=1024)
def _file(letters: frozenset[str]) -> Path | None:
    """The first font with all of these letters: DejaVu, or else one of the system's."""
    codes = [ord(letter) for letter in letters]
    if np.isin(codes, _glyphs(_dejavu())).all():
        return _dejavu()
    return next((path for path in _system_fonts() if np.isin(codes, _glyphs(path)).all()), None)


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[Path, ...]:
    """The fonts of this system, bold ones first."""
    from matplotlib.font_manager import fontManager

    fonts = [font for font in fontManager.ttflist if not any(part in font.fname.lower() for part in _UNSUITABLE)]
    fonts.sort(key=lambda font: (str(font.weight) not in ("bold", "700"), font.fname))
    return tuple(dict.fromkeys(Path(font.fname) for font in fonts))


@cache
def _glyphs(path: Path) -> np.ndarray:
    """The letters that a font can write, as code points; none if it cannot be used."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(str(path))
        return np.array(list(font.get_charmap()) if font.scalable else [], dtype=np.int64)
    except (OSError, RuntimeError):
        return np.zeros(0, np.int64)
