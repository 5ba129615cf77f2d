"""Image files before any is decoded: are they all there, how large are they, does EXIF turn them?"""

from __future__ import annotations

import os
import threading
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from mgdet.data.file_names import is_file
from mgdet.data.pictures import is_picture
from mgdet.data.records import Records
from mgdet.data.segmentation import to_rle
from mgdet.data.transforms import check_readable, read_image
from mgdet.errors import UserError

_ORIENTATION = 0x0112  # the EXIF tag
_TIFF_SIZE = (256, 257)  # its tags of width and height, as the pixels are stored
_TAIL = 1 << 17
"""EXIF data is shorter than this many bytes."""
_CHECKED = 8
"""Images that are opened and whose size is compared with the records at the start; the others when they are read."""
_LIMIT = threading.Lock()
"""Held while Pillow's limit of pixels is lifted: the limit is one for all threads."""


def check_images(records: Records) -> Records:
    """Looks for all image files, and reads the sizes that the records lack.

    Returns:
        The records with every size known.

    Raises:
        UserError: files are missing, or the first ones cannot be read or have another size than the records say.
    """
    missing = find_missing(records.folder, records.files)
    if missing:
        raise UserError(_about_missing(records, missing))
    records = _with_sizes(records)
    for index in range(min(_CHECKED, len(records))):
        path = records.folder / records.files[index]
        check_readable(path)
        size = header_size(path)
        if size is not None:
            check_size(records, index, size)
    return records


def find_missing(folder: Path, files: Sequence[str]) -> list[int]:
    """Indices of the files that are not there, or are not files: folders, broken links, pipes that would never answer.

    Each folder is listed once, so that many files take little time.

    Raises:
        UserError: a folder may not be read.
    """
    by_folder: defaultdict[str, list[int]] = defaultdict(list)
    for index, file in enumerate(files):
        by_folder[os.path.dirname(file)].append(index)
    missing = []
    for inner, indices in by_folder.items():
        try:
            with os.scandir(os.path.join(folder, inner)) as entries:
                present = {entry.name for entry in entries if entry.is_file()}
        except PermissionError as error:
            raise UserError(f"the folder '{folder / inner}' cannot be read: {error.strerror}") from None
        except (OSError, ValueError):
            present = set()
        missing += [index for index in indices if os.path.basename(files[index]) not in present]
    # A file system may take a name in other spellings than it lists: upper case, composed letters.
    return sorted(index for index in missing if not os.path.isfile(os.path.join(folder, files[index])))


def header_size(path: Path) -> tuple[int, int] | None:
    """(h, w) of an image as it is seen upright, from its header; None if Pillow does not know the format."""
    try:
        with _opened(path) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):  # whose size some versions of Pillow turn when they open it
                width, height = (image.tag_v2[edge] for edge in _TIFF_SIZE)
            return (width, height) if turned_by_exif(image, path) else (height, width)
    except (OSError, ValueError, SyntaxError, KeyError):
        return None


def _opened(path: Path) -> Image.Image:
    """An image of any size, of which nothing has been decoded; Pillow refuses to open very large ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(path)
        except Image.DecompressionBombError:
            with _LIMIT:
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    return Image.open(path)
                finally:
                    Image.MAX_IMAGE_PIXELS = limit


def turned_by_exif(image: Image.Image, path: Path) -> bool:
    """Does the EXIF orientation swap width and height?"""
    # Pillow decodes a whole PNG to see whether EXIF data follows its pixels.
    exif = Image.Image.getexif(image) if image.format == "PNG" and not _ends_with_exif(path) else image.getexif()
    return exif.get(_ORIENTATION) in (5, 6, 7, 8)


def _ends_with_exif(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        return b"eXIf" in file.read()


def without_size(records: Records) -> np.ndarray:
    """Indices of the images whose size the records do not say."""
    return np.flatnonzero((records.heights == 0) | (records.widths == 0))


def check_size(records: Records, index: int, size: tuple[int, int]) -> None:
    """Compares the (h, w) of an image file, upright, with the records.

    Raises:
        UserError: they differ; the sentence says whether EXIF turns the image.
    """
    height, width = size
    said_height, said_width = int(records.heights[index]), int(records.widths[index])
    if (height, width) == (said_height, said_width):
        return
    path = records.folder / records.files[index]
    text = f"image '{path}' is {width} x {height} pixels, but '{records.source}' says {said_width} x {said_height}"
    if (width, height) == (said_height, said_width):
        with _opened(path) as image:
            if turned_by_exif(image, path):
                text += (
                    ", its size before the EXIF orientation turns it upright; "
                    "give size and boxes of the upright image, or take the EXIF orientation out of the file"
                )
    raise UserError(text)


def _with_sizes(records: Records) -> Records:
    unknown = without_size(records)
    if not len(unknown):
        return records
    heights, widths = records.heights.copy(), records.widths.copy()
    for index in unknown.tolist():
        path = records.folder / records.files[index]
        heights[index], widths[index] = header_size(path) or read_image(path).shape[:2]
        for row in range(*records.rows(index).indices(len(records.labels))):
            _check_rle(records, row, path, (int(heights[index]), int(widths[index])))
    return replace(records, heights=heights, widths=widths)


def _check_rle(records: Records, row: int, path: Path, size: tuple[int, int]) -> None:
    segmentation = records.segmentation(row)
    try:
        if segmentation:
            to_rle(segmentation, *size)
    except ValueError as error:
        raise UserError(
            f"{records.describe(row)} in '{records.source}' does not fit the file '{path}': {error}"
        ) from None


def _about_missing(records: Records, missing: list[int]) -> str:
    folder = records.folder
    named = [f"'{folder / records.files[index]}'" for index in missing[:3]]
    first = records.files[missing[0]]
    there = any(_is_there(folder / records.files[index]) for index in missing)
    text = (
        f"{len(missing):,} of {len(records):,} images listed in '{records.source}' "
        f"{'do not exist or are not files' if there else 'do not exist'}: {', '.join(named)}"
        if len(missing) > 1
        else f"image {named[0]}, listed in '{records.source}', {'is not a file' if there else 'does not exist'}"
    )
    return text + (", ..." if len(missing) > 3 else "") + _hint(folder, first)


def _hint(folder: Path, file: str) -> str:
    """Where the file might be instead."""
    slashes = file.replace("\\", "/")
    if slashes != file:
        found = next((name for name in (slashes, slashes.rsplit("/")[-1]) if is_file(folder / name)), None)
        return "; the name has the backslashes of Windows, write slashes" + (
            f": did you mean '{found}'" if found else ""
        )
    for other in (folder.parent, *sorted(_folders(folder))):
        if is_file(other / file):
            return f"; it is in '{other}', give that folder"
    base = os.path.basename(file)
    if base != file and is_file(folder / base):
        return f"; did you mean '{folder / base}', without the folder in its name"
    return _other_spelling(folder / file)


def _other_spelling(path: Path) -> str:
    """The file that differs in its suffix, in upper and lower case, or in how its letters are composed."""
    for spell in (_spelled, lambda name: _spelled(os.path.splitext(name)[0])):
        try:
            names = sorted(entry.name for entry in path.parent.iterdir() if entry.name != path.name)
        except OSError:
            return ""
        alike = (name for name in names if is_picture(name) and spell(name) == spell(path.name))
        found = next((name for name in alike if is_file(path.parent / name)), None)
        if found is not None:
            same = unicodedata.normalize("NFC", found) == unicodedata.normalize("NFC", path.name)
            how = ", whose letters are composed in another way (Unicode's NFC and NFD)" if same else ""
            return f"; did you mean '{path.parent / found}'{how}"
    return ""


def _spelled(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _folders(folder: Path) -> list[Path]:
    try:
        return [inner for inner in folder.iterdir() if inner.is_dir()]
    except OSError:
        return []


def _is_there(path: Path) -> bool:
    """Is there anything of this name? A link that leads nowhere is nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
