"""Feature Pyramid Network (arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mgdet.layers.conv import ConvBlock
from mgdet.structures import Pyramid


class FPN(nn.Module):
    """Turns backbone stages into a pyramid of equal width, and shows each level before its norm.

    Args:
        in_channels: widths of the stages that it uses, finest first.
        channels: width of every level.
        num_levels: levels of the pyramid, at least as many as stages.
        extra: how levels beyond the stages are made: `conv`, strided 3x3 convolutions, the first on the last stage and
            each other on the level before it; or `pool`, every second cell of the level before, which has no tap.
        group_norm: group norm behind every convolution.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        num_levels: int,
        extra: Literal["conv", "pool"],
        group_norm: bool = False,
    ):
        super().__init__()
        self.num_stages, self.num_levels, self.extra = len(in_channels), num_levels, extra
        self.lateral_convs = nn.ModuleList(
            ConvBlock(width, channels, 1, group_norm=group_norm, relu=False) for width in in_channels
        )
        self.fpn_convs = nn.ModuleList(
            ConvBlock(channels, channels, 3, group_norm=group_norm, relu=False) for _ in in_channels
        )
        if extra == "conv":
            for level in range(num_levels - self.num_stages):
                width = in_channels[-1] if level == 0 else channels
                self.fpn_convs.append(ConvBlock(width, channels, 3, stride=2, group_norm=group_norm, relu=False))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, stages: Sequence[Tensor]) -> Pyramid:
        """Stages (B, in_channels[i], H_i, W_i), finest first, to `num_levels` levels (B, channels, H_l, W_l).

        Only the last `len(in_channels)` of the given stages are used.
        """
        stages = stages[-self.num_stages :]
        merged = [lateral(stage) for lateral, stage in zip(self.lateral_convs, stages)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        taps: list[Tensor] = []
        maps: list[Tensor] = []
        block: Any
        for level, block in enumerate(self.fpn_convs):
            if level < self.num_stages:
                source = merged[level]
            else:
                source = stages[-1] if level == self.num_stages else maps[-1]
            taps.append(block.conv(source))
            maps.append(block.finish(taps[-1]))
        while len(maps) < self.num_levels:
            maps.append(F.max_pool2d(maps[-1], kernel_size=1, stride=2))
        return Pyramid(maps, taps)
