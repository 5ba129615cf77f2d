"""The operations whose results are as long as the picture decides; ONNX has its own forms of them.

torch traces a call as one node, and `translations.py` writes that node in ONNX. Called by torch itself they compute the
same with torchvision's kernels, so that a form can be compared with its detector before it is exported.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor


@torch.library.custom_op("mgdet::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, least: float, overlap: float, limit: int) -> Tensor:
    """Non-maximum suppression.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        least: boxes with this score or a lower one go.
        overlap: so does a box that overlaps a better one by more than this IoU.
        limit: how many are kept at most.

    Returns:
        (M,) int64, the kept boxes, best first.
    """
    above = (scores > least).nonzero()[:, 0]
    return above[torchvision.ops.nms(boxes[above], scores[above], overlap)[:limit]]


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, least: float, overlap: float, limit: int) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op("mgdet::suppress_by_class", mutates_args=())
def suppress_by_class(
    boxes: Tensor, scores: Tensor, labels: Tensor, num_labels: int, least: float, overlap: float, limit: int
) -> Tensor:
    """Non-maximum suppression within each class.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        labels: (N,) int64, 0 .. num_labels - 1.
        num_labels: how many there are.
        least: boxes with this score or a lower one go.
        overlap: so does a box that overlaps a better one of its class by more than this IoU.
        limit: how many are kept at most.

    Returns:
        (M,) int64, the kept boxes, best first.
    """
    above = (scores > least).nonzero()[:, 0]
    parts = [above[labels[above] == label] for label in range(num_labels)]
    kept = torch.cat([own[torchvision.ops.nms(boxes[own], scores[own], overlap)] for own in parts])
    return kept[scores[kept].argsort(descending=True, stable=True)[:limit]]


@suppress_by_class.register_fake
def _(
    boxes: Tensor, scores: Tensor, labels: Tensor, num_labels: int, least: float, overlap: float, limit: int
) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op("mgdet::pool", mutates_args=())
def pool(
    maps: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: int,
    samples: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign of each box on its own level of one image's pyramid.

    Args:
        maps: L tensors (1, C, H_l, W_l).
        boxes: (K, 4) xyxy.
        levels: (K,) int64, which map each box reads.
        scales: cells for one unit of the boxes, of each map.
        size: cells along an edge of the result.
        samples: samples for each cell along an axis; 0: as many as it covers.
        aligned: are coordinates moved by half a cell?

    Returns:
        (K, C, size, size).
    """
    pooled = maps[0].new_zeros((len(boxes), maps[0].shape[1], size, size))
    for level, (own, scale) in enumerate(zip(maps, scales)):
        rows = (levels == level).nonzero()[:, 0]
        pooled[rows] = torchvision.ops.roi_align(own, [boxes[rows]], size, scale, samples, aligned)
    return pooled


@pool.register_fake
def _(
    maps: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: int,
    samples: int,
    aligned: bool,
) -> Tensor:
    return maps[0].new_empty((boxes.shape[0], maps[0].shape[1], size, size))
