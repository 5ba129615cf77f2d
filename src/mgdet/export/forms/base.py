"""What every form is, and the suppression that several share."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mgdet.export.ops import suppress
from mgdet.layers.postprocess import apart


class Found(NamedTuple):
    """What a form finds in one image, best first.

    boxes: (N, 4) float, xyxy, pixels.
    scores: (N,) float in [0, 1].
    labels: (N,) int64, 0 .. num_classes - 1.
    masks: (N, H, W) bool, H x W the padded image; None for detectors without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


class Limits(NamedTuple):
    """Where a detection is kept or goes by rounding alone.

    score: the lowest score that is kept.
    overlap: IoU from which on the worse of two boxes of a class goes; None where nothing is suppressed.
    most: how many are kept at most.
    """

    score: float
    overlap: float | None
    most: int


class Form(nn.Module):
    """A detector's `find` for one image, of the same layers and the same arithmetic.

    chooses_inside: does it choose proposals or queries by score before it scores them anew? What rounding decides there
        shows in no score of the result.
    """

    chooses_inside = False

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """Where the detector keeps a detection or lets it go."""

    @abstractmethod
    def forward(self, images: Tensor, limits: Tensor) -> Found:
        """Finds objects.

        Args:
            images: (1, 3, H, W) float, normalised, zero in the padding.
            limits: (4,) float, (w, h, w, h) of the image without its padding.
        """


def keep_best(boxes: Tensor, scores: Tensor, labels: Tensor, limits: Limits) -> Tensor:
    """`mgdet.layers.postprocess.class_nms` of the boxes above a score.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        labels: (N,) int64.
        limits: what goes.

    Returns:
        (M,) int64, the kept boxes, best first.
    """
    # One box more, which never counts: there is no largest of none.
    counted = torch.cat([torch.where((scores > limits.score)[:, None], boxes, 0.0), boxes.new_zeros(1, 4)])
    moved = apart(boxes, labels, counted.max())
    return suppress(moved, scores, *limits)
