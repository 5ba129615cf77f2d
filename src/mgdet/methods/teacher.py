"""The part of distillation that never changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mgdet.structures import Seen


class Teacher(nn.Module):
    """A detector frozen permanently: always in eval mode, without gradients, run no further than a method reads.

    It belongs in no DistributedDataParallel, optimizer or checkpoint; keep it beside the student, not inside.

    Args:
        detector: a detector, see `mgdet.detectors.face.Face`.
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

    def forward(self, images: Tensor) -> list[Tensor]:
        """The taps, L tensors (B, C, H_l, W_l), of images (B, 3, H, W) without padding."""
        return self.see(images, [(images.shape[2], images.shape[3])] * len(images)).taps

    @torch.no_grad()
    def see(self, images: Tensor, sizes: list[tuple[int, int]], *, outputs: bool = False) -> Seen:
        """What the detector shows of a batch; arguments as in `mgdet.detectors.face.Face.see`.

        Not under `inference_mode`: its tensors could not be saved for the student's backward pass.
        """
        seen: Seen = self.detector.see(images, sizes, outputs=outputs)
        return seen
