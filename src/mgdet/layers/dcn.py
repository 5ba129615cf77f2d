"""Modulated deformable convolution (Deformable ConvNets v2, arXiv 1811.11168, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from mgdet.errors import UserError


class ModulatedDeformConv(nn.Conv2d):
    """A convolution that samples each of its points at a learned offset, with a learned weight.

    `conv_offset` predicts, for k points, 2k offset channels that interleave (y, x) per point and then k modulation
    channels. It starts at zero: no offset, every point weighted one half.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, padding: int, groups: int
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=False
        )
        points = kernel_size * kernel_size
        self.conv_offset = nn.Conv2d(in_channels, 3 * points, kernel_size, stride=stride, padding=padding)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        offset, modulation = torch.tensor_split(self.conv_offset(x), [2 * self.kernel_size[0] ** 2], dim=1)
        return deform_conv2d(
            x,
            offset.to(x.dtype),
            self.weight.to(x.dtype),
            stride=self.stride,
            padding=self.padding,
            mask=modulation.sigmoid().to(x.dtype),
        )


def deform_stages(backbone: nn.Module, name: str) -> None:
    """Replaces the 3x3 convolution of every bottleneck in layer2 to layer4 of a timm ResNet, in place.

    Raises:
        UserError: the backbone is no ResNet or ResNeXt with bottlenecks.
    """
    blocks = [block for stage in ("layer2", "layer3", "layer4") for block in getattr(backbone, stage, [])]
    if not blocks or not all(hasattr(block, "conv3") for block in blocks):
        raise UserError(
            f"deformable convolutions need a ResNet or ResNeXt with bottlenecks, not '{name}'; try resnet50"
        )
    for block in blocks:
        plain = block.conv2
        block.conv2 = ModulatedDeformConv(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size[0],
            stride=plain.stride[0],
            padding=plain.padding[0],
            groups=plain.groups,
        )
        nn.init.kaiming_normal_(block.conv2.weight, mode="fan_out", nonlinearity="relu")
