"""Deformable convolution (arXiv 1703.06211): every point of the kernel is sampled at an offset of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mgdet.errors import UserError
from mgdet.layers.deform import deform_conv2d


def convolve_at(conv: nn.Conv2d, x: Tensor, offsets: Tensor) -> Tensor:
    """Applies a convolution without bias at moved points, outside autocast: half precision would shift the points.

    Args:
        conv: its weight, stride and padding are used; the kernel has k points.
        x: (B, in_channels, H, W).
        offsets: (B, 2k, H / stride, W / stride) in cells, (y, x) of each point by row and column of the kernel.

    Returns:
        (B, out_channels, H / stride, W / stride), of the type of x.
    """
    stride, padding = (conv.stride[0], conv.stride[1]), (int(conv.padding[0]), int(conv.padding[1]))
    with torch.autocast(x.device.type, enabled=False):
        moved = deform_conv2d(x.float(), offsets.float(), conv.weight.float(), stride=stride, padding=padding)
    return moved.to(x.dtype)


class DeformConv(nn.Conv2d):
    """A convolution without bias that learns, in `conv_offset`, where to sample; the offsets start at zero."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, padding: int, groups: int
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=False
        )
        self.conv_offset = nn.Conv2d(in_channels, 2 * kernel_size**2, kernel_size, stride=stride, padding=padding)
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        return convolve_at(self, x, self.conv_offset(x))


def deform_stages(backbone: nn.Module, name: str) -> None:
    """Replaces the 3x3 convolution of every bottleneck in layer2 to layer4 of a timm ResNet, in place.

    Raises:
        UserError: the backbone is not a ResNet or ResNeXt with bottlenecks.
    """
    blocks = [block for stage in ("layer2", "layer3", "layer4") for block in getattr(backbone, stage, [])]
    if not blocks or not all(hasattr(block, "conv3") for block in blocks):
        raise UserError(
            f"deformable convolutions need a ResNet or ResNeXt with bottlenecks, not '{name}'; try resnet50"
        )
    for block in blocks:
        plain = block.conv2
        block.conv2 = DeformConv(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size[0],
            stride=plain.stride[0],
            padding=plain.padding[0],
            groups=plain.groups,
        )
        nn.init.kaiming_normal_(block.conv2.weight, mode="fan_out", nonlinearity="relu")
