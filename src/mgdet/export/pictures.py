"""The pictures that an exported graph is compared with torch on, as it takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mgdet.config import DataConfig
from mgdet.data.open import open_splits
from mgdet.data.transforms import View, read_image, resize
from mgdet.detectors.exported import Preprocessing
from mgdet.errors import UserError
from mgdet.evaluate.sources import find_pictures

NUM_PICTURES, NUM_CALIBRATION = 8, 100
DRAWN_SIZE = (480, 640)
DRAWN_SHAPES = 12


class Pictures(NamedTuple):
    """Pictures, RGB, (h, w, 3) uint8 each, and what they are."""

    images: list[np.ndarray]
    what: str


def find_images(folder: str | Path | None, data: DataConfig) -> Pictures:
    """Up to eight pictures: of a folder, else of the validation images of the run, else drawn.

    Args:
        folder: pictures, which are searched for recursively; None: none are given.
        data: the data set of the run.

    Raises:
        UserError: the folder holds no picture, or one that cannot be read.
    """
    if folder is not None:
        found, _ = find_pictures([str(folder)])
        return _read([picture.file for picture in found], f"pictures of {folder}")
    files = _validation_files(data)
    if files:
        try:
            return _read(files, "validation images")
        except UserError:
            pass  # a data set that has moved or changed since the run is no reason to export nothing
    return Pictures([drawn(seed) for seed in range(NUM_PICTURES)], "drawn pictures")


def calibration_images(folder: str | Path, how: Preprocessing) -> list[np.ndarray]:
    """Up to a hundred pictures of a folder, evenly taken from it, as a graph takes them.

    Raises:
        UserError: the folder holds no picture, or one that cannot be read.
    """
    found, _ = find_pictures([str(folder)])
    chosen = _evenly([picture.file for picture in found], NUM_CALIBRATION)
    return [fit(_rgb(file), how) for file in chosen]


def fit(image: np.ndarray, how: Preprocessing) -> np.ndarray:
    """A picture (h, w, 3) as a graph takes it by its rule."""
    canvas = (how.height, how.width) if how.rule == "letterbox" else None
    view = View(0, how.long_edge, how.short_edge, False, how.square, canvas=canvas)
    image = resize(image, view.size_of((image.shape[0], image.shape[1])))
    if canvas is None:
        return image
    whole = np.empty((*canvas, 3), np.uint8)
    whole[:] = how.fill
    whole[: image.shape[0], : image.shape[1]] = image
    return whole


def with_turned(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The pictures, and the first one turned: a graph for any size shall see sizes that it was not traced with."""
    return [*images, np.ascontiguousarray(images[0].transpose(1, 0, 2))]


def _validation_files(data: DataConfig) -> list[Path]:
    try:
        records = open_splits(data, val_masks=False, required=("val",), barrier=lambda: None).records["val"]
    except UserError:
        return []
    return [records.folder / file for file in records.files]


def _read(files: Sequence[Path], what: str) -> Pictures:
    chosen = _evenly(files, NUM_PICTURES)
    return Pictures([_rgb(file) for file in chosen], f"{len(chosen)} {what}")


def _evenly(files: Sequence[Path], most: int) -> list[Path]:
    return [files[place] for place in np.linspace(0, len(files) - 1, min(most, len(files))).astype(int)]


def _rgb(file: Path) -> np.ndarray:
    return cv2.cvtColor(read_image(file), cv2.COLOR_BGR2RGB)


def drawn(seed: int) -> np.ndarray:
    """A picture (h, w, 3) uint8 of soft noise with shapes on it; of an odd seed it is upright."""
    rng = np.random.default_rng(seed)
    height, width = DRAWN_SIZE if seed % 2 == 0 else DRAWN_SIZE[::-1]
    small = rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(DRAWN_SHAPES):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(8, 120)), int(rng.integers(8, 120)))
        colour = [int(value) for value in rng.integers(0, 256, 3)]
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    return image
