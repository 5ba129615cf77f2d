"""What a method of distillation is: a module that compares one pair of levels, and says what it must be shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mgdet.structures import Target


class Truth(NamedTuple):
    """The ground truth of one batch, for methods that weigh cells by it.

    boxes: for each image (N, 4) float, xyxy, pixels of the batch images.
    labels: for each image (N,) int64.
    sizes: (h, w) of each image without its padding, in pixels of the batch images.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    sizes: list[tuple[int, int]]

    @classmethod
    def of(cls, targets: Sequence[Target]) -> Truth:
        """The truth that targets hold."""
        return cls([t.boxes for t in targets], [t.labels for t in targets], [t.size for t in targets])


class FeatureMethod(nn.Module):
    """A loss between a map of the student and one of the teacher; one module for each pair of levels.

    `forward(student, teacher)` takes (B, C_s, H, W) and (B, C_t, H, W) and returns a scalar float32, already weighted;
    with `needs_truth` it also takes a `Truth`. The teacher's map has no gradient.

    name: the method's section of the config; its losses are `loss_<name>_fpn_<level>`.
    reads: what it compares: taps, before the neck's norm, or maps, what the heads read.
    needs_truth: does `forward` take the ground truth?
    fits_sizes: does it bring maps of different sizes together by a rule of its own?
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["taps", "maps"]] = "taps"
    needs_truth: ClassVar[bool] = False
    fits_sizes: ClassVar[bool] = False


class HeadMethod(nn.Module):
    """A loss between what the heads say; one module for all levels.

    `forward(student, teacher, truth)` takes two `Seen` with their outputs and a `Truth`, and returns a scalar float32,
    already weighted. Its loss is `loss_<name>`.
    """

    name: ClassVar[str]


def align(student_channels: int, teacher_channels: int) -> nn.Conv2d | None:
    """A 1x1 convolution from the student's width to the teacher's; None where they agree."""
    return nn.Conv2d(student_channels, teacher_channels, 1) if student_channels != teacher_channels else None


def same_place(student: Tensor, teacher: Tensor) -> None:
    """Refuses maps that do not lie on each other.

    Raises:
        ValueError: the maps do not have the same B, H and W.
    """
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(f"student map {tuple(student.shape)} and teacher map {tuple(teacher.shape)} do not match")


def standardise(maps: Tensor, eps: float = 1e-6) -> Tensor:
    """Maps (B, C, H, W) with mean 0 and standard deviation 1 in each channel over the batch and all cells, float32."""
    maps = maps.float()
    std, mean = torch.std_mean(maps, dim=(0, 2, 3), keepdim=True)
    return (maps - mean) / (std + eps)
