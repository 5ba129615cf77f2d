"""From scored boxes to detections."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

SPLIT_FROM = 10_000


def class_nms(boxes: Tensor, scores: Tensor, labels: Tensor, *, threshold: float, limit: int) -> Tensor:
    """Non-maximum suppression within each class.

    Below 10,000 boxes the classes are moved apart and suppressed in one go, from there on class by class, as in the
    original (the two differ by rounding).

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        labels: (N,) int64.
        threshold: a box that overlaps a better one by more than this IoU goes.
        limit: how many are kept at most.

    Returns:
        Indices of the kept boxes, best first.
    """
    if boxes.shape[0] == 0:
        return labels.new_zeros(0)
    if boxes.shape[0] < SPLIT_FROM:
        shifted = boxes + labels.to(boxes)[:, None] * (boxes.max() + 1)
        return nms(shifted, scores, threshold)[:limit]
    kept = []
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        kept.append(members[nms(boxes[members], scores[members], threshold)])
    keep = torch.cat(kept).sort().values
    return keep[scores[keep].sort(descending=True).indices][:limit]


def top_pairs(scores: Tensor, *, threshold: float, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best (cell, class) pairs with a score above `threshold`.

    Args:
        scores: (N, num_classes).
        threshold: exclusive lower bound.
        limit: how many are kept at most.

    Returns:
        scores (K,), cells (K,) and labels (K,), best first.
    """
    pairs = (scores > threshold).nonzero()
    values, order = scores[pairs[:, 0], pairs[:, 1]].sort(descending=True)
    pairs = pairs[order[:limit]]
    return values[:limit], pairs[:, 0], pairs[:, 1]
