"""Anchors: fixed boxes of several forms at every cell of every pyramid level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class AnchorGrid:
    """Anchors of A forms a cell, centred on the cell's corner origin (x * stride, y * stride).

    Args:
        strides: pixels between two cells of each level.
        scales: edge lengths of a square anchor in strides.
        ratios: height / width of the forms. Forms are ordered by ratio, then by scale.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]):
        self.strides = tuple(strides)
        self.num_forms = len(scales) * len(ratios)
        self._forms = [self._base(stride, torch.tensor(scales), torch.tensor(ratios)) for stride in strides]

    @staticmethod
    def _base(stride: int, scales: Tensor, ratios: Tensor) -> Tensor:
        heights = ratios.sqrt()
        w = (stride * (1 / heights)[:, None] * scales).flatten()
        h = (stride * heights[:, None] * scales).flatten()
        return torch.stack([-0.5 * w, -0.5 * h, 0.5 * w, 0.5 * h], dim=1)

    def boxes(self, level_sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """The anchors of each level, (H_l * W_l * A, 4) xyxy in pixels, by row, column and form."""
        return [
            (self._shifts(size, stride, device)[:, None] + forms.to(device)).reshape(-1, 4)
            for size, stride, forms in zip(level_sizes, self.strides, self._forms)
        ]

    @staticmethod
    def _shifts(size: tuple[int, int], stride: int, device: torch.device) -> Tensor:
        y = torch.arange(size[0], device=device, dtype=torch.float32) * stride
        x = torch.arange(size[1], device=device, dtype=torch.float32) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([x, y, x, y], dim=-1).reshape(-1, 4)

    def valid(
        self, level_sizes: Sequence[tuple[int, int]], image_size: tuple[int, int], device: torch.device
    ) -> list[Tensor]:
        """Which anchors of each level, (H_l * W_l * A) bool, belong to cells that an image of (h, w) reaches."""
        flags = []
        for (height, width), stride in zip(level_sizes, self.strides):
            rows = torch.arange(height, device=device) * stride < image_size[0]
            columns = torch.arange(width, device=device) * stride < image_size[1]
            cells = (rows[:, None] & columns).flatten()
            flags.append(cells[:, None].expand(-1, self.num_forms).flatten())
        return flags
