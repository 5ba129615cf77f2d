"""The part of distillation that trains: a student detector and the generators that learn beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mgdet.methods.mgd import MGD


class DistilledStudent(nn.Module):
    """A detector with one MGD module a tapped pyramid level; its forward returns every loss of a training step.

    This is what DistributedDataParallel wraps, what the optimizer holds and what any training loop can call. The
    teacher stays outside. Without levels it is the detector training alone. State-dict keys are the original
    distiller's: `student.*` and `distill_losses.loss_mgd_fpn_<level>.*`.

    Args:
        student: a detector with `pyramid(images)` and `losses(maps, targets)`, see `mgdet.detectors.base.Detector`.
        levels: one `MGD` for each tap, finest level first; empty for a student that learns alone.
    """

    student: Any

    def __init__(self, student: nn.Module, levels: Sequence[MGD] = ()):
        super().__init__()
        self.student = student
        self.distill_losses = nn.ModuleDict({f"loss_mgd_fpn_{level}": mgd for level, mgd in enumerate(levels)})

    def forward(self, images: Tensor, targets: Sequence[Any], teacher_taps: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """The detector's losses and `loss_mgd_fpn_<level>` for every level, scalars, all to be added up.

        Args:
            images: (B, 3, H, W) float, normalised.
            targets: B targets, as the detector takes them.
            teacher_taps: L tensors (B, C, H_l, W_l), what `Teacher` returned for the same images.

        Raises:
            ValueError: the number of taps is not the number of levels.
        """
        maps, taps = self.student.pyramid(images)
        losses: dict[str, Tensor] = self.student.losses(maps, targets)
        if self.distill_losses:
            if not len(self.distill_losses) == len(taps) == len(teacher_taps):
                raise ValueError(
                    f"{len(self.distill_losses)} distilled levels need as many taps, not {len(taps)} of the student "
                    f"and {len(teacher_taps)} of the teacher"
                )
            for (name, mgd), mine, theirs in zip(self.distill_losses.items(), taps, teacher_taps):
                losses[name] = mgd(mine, theirs)
        return losses
