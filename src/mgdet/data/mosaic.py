"""Four pictures on one canvas (YOLOv4, arXiv 2004.10934)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mgdet.data.transforms import (
    Example,
    Picture,
    View,
    flip,
    flip_boxes,
    nearest,
    nearest_part,
    padded_size,
    resize,
    resize_boxes,
)
from mgdet.structures import Target

CENTER = (0.25, 0.75)
"""Where the four meet, as a share of each edge of the canvas."""
SCALE = (0.5, 1.0)
"""How large each picture is, as a share of the size that it would have alone."""
GREY = 114
"""Where no picture reaches, as in MMDetection's Mosaic."""


class Tile(NamedTuple):
    """Where one of the pictures lies, in pixels of the canvas.

    size: (h, w) of the picture, resized.
    y, x: where its upper left pixel would be, perhaps outside of the canvas.
    top, bottom, left, right: the part of the canvas that shows it.
    """

    size: tuple[int, int]
    y: int
    x: int
    top: int
    bottom: int
    left: int
    right: int

    @property
    def on_canvas(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that show it."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def of_picture(self) -> tuple[slice, slice]:
        """Rows and columns of the resized picture that are shown."""
        return slice(self.top - self.y, self.bottom - self.y), slice(self.left - self.x, self.right - self.x)


class _Patch(NamedTuple):
    """The part of the canvas around an object, as its mask: zeros and ones, and its first row and column."""

    pixels: np.ndarray
    top: int
    left: int

    def paint(self, canvas: np.ndarray) -> None:
        height, width = self.pixels.shape
        canvas[self.top : self.top + height, self.left : self.left + width] = self.pixels


class _Objects(NamedTuple):
    """N objects in pixels of the canvas; no patches where boxes suffice."""

    boxes: np.ndarray
    labels: np.ndarray
    patches: list[_Patch]


def make_mosaic(pictures: Sequence[Picture], view: View, rng: np.random.Generator) -> Example | None:
    """Four pictures in the corners of a canvas as large as the first one would be alone.

    Each touches the point where they meet, and is cut off at the edge of the canvas. Objects of which less than a
    pixel is left, in width or height or of the mask, are left out.

    Args:
        pictures: four; the first is that of the view.
        view: how large a picture would be alone, and whether to flip the canvas.
        rng: where the meeting point and the sizes are drawn.

    Returns:
        An example with the first one's file and id; None where no object is left.
    """
    first = pictures[0]
    height, width = size = view.size_of(first.size)
    y, x = (max(1, round(edge * share)) for edge, share in zip(size, rng.uniform(*CENTER, 2).tolist()))
    canvas = np.full((height, width, 3), GREY, np.uint8)
    parts = []
    for corner, (picture, scale) in enumerate(zip(pictures, rng.uniform(*SCALE, 4).tolist())):
        tile = _lay(corner, [max(1, round(edge * scale)) for edge in view.size_of(picture.size)], (y, x), size)
        canvas[tile.on_canvas] = resize(picture.image, tile.size)[tile.of_picture]
        parts.append(_objects(picture, tile))
    boxes, labels = np.concatenate([part.boxes for part in parts]), np.concatenate([part.labels for part in parts])
    if not len(labels):
        return None
    masks = None
    if first.masks is not None:
        masks = np.zeros((len(labels), *padded_size(size)), np.uint8)
        for place, patch in zip(masks, (patch for part in parts for patch in part.patches)):
            patch.paint(place[:, width - 1 :: -1] if view.flip else place)
    if view.flip:
        canvas, boxes = flip(canvas), flip_boxes(boxes, width)
    target = Target(
        torch.from_numpy(boxes),
        torch.from_numpy(labels),
        None if masks is None else torch.from_numpy(masks),
        size=size,
        padded=padded_size(size),
    )
    scales = width / first.size[1], height / first.size[0]
    return Example(canvas, target, first.file, first.image_id, first.size, scales)


def _lay(corner: int, size: Sequence[int], meeting: tuple[int, int], canvas: tuple[int, int]) -> Tile:
    """The place of a picture: corner 0 is the upper left one, 1 the upper right, 2 and 3 are below."""
    (h, w), (y, x), (height, width) = size, meeting, canvas
    y, x = y - h if corner < 2 else y, x - w if corner % 2 == 0 else x
    return Tile((h, w), y, x, max(y, 0), min(y + h, height), max(x, 0), min(x + w, width))


def _objects(picture: Picture, tile: Tile) -> _Objects:
    """What is shown of a picture's objects, in pixels of the canvas."""
    (h, w), (height, width) = tile.size, picture.size
    boxes = resize_boxes(picture.boxes, (w / width, h / height), tile.size)
    boxes = (boxes + np.array([tile.x, tile.y, tile.x, tile.y], np.float32)).clip(
        np.array([tile.left, tile.top, tile.left, tile.top], np.float32),
        np.array([tile.right, tile.bottom, tile.right, tile.bottom], np.float32),
    )
    kept = np.flatnonzero(((boxes[:, 2:] - boxes[:, :2]) >= 1).all(axis=1))
    if picture.masks is None:
        return _Objects(boxes[kept], picture.labels[kept], [])
    shown = tile.of_picture
    rows, columns = nearest(height, h)[shown[0]], nearest(width, w)[shown[1]]
    patches = {}
    for i in kept.tolist():
        part, top, left = nearest_part(picture.masks[i], rows, columns)
        if part.any():
            patches[i] = _Patch(part, tile.top + top, tile.left + left)
    kept = np.array([*patches], dtype=np.int64)
    return _Objects(boxes[kept], picture.labels[kept], [*patches.values()])
