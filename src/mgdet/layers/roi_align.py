"""RoIAlign (arXiv 1703.06870); on a CPU the sums of torchvision's kernel, from an operator of torch that is fast there.

A cell of a region is the mean of bilinear samples, so it is a weighted sum of map cells; the samples of one row weigh
map rows, those of one column map columns. `embedding_bag` adds the rows of the channels-last map up, one bag for each
cell of a region, and every map cell is read once for it, however many samples it lies beside.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from mgdet.layers.eager import eager_on_cpu


def roi_align(x: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """What `torchvision.ops.roi_align` computes with `sampling_ratio=0` and `aligned=True`; no gradient for the rois.

    Args:
        x: (B, C, H, W); the sums are in float32 also where it is half precision.
        rois: (K, 5), the image's number, then a box xyxy.
        size: cells along an edge of a region.
        scale: cells of the map for one unit of the boxes.

    Returns:
        (K, C, size, size), of the type of x.
    """
    if not eager_on_cpu(x):
        pooled: Tensor = torchvision.ops.roi_align(x, rois, size, scale, sampling_ratio=0, aligned=True)
        return pooled
    if len(rois) == 0:
        return x[:0, :, :1, :1].expand(-1, -1, size, size)
    channels, height, width = x.shape[1:]
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)
    table = table if table.dtype == torch.float64 else table.float()
    rois = rois.detach().to(table.dtype)
    corners = rois[:, 1:] * scale - 0.5
    rows = _axis(corners[:, 1], corners[:, 3], size, height)
    columns = _axis(corners[:, 0], corners[:, 2], size, width)
    cells, shares, starts = _bags(rois[:, 0].long() * height, rows, columns, width)
    summed = F.embedding_bag(cells, table, starts, mode="sum", per_sample_weights=shares)
    return summed.to(x.dtype).view(len(rois), size, size, channels).permute(0, 3, 1, 2)


class _Axis(NamedTuple):
    """Which map cells on one axis make up each of S cells of K regions.

    first: (K, S) int64, the first map cell.
    length: (K, S) int64, how many follow each other from there on.
    shares: (K, S, M), the share of each in the mean; M is at least every length.
    """

    first: Tensor
    length: Tensor
    shares: Tensor


def _axis(low: Tensor, high: Tensor, num_cells: int, size: int) -> _Axis:
    """Regions from `low` to `high`, (K,) each, on an axis of `size` map cells.

    The steps, and so the rounding, are torchvision's: a sample further than one cell off the map counts as zero, and
    one beside the map as the cell at the edge.
    """
    edge = (high - low)[:, None, None]
    step = edge / num_cells
    num_samples = step.ceil().nan_to_num(nan=0)  # regions of a network that has diverged are empty
    number = torch.arange(max(1, int(num_samples.max())))
    cell = torch.arange(num_cells)[:, None]
    points = low[:, None, None] + cell * step + (number + 0.5) * step / num_samples.clamp(min=1)
    counted = (number < num_samples) & (points >= -1) & (points <= size)
    points = points.clamp(0, size - 1)
    before = points.floor()
    beyond = points - before
    share = counted / num_samples.clamp(min=1)

    # Samples lie at most one cell apart, so their neighbours are the cells from the first to the last without a gap.
    lowest = torch.where(counted, before, size).amin(dim=2)
    highest = torch.where(counted, before + 1, -1).amax(dim=2).clamp(max=size - 1)
    length = (highest - lowest + 1).clamp(min=0).long()
    place = torch.where(counted, before - lowest[..., None], 0).long()
    shares = low.new_zeros(*lowest.shape, max(2, int(length.max()) + 1))
    shares.scatter_add_(2, place, share * (1 - beyond)).scatter_add_(2, place + 1, share * beyond)
    return _Axis(lowest.long(), length, shares)


def _bags(offsets: Tensor, rows: _Axis, columns: _Axis, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The map cells of each region's cell, region by region and row by row.

    There are millions of entries, so they are numbered in int32, which holds far more, and picked by `index_select`.

    Args:
        offsets: (K,) int64, number of the image's first map row among those of all images.
        rows: the regions' vertical axis.
        columns: the regions' horizontal axis.
        width: cells in a map row.

    Returns:
        E numbers of map cells, their shares (E,), and where in them each of K * S * S bags starts.
    """
    num_cells = rows.first.shape[1]
    row_lengths, column_lengths = rows.length.int(), columns.length.int()
    of_axis = torch.arange(rows.first.numel(), dtype=torch.int32).view(-1, num_cells)

    def for_bags(by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
        """Values (K, S) of the rows and of the columns, for each bag (K * S * S,)."""
        return (
            by_row[:, :, None].expand(-1, -1, num_cells).flatten(),
            by_column[:, None, :].expand(-1, num_cells, -1).flatten(),
        )

    first_row, first_column = for_bags((offsets[:, None] + rows.first).int() * width, columns.first.int())
    share_of_row, share_of_column = for_bags(of_axis * rows.shares.shape[2], of_axis * columns.shares.shape[2])
    num_rows, num_columns = for_bags(row_lengths, column_lengths)

    # One entry for each map row in each bag, then one for each map cell in that row.
    bag, number = _owners(num_rows)
    cell = (first_row + first_column).index_select(0, bag) + number * width
    share = rows.shares.flatten().index_select(0, share_of_row.index_select(0, bag) + number)
    row, number = _owners(num_columns.index_select(0, bag))
    in_table = share_of_column.index_select(0, bag).index_select(0, row) + number
    shares = share.index_select(0, row) * columns.shares.flatten().index_select(0, in_table)
    sizes = num_rows * num_columns
    return (cell.index_select(0, row) + number).long(), shares, sizes.cumsum(0) - sizes


class _Owners(NamedTuple):
    """A list of lists, flat: for each entry the list it belongs to and its number in it, (E,) int32 each."""

    owner: Tensor
    number: Tensor


def _owners(counts: Tensor) -> _Owners:
    """Entries of lists that hold `counts` (N,) int32 entries each."""
    owner = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(counts)
    starts = counts.cumsum(0, dtype=torch.int32) - counts
    return _Owners(owner, torch.arange(len(owner), dtype=torch.int32) - starts.index_select(0, owner))
