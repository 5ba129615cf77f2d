"""What SOLO is to learn from the objects of a batch: which cell answers for which, and how its mask looks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdet.layers.blocks import BlockSize
from mgdet.layers.host import to_device
from mgdet.structures import Target

STRIDES = (8, 8, 16, 32, 32)
GRIDS: tuple[int, ...] = (40, 36, 24, 16, 12)
SIZE_RANGES: tuple[tuple[int, int], ...] = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
CENTER_SHARE = 0.2
FACTORS = (4, 8, 16)
"""How much smaller than the batch images the masks of the levels are: half their strides."""
PIXELS_PER_BLOCK = BlockSize(cpu=2**24, gpu=2**25)
"""How many pixels of masks are summed up at a time: 64 MiB on a CPU, which copies them to four bytes each; else 32."""


class Objects(NamedTuple):
    """The N objects of a whole batch.

    image: (N,) int64, index in the batch.
    labels: (N,) int64.
    masks: for each factor (N, H / factor, W / factor) bool, H x W the batch images' size.
    extents: (N, 2) float, width and height of the box in pixels.
    centers: (N, 2) float, x and y of the mask's centre of mass in pixels; meaningless where the mask is empty.
    visible: (N,) bool, the mask is not empty.
    pixels: (2,) float, W and H.
    """

    image: Tensor
    labels: Tensor
    masks: dict[int, Tensor]
    extents: Tensor
    centers: Tensor
    visible: Tensor
    pixels: Tensor


def gather_objects(targets: list[Target], size: tuple[int, int]) -> Objects:
    """The objects of all images; `size` is (H, W) of the batch images.

    Raises:
        ValueError: a target has no masks.
    """
    labels = torch.cat([target.labels for target in targets])
    boxes = torch.cat([target.boxes for target in targets]).float()
    numbers = [i for i, target in enumerate(targets) for _ in range(len(target.labels))]
    height, width = size
    # Results have their place beforehand: what is kept of each block, between blocks that go, would scatter memory.
    per_row = torch.empty((len(labels), height), dtype=torch.int32, device=labels.device)
    per_column = torch.empty((len(labels), width), dtype=torch.int32, device=labels.device)
    small = {
        factor: torch.empty((len(labels), height // factor, width // factor), dtype=torch.bool, device=labels.device)
        for factor in FACTORS
    }
    start = 0
    for masks in mask_blocks(targets, size):
        span = slice(start, start + len(masks))
        # By default a sum of bytes copies them to eight bytes each.
        per_row[span] = masks.sum(dim=2, dtype=torch.int32)
        per_column[span] = masks.sum(dim=1, dtype=torch.int32)
        for factor, place in small.items():
            place[span] = shrink_masks(masks, factor)
        start = span.stop
    area = per_row.sum(dim=1)
    x = (per_column * torch.arange(width, device=labels.device)).sum(dim=1)
    y = (per_row * torch.arange(height, device=labels.device)).sum(dim=1)
    return Objects(
        image=to_device(numbers, labels.device, torch.int64),
        labels=labels,
        masks=small,
        extents=boxes[:, 2:] - boxes[:, :2],
        centers=torch.stack([x, y], dim=1) / area.float().clamp(min=1)[:, None],
        visible=area > 0,
        pixels=to_device([width, height], labels.device, boxes.dtype),
    )


def mask_blocks(targets: list[Target], size: tuple[int, int]) -> Iterator[Tensor]:
    """The masks of all images, in order and padded to `size` (H, W), in blocks of bounded memory.

    Yields:
        (n, H, W) uint8; at least one block, which is empty where there is no object.

    Raises:
        ValueError: a target has no masks.
    """
    longest = max(1, PIXELS_PER_BLOCK.on(targets[0].boxes.device) // math.prod(size))
    block: list[Tensor] = []
    for target in targets:
        if target.masks is None:
            raise ValueError("SOLO learns from masks and a target has none; read the data set with masks=True")
        for part in target.masks.split(longest):
            if block and sum(map(len, block)) + len(part) > longest:
                yield torch.cat(block)
                block = []
            block.append(F.pad(part, (0, size[1] - part.shape[2], 0, size[0] - part.shape[1])))
    yield torch.cat(block)


def assign_cells(objects: Objects, grid: int, sizes: tuple[int, int], batch: int) -> Tensor:
    """Which object each cell of one level answers for.

    A level takes the objects whose size, the root of their box's area, is in its range. An object takes the cells that
    the middle fifth of its box touches when that is centred on its mask, at most one cell around the centre. Later
    objects win.

    Args:
        objects: of the whole batch.
        grid: G, of the level.
        sizes: of the level, the smallest and the largest in pixels.
        batch: B.

    Returns:
        (B, G * G) int64, index into `objects` or -1.
    """
    low, high = sizes
    size = objects.extents.prod(dim=1).sqrt()
    taken = objects.visible & (size >= low) & (size <= high)

    def cell(points: Tensor) -> Tensor:
        return torch.div(points / objects.pixels, 1 / grid, rounding_mode="trunc")

    reach = 0.5 * objects.extents * CENTER_SHARE
    center = cell(objects.centers)
    first = torch.maximum(cell(objects.centers - reach), center - 1).clamp(min=0)
    last = torch.minimum(cell(objects.centers + reach), center + 1).clamp(max=grid - 1)
    index = torch.arange(grid, device=taken.device)
    inside = (index >= first[:, :, None]) & (index <= last[:, :, None])
    cover = (inside[:, 1, :, None] & inside[:, 0, None, :]).flatten(1) & taken[:, None]
    number = torch.arange(len(taken), device=taken.device)[:, None]
    owner = torch.full((batch, grid**2), -1, device=taken.device)
    image = objects.image[:, None].expand_as(cover)
    return owner.scatter_reduce(0, image, torch.where(cover, number, -1), "amax")


class Cells(NamedTuple):
    """Some positive cells of one level: at most M of each image, P in all.

    cells: (B, M) int64, row * G + column; beyond an image's own number, any cell.
    rows: (P,) int64, which of the B * M count.
    owners: (P,) int64, the object that each answers for.
    """

    cells: Tensor
    rows: Tensor
    owners: Tensor


def cell_blocks(owner: Tensor, counts: list[int], longest: int) -> list[Cells]:
    """The positive cells of one level, in order, in blocks of at most `longest` per image; at least one block.

    Args:
        owner: (B, G * G), see `assign_cells`.
        counts: how many cells of each image are positive, as known to the host.
        longest: M at most.
    """
    # Positive cells first, each kind in its order; to ask where they are would be a wait.
    order = (owner < 0).byte().sort(dim=1, stable=True).indices
    blocks = []
    for start in range(0, max(1, *counts), longest):
        cells = order[:, start : min(start + longest, max(counts))]
        width = cells.shape[1]
        taken = [i * width + j for i, count in enumerate(counts) for j in range(min(count - start, width))]
        rows = to_device(taken, owner.device, torch.int64)
        blocks.append(Cells(cells, rows, owner.gather(1, cells).flatten()[rows]))
    return blocks


def shrink_masks(masks: Tensor, factor: int) -> Tensor:
    """Masks (N, H, W) of zeros and ones at 1 / factor of their size, (N, H / factor, W / factor) bool.

    Bilinear sampling at an even factor averages the four pixels in the middle of every factor x factor block, and
    OpenCV rounds a half up.
    """
    low, high = factor // 2 - 1, factor // 2
    rows = masks[:, low::factor] + masks[:, high::factor]
    return rows[:, :, low::factor] + rows[:, :, high::factor] >= 2
