"""Starting a student from its teacher's neck and head (the published recipes call it inheriting)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

BACKBONE, NECK = "backbone.", "neck."


class Inherited(NamedTuple):
    """State-dict keys outside the backbone: those that were copied, and those that kept the student's values."""

    copied: list[str]
    kept: list[str]


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> Inherited:
    """Copies the teacher's state-dict entries outside its backbone into the student.

    Only the neck's convolutions that read the backbone may have other shapes, where the backbones' stages have other
    widths; they keep the student's values.

    Args:
        student: the detector that receives.
        teacher: the detector that gives, of the same neck and head.

    Raises:
        ValueError: anything else differs; nothing was copied.
    """
    given = {key: value for key, value in teacher.state_dict().items() if not key.startswith(BACKBONE)}
    taken = {key: value for key, value in student.state_dict().items() if not key.startswith(BACKBONE)}
    kept = [key for key in taken if key in given and given[key].shape != taken[key].shape]
    differing = sorted(given.keys() ^ taken.keys()) + [
        key for key in kept if not key.startswith(NECK) or given[key].shape[0] != taken[key].shape[0]
    ]
    if differing:
        raise ValueError(
            f"the student cannot inherit the teacher's neck and head: {len(differing)} entries differ, "
            f"the first is {differing[0]}"
        )
    copied = [key for key in taken if key not in kept]
    for key in copied:
        taken[key].copy_(given[key])
    return Inherited(copied, kept)
