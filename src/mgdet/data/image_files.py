"""Image files of data sets whose annotations do not list them: which there are, and how large each is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from mgdet.data.transforms import read_image
from mgdet.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""
_READERS = 8
"""Files that are opened at once: a network disk answers late, but many at a time."""


def is_image(name: str) -> bool:
    """Whether a file of this name is an image; those that a Mac leaves beside its files are none."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def list_images(folder: Path) -> list[str]:
    """Names of all images in a folder and the folders in it, relative to it, in order."""
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(parent, folder)
        names += [os.path.normpath(os.path.join(inside, name)) for name in files if is_image(name)]
    return sorted(name.replace(os.sep, "/") for name in names)


def upright_sizes(paths: Iterable[Path]) -> list[tuple[int, int]]:
    """(h, w) in pixels of each image as `read_image` returns it, turned upright; of most only the header is read.

    Raises:
        UserError: an image is missing or unreadable.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(upright_size, paths))


def upright_size(path: Path) -> tuple[int, int]:
    """(h, w) in pixels of one image; see `upright_sizes`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except OSError as error:
        if not isinstance(error, UnidentifiedImageError):
            raise UserError(f"image '{path}' cannot be read: {error.strerror or error}") from None
    except Exception:  # Pillow reports damage in many ways; OpenCV decides whether the image can be read at all
        pass
    else:
        return (width, height) if turned else (height, width)
    height, width = read_image(path).shape[:2]
    return height, width
