"""The convolution block that necks and heads are built from."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

MAX_GROUPS = 32
CHANNELS_PER_GROUP = 8


class ConvBlock(nn.Module):
    """Convolution, optional group norm, optional ReLU; keys `conv.*` and `gn.*` as in the original.

    With a norm the convolution has no bias. The norm has the original's 32 groups from 256 channels on; narrower blocks
    keep its eight channels a group, as one channel on a map of one cell would always be normalised to zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        group_norm: bool = False,
        relu: bool = True,
    ):
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=not group_norm)
        self.gn = nn.GroupNorm(count_groups(out_channels), out_channels) if group_norm else None
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        return self.finish(self.conv(x))

    def finish(self, x: Tensor) -> Tensor:
        """What follows the convolution: norm and ReLU."""
        if self.gn is not None:
            x = self.gn(x)
        return F.relu(x, inplace=True) if self.relu else x


def count_groups(channels: int) -> int:
    """The groups of a group norm over so many channels."""
    return min(MAX_GROUPS, channels // CHANNELS_PER_GROUP)


def head_std(channels: int) -> float:
    """Standard deviation of a head's start weights: 0.01 at the published 256 channels, and the same gain at others."""
    return 0.01 * math.sqrt(256 / channels)


def init_normal(module: nn.Module, std: float) -> None:
    """Draws the weights of every convolution and linear layer in `module` from N(0, std); biases are zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_bias(layer: nn.Conv2d, *, probability: float) -> None:
    """Sets the bias of a classifier so that every class starts with this probability."""
    assert layer.bias is not None
    nn.init.constant_(layer.bias, -math.log((1 - probability) / probability))
