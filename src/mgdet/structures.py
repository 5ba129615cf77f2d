"""The types that travel between the parts.

Letters in shapes: B images, L pyramid levels, level l of H_l x W_l cells with C channels, N objects in one image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Pyramid(NamedTuple):
    """The feature maps of B images.

    maps: L tensors (B, C, H_l, W_l), what the heads read.
    taps: L tensors (B, C, H_l, W_l), the output convolutions before the neck's norm, what MGD compares. Levels
        that are only pooled from others have no tap, so there may be fewer taps than maps.
    """

    maps: list[Tensor]
    taps: list[Tensor]


class Level(NamedTuple):
    """One tapped pyramid level, as measured on an empty image.

    stride: pixels of the image per cell.
    channels: width of the map.
    """

    stride: float
    channels: int


class Pixels(NamedTuple):
    """The normalisation that a model expects: (value - mean) / std of each channel, for values in 0 .. 255.

    mean, std: in the order in which the model takes the channels.
    bgr: is that order B, G, R instead of R, G, B?
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False


IMAGENET = Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""What ResNets trained on ImageNet expect."""


class Seen(NamedTuple):
    """What a detector shows of one batch to a method of distillation.

    taps: L tensors (B, C, H_l, W_l), before the neck's norm.
    maps: tensors (B, C, H_l, W_l), what the heads read; at least as many as taps. Foreign detectors show their taps.
    outputs: the head's raw predictions, where a method asked for them; their form is the detector's own.
    """

    taps: list[Tensor]
    maps: list[Tensor]
    outputs: Any = None


@dataclass(slots=True)
class Target:
    """The ground truth of one image, in pixels of the resized image.

    boxes: (N, 4) float, xyxy.
    labels: (N,) int64, 0 .. num_classes - 1.
    masks: (N, H, W) of zeros and ones, H x W at least the image's size; kept as uint8, whatever dtype is given. None
        where boxes suffice.
    size: (h, w) of the image before padding.
    padded: (h, w) of the image with its own padding, before it joined a batch of larger ones. Cells beyond it count
        neither as objects nor as background. None: the image fills the batch.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None
    size: tuple[int, int] = field(kw_only=True)
    padded: tuple[int, int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        # Masks are added and averaged: of two bools the sum is "or", and the loss would be wrong without a word.
        if self.masks is not None and self.masks.dtype != torch.uint8:
            self.masks = self.masks.to(torch.uint8)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        """The same target with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Target:
        """The same target in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Target:
        masks = None if self.masks is None else change(self.masks)
        return replace(self, boxes=change(self.boxes), labels=change(self.labels), masks=masks)


class Detections(NamedTuple):
    """What a detector found in one image, best first.

    boxes: (N, 4) float, xyxy, pixels.
    scores: (N,) float in [0, 1].
    labels: (N,) int64, 0 .. num_classes - 1.
    masks: (N, H, W) bool, H x W the image's size; None for detectors without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
