"""The painting of the embedded pictures: textures, shading, shadows, blur and noise."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from numpy.random import Generator

from mgdet.demo.scene import FINE, Shape, mask_of, window_of


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
    x0, y0, x1, y1 = window = window_of(shape, canvas.shape[0], canvas.shape[1], margin=8)
    fine = mask_of(shape, window, FINE)
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
