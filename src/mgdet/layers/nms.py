"""Non-maximum suppression of one set of boxes; on a CPU in blocks, which gives what torchvision gives, sooner."""

from __future__ import annotations

import math

import torch
import torchvision
from torch import Tensor

from mgdet.layers.eager import eager_on_cpu

FEW = 1000
"""Boxes up to which torchvision's kernel is no slower."""
BLOCK = 96
"""Boxes that are settled one after the other before all others are compared with those of them that stay."""


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """What `torchvision.ops.nms` computes: no box is left that overlaps a better one that is left.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        threshold: a box that overlaps a better one by more than this IoU goes.

    Returns:
        Numbers (K,) int64 of the boxes that are left, best first.
    """
    if not eager_on_cpu(boxes) or len(boxes) <= FEW:
        kept: Tensor = torchvision.ops.nms(boxes, scores, threshold)
        return kept
    limit = _below(threshold, boxes.dtype)
    order = scores.sort(descending=True, stable=True).indices
    boxes = boxes.index_select(0, order)
    falling = torch.arange(BLOCK, 0, -1, dtype=boxes.dtype)
    left = []
    while len(boxes):
        block, boxes = boxes[:BLOCK], boxes[BLOCK:]
        own = torchvision.ops.nms(block, falling[: len(block)], threshold)
        left.append(order[own])
        order = order[BLOCK:]
        rows = (_iou(block[own], boxes) > limit).any(dim=0).logical_not_().nonzero()[:, 0]
        boxes, order = boxes.index_select(0, rows), order.index_select(0, rows)
    return torch.cat(left)


def _iou(better: Tensor, boxes: Tensor) -> Tensor:
    """Overlap (N, M) of boxes (N, 4) and (M, 4), rounded as torchvision's kernel rounds it."""
    left_a, top_a, right_a, bottom_a = better[:, :, None].unbind(1)
    left_b, top_b, right_b, bottom_b = boxes.T.contiguous().unbind(0)
    shared = torch.minimum(right_a, right_b).sub_(torch.maximum(left_a, left_b)).clamp_(min=0)
    # A negative height makes a negative overlap, which is none, too.
    shared.mul_(torch.minimum(bottom_a, bottom_b).sub_(torch.maximum(top_a, top_b)))
    union = (right_a - left_a) * (bottom_a - top_a) + (right_b - left_b) * (bottom_b - top_b)
    return shared.div_(union.sub_(shared))


def _below(threshold: float, dtype: torch.dtype) -> float:
    """The largest number of a type that is not above a threshold, as the kernel compares in double precision."""
    value = torch.tensor(threshold, dtype=dtype)
    return float(value if float(value) <= threshold else torch.nextafter(value, torch.tensor(-math.inf, dtype=dtype)))
