"""Regions of interest: features pooled from the pyramid level that suits a region's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mgdet.layers.eager import eager_on_cpu
from mgdet.layers.host import to_device
from mgdet.layers.roi_align import roi_align

STRIDES = (4, 8, 16, 32)
FINEST_SIZE = 56


def join_rois(boxes: Sequence[Tensor] | Tensor) -> Tensor:
    """Boxes (N_i, 4) xyxy of B images, or (B, N, 4), to regions (sum N_i, 5): the image's number, then the box."""
    joined = torch.cat([*boxes])
    numbers = [i for i, own in enumerate(boxes) for _ in range(len(own))]
    return torch.cat([to_device(numbers, joined.device, joined.dtype)[:, None], joined], dim=1)


def roi_levels(rois: Tensor) -> Tensor:
    """The level (K,) int64 of each region (K, 5): the finest for edges up to twice 56 pixels, one more per doubling."""
    edges = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    levels: Tensor = torch.floor(torch.log2(edges / FINEST_SIZE + 1e-6)).clamp(0, len(STRIDES) - 1).long()
    return levels


def pool_rois(maps: list[Tensor], rois: Tensor, size: int) -> Tensor:
    """Features (K, C, size, size) of each region, averaged over as many points per cell as it covers (RoIAlign).

    Args:
        maps: at least 4 pyramid levels (B, C, H_l, W_l) of strides 4, 8, 16, 32; further ones are not read.
        rois: (K, 5) from `join_rois`, pixels of the batch images.
        size: cells along an edge.
    """
    levels = roi_levels(rois)[:, None]
    pooled = maps[0].new_zeros((len(rois), maps[0].shape[1], size, size))
    for level, stride in enumerate(STRIDES):
        if eager_on_cpu(maps[level]):
            rows = (levels[:, 0] == level).nonzero()[:, 0]
            pooled[rows] = roi_align(maps[level], rois[rows], size, 1 / stride)
            continue
        # To count the regions of a level would be a wait. Those of other levels shrink to nothing instead: a region
        # without extent has no points to average, so it costs nothing and adds zero.
        own = torch.where(levels == level, rois, 0.0)
        pooled = pooled + roi_align(maps[level], own, size, 1 / stride)
    return pooled
