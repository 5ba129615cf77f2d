"""Image files of data sets whose annotations do not list them: which there are, and how large each is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mgdet.data.images import header_size
from mgdet.data.pictures import is_picture
from mgdet.data.transforms import read_image

_FEW = 100
"""So few files are read before threads have started."""
_READERS = 8
"""Files that are opened at once: a network disk answers late, but many at a time."""


def list_images(folder: Path) -> list[str]:
    """Names of all images in a folder and the folders in it, relative to it, in order."""
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(parent, folder)
        pictures = [name for name in files if is_picture(name) and os.path.isfile(os.path.join(parent, name))]
        names += [os.path.normpath(os.path.join(inside, name)) for name in pictures]
    return sorted(name.replace(os.sep, "/") for name in names)


def upright_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """(h, w) in pixels of each image as `read_image` returns it, turned upright; of most only the header is read.

    Raises:
        UserError: an image is missing or unreadable.
    """
    if len(paths) < _FEW:
        return [_upright_size(path) for path in paths]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_upright_size, paths))


def _upright_size(path: Path) -> tuple[int, int]:
    size = header_size(path)
    if size is None:
        height, width = read_image(path).shape[:2]
        return height, width
    return size
