"""The part of distillation that never changes."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mgdet.layers.winograd import is_plain
from mgdet.structures import Detections, Seen


class Teacher(nn.Module):
    """A detector frozen permanently: always in eval mode, without gradients, run no further than a method reads.

    It belongs in no DistributedDataParallel, optimizer or checkpoint; keep it beside the student, not inside.

    Args:
        detector: a detector, see `mgdet.detectors.face.Face`.
        precision: `step` is that of the caller's autocast; `fp32` and `bf16` hold whatever the caller's is. With `bf16`
            the convolutions of a backbone keep their weights in bfloat16, as autocast would round a frozen weight again
            in every step.
    """

    detector: Any

    def __init__(self, detector: nn.Module, precision: Literal["step", "fp32", "bf16"] = "step"):
        super().__init__()
        self.detector, self.precision = detector, precision
        backbone = getattr(detector, "backbone", None)
        if precision == "bf16" and isinstance(backbone, nn.Module):
            for module in backbone.modules():
                if is_plain(module):  # a deformable one reads its weight in float32
                    module.to(torch.bfloat16)
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
        with self._autocast(images.device.type):
            seen: Seen = self.detector.see(images, sizes, outputs=outputs)
        return seen

    @torch.no_grad()
    def find(
        self, images: Tensor, sizes: list[tuple[int, int]], scales: list[tuple[float, float]] | None = None
    ) -> list[Detections]:
        """What the detector finds in a batch; arguments as in `mgdet.detectors.face.Face.find`."""
        with self._autocast(images.device.type):
            found: list[Detections] = self.detector.find(images, sizes, scales)
        return found

    def _autocast(self, device: str) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "step":
            return contextlib.nullcontext()
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16")
