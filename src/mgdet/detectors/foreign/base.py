"""What detectors of other libraries share behind the outer face: classes by name, and a description to rebuild from.

A foreign detector keeps its library's module tree and names. Its losses and detections are the library's own; here is
only what lies between: which of its columns are which of the data's classes.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mgdet.detectors.face import Face

ALIASES = {
    "aeroplane": "airplane",
    "hairdryer": "hairdrier",
    "motorbike": "motorcycle",
    "mobilephone": "cellphone",
    "sofa": "couch",
    "television": "tv",
    "tvmonitor": "tv",
}
"""Names of VOC, COCO and Open Images for the same thing, in the form that `plain_name` gives."""


class TestedSize(NamedTuple):
    """How a library resizes images for its detector.

    long_edge, short_edge: pixels that the edges have at most, where images keep their ratio.
    square: edge of the squares that they are squashed to; 0 where they keep it.
    """

    long_edge: int
    short_edge: int
    square: int = 0


class Foreign(Face):
    """A detector of another library.

    source: where it comes from, the part of its name before the colon: torchvision, hf, libreyolo or timm.
    columns: for each class of the data, the output of the library's head that stands for it.
    output_names: what the head's own classes are called, one name for each output; None where nothing says it.
    notes: sentences on what was decided while it was built: head kept or new, columns mapped.
    tested_size: how the library resizes images for it; None where nothing says it.
    """

    source: str
    columns: tuple[int, ...]
    output_names: tuple[str, ...] | None = None
    notes: list[str]
    tested_size: TestedSize | None = None

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Plain values (ready for JSON) from which `rebuild` makes the same architecture without a download.

        They hold the name, the number of outputs, `columns`, and all else that weights do not show, such as the kind
        of norm and its eps.
        """

    def keep(self, columns: Sequence[int]) -> None:
        """Makes these outputs of the head the classes that it finds, under the head's own names for them."""
        raise NotImplementedError(f"{type(self).__name__} has no head")

    @abstractmethod
    def export(self, out: Path) -> str:
        """Writes what the library alone reads back: a state dict, or a folder; returns a line that says what it is.

        Raises:
            UserError: `out` exists or cannot be written.
        """


PLACEHOLDERS = ("N/A", "__background__", "background")
"""What libraries call the outputs that stand for no class."""


def plain_name(name: str) -> str:
    """A class name without case, spaces and punctuation, under the name that COCO has for it."""
    plain = re.sub(r"[\W_]+", "", name.casefold())
    return ALIASES.get(plain, plain)


def match_classes(known: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """For each wanted class its position among the known ones, by name; None if any is not known.

    A name that is known as it stands is that class; only others are looked for by their `plain_name`, among what is
    left. Known names may hold placeholders ("N/A", "__background__"), which match nothing.
    """
    exact: dict[str, int] = {}
    for place, name in enumerate(known):
        if name not in PLACEHOLDERS or name in wanted:
            exact.setdefault(name, place)
    plain: dict[str, int] = {}
    for place, name in enumerate(known):
        if name not in wanted:
            plain.setdefault(plain_name(name), place)
    for nothing in ("", *(plain_name(placeholder) for placeholder in PLACEHOLDERS)):
        plain.pop(nothing, None)
    found = [exact.get(name, plain.get(plain_name(name))) for name in wanted]
    if any(place is None for place in found) or len(set(found)) != len(found):
        return None
    return tuple(place for place in found if place is not None)


def head_columns(
    name: str, known: Sequence[str] | None, outputs: int, classes: Sequence[str], *, first: int = 0
) -> tuple[Sequence[int] | None, str]:
    """Which outputs of a trained head are the data's classes, None where it has to start at random, and that in words.

    Args:
        name: of the detector, for people.
        known: the name of each output; None where nobody knows.
        outputs: of the head.
        classes: class names of the data.
        first: the first output that is a class: 1 where 0 is the background.
    """
    wanted = len(classes)
    columns = match_classes(known, classes) if known is not None else None
    if columns is not None:
        return columns, f"{name} knows all {wanted} classes of the data and keeps its head of {outputs} outputs"
    if known is not None:
        unknown = [each for each in classes if match_classes(known, (each,)) is None]
        such = f"'{unknown[0]}'" if unknown else "two names for one class"
        return None, f"{name} does not know {such}, so its head starts at random, with {first + wanted} outputs"
    if outputs == first + wanted:
        note = f"{name}: the file names no classes, so its {wanted} are taken for the data's, in their order"
        return range(first, outputs), note
    return None, (f"{name} was trained for {outputs - first} classes, the data has {wanted}: its head starts at random")
