"""Picture files beside what OpenCV decodes at once: other formats, and pixels that are not of 8 bits."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from mgdet.errors import UserError, git_lfs_note

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".avif"),
    *(".heic", ".heif", ".jp2", ".ppm", ".pgm", ".pbm"),
)
"""Endings of picture files."""
APPLE_DOUBLE = "._"
"""How names begin of what a Mac leaves beside its files on foreign disks; they end as pictures do and are none."""
_HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
LOOKED_AT = 8
"""Pictures that `depth_notes` opens."""
_NO_RANGE = {"F": "float32", "I": "int32"}
"""Pillow's names for pixels of which it is not known what is white."""


def is_picture(name: str) -> bool:
    """Does a file of this name look like a picture? Hidden files do not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def decode(data: bytes, path: Path) -> np.ndarray:
    """Decodes a picture, turned upright if its EXIF data says so: with OpenCV, or else, and AVIF first, with Pillow.

    Of a moving picture the first frame is taken. Pixels of 16 bits are divided by 256, as MMDetection does.

    Args:
        data: the file's content.
        path: the file, for errors.

    Returns:
        (h, w, 3) uint8, BGR.

    Raises:
        UserError: neither knows the format, the file is damaged, or its pixels are of a type without a known range.
    """
    image = _pillow(data, path) if _is_avif(data) else None
    if image is None:
        image = _opencv(data, cv2.IMREAD_COLOR)
    if image is None:
        raw = _opencv(data, cv2.IMREAD_UNCHANGED)
        if raw is not None and raw.dtype not in (np.uint8, np.uint16):
            raise UserError(_no_range(f"image '{path}'", str(raw.dtype)))
        image = _pillow(data, path)
    if image is None:
        raise UserError(f"image '{path}' {_unreadable(data)}")
    return image


def _is_avif(data: bytes) -> bool:
    """Is this AVIF, which OpenCV does not turn upright? Its brands are `avif` and `avis`."""
    return data[4:8] == b"ftyp" and b"avi" in data[8 : min(64, int.from_bytes(data[:4], "big"))]


def has_reader(path: Path) -> bool:
    """Is there a reader for the format of a file? Only its first bytes are looked at."""
    try:
        name = str(path).encode().decode()
    except UnicodeEncodeError:  # no text, which ends the process in OpenCV
        return _opencv(path.read_bytes(), cv2.IMREAD_COLOR) is not None or bool(_mode(path))
    return cv2.haveImageReader(name) or bool(_mode(path))


def check_format(path: Path) -> None:
    """Refuses a file that no reader knows, or whose pixels have no known range, as far as its header tells.

    Raises:
        UserError: says which.
    """
    if not has_reader(path):
        with path.open("rb") as file:
            raise UserError(f"image '{path}' {_unreadable(file.read(64))}")
    if kind := _NO_RANGE.get(_mode(path)):
        raise UserError(_no_range(f"image '{path}'", kind))


def pillow_pixels(image: Image.Image, what: str) -> np.ndarray:
    """The pixels of Pillow's image, turned upright by its EXIF data; those of 16 bits are divided by 256.

    Args:
        image: of any mode.
        what: the picture, for errors.

    Returns:
        (h, w, 3) uint8, BGR.

    Raises:
        UserError: its pixels have no known range.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        grey = (np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if kind := _NO_RANGE.get(upright.mode):
        raise UserError(_no_range(what, kind))
    return np.ascontiguousarray(np.asarray(upright.convert("RGB"))[..., ::-1])


def is_foreign(path: Path) -> bool:
    """Is a file a whole picture of a format that only an extra package reads, HEIC?"""
    with path.open("rb") as file:
        return file.read(12)[4:] in _HEIF_BRANDS and not has_reader(path)


def depth_notes(paths: Sequence[Path]) -> list[str]:
    """A sentence if pictures are nearly black to a detector: 16 bits a pixel of which the upper ones are unused.

    Args:
        paths: pictures; the first few are looked at.
    """
    deep = []
    for path in paths[:LOOKED_AT]:
        with contextlib.suppress(OSError):
            if _has_16_bits(path) and (raw := _opencv(path.read_bytes(), cv2.IMREAD_UNCHANGED)) is not None:
                deep.append((int(raw.max()), path))
    if not deep or max(deep)[0] >= 2**15:
        return []
    most, path = max(deep)
    return [
        f"'{path}' and others have 16 bits per pixel and use {max(most, 1).bit_length()}: divided by 256, as in "
        f"MMDetection, their brightest pixel is {most // 256} of 255; stretch them to 8 bits if that is too dark"
    ]


def _has_16_bits(path: Path) -> bool:
    """From the header alone."""
    mode = _mode(path)
    return mode.startswith("I;16")


def _mode(path: Path) -> str:
    """Pillow's name for the pixels of a file, from the header alone; empty if Pillow does not know the format."""
    try:
        with _opened(path) as image:
            # Old versions of Pillow call grey PNG and PGM of 16 bits "I" as well.
            return "I;16" if image.mode == "I" and image.format != "TIFF" else image.mode
    except _PILLOW_ERRORS:
        return ""


def _opencv(data: bytes, flags: int) -> np.ndarray | None:
    """OpenCV's picture, or None; what it would write to the terminal on its own is left out."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        image: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        return image
    except cv2.error:
        return None
    finally:
        logging.setLogLevel(level)


_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@contextlib.contextmanager
def _opened(source: Path | io.BytesIO) -> Iterator[Image.Image]:
    """A picture opened by Pillow, which reads HEIC too where pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures
        with Image.open(source) as image:
            yield image


def _pillow(data: bytes, path: Path) -> np.ndarray | None:
    """Pillow's picture as (h, w, 3) uint8 BGR, or None."""
    try:
        with _opened(io.BytesIO(data)) as image:
            return pillow_pixels(image, f"image '{path}'")
    except UserError:
        raise
    except _PILLOW_ERRORS:
        return None


def _no_range(what: str, kind: str) -> str:
    return f"{what} has {kind} pixels, and what is white among them is not known; convert it to 8 or 16 bits"


def _unreadable(data: bytes) -> str:
    if data[4:12] in _HEIF_BRANDS:
        return "is HEIC, which nothing here can decode; install pillow-heif, or convert it"
    if note := git_lfs_note(data):
        return f"cannot be decoded: {note}"
    return "cannot be decoded: it is damaged, truncated or of an unknown format"
