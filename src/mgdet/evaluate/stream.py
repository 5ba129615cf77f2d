"""Pictures in, detections out, in batches of one padded size, while few pictures wait in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mgdet.data.batch import collate
from mgdet.data.sampler import by_size
from mgdet.data.transforms import Example, View, make_example, padded_size
from mgdet.detectors.face import Face
from mgdet.evaluate.coco import detect
from mgdet.structures import Detections


class Shown(NamedTuple):
    """A picture and what was found in it.

    place: its number among the pictures, from 0.
    image: (H, W, 3) uint8, BGR, as it was given.
    found: on the CPU, in pixels of `image`, best first.
    """

    place: int
    image: np.ndarray
    found: Detections


@dataclass(slots=True)
class _Waiting:
    """A picture that waits for others of its size, and as the detector sees it."""

    place: int
    image: np.ndarray
    example: Example


def find_in(
    detector: Face, pictures: Iterable[tuple[np.ndarray, str]], view: View, *, score: float, batch: int
) -> Iterator[Shown]:
    """Finds objects in pictures. They come back in the order in which their batches fill.

    Args:
        detector: on its device, in the form for inference.
        pictures: each (H, W, 3) uint8 BGR and its name for messages; taken one by one.
        view: how images are resized; its index is not used.
        score: objects under this score are left out, in [0, 1].
        batch: pictures per forward pass; at most three times as many wait in memory.
    """
    device = next((value.device for value in detector.parameters()), torch.device("cpu"))  # a graph has none
    waiting = (
        _Waiting(place, image, make_example(image, view, file=name)) for place, (image, name) in enumerate(pictures)
    )

    def padded(one: _Waiting) -> tuple[int, int]:
        return padded_size(one.example.target.size, detector.multiple)

    for group in by_size(waiting, padded, batch, most=3 * batch):
        pixels = collate([one.example for one in group]).to(device)
        for one, found in zip(group, detect(detector, pixels), strict=True):
            yield Shown(one.place, one.image, _above(found, score))


def _above(found: Detections, score: float) -> Detections:
    keep = found.scores >= score
    masks = None if found.masks is None else found.masks[keep].cpu()
    return Detections(found.boxes[keep].cpu(), found.scores[keep].cpu(), found.labels[keep].cpu(), masks)
