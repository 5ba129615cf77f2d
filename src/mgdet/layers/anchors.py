"""Anchors: fixed boxes of several forms at every cell of every pyramid level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AnchorGrid(nn.Module):
    """Anchors of A forms per cell, centred on the cell's corner origin (x * stride, y * stride).

    Args:
        strides: pixels between two cells of each level.
        scales: edge lengths of a square anchor in strides.
        ratios: height / width of the forms. Forms are ordered by ratio, then by scale.
    """

    forms: Tensor

    def __init__(self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]):
        super().__init__()
        self.strides = tuple(strides)
        self.num_forms = len(scales) * len(ratios)
        forms = [self._base(stride, torch.tensor(scales), torch.tensor(ratios)) for stride in strides]
        self.register_buffer("forms", torch.stack(forms), persistent=False)

    @staticmethod
    def _base(stride: int, scales: Tensor, ratios: Tensor) -> Tensor:
        heights = ratios.sqrt()
        w = (stride * (1 / heights)[:, None] * scales).flatten()
        h = (stride * heights[:, None] * scales).flatten()
        return torch.stack([-0.5 * w, -0.5 * h, 0.5 * w, 0.5 * h], dim=1)

    def boxes(self, level_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The anchors of each level, (H_l * W_l * A, 4) xyxy in pixels, by row, column and form."""
        return [
            (self._shifts(size, stride)[:, None] + forms).reshape(-1, 4)
            for size, stride, forms in zip(level_sizes, self.strides, self.forms)
        ]

    def _shifts(self, size: tuple[int, int], stride: int) -> Tensor:
        y, x = (torch.arange(edge, device=self.forms.device, dtype=torch.float32) * stride for edge in size)
        y, x = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([x, y, x, y], dim=-1).reshape(-1, 4)

    def valid(self, level_sizes: Sequence[tuple[int, int]], image_sizes: Tensor) -> Tensor:
        """Which anchors of all levels belong to cells that an image reaches.

        Args:
            level_sizes: (H_l, W_l) of each level.
            image_sizes: (B, 2), (h, w) of each image.

        Returns:
            (B, sum of H_l * W_l * A) bool.
        """
        flags = []
        for (height, width), stride in zip(level_sizes, self.strides):
            rows = torch.arange(height, device=image_sizes.device) * stride < image_sizes[:, :1]
            columns = torch.arange(width, device=image_sizes.device) * stride < image_sizes[:, 1:]
            cells = rows[:, :, None] & columns[:, None]
            flags.append(cells[..., None].expand(-1, -1, -1, self.num_forms).flatten(1))
        return torch.cat(flags, dim=1)


def level_sizes(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(H_l, W_l) of each level (B, C, H_l, W_l)."""
    return [(level.shape[-2], level.shape[-1]) for level in maps]
