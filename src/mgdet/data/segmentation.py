"""Segmentations: every form in which masks are written, as one of two, and from there to pixels.

The two forms are COCO's: a list of polygons [x, y, x, y, ...] of three points or more, and an RLE with `size` and
`counts`. Both are kept as JSON, in pixels of the image file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hotcoco.mask
import msgspec
import numpy as np

from mgdet.data.values import number

_NOTHING = ("", "none", "null", "[]", "{}")
_TOLERANCE = 2.0  # pixels between a mask and its box that still agree
_MOST_PIXELS = 2**28  # of a mask that is turned; no photo has more


class Unreadable(ValueError):
    """What a segmentation means is not certain; the message says why."""


def canonical(value: object, size: tuple[int, int], box: Sequence[float]) -> bytes:
    """A segmentation of any known form as JSON in one of the two forms.

    Read are polygons, flat or nested, also as lists of points; four numbers that repeat the box; RLE, compressed or
    not, also several of them; and RLE whose size is swapped, where the box shows which way it is meant. Parts of
    fewer than three points are left out.

    Args:
        value: as decoded from JSON.
        size: (h, w) of the image file; zeros where it is not known.
        box: x, y, width, height, pixels of the image file.

    Returns:
        JSON; empty if `value` is no mask at all: missing, null, empty.

    Raises:
        Unreadable: it is something else.
    """
    if not value or (isinstance(value, str) and value.strip().lower() in _NOTHING):
        return b""
    if isinstance(value, dict):
        return msgspec.json.encode(_rle(value, size, box))
    if not isinstance(value, list | tuple):
        raise Unreadable(f"it is {value!r:.40}")
    if all(isinstance(part, dict) for part in value):
        rles = [_rle(part, size, box) for part in value]
        for rle in rles:
            if rle["size"] != rles[0]["size"]:
                raise Unreadable(f"its RLEs are of the sizes {rles[0]['size']} and {rle['size']}")
        return msgspec.json.encode(_text(hotcoco.mask.merge(rles)))
    polygons = [part for part in _polygons(value, box) if len(part) >= 6]
    if not polygons:
        raise Unreadable("no polygon of it has three points or more")
    return msgspec.json.encode(polygons)


def decode(segmentation: bytes, height: int, width: int) -> np.ndarray:
    """The mask that `canonical` wrote.

    Returns:
        (height, width) uint8 of zeros and ones, column by column in memory.

    Raises:
        ValueError: an RLE is of another size.
    """
    rle = to_rle(segmentation, height, width)
    mask: np.ndarray = hotcoco.mask.decode(rle)
    return mask


def to_rle(segmentation: bytes, height: int, width: int) -> dict[str, Any]:
    """The mask that `canonical` wrote as a compressed RLE of an image of this size.

    Raises:
        ValueError: an RLE is of another size.
    """
    value = msgspec.json.decode(segmentation)
    if isinstance(value, dict) and value["size"] != [height, width]:
        raise ValueError(f"an RLE is of size {value['size']}, not {[height, width]}")
    rles = hotcoco.mask.frPyObjects(value, height, width)
    rle: dict[str, Any] = hotcoco.mask.merge(rles) if isinstance(rles, list) else rles
    return rle


def _polygons(value: Sequence[object], box: Sequence[float], depth: int = 0) -> list[list[float]]:
    """Every polygon in nested lists, as flat coordinates."""
    numbers = [number(v) for v in value]
    if all(v is not None for v in numbers):
        return [_corners([v for v in numbers if v is not None], box)]
    if depth == 3 or not all(isinstance(part, list | tuple) for part in value):
        raise Unreadable("a polygon of it is not x, y, x, y, ...")
    parts: list[Sequence[object]] = [part for part in value if isinstance(part, list | tuple)]
    if len(parts) >= 3 and all(len(part) == 2 for part in parts):
        return _polygons([v for part in parts for v in part], box, 3)
    return [polygon for part in parts for polygon in _polygons(part, box, depth + 1)]


def _corners(numbers: list[float], box: Sequence[float]) -> list[float]:
    if len(numbers) % 2:
        raise Unreadable("a polygon of it has an odd number of coordinates")
    if len(numbers) == 4 and max(abs(a - b) for a, b in zip(numbers, box)) < 1:
        x, y, width, height = numbers
        return [x, y, x, y + height, x + width, y + height, x + width, y]
    return numbers


def _rle(value: dict, size: tuple[int, int], box: Sequence[float]) -> dict[str, Any]:
    """A checked RLE of an image of this size."""
    shape, counts = _integers(value.get("size")), value.get("counts")
    if shape is None or len(shape) != 2 or min(shape) < 1:
        raise Unreadable(f"its RLE has the size {value.get('size')!r:.40}")
    if not isinstance(counts, str):
        counts = _integers(counts)
        if counts is None:
            raise Unreadable(f"its RLE has the counts {value.get('counts')!r:.40}")
    rle = {"size": shape, "counts": counts}
    if list(size) in (shape, [0, 0]):
        _bounds(rle)
        return rle
    if [size[1], size[0]] != shape:
        raise Unreadable(f"its RLE is of size {shape}, not {list(size)}")
    return _unswapped(rle, box)


def _unswapped(rle: dict[str, Any], box: Sequence[float]) -> dict[str, Any]:
    """An RLE whose size is written as width, height: only the size, or the mask too, whichever fits the box."""
    width, height = rle["size"]
    only_size = {"size": [height, width], "counts": rle["counts"]}
    x, y, w, h = _bounds(rle)
    if _distance(_bounds(only_size), box) <= min(_TOLERANCE, _distance((y, x, h, w), box)):
        return only_size
    if _distance((y, x, h, w), box) > _TOLERANCE or width * height > _MOST_PIXELS:
        raise Unreadable(f"its RLE is of size {rle['size']}, not {[height, width]}, and does not fit the box")
    turned = hotcoco.mask.decode(hotcoco.mask.frPyObjects(rle, width, height)).T
    return _text(hotcoco.mask.encode(np.asfortranarray(turned)))


def _distance(bounds: Sequence[float], box: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(bounds, box))


def _bounds(rle: dict[str, Any]) -> tuple[float, float, float, float]:
    """The box around a mask: x, y, width, height."""
    try:
        x, y, width, height = hotcoco.mask.toBbox(hotcoco.mask.frPyObjects(rle, *rle["size"])).tolist()
    except (TypeError, ValueError, OverflowError) as error:
        raise Unreadable(f"its RLE is broken: {error}") from None
    return x, y, width, height


def _text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _integers(value: object) -> list[int] | None:
    if not isinstance(value, list | tuple):
        return None
    numbers = [number(v) for v in value]
    if any(v is None or v != int(v) or not 0 <= v < 2**53 for v in numbers):
        return None
    return [int(v) for v in numbers if v is not None]
