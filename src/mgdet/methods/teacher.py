"""The part of distillation that never changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A detector frozen for ever: always in eval mode, without gradients, run up to its neck only.

    It belongs in no DistributedDataParallel, optimizer or checkpoint; keep it beside the student, not inside.

    Args:
        detector: a detector with `pyramid(images)`, see `mgdet.detectors.base.Detector`.
    """

    detector: Any

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode, whatever `mode` says."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """The taps, L tensors (B, C, H_l, W_l), of images (B, 3, H, W).

        Not under `inference_mode`: its tensors could not be saved for the student's backward pass.
        """
        taps: list[Tensor] = self.detector.pyramid(images).taps
        return taps
