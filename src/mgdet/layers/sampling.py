"""Random samples of anchors and proposals with a bounded share of positives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgdet.layers.boxes import pairwise_iou
from mgdet.layers.matching import NEGATIVE, match_by_iou
from mgdet.structures import Target

POSITIVE_SHARE = 0.25


def choose(candidates: Tensor, limit: int | Tensor) -> Tensor:
    """At most `limit` of the candidates, each with the same chance, (A,) bool like `candidates`; no synchronisation."""
    order = torch.randperm(candidates.shape[0], device=candidates.device)
    shuffled = candidates[order]
    chosen = torch.zeros_like(candidates)
    chosen[order] = shuffled & (shuffled.cumsum(dim=0) <= limit)
    return chosen


def choose_balanced(positive: Tensor, negative: Tensor, *, num: int, share: float) -> tuple[Tensor, Tensor]:
    """Positives up to `num * share`, and negatives up to `num` in all.

    Args:
        positive: (A,) bool, the candidates.
        negative: (A,) bool, the candidates.

    Returns:
        The chosen ones of both, (A,) bool.
    """
    chosen = choose(positive, int(num * share))
    return chosen, choose(negative, num - chosen.sum())


class RoISample(NamedTuple):
    """The regions of one image that a head trains on: P positives, then the negatives, K in all.

    boxes: (K, 4) xyxy.
    labels: (K,) int64, num_classes for background.
    objects: (P,) int64, the object that each positive answers for.
    rows: (K,) int64, where each region stands in the objects' boxes followed by the proposals.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    rows: Tensor


@torch.no_grad()
def sample_rois(
    proposals: Tensor, target: Target, *, num: int, iou: float, low_quality: bool = False, num_classes: int
) -> RoISample:
    """Draws regions from an image's proposals and from the boxes of its objects, which join as positives.

    Args:
        proposals: (N, 4) xyxy, pixels of the batch image.
        target: the image's objects.
        num: how many regions at most.
        iou: overlap from which a proposal is positive.
        low_quality: a proposal with an object's best overlap, at least `iou`, takes that object.
        num_classes: label of the background.
    """
    boxes = target.boxes.float()
    overlaps = pairwise_iou(proposals, boxes)
    match = match_by_iou(overlaps, positive=iou, negative=iou, min_positive=iou, low_quality=low_quality)
    match = torch.cat([torch.arange(len(boxes), device=match.device), match])
    positive, negative = choose_balanced(match >= 0, match == NEGATIVE, num=num, share=POSITIVE_SHARE)
    rows, others = positive.nonzero()[:, 0], negative.nonzero()[:, 0]
    objects = match[rows]
    labels = torch.cat([target.labels[objects], target.labels.new_full((len(others),), num_classes)])
    rows = torch.cat([rows, others])
    return RoISample(torch.cat([boxes, proposals])[rows], labels, objects, rows)
