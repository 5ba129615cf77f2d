"""Winograd's convolution: 3 x 3, on a CPU, in float32, with a quarter of the multiplications.

This is F(4 x 4, 3 x 3) of "Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, arXiv 1509.09308,
section 4.3). Patches of 6 x 6 cells, which overlap by two, become 36 sums each. These are multiplied by as many sums
over the kernel, and the 4 x 4 cells in the middle of the result are sums of the products. Its error beside a
convolution in float64 is 2e-6 of the norm, where that of torch's own is 7e-7.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mgdet.layers.eager import eager_on_cpu

TILE, PATCH = 4, 6
FEWEST_CHANNELS = 256
"""In and out. With fewer the sums take as long as the products save where cores have no cache in common."""
KERNELS_PER_CELL = 48
"""A batch with fewer cells than one for so many kernels pays more for the sums over the kernels than it saves."""
NUMBERS_PER_BLOCK = 2**20
"""How many numbers are transformed in one go: 4 MiB, as much as caches hold."""

_OF_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OF_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OF_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def _in_both_directions(sums: tuple[tuple[float, ...], ...]) -> Tensor:
    """Sums along one edge of a square as sums over the whole square, as one matrix."""
    matrix = torch.tensor(sums, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


INPUT, KERNEL, OUTPUT = map(_in_both_directions, (_OF_INPUT, _OF_KERNEL, _OF_OUTPUT))


def quicken(network: nn.Module) -> None:
    """Has the convolutions of a network take Winograd's way where it is faster; names and weights stay as they are."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _suits(module):
            module.__class__ = Convolution


class Convolution(nn.Conv2d):
    """A 3 x 3 convolution that keeps the size of its maps, in Winograd's way where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        faster = (
            eager_on_cpu(x)
            and x.dim() == 4
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and x.numel() // x.shape[1] >= self.in_channels * self.out_channels // KERNELS_PER_CELL
        )
        if not faster:
            return super().forward(x)
        result: Tensor = _Convolve.apply(x, self.weight, self.bias)
        return result


def is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Is this a convolution of torch's own, quickened or not, and none that a library derives from it?"""
    return type(module) in (nn.Conv2d, Convolution)


def _suits(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == (3, 3)
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.padding in ((1, 1), "same")
        and convolution.padding_mode == "zeros"
        and convolution.groups == 1
        and min(convolution.in_channels, convolution.out_channels) >= FEWEST_CHANNELS
    )


class _Convolve(torch.autograd.Function):
    """The gradient of the input is a convolution with the kernels turned around; the kernels' is `weight_gradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            convolve(gradient, weight.flip(2, 3).transpose(0, 1)) if of_x else None,
            weight_gradient(x, gradient) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
        )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution with one cell of zeros around.

    Args:
        x: (B, C, H, W) float32.
        weight: (K, C, 3, 3).
        bias: (K,).

    Returns:
        (B, K, H, W), channels last in memory.
    """
    batch, channels, height, width = x.shape
    kernels = len(weight)
    transformed = torch.mm(KERNEL, weight.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, channels, kernels)
    patches = _patches(x, PATCH)
    down, across = patches.shape[3:5]
    rows = _rows(down, across * max(channels, kernels))
    shape = (batch, kernels, height, width)
    result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    # Two rooms that are written over and over, so that they stay in the caches.
    one, other = x.new_empty(2, PATCH**2 * rows * across * max(channels, kernels))
    for image, place in zip(patches, result.permute(0, 2, 3, 1)):
        for start in range(0, down, rows):
            part = image[:, :, start : start + rows]
            number = part.shape[2] * across
            sums = _transform(part, INPUT, one, other)
            products = _in(one, PATCH**2, number, kernels)
            torch.bmm(sums.view(PATCH**2, number, channels), transformed, out=products)
            tiles = _in(other, TILE**2, number * kernels)
            torch.mm(OUTPUT, products.view(PATCH**2, -1), out=tiles)
            grid = tiles.view(TILE, TILE, -1, across, kernels)
            if bias is not None:
                grid += bias
            ordered = _in(one, part.shape[2], TILE, across, TILE, kernels).copy_(grid.permute(2, 0, 3, 1, 4))
            own = place[start * TILE : (start + rows) * TILE]
            own.copy_(ordered.view(-1, across * TILE, kernels)[: len(own), :width])
    return result


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the kernels of `convolve`: every step of it turned around.

    Args:
        x: (B, C, H, W) float32, the convolution's input.
        gradient: (B, K, H, W), of its result.

    Returns:
        (K, C, 3, 3).
    """
    channels, kernels = x.shape[1], gradient.shape[1]
    patches, tiles = _patches(x, PATCH), _patches(gradient, TILE)
    down, across = patches.shape[3:5]
    rows = _rows(down, across * max(channels, kernels))
    total = x.new_zeros(PATCH**2, channels, kernels)
    one, other, third = x.new_empty(3, PATCH**2 * rows * across * max(channels, kernels))
    for image, own in zip(patches, tiles):
        for start in range(0, down, rows):
            sums = _transform(image[:, :, start : start + rows], INPUT, one, other)
            spread = _transform(own[:, :, start : start + rows], OUTPUT.t(), one, third)
            total.baddbmm_(sums.view(PATCH**2, -1, channels).transpose(1, 2), spread.view(PATCH**2, -1, kernels))
    return torch.mm(KERNEL.t(), total.view(PATCH**2, -1)).view(3, 3, channels, kernels).permute(3, 2, 0, 1)


def _patches(x: Tensor, size: int) -> Tensor:
    """Squares of a map around its tiles, with zeros where they reach out: (B, size, size, down, across, C).

    Args:
        x: (B, C, H, W).
        size: their edge, `TILE` or `PATCH`.
    """
    down, across = (-(-edge // TILE) for edge in x.shape[2:])
    before = (size - TILE) // 2
    below, right = (before + count * TILE - edge for count, edge in zip((down, across), x.shape[2:]))
    cells = F.pad(x.permute(0, 2, 3, 1), (0, 0, before, right, before, below))
    return cells.unfold(1, size, TILE).unfold(2, size, TILE).permute(0, 4, 5, 1, 2, 3)


def _transform(squares: Tensor, matrix: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Sums over the cells of each square.

    Args:
        squares: (size, size, down, across, C), of `_patches`.
        matrix: (sums, size * size).
        one, other: rooms; the first is written over, the result is in the second.

    Returns:
        (sums, down * across * C).
    """
    gathered = _in(one, *squares.shape).copy_(squares).view(matrix.shape[1], -1)
    return torch.mm(matrix, gathered, out=_in(other, len(matrix), gathered.shape[1]))


def _rows(down: int, numbers_per_row: int) -> int:
    """How many of `down` rows of tiles are transformed in one go; a row has as many numbers as tiles x channels."""
    return min(down, max(1, NUMBERS_PER_BLOCK // (PATCH**2 * numbers_per_row)))


def _in(room: Tensor, *shape: int) -> Tensor:
    """The beginning of a room as a tensor of a shape."""
    return room[: math.prod(shape)].view(shape)
