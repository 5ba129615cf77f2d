"""All image files of a data set: which there are, how large each is, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mgdet.data.images import check_size, header_size
from mgdet.data.pictures import is_picture
from mgdet.data.records import Records
from mgdet.data.transforms import check_readable, read_image
from mgdet.errors import UserError

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_FEW = 100
"""So few files are read before threads have started."""
_READERS = 8
"""Files that are opened at once: a network disk answers late, but many at a time."""


def walk(folder: Path, *, hidden: bool = False) -> Iterator[tuple[str, list[str]]]:
    """A folder and the folders in it, with the names of their files in order.

    Links to folders are followed. Each folder comes once, under its own name where it has one in here; a link to a
    folder that holds this one leads nowhere.

    Args:
        folder: where to start.
        hidden: also go into folders whose name begins with a dot.

    Raises:
        UserError: a folder cannot be read.
    """
    start = os.path.realpath(folder)
    seen, links = {*map(str, Path(start).parents)}, [str(folder)]
    for link in links:  # which grows
        if os.path.realpath(link) in seen:
            continue
        for parent, folders, files in os.walk(link, onerror=_refuse):
            seen.add(os.path.realpath(parent))
            inside = {name: os.path.join(parent, name) for name in sorted(folders) if hidden or name[0] != "."}
            links += [path for path in inside.values() if os.path.islink(path)]
            folders[:] = [name for name, path in inside.items() if os.path.realpath(path) not in seen]
            yield parent, sorted(files)


def _refuse(error: OSError) -> None:
    raise UserError(f"the folder '{error.filename}' cannot be read: {error.strerror}")


def list_images(folder: Path) -> list[str]:
    """Names of all images in a folder and the folders in it, relative to it, in order.

    Raises:
        UserError: a folder cannot be read.
    """
    names = []
    for parent, files in walk(folder):
        inside = os.path.relpath(parent, folder)
        pictures = [name for name in files if is_picture(name) and os.path.isfile(os.path.join(parent, name))]
        names += [os.path.normpath(os.path.join(inside, name)) for name in pictures]
    return sorted(name.replace(os.sep, "/") for name in names)


def upright_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """(h, w) in pixels of each image as `read_image` returns it, turned upright; of most only the header is read.

    Raises:
        UserError: an image is missing or unreadable.
    """
    return _each(_upright_size, paths)


def damaged(records: Records) -> list[str]:
    """What is wrong with image files of a data set that are all there: a sentence for each that cannot be read, is
    truncated, or is not of the size that the records give; of most only the first and last bytes are read."""

    def look(index: int) -> str:
        path = records.folder / records.files[index]
        try:
            check_readable(path)
            size = _upright_size(path)
            if records.heights[index] and records.widths[index]:
                check_size(records, index, size)
        except UserError as error:
            return str(error)
        return ""

    return list(filter(None, _each(look, range(len(records)))))


def _each(function: Callable[[_In], _Out], values: Sequence[_In]) -> list[_Out]:
    """What a function that waits for files gives for each value."""
    if len(values) < _FEW:
        return [function(value) for value in values]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(function, values))


def _upright_size(path: Path) -> tuple[int, int]:
    size = header_size(path)
    if size is None:
        height, width = read_image(path).shape[:2]
        return height, width
    return size
