"""The embedded data set: pictures of six kinds of shapes, in COCO format, made from a seed.

The classes differ in form alone. Colour, texture, shading, rotation, stretch and size are drawn alike for all of
them, over textured backgrounds with lines and arcs that belong to no object. A picture is made in two steps: a
layout (`scene.py`) and its painting (`painting.py`). The annotations come from the layout.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mgdet.demo.painting import paint
from mgdet.demo.scene import CLASSES, annotate, bands_of, layout
from mgdet.errors import UserError

VERSION = 1
"""Part of the stamp: raise it when the same arguments give other pictures."""

SMALLEST_EDGE = 64


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
        ("smallest", smallest, 0),
    ):
        if not value >= least:  # nor NaN
            raise UserError(f"{name} of the shapes is {value}; give {least} or more")
    if not bands_of(*size, smallest):
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
