"""Focal and Global Distillation on one feature map (arXiv 2111.11837, sections 3.1 and 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdet.layers.host import to_device
from mgdet.layers.padding import image_limits, padded_boxes, padding_index
from mgdet.methods.base import FeatureMethod, Truth, align, same_place

BOXES_AT_ONCE = 64


class FGD(FeatureMethod):
    """Foreground and background apart, weighted by the teacher's attention, and the relations of all cells.

    loss = weight * (foreground * fg + background * bg + attention * mask + relation * rela), in the paper's symbols
    alpha, beta, gamma and lambda. fg and bg are the squared error, weighted by the teacher's attention and by masks
    that give every object the same total; mask is the L1 distance of both sides' attention; rela is the squared
    distance of the maps behind a global context block each. Sums are divided by B.

    It computes in float32 also under autocast: the sums do not fit half precision.

    Args:
        student_channels: width of the student's map. Where it is not the teacher's, a 1x1 convolution aligns it.
        teacher_channels: width of the teacher's map, at least 2.
        weight: of the whole loss; 1 is as published.
        temperature: tau of the attention.
        foreground, background, attention, relation: weights of the parts.
    """

    name = "fgd"
    needs_truth = True

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        weight: float,
        temperature: float,
        foreground: float,
        background: float,
        attention: float,
        relation: float,
    ):
        super().__init__()
        self.weight, self.temperature = weight, temperature
        self.weights = {"fg": foreground, "bg": background, "mask": attention, "rela": relation}
        self.align = align(student_channels, teacher_channels)
        self.conv_mask_s, self.channel_add_conv_s = _context(teacher_channels)
        self.conv_mask_t, self.channel_add_conv_t = _context(teacher_channels)

    def forward(self, student: Tensor, teacher: Tensor, truth: Truth) -> Tensor:
        """The loss, a scalar float32.

        Args:
            student: (B, student_channels, H, W).
            teacher: (B, teacher_channels, H, W), without gradient.
            truth: boxes and sizes of the B images.

        Raises:
            ValueError: the maps do not have the same B, H and W.
        """
        parts = self.parts(student, teacher, truth)
        return self.weight * torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()

    def parts(self, student: Tensor, teacher: Tensor, truth: Truth) -> dict[str, Tensor]:
        """The four parts before their weights, scalars: fg, bg, mask and rela; arguments as in `forward`."""
        same_place(student, teacher)
        batch = student.shape[0]
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = student.float(), teacher.float()
            if self.align is not None:
                student = self.align(student)
            cells, channels = self._attention(student)
            teacher_cells, teacher_channels = self._attention(teacher)
            error = (student - teacher) ** 2 * teacher_cells[:, None] * teacher_channels[:, :, None, None]
            foreground = foreground_mask(truth, (student.shape[2], student.shape[3]))
            background = background_mask(foreground)
            mine = _relate(student, self.conv_mask_s, self.channel_add_conv_s)
            theirs = _relate(teacher, self.conv_mask_t, self.channel_add_conv_t)
            return {
                "fg": (error * foreground[:, None]).sum() / batch,
                "bg": (error * background[:, None]).sum() / batch,
                "mask": (
                    F.l1_loss(channels, teacher_channels, reduction="sum")
                    + F.l1_loss(cells, teacher_cells, reduction="sum")
                )
                / batch,
                "rela": F.mse_loss(mine, theirs, reduction="sum") / batch,
            }

    def _attention(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of cells (B, H, W) and of channels (B, C); each has a mean of 1."""
        batch, channels, height, width = maps.shape
        strength = maps.abs()
        cells = (strength.mean(dim=1).flatten(1) / self.temperature).softmax(dim=1)
        return (
            (height * width * cells).view(batch, height, width),
            channels * (strength.mean(dim=(2, 3)) / self.temperature).softmax(dim=1),
        )


def _context(channels: int) -> tuple[nn.Conv2d, nn.Sequential]:
    """The two parts of a global context block, which starts as the identity."""
    where = nn.Conv2d(channels, 1, 1)
    nn.init.kaiming_normal_(where.weight, mode="fan_in")
    nn.init.zeros_(where.bias)  # type: ignore[arg-type]
    last = nn.Conv2d(channels // 2, channels, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    narrow = nn.Conv2d(channels, channels // 2, 1)
    return where, nn.Sequential(narrow, nn.LayerNorm([channels // 2, 1, 1]), nn.ReLU(inplace=True), last)


def _relate(maps: Tensor, where: nn.Conv2d, change: nn.Sequential) -> Tensor:
    """Adds to every cell what `change` makes of the sum of all cells, weighted by the softmax of `where`."""
    weights = where(maps).flatten(2).softmax(dim=2)
    context = torch.einsum("bcn,bkn->bc", maps.flatten(2), weights)
    related: Tensor = maps + change(context[:, :, None, None])
    return related


@torch.no_grad()
def foreground_mask(truth: Truth, size: tuple[int, int]) -> Tensor:
    """The weight of each cell that an object covers, (B, H, W); 0 elsewhere.

    It is 1 over the object's cells, counted one more in each direction as in the original, also beyond the map's edge.
    Where objects overlap the smaller one counts.

    Args:
        truth: boxes and sizes of B images.
        size: cells (H, W) of the map. It stands for each image without its padding, as in the original.
    """
    height, width = size
    device = truth.boxes[0].device
    index = padding_index([len(own) for own in truth.boxes], device)
    boxes = padded_boxes(truth.boxes, index)
    extent = image_limits(truth.sizes, device)[:, None]
    cells = boxes / extent * to_device([width, height, width, height], device, boxes.dtype)
    left, top = cells[..., 0].floor(), cells[..., 1].floor()
    right, bottom = cells[..., 2].ceil(), cells[..., 3].ceil()
    weights = (index >= 0) / ((bottom + 1 - top) * (right + 1 - left))
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(width, device=boxes.device)
    mask = boxes.new_zeros(len(boxes), height, width)
    for start in range(0, boxes.shape[1], BOXES_AT_ONCE):
        part = slice(start, start + BOXES_AT_ONCE)
        in_rows = (rows >= top[:, part, None]) & (rows <= bottom[:, part, None])
        in_columns = (columns >= left[:, part, None]) & (columns <= right[:, part, None])
        covered = in_rows[..., :, None] & in_columns[..., None, :]
        mask = torch.maximum(mask, (covered * weights[:, part, None, None]).amax(dim=1))
    return mask


def background_mask(foreground: Tensor) -> Tensor:
    """The cells without an object, (B, H, W), which add up to 1 in each image; all 0 where there is none."""
    background = (foreground == 0).to(foreground.dtype)
    return background / background.sum(dim=(1, 2), keepdim=True).clamp(min=1)
