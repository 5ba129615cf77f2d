"""Deformable convolution; on a CPU the sums of torchvision's kernel, from operators of torch that are fast there.

Rows of the channels-last map are added up by `embedding_bag`, one bag for each sampled point, and one product with the
weight follows. Both go over the positions in blocks: all samples together fit neither the processor's cache nor, for a
large image, its memory. For the same reason the backward pass samples again instead of keeping the samples. Images
whose samples fit into one block are taken together: of small maps, each operator's start is most of its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from mgdet.layers.eager import eager_on_cpu

FORWARD_SAMPLES, BACKWARD_SAMPLES = 2**20, 2**22
"""Numbers in the samples of one block. In the backward pass each block also makes a gradient as large as the map."""


def deform_conv2d(
    x: Tensor, offsets: Tensor, weight: Tensor, *, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """What `torchvision.ops.deform_conv2d` computes without mask and bias, with a gradient for each tensor.

    Args:
        x: (B, in_channels, H, W) float.
        offsets: (B, 2k, H', W') in cells, (y, x) of each of the kernel's k points, row by row.
        weight: (out_channels, in_channels / groups, rows, columns), rows * columns = k.
        stride: (y, x) steps between positions.
        padding: (y, x) cells of zeros around the map.

    Returns:
        (B, out_channels, H', W'); on a CPU channels last in memory.
    """
    if not eager_on_cpu(x):
        moved: Tensor = torchvision.ops.deform_conv2d(x, offsets, weight, stride=stride, padding=padding)
        return moved
    rows, columns = weight.shape[2:]
    down, across = offsets.shape[2:]
    start_y = torch.arange(rows).repeat_interleave(columns)[:, None] + torch.arange(down) * stride[0] - padding[0]
    start_x = torch.arange(columns).repeat(rows)[:, None] + torch.arange(across) * stride[1] - padding[1]
    points = offsets.unflatten(1, (-1, 2))
    points_y = (points[:, :, 0] + start_y[:, :, None]).flatten(2)
    points_x = (points[:, :, 1] + start_x[:, None, :]).flatten(2)
    images = x.permute(0, 2, 3, 1).contiguous()
    # In plain order: of a channels-last weight a convolution over groups in `_convolve` reads wrong numbers.
    plain_weight = weight.flatten(2).contiguous()
    together = _images_per_block(points_y, x.shape[1])
    blocks = zip(*(tensor.split(together) for tensor in (images, points_y, points_x)))
    moved = torch.cat([_ConvolveAt.apply(*block, plain_weight) for block in blocks])
    return moved.unflatten(1, (down, across)).permute(0, 3, 1, 2)


class _ConvolveAt(torch.autograd.Function):
    """The convolution of N images (N, H, W, in_channels) at P positions, whose points are at y and x, (N, k, P) each.

    The weight is (out_channels, in_channels / groups, k), the result (N, P, out_channels).
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, y, x, weight)
        result = images.new_empty(len(images), y.shape[2], len(weight))
        for span in _spans(y, images, FORWARD_SAMPLES):
            result[:, span] = _convolve(images, y[..., span], x[..., span], weight)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, y, x, weight = saved = ctx.saved_tensors  # once: a block that is computed again gives them once
        totals = [torch.zeros_like(tensor) for tensor in saved]
        for span in _spans(y, images, BACKWARD_SAMPLES):
            with torch.enable_grad():
                parts = [part.detach() for part in (images, y[..., span], x[..., span], weight)]
                wanted = [part.requires_grad_() for part, need in zip(parts, ctx.needs_input_grad) if need]
                moved = _convolve(*parts)
            places = [totals[0], totals[1][..., span], totals[2][..., span], totals[3]]
            places = [place for place, need in zip(places, ctx.needs_input_grad) if need]
            for place, part in zip(places, torch.autograd.grad(moved, wanted, gradients[0][:, span])):
                place.add_(part)
        return tuple(total if need else None for total, need in zip(totals, ctx.needs_input_grad))


def _images_per_block(y: Tensor, channels: int) -> int:
    """How many images (B, k, P) have at most `FORWARD_SAMPLES` sampled numbers; at least one."""
    return max(1, FORWARD_SAMPLES // max(1, y.shape[1:].numel() * channels))


def _spans(y: Tensor, images: Tensor, limit: int) -> Iterator[slice]:
    """The positions in blocks of at most `limit` sampled numbers each."""
    step = max(1, limit // (y.shape[:2].numel() * images.shape[3]))
    for start in range(0, y.shape[2], step):
        yield slice(start, min(start + step, y.shape[2]))


def _convolve(images: Tensor, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """As `_ConvolveAt`, in one go."""
    count, height, width, channels = images.shape
    groups = channels // weight.shape[1]
    (rows, down), (columns, across) = _neighbours(y, height), _neighbours(x, width)
    rows = rows + torch.arange(count)[:, None, None, None] * height
    cells = (rows[..., :, None] * width + columns[..., None, :]).flatten(3)
    shares = (down[..., :, None] * across[..., None, :]).flatten(3)
    if groups == 1:  # the points of a position lie side by side: one matrix product
        cells, shares = cells.transpose(1, 2), shares.transpose(1, 2)
    samples = F.embedding_bag(
        cells.reshape(-1, 4), images.flatten(0, 2), mode="sum", per_sample_weights=shares.reshape(-1, 4)
    )
    if groups == 1:
        points = y.shape[1] * channels
        return (samples.view(-1, points) @ weight.permute(2, 1, 0).flatten(0, 1)).unflatten(0, (count, -1))
    # Points by positions is an image too, and its convolution with a kernel of k x 1 is the product in groups.
    plane = samples.view(count, y.shape[1], -1, channels).permute(0, 3, 1, 2)
    return F.conv2d(plane, weight[..., None], groups=groups)[:, :, 0].transpose(1, 2)


def _neighbours(points: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two cells beside each point (N, k, P) on an axis, (N, k, P, 2) int64, and each one's share in its value.

    A cell off the map has no share.
    """
    low = points.detach().floor()
    beyond = points - low
    cells = low.long()[..., None] + torch.arange(2)
    inside = (cells >= 0) & (cells < size)
    return cells.clamp(0, size - 1), torch.stack([1 - beyond, beyond], dim=-1) * inside
