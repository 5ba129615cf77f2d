"""Random changes of one image: crop, mosaic and colour, each a function of the view's seed and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from mgdet.config.augment import AugmentConfig
from mgdet.data.mosaic import make_mosaic
from mgdet.data.transforms import Example, Picture, View, make_example

TRIES = 10
"""Crops that are drawn before an image is left whole because none held an object."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, 0.5, 0.5, 18.0
"""How far each goes either way at full strength: in levels of 0 to 255, as a share, as a share, in degrees (SSD, arXiv
1512.02325)."""
CHANCE = 0.5


class Window(NamedTuple):
    """A part of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def augmented(read: Callable[[int], Picture], num_images: int, view: View, augment: AugmentConfig) -> Example:
    """One image of a data set with its random changes.

    Args:
        read: reads the picture at an index.
        num_images: of the data set; a mosaic takes its other pictures from all of them.
        view: with a seed; two views that are equal give the same example, in every process.
        augment: which changes, and how often.
    """
    rng = np.random.default_rng(view.seed)
    mosaic, crop = rng.random(2)
    picture, example = read(view.index), None
    if mosaic < augment.mosaic:
        others = [read(int(index)) for index in rng.integers(num_images, size=3)]
        example = make_mosaic([picture, *others], view, rng)
    if example is None:
        if crop < augment.crop:
            picture = random_crop(picture, augment, rng)
        example = make_example(view=view, **picture._asdict())
    if augment.color_jitter:
        example.image = jitter(example.image, augment.color_jitter, rng)
    return example


def random_crop(picture: Picture, augment: AugmentConfig, rng: np.random.Generator) -> Picture:
    """A crop by the rule of `augment`; the picture itself where none that was drawn held an object."""
    for _ in range(TRIES):
        cropped = crop(picture, draw_window(picture.size, augment, rng))
        if augment.crop_empty or len(cropped.labels):
            return cropped
    return picture


def draw_window(size: tuple[int, int], augment: AugmentConfig, rng: np.random.Generator) -> Window:
    """Size and place of a crop of an (h, w) image, by the rules of MMDetection's RandomCrop.

    A crop is never larger than the image, and each place in it is as likely as any other.
    """
    first, second = augment.crop_size
    height, width = size
    if augment.crop_rule == "absolute":
        height, width = min(height, int(first)), min(width, int(second))
    elif augment.crop_rule == "absolute_range":
        height, width = (int(rng.integers(min(edge, int(first)), min(edge, int(second)) + 1)) for edge in size)
    else:
        shares = np.array([first, second])
        if augment.crop_rule == "relative_range":
            shares += rng.random(2) * (1 - shares)
        height, width = (max(1, int(edge * share + 0.5)) for edge, share in zip(size, shares))
    top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(size, (height, width)))
    return Window(top, left, height, width)


def extreme_crops(size: tuple[int, int], augment: AugmentConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """The (h, w) of the highest and narrowest crop that `draw_window` can give of an (h, w) image, and of the lowest
    and widest."""
    (first, second), (height, width) = augment.crop_size, size
    if augment.crop_rule == "absolute_range":
        low, high = (tuple(min(edge, int(limit)) for edge in size) for limit in (first, second))
    elif augment.crop_rule == "absolute":
        low = high = min(height, int(first)), min(width, int(second))
    else:
        low = tuple(max(1, int(edge * share + 0.5)) for edge, share in zip(size, (first, second)))
        high = size if augment.crop_rule == "relative_range" else low
    return (high[0], low[1]), (low[0], high[1])


def crop_around(picture: Picture, size: tuple[int, int]) -> Picture:
    """A crop of (h, w) pixels, no larger than the picture, around its first object or as near as its edges allow."""
    left, top, right, bottom = picture.boxes[0].tolist()
    corners = (int((low + high - part) / 2) for low, high, part in zip((top, left), (bottom, right), size))
    top, left = (min(max(0, corner), whole - part) for corner, whole, part in zip(corners, picture.size, size))
    return crop(picture, Window(top, left, *size))


def crop(picture: Picture, window: Window) -> Picture:
    """A part of a picture. Boxes are clipped to it, and the objects of which it shows less than a pixel are left out.

    Less than a pixel is: in width or height of the box, or no pixel of the mask.
    """
    top, left, height, width = window
    boxes = picture.boxes - np.array([left, top, left, top], np.float32)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    kept = np.flatnonzero(((boxes[:, 2:] - boxes[:, :2]) >= 1).all(axis=1))
    rows, columns = slice(top, top + height), slice(left, left + width)
    masks = None
    if picture.masks is not None:
        parts = [(i, picture.masks[i][rows, columns].copy(order="K")) for i in kept.tolist()]
        masks = [part for _, part in parts if part.any()]
        kept = np.array([i for i, part in parts if part.any()], dtype=np.int64)
    return picture._replace(
        image=picture.image[rows, columns], boxes=boxes[kept], labels=picture.labels[kept], masks=masks
    )


def jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with probability one half.

    Contrast changes before or after saturation and hue. On tables of 256 values, so that an image costs little more
    than its way to HSV and back.

    Args:
        image: (h, w, 3) uint8, BGR.
        strength: share of the full ranges, 0 to 1.
        rng: where the changes are drawn.
    """
    drawn = rng.random(5) < CHANCE
    brightness, contrast, saturation, hue = np.where(drawn[:4], rng.uniform(-strength, strength, 4), 0.0)
    levels = np.arange(256, dtype=np.float64)
    before, after = levels + BRIGHTNESS * brightness, levels
    if drawn[4]:
        before = before * (1 + CONTRAST * contrast)
    else:
        after = after * (1 + CONTRAST * contrast)
    image = _looked_up(image, before)
    if drawn[2] or drawn[3]:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)  # a full circle of hues is 256 levels
        shifted = np.round(levels + HUE / 360 * 256 * hue) % 256
        hsv = _looked_up(hsv, np.stack([shifted, levels * (1 + SATURATION * saturation), levels], axis=1))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
    return _looked_up(image, after)


def _looked_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The image with each value replaced by that of a table, (256,) for all channels or (256, 3)."""
    values = np.clip(np.round(table), 0, 255).astype(np.uint8)
    if values.ndim == 1 and (values == np.arange(256)).all():
        return image
    return cv2.LUT(image, values[None])
