"""A trained detector to use in Python: pictures in any form in, boxes in their pixels out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mgdet.data.pictures import pillow_pixels
from mgdet.data.transforms import check_readable, read_image
from mgdet.detectors.face import Face
from mgdet.distributed import usual_device
from mgdet.errors import UserError
from mgdet.evaluate.coco import IMAGES_AT_ONCE
from mgdet.evaluate.draw import draw_detections
from mgdet.evaluate.sources import find_pictures
from mgdet.evaluate.stream import find_in
from mgdet.layers.inference import inference_form
from mgdet.models.opened import Opened, open_detector
from mgdet.precision import set_float32
from mgdet.structures import Detections

Picture = str | PathLike[str] | np.ndarray | Image.Image
"""A file, a folder, an array (H, W, 3) uint8 in RGB, or Pillow's image."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What was found in one picture, best first.

    boxes: (N, 4) float, xyxy, pixels of the picture; of a file, turned upright as its EXIF data says.
    scores: (N,) float in [0, 1].
    labels: (N,) int64.
    names: N class names.
    masks: (N, H, W) bool; None from detectors without masks.
    size: (H, W) of the picture.
    file: its path; None for pictures that came as pixels.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: tuple[str, ...]
    masks: Tensor | None
    size: tuple[int, int]
    file: Path | None
    _classes: tuple[str, ...]
    _pixels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {score:.2f}" for name, score in zip(self.names[:5], self.scores.tolist()))
        more = ", ..." if len(self) > 5 else ""
        return f"Prediction({self.file or 'pixels'}: {len(self)} found{': ' if found else ''}{found}{more})"

    def draw(self) -> np.ndarray:
        """The picture with boxes, names and masks on it, (H, W, 3) uint8 in RGB; a file is read again."""
        image = self._pixels if self.file is None else read_image(self.file)
        assert image is not None
        found = Detections(self.boxes, self.scores, self.labels, self.masks)
        return draw_detections(image, found, self._classes, score=0.0)[..., ::-1].copy()


class Model:
    """A detector that finds objects.

    detector: the network itself, in its form for inference, on its device.
    classes: names by label.
    source: where it came from.
    lines: what was recognised and loaded, for people.
    """

    def __init__(self, opened: Opened, device: torch.device):
        set_float32(device, exact=True)
        self.detector: Face = inference_form(opened.detector.to(device))
        self.classes, self.source, self.lines = opened.classes, opened.source, opened.lines
        self._opened = opened

    def __repr__(self) -> str:
        return f"Model({self.source}: {type(self.detector).__name__}, {len(self.classes)} classes)"

    def predict(
        self, images: Picture | Sequence[Picture], *, score: float = 0.3, batch: int = IMAGES_AT_ONCE
    ) -> list[Prediction]:
        """Finds objects in pictures.

        Args:
            images: one picture or several: files, folders of them, which are walked, arrays (H, W, 3) uint8 in RGB or
                (H, W) in grey, or Pillow's images. Files and Pillow's images are turned upright by their EXIF data,
                and their pixels of 16 bits divided by 256.
            score: only objects with at least this score, in [0, 1].
            batch: pictures per forward pass.

        Returns:
            One `Prediction` per picture, in the order in which they were given; a folder's are in the order of names.

        Raises:
            UserError: a file is missing or cannot be read, a folder holds no picture, an array is no picture, or what
                is white in a Pillow image is not known.
        """
        if not 0 <= score <= 1:
            raise UserError(f"score is {score}; give a score from 0 to 1")
        if batch < 1:
            raise UserError(f"batch is {batch}; give 1 or more")
        pictures = list(_pictures(images))
        for picture in pictures:
            if isinstance(picture, Path):
                check_readable(picture)  # what is found now is found before the work begins
        read = (_read(picture, index) for index, picture in enumerate(pictures))
        found: list[Prediction | None] = [None] * len(pictures)
        for index, image, own in find_in(self.detector, read, self._opened.view, score=score, batch=batch):
            found[index] = self._prediction(pictures[index], image, own)
        return [one for one in found if one is not None]

    def export(
        self,
        out: str | Path,
        *,
        size: tuple[int, int] | None = None,
        dynamic: bool = False,
        half: bool = False,
        int8: str | Path | None = None,
        images: str | Path | None = None,
        say: Callable[[str], None] = print,
    ) -> Path:
        """Writes the detector as one ONNX graph, which is compared with torch first: `mgdet export` in Python.

        Args:
            out: a file that does not exist yet, ending in .onnx.
            size: (h, w) of all images, in pixels.
            dynamic: images of any size.
            half: the network in half precision.
            int8: a folder of pictures to calibrate with: the convolutions in eight bits.
            images: a folder of pictures to compare on; None: the run's validation images, or drawn ones.
            say: is told how the graph compares, how fast it is and what was written.

        Returns:
            `out`.

        Raises:
            UserError: bad input, it cannot be exported, or the two do not agree. Then no file is written.
        """
        from mgdet.export.run import export

        return export(self._opened, out, size=size, dynamic=dynamic, half=half, int8=int8, images=images, say=say)

    def _prediction(self, picture: Path | np.ndarray, image: np.ndarray, found: Detections) -> Prediction:
        file = picture if isinstance(picture, Path) else None
        return Prediction(
            boxes=found.boxes,
            scores=found.scores,
            labels=found.labels,
            names=tuple(self.classes[label] for label in found.labels.tolist()),
            masks=found.masks,
            size=(image.shape[0], image.shape[1]),
            file=file,
            _classes=self.classes,
            _pixels=None if file else image,
        )


def load(checkpoint: str | Path, *, ema: bool = False, device: str | torch.device | None = None) -> Model:
    """A detector that is ready to find objects.

    Args:
        checkpoint: a checkpoint file of this package or of MMDetection, its URL, a run's folder, an exported .onnx
            file, or SOURCE:NAME of another library, e.g. `torchvision:fasterrcnn_resnet50_fpn_v2`.
        ema: take the copy that the file keeps under the name of an exponential moving average.
        device: where it runs; None: a GPU if there is one.

    Raises:
        UserError: it is missing, damaged, or no detector that this package knows.
    """
    chosen = torch.device(device) if device else usual_device()
    return Model(open_detector(str(checkpoint), ema=ema), chosen)


def _pictures(images: Picture | Sequence[Picture]) -> Iterator[Path | np.ndarray]:
    """Files one by one, and pixels as (H, W, 3) uint8 in BGR."""
    if isinstance(images, str | PathLike):
        yield from (picture.file for picture in find_pictures([os.fspath(images)])[0])
    elif isinstance(images, Image.Image):
        yield pillow_pixels(images, f"a Pillow image of mode {images.mode}")
    elif isinstance(images, np.ndarray):
        yield _bgr(images)
    elif isinstance(images, Sequence):
        for image in images:
            yield from _pictures(image)
    else:
        raise UserError(f"a picture is {type(images).__name__}; give a file, a folder, a uint8 array or a Pillow image")


def _bgr(pixels: np.ndarray) -> np.ndarray:
    """An array (H, W, 3) in RGB or (H, W) in grey as (H, W, 3) in BGR."""
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not shaped or pixels.dtype != np.uint8 or 0 in pixels.shape:
        shape = " x ".join(map(str, pixels.shape))
        raise UserError(
            f"a picture is an array of {shape} {pixels.dtype}; give height x width x 3 uint8 in RGB, or a list of such"
        )
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR if pixels.ndim == 2 else cv2.COLOR_RGB2BGR)


def _read(picture: Path | np.ndarray, index: int) -> tuple[np.ndarray, str]:
    return (read_image(picture), str(picture)) if isinstance(picture, Path) else (picture, f"picture {index}")
