"""The layouts of the embedded pictures: which outlines, where, in which order, and their annotations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

BANDS = ((180.0, 980.0), (1080.0, 8800.0), (10500.0, 15500.0))
"""Areas in square pixels that objects of COCO's bands small, medium and large are drawn from."""
BAND_SHARES = (0.3, 0.5, 0.2)
"""How often each band is drawn; large objects often find no place, or end up medium because others hide them."""
VISIBLE = 0.6
"""An object is placed only where it leaves at least this share of every object beneath it visible."""
INSIDE = 0.85
"""An object is placed only where at least this share of it lies in the image and is not cut off."""
FINE = 4
"""Outlines are traced on a grid this many times finer than the pixels."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One object of a layout.

    label: index into `CLASSES`.
    outline: (N, 2) float contours in pixels, (x, y); a second contour is a hole.
    area: square pixels, as if nothing hid it or cut it off.
    """

    label: int
    outline: list[np.ndarray]
    area: float


# ---- outlines: each about 1 in radius, (N, 2) float, (x, y) ---------------------------------------------------------


def _arc(start: float, stop: float, steps: int = 64, radius: float = 1.0) -> np.ndarray:
    angles = np.linspace(start, stop, steps)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _polygon(corners: int) -> np.ndarray:
    return _arc(0, 2 * np.pi, corners + 1)[:-1]


def _disc(rng: Generator) -> list[np.ndarray]:
    return [_polygon(64)]


def _ring(rng: Generator) -> list[np.ndarray]:
    return [_polygon(64), rng.uniform(0.45, 0.65) * _polygon(64)]


def _triangle(rng: Generator) -> list[np.ndarray]:
    return [_polygon(3)]


def _square(rng: Generator) -> list[np.ndarray]:
    return [_polygon(4) @ np.array([[1.0, 1.0], [-1.0, 1.0]])]


def _star(rng: Generator) -> list[np.ndarray]:
    points = _polygon(10)
    points[1::2] *= rng.uniform(0.4, 0.5)
    return [points]


def _cross(rng: Generator) -> list[np.ndarray]:
    arm = rng.uniform(0.28, 0.38)
    corner = np.array([[1.0, -arm], [1.0, arm], [arm, arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return [np.concatenate([corner @ np.linalg.matrix_power(turn, quarter) for quarter in range(4)])]


_OUTLINES: dict[str, Callable[[Generator], list[np.ndarray]]] = {
    "disc": _disc,
    "ring": _ring,
    "triangle": _triangle,
    "square": _square,
    "star": _star,
    "cross": _cross,
}

CLASSES: tuple[str, ...] = tuple(_OUTLINES)
"""Class names by label; the category id in the files is the label + 1."""


# ---- layout ---------------------------------------------------------------------------------------------------------


def layout(height: int, width: int, rng: Generator, smallest: float = 0.0) -> list[Shape]:
    """Places 1 to 6 objects, the lowest first; none hides another one too far.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        smallest: area in square pixels that no object is drawn smaller than.
    """
    bands, shares = zip(*bands_of(height, width, smallest))
    chosen = rng.choice(len(bands), size=rng.integers(1, 7), p=np.array(shares) / sum(shares))
    areas = np.array([np.exp(rng.uniform(*np.log(bands[band]))) for band in chosen])
    areas = areas[np.argsort(-areas * np.exp(rng.normal(0, 0.7, len(areas))))]  # mostly the big ones below

    shapes: list[Shape] = []
    owner = np.zeros((height, width), np.uint8)  # 1 + index of the topmost object, 0 for background
    seen, least = np.array([height * width]), np.array([0.0])  # pixels of each owner now, and at least
    for area in areas:
        for _ in range(12):
            shape = _place(float(area), height, width, rng)
            x0, y0, x1, y1 = window = window_of(shape, height, width, margin=1)
            mask = mask_of(shape, window, 1) > 0
            lost = np.bincount(owner[y0:y1, x0:x1][mask], minlength=len(seen))
            if lost.sum() >= INSIDE * area and all(seen - lost >= least):
                shapes.append(shape)
                owner[y0:y1, x0:x1][mask] = len(shapes)
                seen, least = np.append(seen - lost, lost.sum()), np.append(least, VISIBLE * area)
                break
    return shapes or layout(height, width, rng, smallest)


def bands_of(height: int, width: int, smallest: float) -> list[tuple[tuple[float, float], float]]:
    """The bands of areas that objects of an image are drawn from, and how often each is drawn."""
    largest = 0.6 * height * width
    return [
        ((max(low, smallest), min(high, largest)), share)
        for (low, high), share in zip(BANDS, BAND_SHARES)
        if max(low, smallest) < min(high, largest)
    ]


def _place(area: float, height: int, width: int, rng: Generator) -> Shape:
    """One object of a random class, stretched, turned, scaled to `area`, and moved into the image."""
    label = int(rng.integers(len(CLASSES)))
    outline = _OUTLINES[CLASSES[label]](rng)
    stretch = np.exp(rng.uniform(-0.18, 0.18))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    filled = [cv2.contourArea(contour.astype(np.float32)) for contour in outline]
    scale = np.sqrt(area / (filled[0] - sum(filled[1:])))
    outline = [(contour * (stretch, 1 / stretch)) @ turn * scale for contour in outline]
    low, high = outline[0].min(axis=0), outline[0].max(axis=0)
    slack = 0.06 * (high - low)  # how far it may stick out
    first, last = -low - slack, (width, height) - high + slack
    centre = rng.uniform(np.minimum(first, last), np.maximum(first, last))
    return Shape(label, [contour + centre for contour in outline], area)


# ---- annotation -----------------------------------------------------------------------------------------------------


def annotate(shapes: list[Shape], height: int, width: int) -> list[dict[str, Any]]:
    """The visible part of each object as COCO annotation fields, without ids.

    Args:
        shapes: the lowest first.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        One dict per object: `category_id`, `bbox` xywh and `segmentation` polygons in pixels, `area`, `iscrowd` 0. The
        box is the polygons' bounding box, the area their area.
    """
    hidden = np.zeros((height * FINE, width * FINE), np.uint8)
    result: list[dict[str, Any]] = []
    for shape in reversed(shapes):
        x0, y0, x1, y1 = window = window_of(shape, height, width, margin=1)
        above = hidden[y0 * FINE : y1 * FINE, x0 * FINE : x1 * FINE]
        mask = mask_of(shape, window, FINE)
        polygons = [(polygon + 0.5) / FINE + (x0, y0) for polygon in _trace(cv2.subtract(mask, above))]
        above |= mask
        points = np.concatenate(polygons)
        low, high = points.min(axis=0), points.max(axis=0)
        result.append(
            {
                "category_id": shape.label + 1,
                "bbox": np.round([*low, *(high - low)], 3).tolist(),
                "area": round(sum(cv2.contourArea(polygon.astype(np.float32)) for polygon in polygons), 2),
                "segmentation": [np.round(polygon, 3).ravel().tolist() for polygon in polygons],
                "iscrowd": 0,
            }
        )
    return result[::-1]


def window_of(shape: Shape, height: int, width: int, margin: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in whole pixels: the part of the image that holds the object and a margin around it."""
    x0, y0 = np.maximum(np.floor(shape.outline[0].min(axis=0)).astype(int) - margin, 0).tolist()
    x1, y1 = np.minimum(np.ceil(shape.outline[0].max(axis=0)).astype(int) + margin, (width, height)).tolist()
    return x0, y0, x1, y1


def mask_of(shape: Shape, window: tuple[int, int, int, int], finer: int) -> np.ndarray:
    """The object inside a window as zeros and 255, uint8, on a grid `finer` times finer than the pixels."""
    x0, y0, x1, y1 = window
    contours = [np.rint((contour - (x0, y0)) * finer - 0.5).astype(np.int32) for contour in shape.outline]
    return cv2.fillPoly(np.zeros(((y1 - y0) * finer, (x1 - x0) * finer), np.uint8), contours, 255)


def _trace(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons (N, 2) around what is not zero in a fine mask (H, W) uint8.

    COCO's polygons have no holes, so a part with a hole is cut in two there, between two pixels.
    """
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    worth = 2 * FINE * FINE  # crumbs and pinholes below two square pixels are ignored
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0] if contours else []):
        x, _, hole_width, _ = cv2.boundingRect(contour)
        if parent >= 0 and hole_width >= 2 * FINE and cv2.contourArea(contour) >= worth:
            cut = round((x + hole_width / 2) / FINE) * FINE
            return _trace(mask[:, :cut]) + [polygon + np.array([cut, 0]) for polygon in _trace(mask[:, cut:])]
    outer = [contour for contour, (_, _, _, parent) in zip(contours, hierarchy[0] if contours else []) if parent < 0]
    return [cv2.approxPolyDP(contour, 0.8, True)[:, 0] for contour in outer if cv2.contourArea(contour) >= worth]
