"""Masked Generative Distillation on one feature map (arXiv 2205.01529, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdet.methods.base import FeatureMethod, align, same_place


class MGD(FeatureMethod):
    """Generates the teacher's map from a masked view of the student's, and measures the squared error.

    Equations 2 to 5 of the paper: M is one uniform draw per cell, shared by all channels, and zeroes the cells where
    it exceeds 1 - `mask_ratio`; nothing is rescaled. G is a 3x3 convolution, ReLU and another 3x3 convolution.

    loss = weight * sum((G(align(S) * M) - T)^2) / B

    The convolutions follow autocast. The error and its sum are float32: the sum over a large level does not fit half
    precision.

    Args:
        student_channels: width of the student's map. Where it is not the teacher's, a 1x1 convolution aligns it.
        teacher_channels: width of the teacher's map.
        weight: alpha in the paper.
        mask_ratio: lambda in the paper, the expected share of masked cells.
    """

    name = "mgd"

    def __init__(self, student_channels: int, teacher_channels: int, *, weight: float, mask_ratio: float):
        super().__init__()
        self.weight, self.mask_ratio = weight, mask_ratio
        self.align = align(student_channels, teacher_channels)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar float32.

        Args:
            student: (B, student_channels, H, W).
            teacher: (B, teacher_channels, H, W), without gradient.

        Raises:
            ValueError: the maps do not have the same B, H and W.
        """
        same_place(student, teacher)
        _, generated = self.regenerate(student)
        with torch.autocast(student.device.type, enabled=False):
            return self.weight / len(student) * F.mse_loss(generated.float(), teacher.float(), reduction="sum")

    def regenerate(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """What is left of the student's map (B, student_channels, H, W) and what the generator makes of that.

        Returns:
            The mask (B, 1, H, W) bool, True where a cell is kept, and the generated map (B, teacher_channels, H, W).
        """
        if not torch.is_autocast_enabled(student.device.type):
            student = student.float()
        view = student if self.align is None else self.align(student)
        batch, _, height, width = student.shape
        kept = torch.rand((batch, 1, height, width), device=student.device) <= 1 - self.mask_ratio
        return kept, self.generation(view * kept)
