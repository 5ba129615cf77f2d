"""Writes the table of docs/any-teacher.md from the lists that the tests walk: python docs/make_tables.py"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mgdet.detectors.build import DETECTORS
from mgdet.detectors.foreign import SOURCES, library
from mgdet.detectors.foreign.base import Foreign
from mgdet.detectors.foreign.hf_families import FAMILIES
from mgdet.detectors.foreign.hf_features import BACKBONES

PAGE = Path(__file__).parent / "any-teacher.md"
START, END = "<!-- made by docs/make_tables.py -->\n", "<!-- end -->"
HEAD = "| detector | teaches | learns | finds |\n|---|---|---|---|\n"


def table() -> str:
    """Every tested model: its name on the command line, and what it can do."""
    rows = [(f"`{name}`", True, kind.has_masks) for name, kind in DETECTORS.items()]
    rows += [row for source in sorted(SOURCES, reverse=True) for row in _rows(source)]
    return HEAD + "".join(_line(*row) for row in rows)


def _rows(source: str) -> Iterator[tuple[str, bool, bool]]:
    """Name, whether it learns, and whether it finds masks, for each model of a source."""
    module = library(source)
    faces = [face for face in vars(module).values() if isinstance(face, type) and issubclass(face, Foreign)]
    trains = any(face.trains for face in faces if face is not Foreign)
    types = [f", and any other `{kind}`" for kind in FAMILIES] if source == "hf" else [""] * len(module.MODELS)
    for name, kind in zip(module.MODELS, types, strict=True):
        yield f"`{source}:{name}`{kind}", trains, module.has_masks(name)
    if source == "hf":
        listed = ", ".join(f"`{kind}`" for kind in BACKBONES)
        yield f"`hf:` and a backbone of type {listed}", False, False


def _line(name: str, trains: bool, masks: bool) -> str:
    finds = ("boxes and masks" if masks else "boxes") if trains else ""
    return f"| {name} | yes | {'yes' if trains else 'no'} | {finds} |\n".replace("|  |", "| |")


def filled(page: str) -> str:
    """The page with its table made anew."""
    before, rest = page.split(START)
    return f"{before}{START}{table()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
