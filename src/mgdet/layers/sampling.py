"""Random samples of anchors and proposals with a bounded share of positives, for all images at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgdet.layers.matching import match_by_iou
from mgdet.layers.padding import IGNORED, NEGATIVE, PaddedTargets

POSITIVE_SHARE = 0.25
NO_LABEL = -1
"""Label of a region that is only there because every image has the same number."""


def choose(candidates: Tensor, order: Tensor, limit: int | Tensor) -> Tensor:
    """The first candidates of each image in a given order.

    Args:
        candidates: (B, A) bool.
        order: (B, A) int64, a permutation for each image.
        limit: how many at most; a number, or (B, 1).

    Returns:
        The chosen ones, (B, A) bool.
    """
    shuffled = candidates.gather(1, order)
    return torch.zeros_like(candidates).scatter(1, order, shuffled & (shuffled.cumsum(dim=1) <= limit))


def choose_balanced(positive: Tensor, negative: Tensor, *, num: int, share: float) -> tuple[Tensor, Tensor]:
    """At random, positives of each image up to `num * share`, and negatives up to `num` in all.

    Args:
        positive: (B, A) bool, the candidates; each has the same chance.
        negative: (B, A) bool, the candidates.

    Returns:
        The chosen ones of both, (B, A) bool.
    """
    batch, length = positive.shape
    orders = torch.stack([torch.randperm(length, device=positive.device) for _ in range(2 * batch)])
    chosen = choose(positive, orders[0::2], int(num * share))
    return chosen, choose(negative, orders[1::2], num - chosen.sum(dim=1, keepdim=True))


class RoISample(NamedTuple):
    """The regions that a head trains on, K of every image: positives, then negatives, then what fills up.

    boxes: (B, K, 4) xyxy.
    labels: (B, K) int64; num_classes for background, `NO_LABEL` for a region that does not count.
    objects: (B, K) int64, the object that a positive answers for.
    rows: (B, K) int64, where each region stands in the image's padded objects followed by its proposals.
    num_positive: (B,) int64.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    rows: Tensor
    num_positive: Tensor


@torch.no_grad()
def sample_rois(
    proposals: Tensor,
    usable: Tensor,
    targets: PaddedTargets,
    *,
    num: int,
    iou: float,
    low_quality: bool = False,
    num_classes: int,
) -> RoISample:
    """Draws regions from each image's proposals and from the boxes of its objects, which join as positives.

    Args:
        proposals: (B, P, 4) xyxy, pixels of the batch image.
        usable: (B, P) bool; other proposals are padding.
        targets: the images' objects, padded to N.
        num: how many regions of an image at most.
        iou: overlap from which a proposal is positive.
        low_quality: a proposal with an object's best overlap, at least `iou`, takes that object.
        num_classes: label of the background.

    Returns:
        Samples with K = num, or N + P where that is less.
    """
    match = match_by_iou(
        targets,
        proposals,
        allowed=usable,
        positive=iou,
        negative=iou,
        min_positive=iou,
        low_quality=low_quality,
    )
    own = torch.arange(targets.exists.shape[1], device=match.device)
    match = torch.cat([torch.where(targets.exists, own, IGNORED), torch.where(usable, match, IGNORED)], dim=1)
    positive, negative = choose_balanced(match >= 0, match == NEGATIVE, num=num, share=POSITIVE_SHARE)
    # Sorted by kind, then by place; what is of neither kind fills up.
    length = match.shape[1]
    kind = torch.where(positive, 0, torch.where(negative, 1, 2))
    order = (kind * length + torch.arange(length, device=match.device)).sort(dim=1).values[:, :num]
    rows = order % length
    objects = match.gather(1, rows).clamp(min=0)
    labels = torch.where(order < length, targets.labels.gather(1, objects), num_classes)
    return RoISample(
        boxes=torch.cat([targets.boxes, proposals], dim=1).gather(1, rows[..., None].expand(-1, -1, 4)),
        labels=torch.where(order < 2 * length, labels, NO_LABEL),
        objects=objects,
        rows=rows,
        num_positive=positive.sum(dim=1),
    )
