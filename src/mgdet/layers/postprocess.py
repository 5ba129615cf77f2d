"""From scored boxes to detections."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdet.layers.host import to_device
from mgdet.layers.nms import nms
from mgdet.structures import Detections

SPLIT_FROM = 10_000

BoxOf = Callable[[int, int, Tensor, Tensor], Tensor]
"""Boxes (K, 4) xyxy within the image, for a level, an image, its K cells and its row of `limits`, see below."""


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
        return nms(apart(boxes, labels, boxes.max()), scores, threshold)[:limit]
    kept = []
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        kept.append(members[nms(boxes[members], scores[members], threshold)])
    keep = torch.cat(kept).sort().values
    return keep[scores[keep].sort(descending=True).indices][:limit]


def apart(boxes: Tensor, labels: Tensor, largest: Tensor) -> Tensor:
    """The boxes (N, 4) moved so far that those of other labels (N,) never overlap.

    Args:
        boxes: (N, 4) xyxy, no coordinate above `largest`, a scalar.
    """
    return boxes + labels.to(boxes)[:, None] * (largest + 1)


def best(scores: Tensor, limit: int, *, nothing: float = -1.0) -> tuple[Tensor, Tensor]:
    """The `limit` best of scores (B, N), all N where there are fewer, and their columns, both (B, K), best first.

    A graph that is exported for images of any size does not know N: what it lacks it fills up with scores of `nothing`
    in the last column.
    """
    if not torch.compiler.is_exporting() or isinstance(scores.shape[1], int):
        return scores.topk(min(limit, scores.shape[1]), dim=1)
    values, columns = F.pad(scores, (0, limit), value=nothing).topk(limit, dim=1)
    return values, columns.clamp(max=scores.shape[1] - 1)


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


def dense_detections(
    scores: Sequence[Tensor],
    box: BoxOf,
    limits: Tensor,
    scales: list[tuple[float, float]] | None,
    *,
    score_threshold: float,
    nms_threshold: float,
    candidates: int,
    limit: int,
) -> list[Detections]:
    """What a one-stage detector finds: the best (cell, class) pairs of each level, less the overlapping ones.

    Args:
        scores: of each level (B, cells, num_classes) in [0, 1].
        box: what makes the boxes of cells.
        limits: (B, 4), (w, h, w, h) of each image without its padding.
        scales: (x, y) factors that the boxes are divided by before they are compared.
        score_threshold: exclusive lower bound.
        nms_threshold: IoU of two boxes of a class from which on the worse one goes.
        candidates: how many pairs of a level are considered at most.
        limit: how many detections of an image are kept at most.
    """
    factors = None if scales is None else to_device([f * 2 for f in scales], limits.device, limits.dtype)
    results = []
    for i in range(len(limits)):
        found = []
        for level, own in enumerate(scores):
            values, cells, labels = top_pairs(own[i], threshold=score_threshold, limit=candidates)
            found.append((box(level, i, cells, limits[i]), values, labels))
        boxes, values, labels = (torch.cat(column) for column in zip(*found))
        if factors is not None:
            boxes = boxes / factors[i]
        keep = class_nms(boxes, values, labels, threshold=nms_threshold, limit=limit)
        results.append(Detections(boxes[keep], values[keep], labels[keep]))
    return results
