"""The embedded data set: pictures of six kinds of shapes, in COCO format, made from a seed.

The classes differ in form alone. Colour, texture, shading, rotation, stretch and size are drawn alike for all of
them, over textured backgrounds with lines and arcs that belong to no object. A picture is made in two steps: a
layout (which outlines, where, in which order) and its painting. The annotations come from the layout.
"""

from __future__ import annotations

import colorsys
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from mgdet.errors import UserError

VERSION = 1
"""Part of the stamp: raise it when the same arguments give other pictures."""

SMALLEST_EDGE = 64
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


def write_shapes(
    root: Path,
    *,
    num_train: int,
    num_val: int,
    size: tuple[int, int],
    seed: int,
    smallest: float = 0.0,
    num_test: int = 0,
) -> None:
    """Writes the data set: `annotations/{train,val}.json`, `train/*.jpg` and `val/*.jpg` under `root`.

    `root` appears complete or not at all. If it already holds the data set of the same arguments, nothing is done.
    The same arguments always give the same files, and a picture does not depend on how many there are.

    Args:
        num_train: number of training images.
        num_val: number of evaluation images.
        num_test: number of images of a third split, `annotations/test.json` and `test/*.jpg`, for what is reported at
            the end; 0: none.
        size: (h, w) in pixels, each at least 64. Half of the images, by chance, are turned to (w, h). Large objects
            (96 x 96 and more) need about 128 x 128 and are left out of smaller images.
        seed: of everything random, 0 or more.
        smallest: area in square pixels that no object is drawn smaller than; scenes are easier without small objects.

    Raises:
        UserError: `root` holds something else or cannot be written, or an argument is out of range.
    """
    if min(size) < SMALLEST_EDGE:
        raise UserError(f"shapes of {size[0]} x {size[1]} pixels are too small; give at least {SMALLEST_EDGE} per edge")
    for name, value, least in (
        ("num_train", num_train, 1),
        ("num_val", num_val, 1),
        ("num_test", num_test, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"{name} of the shapes is {value}; give {least} or more")
    if not _bands(*size, smallest):
        raise UserError(
            f"smallest of the shapes is {smallest:g}, but images of {size[0]} x {size[1]} pixels hold no object that "
            "large; give a smaller area or larger images"
        )
    stamp = {"version": VERSION, "num_train": num_train, "num_val": num_val, "size": list(size), "seed": seed}
    stamp |= {"smallest": smallest} if smallest else {}
    stamp |= {"num_test": num_test} if num_test else {}
    if _holds(root, stamp):
        return
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(f"{root} exists and is not the data set asked for; remove it or give another folder")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
            folder = Path(scratch) / "shapes"
            counts = (("train", num_train), ("val", num_val), ("test", num_test))
            for split, (name, count) in enumerate(counts if num_test else counts[:2]):
                _write_split(folder, name, count, size, (seed, split), smallest)
            (folder / "shapes.json").write_text(json.dumps(stamp))
            os.replace(folder, root)
    except OSError as error:
        raise UserError(f"the shapes cannot be written to {root}: {error.strerror or error}") from error


def _holds(root: Path, stamp: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((root / "shapes.json").read_text()) == stamp)
    except (OSError, ValueError):
        return False


def _write_split(
    folder: Path, name: str, count: int, size: tuple[int, int], seed: tuple[int, int], smallest: float
) -> None:
    """Writes one split's images and its annotation file; picture i is drawn from (*seed, i) alone."""
    (folder / name).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        rng = np.random.default_rng((*seed, index))
        height, width = size if rng.random() < 0.5 else size[::-1]
        shapes = layout(height, width, rng, smallest)
        _, encoded = cv2.imencode(".jpg", paint(shapes, height, width, rng), [cv2.IMWRITE_JPEG_QUALITY, 94])
        file_name = f"{index:06d}.jpg"
        (folder / name / file_name).write_bytes(encoded.tobytes())
        images.append({"id": index + 1, "file_name": file_name, "height": height, "width": width})
        for annotation in annotate(shapes, height, width):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
    categories = [{"id": label + 1, "name": shape, "supercategory": "shape"} for label, shape in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{name}.json").write_text(json.dumps(content))


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
    bands, shares = zip(*_bands(height, width, smallest))
    chosen = rng.choice(len(bands), size=rng.integers(1, 7), p=np.array(shares) / sum(shares))
    areas = np.array([np.exp(rng.uniform(*np.log(bands[band]))) for band in chosen])
    areas = areas[np.argsort(-areas * np.exp(rng.normal(0, 0.7, len(areas))))]  # mostly the big ones below

    shapes: list[Shape] = []
    owner = np.zeros((height, width), np.uint8)  # 1 + index of the topmost object, 0 for background
    seen, least = np.array([height * width]), np.array([0.0])  # pixels of each owner now, and at least
    for area in areas:
        for _ in range(12):
            shape = _place(float(area), height, width, rng)
            x0, y0, x1, y1 = window = _window(shape, height, width, margin=1)
            mask = _mask(shape, window, 1) > 0
            lost = np.bincount(owner[y0:y1, x0:x1][mask], minlength=len(seen))
            if lost.sum() >= INSIDE * area and all(seen - lost >= least):
                shapes.append(shape)
                owner[y0:y1, x0:x1][mask] = len(shapes)
                seen, least = np.append(seen - lost, lost.sum()), np.append(least, VISIBLE * area)
                break
    return shapes or layout(height, width, rng, smallest)


def _bands(height: int, width: int, smallest: float) -> list[tuple[tuple[float, float], float]]:
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
        x0, y0, x1, y1 = window = _window(shape, height, width, margin=1)
        above = hidden[y0 * FINE : y1 * FINE, x0 * FINE : x1 * FINE]
        mask = _mask(shape, window, FINE)
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


def _window(shape: Shape, height: int, width: int, margin: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in whole pixels: the part of the image that holds the object and a margin around it."""
    x0, y0 = np.maximum(np.floor(shape.outline[0].min(axis=0)).astype(int) - margin, 0).tolist()
    x1, y1 = np.minimum(np.ceil(shape.outline[0].max(axis=0)).astype(int) + margin, (width, height)).tolist()
    return x0, y0, x1, y1


def _mask(shape: Shape, window: tuple[int, int, int, int], finer: int) -> np.ndarray:
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


# ---- painting -------------------------------------------------------------------------------------------------------


def paint(shapes: list[Shape], height: int, width: int, rng: Generator) -> np.ndarray:
    """Paints a layout.

    Args:
        shapes: the lowest first.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        (height, width, 3) uint8, BGR.
    """
    light = rng.uniform(0, 2 * np.pi)
    shadow = rng.uniform(0.0, 0.5)
    ground = _colour(rng)
    canvas = _textured(ground, ground + 0.4 * (_colour(rng) - ground), height, width, rng)
    canvas = _scribble(canvas, int(rng.integers(1, 5)), rng)
    for shape in shapes:
        _paint_shape(canvas, shape, light, shadow, rng)
    canvas = _scribble(canvas, int(rng.integers(0, 3)), rng)
    if rng.random() < 0.4:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.9))
    noise = rng.standard_normal(canvas.shape, dtype=np.float32)
    canvas += rng.uniform(1, 6) * noise
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _paint_shape(canvas: np.ndarray, shape: Shape, light: float, shadow: float, rng: Generator) -> None:
    """Blends one object with its texture, shading and shadow into the canvas (H, W, 3) float32."""
    x0, y0, x1, y1 = window = _window(shape, canvas.shape[0], canvas.shape[1], margin=8)
    fine = _mask(shape, window, FINE)
    alpha = cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA).astype(np.float32) / 255

    behind = canvas[y0:y1, x0:x1]
    move = np.array([[1, 0, -3 * np.cos(light)], [0, 1, -3 * np.sin(light)]])
    dark = cv2.GaussianBlur(cv2.warpAffine(alpha, move, (x1 - x0, y1 - y0)), (0, 0), 2.0)
    behind *= _three(1 - shadow * dark)

    around = np.array(cv2.mean(behind)[:3], np.float32)
    first = _colour(rng)
    while np.abs(first - around).mean() < 60:
        first = _colour(rng)
    second = first + (_colour(rng) - first) * rng.uniform(0.0, 0.25)
    surface = _textured(first, second, y1 - y0, x1 - x0, rng)
    surface *= _three(1 + rng.uniform(0.05, 0.3) * _ramp(y1 - y0, x1 - x0, light))
    behind += _three(alpha) * (surface - behind)


def _colour(rng: Generator) -> np.ndarray:
    """A colour (3,) float32 in 0 .. 255 that is neither black nor white."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.85), rng.uniform(0.3, 1.0))
    return 255 * np.array(rgb, np.float32)


def _textured(first: np.ndarray, second: np.ndarray, height: int, width: int, rng: Generator) -> np.ndarray:
    """(height, width, 3) float32: two colours mixed by a random texture."""
    mix = _texture(height, width, rng)
    return cv2.merge([start + mix * (stop - start) for start, stop in zip(first, second)])


def _three(plane: np.ndarray) -> np.ndarray:
    """(H, W) repeated to (H, W, 3); several times faster here than broadcasting a last axis of one."""
    return cv2.merge((plane, plane, plane))


def _texture(height: int, width: int, rng: Generator) -> np.ndarray:
    """(height, width) float32, about 0 .. 1: clouds with, by chance, stripes, checks or dots."""
    clouds = np.zeros((height, width), np.float32)
    for cells, weight in ((3, 0.6), (9, 0.4)):
        grid = rng.random((cells, cells), dtype=np.float32)
        clouds += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    kind = rng.integers(4)
    if kind == 0:
        return clouds
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 18)
    along = np.sin(2 * np.pi / period * _axis(height, width, angle))
    if kind > 1:
        across = np.sin(2 * np.pi / period * _axis(height, width, angle + np.pi / 2))
        along = along * across if kind == 2 else along + across - 0.7
    pattern = np.clip(0.5 + 2 * along, 0, 1)
    share = rng.uniform(0.25, 0.7)
    return (1 - share) * clouds + share * pattern


def _axis(height: int, width: int, angle: float) -> np.ndarray:
    """(height, width) float32: each pixel's position along the direction `angle`, in pixels."""
    x = np.arange(width, dtype=np.float32) * np.float32(np.cos(angle))
    y = np.arange(height, dtype=np.float32) * np.float32(np.sin(angle))
    return x[None] + y[:, None]


def _ramp(height: int, width: int, angle: float) -> np.ndarray:
    """(height, width) float32, from -1 on one side to 1 on the side that faces `angle`."""
    axis = _axis(height, width, angle)
    low, high = float(axis.min()), float(axis.max())
    return 2 * (axis - low) / (high - low) - 1


def _scribble(canvas: np.ndarray, count: int, rng: Generator) -> np.ndarray:
    """The canvas (H, W, 3) float32 with lines and open arcs that belong to no object."""
    height, width = canvas.shape[:2]
    page = np.clip(canvas, 0, 255).astype(np.uint8)  # OpenCV draws smooth lines on bytes only
    for _ in range(count):
        colour, thickness = _colour(rng).tolist(), int(rng.integers(1, 3))
        x, y = (int(v) for v in rng.integers(0, (width, height)))
        if rng.random() < 0.6:
            dx, dy = (int(v) for v in rng.normal(0, 40, 2))
            cv2.line(page, (x, y), (x + dx, y + dy), colour, thickness, cv2.LINE_AA)
        else:
            start, sweep = rng.uniform(0, 360), rng.uniform(60, 200)
            axes = (int(rng.integers(6, 36)), int(rng.integers(6, 36)))
            cv2.ellipse(page, (x, y), axes, rng.uniform(0, 180), start, start + sweep, colour, thickness, cv2.LINE_AA)
    return page.astype(np.float32)
