"""From an image file to what a detector sees of it: reading, resizing and flipping, pixel by pixel as MMDetection does.

Pixels stay uint8 in OpenCV's BGR order here; `mgdet.data.batch` normalises them on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torchvision.io import decode_jpeg

from mgdet.data.pictures import check_format, decode
from mgdet.errors import UserError
from mgdet.structures import Target

SIZE_DIVISOR = 32
"""Heights and widths of batches and of masks are multiples of this, the stride of a backbone's last stage."""

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_TAIL = 64


@dataclass(frozen=True, slots=True)
class View:
    """One image of a data set and how to look at it. All that is random in reading it is a function of the view.

    index: position in the data set's `images`.
    long_edge, short_edge: the resized image is as large as fits both, in pixels, with its ratio kept.
    flip: mirror it from left to right.
    square: squash the image to a square of this edge instead, in pixels; 0: keep its ratio.
    seed: of what is drawn for this image alone, see `mgdet.data.augment`; None: nothing is.
    canvas: as large as fits into this (h, w) instead, with its ratio kept; None: see the edges.
    """

    index: int
    long_edge: int
    short_edge: int
    flip: bool
    square: int = 0
    seed: int | None = None
    canvas: tuple[int, int] | None = None

    def size_of(self, original: tuple[int, int]) -> tuple[int, int]:
        """The (h, w) of an image as it is seen, from that of its file."""
        if self.square:
            return self.square, self.square
        if self.canvas is not None:
            return fitted_size(original, self.canvas)
        return resized_size(original, self.long_edge, self.short_edge)


class Picture(NamedTuple):
    """An image file and its objects, before anything is done to them.

    image: (H, W, 3) uint8, BGR.
    file: path of the image file.
    image_id: its id in the annotation file.
    boxes: (N, 4) float32, xyxy, pixels of `image`.
    labels: (N,) int64.
    masks: N arrays (H, W) uint8 of zeros and ones, perhaps each decoded when it is asked for; None where boxes suffice.
    """

    image: np.ndarray
    file: str
    image_id: int | str
    boxes: np.ndarray
    labels: np.ndarray
    masks: Sequence[np.ndarray] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(slots=True)
class Example:
    """One image, ready for a batch.

    image: (h, w, 3) uint8, BGR.
    target: its objects, boxes xyxy in pixels of `image`.
    file: path of the image file.
    image_id: its id in the annotation file.
    original: (h, w) of the image file, or of the crop of it.
    scale: (x, y) resize factor from there to `image`.
    """

    image: np.ndarray
    target: Target
    file: str
    image_id: int | str
    original: tuple[int, int]
    scale: tuple[float, float]


def read_image(path: Path) -> np.ndarray:
    """Reads an image file of any format that OpenCV or Pillow knows, turned upright if its EXIF data says so.

    Returns:
        (h, w, 3) uint8, BGR.

    Raises:
        UserError: the file is missing, unreadable, or truncated, or its pixels have no known range.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"image '{path}' cannot be read: {error.strerror or error}") from None
    if _truncated_jpeg(data):
        raise UserError(f"image '{path}' is truncated; copy it again")
    return decode(data, path)


def check_readable(path: Path) -> None:
    """Refuses an image file that `read_image` would, as far as its first and last bytes tell.

    Raises:
        UserError: the file is missing, unreadable, truncated, or of an unknown format.
    """
    try:
        with path.open("rb") as file:
            head = file.read(2)
            file.seek(max(0, path.stat().st_size - _TAIL))
            whole = head != _JPEG_START or _JPEG_END in file.read()
        if not whole and _truncated_jpeg(path.read_bytes()):
            raise UserError(f"image '{path}' is truncated; copy it again")
        check_format(path)
    except OSError as error:
        raise UserError(f"image '{path}' cannot be read: {error.strerror or error}") from None


def _truncated_jpeg(data: bytes) -> bool:
    """OpenCV 4 fills the rest of a truncated JPEG with grey and says nothing, so look for the end ourselves."""
    if not data.startswith(_JPEG_START) or _JPEG_END in data[-_TAIL:]:
        return False
    try:  # no end where it belongs: cut off, or something else was appended
        decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return True
    return False


def resized_size(size: tuple[int, int], long_edge: int, short_edge: int) -> tuple[int, int]:
    """The largest (h, w) with the ratio of `size`, an (h, w), whose edges are at most `long_edge` and `short_edge`."""
    height, width = size
    factor = min(long_edge / max(size), short_edge / min(size))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def fitted_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """The largest (h, w) with the ratio of `size`, an (h, w), that lies within `canvas`, an (h, w)."""
    factor = min(whole / edge for whole, edge in zip(canvas, size))
    height, width = (min(whole, max(1, int(edge * factor + 0.5))) for whole, edge in zip(canvas, size))
    return height, width


def padded_size(size: tuple[int, int], multiple: int = SIZE_DIVISOR) -> tuple[int, int]:
    """The (h, w) `size`, rounded up to multiples of `SIZE_DIVISOR`, or of a `multiple` that does not divide that."""
    divisor = multiple if SIZE_DIVISOR % multiple else SIZE_DIVISOR
    height, width = (-(-edge // divisor) * divisor for edge in size)
    return height, width


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes bilinearly.

    Args:
        image: (H, W, 3) uint8.
        size: the (h, w) to reach.
    """
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def flip(image: np.ndarray) -> np.ndarray:
    """Mirrors an image (h, w, 3) or a mask (h, w) from left to right."""
    return cv2.flip(image, 1)


def resize_boxes(boxes: np.ndarray, scale: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Scales boxes and clips them to the resized image.

    Args:
        boxes: (N, 4) float32, xyxy, pixels of the image file.
        scale: (x, y) resize factor.
        size: (h, w) of the resized image.

    Returns:
        (N, 4) float32, xyxy, pixels of the resized image.
    """
    height, width = size
    factors = np.array([*scale, *scale], dtype=np.float32)
    return np.clip(boxes * factors, 0, np.array([width, height, width, height], dtype=np.float32))


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Mirrors boxes (N, 4), xyxy, in an image that is `width` pixels wide."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def resize_masks(masks: Sequence[np.ndarray], size: tuple[int, int], flipped: bool) -> np.ndarray:
    """Resizes masks to the nearest neighbour, flips them if asked, and pads them with zeros.

    Args:
        masks: N arrays (H, W) uint8 of zeros and ones, pixels of the image file.
        size: (h, w) of the resized image.
        flipped: mirror them from left to right.

    Returns:
        (N, h', w') uint8, `size` rounded up to multiples of `SIZE_DIVISOR`.
    """
    height, width = size
    result = np.zeros((len(masks), *padded_size(size)), dtype=np.uint8)
    for padded, mask in zip(result, masks):
        # Only the part around the object: the rest is zeros, and pages of zeros that nobody writes cost nothing.
        part, top, left = nearest_part(mask, nearest(mask.shape[0], height), nearest(mask.shape[1], width))
        if flipped and part.size:
            part, left = flip(part), width - left - part.shape[1]
        padded[top : top + part.shape[0], left : left + part.shape[1]] = part
    return result


def nearest_part(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, int, int]:
    """What some pixels of a mask show of its object.

    Args:
        mask: (H, W) uint8 of zeros and ones.
        rows: (h,) int, the row of the mask for each row of the result, never falling; see `nearest`.
        columns: (w,) int, likewise.

    Returns:
        The part of the result around the object, uint8, perhaps empty; and its first row and column in the result.
    """
    y, x, h, w = cv2.boundingRect(np.ascontiguousarray(mask.T))  # decoded masks lie column by column in memory
    top, bottom = np.searchsorted(rows, (y, y + h)).tolist()
    left, right = np.searchsorted(columns, (x, x + w)).tolist()
    part = mask[y : y + h].take(columns[left:right], axis=1).take(rows[top:bottom] - y, axis=0)
    return part, top, left


@functools.lru_cache(maxsize=256)
def nearest(size: int, resized: int) -> np.ndarray:
    """Which of `size` pixels on an axis OpenCV takes for each of `resized` ones, (resized,) int, never falling."""
    pixels = np.arange(size, dtype=np.float32)[None]
    return cv2.resize(pixels, (resized, 1), interpolation=cv2.INTER_NEAREST)[0].astype(np.intp)


def make_example(
    image: np.ndarray,
    view: View,
    *,
    file: str,
    image_id: int | str = 0,
    boxes: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    masks: Sequence[np.ndarray] | None = None,
) -> Example:
    """Resizes and flips an image and its objects together.

    Args:
        image: (H, W, 3) uint8, BGR, as `read_image` returns it.
        view: which size and whether to flip; its index is not used.
        file: path of the image file.
        image_id: its id in the annotation file.
        boxes: (N, 4) float32, xyxy, pixels of `image`; None: no objects.
        labels: (N,) int64; None: no objects.
        masks: N arrays (H, W) uint8 of zeros and ones; None where boxes suffice.
    """
    original = (image.shape[0], image.shape[1])
    size = view.size_of(original)
    scale = (size[1] / original[1], size[0] / original[0])
    image = resize(image, size)
    boxes = resize_boxes(np.zeros((0, 4), np.float32) if boxes is None else boxes, scale, size)
    if view.flip:
        image = flip(image)
        boxes = flip_boxes(boxes, size[1])
    target = Target(
        torch.from_numpy(boxes),
        torch.from_numpy(np.zeros(0, np.int64) if labels is None else labels),
        None if masks is None else torch.from_numpy(resize_masks(masks, size, view.flip)),
        size=size,
        padded=padded_size(size),
    )
    return Example(image, target, file, image_id, original, scale)
