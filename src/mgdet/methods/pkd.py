"""PKD: distillation by the Pearson correlation of two maps (arXiv 2207.02039)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdet.methods.base import FeatureMethod, align, standardise


class PKD(FeatureMethod):
    """The squared error of two maps that are both standardised, channel by channel, over the batch and all cells.

    loss = weight / 2 * mean((n(S) - n(T))^2), n(F) = (F - mean) / (std + 1e-6), which is weight * (1 - Pearson's r).

    The batch and the padding enter the statistics, so the loss depends on the images of a forward pass. A channel that
    is constant over the batch has a gradient of the order of 1e6. It computes in float32 also under autocast.

    Args:
        student_channels: width of the student's map. Where it is not the teacher's, a 1x1 convolution aligns it.
        teacher_channels: width of the teacher's map.
        weight: of the loss, 6 or 10 in the paper.
        resize_student: where the heights differ the student's map takes the size of the teacher's; False is the
            reverse.
    """

    name = "pkd"
    reads = "maps"
    fits_sizes = True

    def __init__(self, student_channels: int, teacher_channels: int, *, weight: float, resize_student: bool = True):
        super().__init__()
        self.weight, self.resize_student = weight, resize_student
        self.align = align(student_channels, teacher_channels)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar float32, of maps (B, student_channels, H, W) and (B, teacher_channels, H', W')."""
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = student.float(), teacher.float()
            if self.align is not None:
                student = self.align(student)
            if student.shape[2:] != teacher.shape[2:]:
                if self.resize_student:
                    student = F.interpolate(student, size=teacher.shape[2:], mode="bilinear", align_corners=False)
                else:
                    teacher = F.interpolate(teacher, size=student.shape[2:], mode="bilinear", align_corners=False)
            return self.weight / 2 * F.mse_loss(standardise(student), standardise(teacher))
