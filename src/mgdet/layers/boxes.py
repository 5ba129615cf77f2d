"""Boxes: overlap, and the deltas that a head predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LOG_RATIO = abs(math.log(16 / 1000))


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, (N, M), of boxes (N, 4) and (M, 4) xyxy; the union is at least 1e-6."""
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    edges = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    overlap = edges.clamp(min=0).prod(dim=2)
    return overlap / (area_a[:, None] + area_b - overlap).clamp(min=1e-6)


def encode(anchors: Tensor, boxes: Tensor, std: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Deltas (..., 4) as (x, y, log w, log h) that turn anchors into boxes, both (..., 4) xyxy, divided by std."""
    anchor_centre, anchor_size = _centre_size(anchors)
    centre, size = _centre_size(boxes)
    deltas = torch.cat([(centre - anchor_centre) / anchor_size, torch.log(size / anchor_size)], dim=-1)
    return deltas / deltas.new_tensor(std)


def decode(
    anchors: Tensor,
    deltas: Tensor,
    size: tuple[int, int] | None = None,
    std: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> Tensor:
    """Boxes (..., 4) xyxy from anchors (..., 4) xyxy and deltas (..., 4), clipped to an image of `size` (h, w).

    A box grows or shrinks at most by the factor 1000 / 16.
    """
    deltas = deltas * deltas.new_tensor(std)
    anchor_centre, anchor_size = _centre_size(anchors)
    centre = anchor_centre + anchor_size * deltas[..., :2]
    half = 0.5 * anchor_size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    boxes = torch.cat([centre - half, centre + half], dim=-1)
    return boxes if size is None else clip(boxes, size)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) xyxy moved into an image of `size` (h, w)."""
    height, width = size
    return torch.stack(
        [
            boxes[..., 0].clamp(0, width),
            boxes[..., 1].clamp(0, height),
            boxes[..., 2].clamp(0, width),
            boxes[..., 3].clamp(0, height),
        ],
        dim=-1,
    )


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * (boxes[..., :2] + boxes[..., 2:]), boxes[..., 2:] - boxes[..., :2]
