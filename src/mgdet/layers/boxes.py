"""Boxes: overlap, and the deltas that a head predicts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = abs(math.log(16 / 1000))


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, (..., N, M), of boxes (..., N, 4) and (..., M, 4) xyxy; the union is at least 1e-6."""
    # Coordinate by coordinate: nothing of the size (N, M) has a further dimension, and M lies side by side in memory.
    left_a, top_a, right_a, bottom_a = (value[..., None] for value in a.unbind(-1))
    left_b, top_b, right_b, bottom_b = b.movedim(-1, 0).contiguous()[..., None, :].unbind(0)
    overlap = torch.minimum(right_a, right_b).sub_(torch.maximum(left_a, left_b)).clamp_(min=0)
    overlap *= torch.minimum(bottom_a, bottom_b).sub_(torch.maximum(top_a, top_b)).clamp_(min=0)
    union = (right_a - left_a) * (bottom_a - top_a) + (right_b - left_b) * (bottom_b - top_b)
    return overlap.div_(union.sub_(overlap).clamp_(min=1e-6))


def encode(anchors: Tensor, boxes: Tensor, std: Tensor | None = None) -> Tensor:
    """Deltas (..., 4) as (x, y, log w, log h) that turn anchors into boxes, both (..., 4) xyxy, divided by std (4,)."""
    anchor_centre, anchor_size = _centre_size(anchors)
    centre, size = _centre_size(boxes)
    deltas = torch.cat([(centre - anchor_centre) / anchor_size, torch.log(size / anchor_size)], dim=-1)
    return deltas if std is None else deltas / std


def decode(anchors: Tensor, deltas: Tensor, limits: Tensor, std: Tensor | None = None) -> Tensor:
    """Boxes (..., 4) xyxy from anchors (..., 4) xyxy and deltas (..., 4), clipped to images of `limits`.

    A box grows or shrinks at most by the factor 1000 / 16.

    Args:
        anchors: (..., 4) xyxy.
        deltas: (..., 4), the inverse of `encode`.
        limits: (..., 4), see `clip`.
        std: (4,), what the deltas were divided by.
    """
    if std is not None:
        deltas = deltas * std
    anchor_centre, anchor_size = _centre_size(anchors)
    centre = anchor_centre + anchor_size * deltas[..., :2]
    half = 0.5 * anchor_size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return clip(torch.cat([centre - half, centre + half], dim=-1), limits)


def clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes (..., 4) xyxy moved into images whose largest coordinates are (w, h, w, h), `limits` (..., 4)."""
    return torch.minimum(boxes.clamp(min=0), limits)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * (boxes[..., :2] + boxes[..., 2:]), boxes[..., 2:] - boxes[..., :2]
