"""Which pictures are asked for, and under which names their annotated copies are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mgdet.data.image_files import walk
from mgdet.data.pictures import APPLE_DOUBLE, SUFFIXES, is_foreign, is_picture
from mgdet.errors import UserError


class Picture(NamedTuple):
    """A picture, and the name of its annotated copy, relative to the folder that it is written into."""

    file: Path
    copy: Path


def find_pictures(sources: Sequence[str]) -> tuple[list[Picture], Counter[str]]:
    """The pictures behind files and folders; folders are searched recursively, and the copies lie as the pictures do.

    Args:
        sources: image files, or folders of them.

    Returns:
        The pictures, in the order of `sources` and by name, and how many files of folders were passed over, by kind.

    Raises:
        UserError: there is no such file or folder, or a folder holds no picture.
    """
    if not sources:
        raise UserError("no image is given; name image files, or folders of them")
    names, skipped = _Names(), Counter[str]()
    pictures = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside, others = _walk(path)
            if not inside:
                found = f", only {listed(others)}" if others else ""
                raise UserError(f"the folder {path} holds no image ({', '.join(SUFFIXES)}){found}")
            pictures += [Picture(path / name, names.give(name)) for name in inside]
            skipped += others
        elif path.is_file():
            pictures.append(Picture(path, names.give(Path(path.name))))
        else:
            raise UserError(f"there is no image or folder '{path}'")
    return pictures, skipped


def listed(skipped: Counter[str]) -> str:
    """Kinds of files with their numbers, the most frequent first."""
    return ", ".join(f"{number:,} {kind}" for kind, number in skipped.most_common())


def _walk(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The pictures in a folder and the folders in it, relative to it, and the kinds of all other files."""
    inside, others = [], Counter[str]()
    for parent, files in walk(folder, hidden=True):
        for file in files:
            path = Path(parent, file)
            if file.startswith(APPLE_DOUBLE):
                others["._ (AppleDouble)"] += 1
            elif not is_picture(file):
                others[path.suffix.lower() or "without an ending"] += 1
            elif not path.is_file():  # a pipe would never answer
                others["unreadable (broken link or pipe)"] += 1
            elif is_foreign(path):
                others[f"{path.suffix.lower()} (pip install pillow-heif)"] += 1
            else:
                inside.append(path.relative_to(folder))
    return inside, others


class _Names:
    """Gives every copy a name of its own, with a number where another picture has it already."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}

    def give(self, name: Path) -> Path:
        """The name of the copy of a picture called `name`, also apart where upper case makes no difference."""
        copy = name.with_suffix(".jpg")
        key = str(copy).lower()
        while str(copy).lower() in self._taken:
            self._numbers[key] = self._numbers.get(key, 1) + 1
            copy = name.with_name(f"{name.stem}_{self._numbers[key]}.jpg")
        self._taken.add(str(copy).lower())
        return copy
