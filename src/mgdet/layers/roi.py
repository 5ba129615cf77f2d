"""Regions of interest: features pooled from the pyramid level that suits a region's size."""

from __future__ import annotations

import torch
from torch import Tensor

from mgdet.layers.roi_align import roi_align

STRIDES = (4, 8, 16, 32)
FINEST_SIZE = 56


def join_rois(boxes: list[Tensor]) -> Tensor:
    """Boxes (N_i, 4) xyxy of B images to regions (sum N_i, 5): the image's number, then the box."""
    numbered = [torch.cat([own.new_full((len(own), 1), i), own], dim=1) for i, own in enumerate(boxes)]
    return torch.cat(numbered)


def roi_levels(rois: Tensor) -> Tensor:
    """The level (K,) int64 of each region (K, 5): the finest for edges up to twice 56 pixels, one more per doubling."""
    edges = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    levels: Tensor = torch.floor(torch.log2(edges / FINEST_SIZE + 1e-6)).clamp(0, len(STRIDES) - 1).long()
    return levels


def pool_rois(maps: list[Tensor], rois: Tensor, size: int) -> Tensor:
    """Features (K, C, size, size) of each region, averaged over as many points a cell as it covers (RoIAlign).

    Args:
        maps: at least 4 pyramid levels (B, C, H_l, W_l) of strides 4, 8, 16, 32; further ones are not read.
        rois: (K, 5) from `join_rois`, pixels of the batch images.
        size: cells along an edge.
    """
    levels = roi_levels(rois)
    pooled = maps[0].new_zeros((len(rois), maps[0].shape[1], size, size))
    for level, stride in enumerate(STRIDES):
        rows = (levels == level).nonzero()[:, 0]
        pooled[rows] = roi_align(maps[level], rois[rows], size, 1 / stride)
    return pooled
