"""YOLO's files of labels, one for each image: where they are, and those that belong to none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mgdet.data.values import number
from mgdet.errors import UserError

MAX_LINE_BYTES = 1 << 16


def label_files(image: Path) -> list[Path]:
    """Where the label file of an image may be: in `labels/` for `images/`, or beside it."""
    parts = list(image.parts)
    files = [image.with_suffix(".txt")]
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        files.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt"))
    return files


def label_file(image: Path) -> Path | None:
    """The label file of an image; None if it has none.

    Raises:
        UserError: what bears its name is not a file.
    """
    file = next((file for file in label_files(image) if file.exists()), None)
    if file is not None and not file.is_file():
        raise UserError(f"'{file}' is a folder or a pipe, not a file of labels")
    return file


def orphans_of(images: Sequence[Path]) -> list[Path]:
    """Files of labels where those of some images lie, of which no picture has the name: it was renamed, or left out.

    Args:
        images: files of one split; the pictures beside them count, too.
    """
    homes: dict[Path, set[Path]] = {}
    for parent in dict.fromkeys(image.parent for image in images):
        for file in label_files(parent / "image"):
            homes.setdefault(file.parent, set()).add(parent)
    found = []
    for home, parents in homes.items():
        if not home.is_dir():
            continue
        labels = [path for path in sorted(home.iterdir()) if path.suffix == ".txt"]
        stems = {path.stem for parent in parents for path in parent.iterdir() if path.suffix != ".txt"}
        found += [path for path in labels if path.stem not in stems and _has_labels(path)]
    return found


def _has_labels(file: Path) -> bool:
    """Does a text file begin as one of labels does, and not as a list of images or of names?"""
    try:
        with file.open("rb") as stream:
            values = stream.readline(MAX_LINE_BYTES).decode("utf-8-sig", "replace").split()
    except (OSError, ValueError):
        return False
    return len(values) >= 5 and all(number(value) is not None for value in values)
