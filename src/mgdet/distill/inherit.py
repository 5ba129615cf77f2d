"""Starting a student from its teacher's neck and head (the published recipes call it inheriting)."""

from __future__ import annotations

import torch
from torch import nn

BACKBONE = "backbone."


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Copies every state-dict entry of the teacher outside its backbone into the student.

    Args:
        student: the detector that receives.
        teacher: the detector that gives, of the same neck and head.

    Returns:
        The keys that were copied.

    Raises:
        ValueError: the two do not have the same entries outside their backbones; nothing was copied.
    """
    given = {key: value for key, value in teacher.state_dict().items() if not key.startswith(BACKBONE)}
    taken = {key: value for key, value in student.state_dict().items() if not key.startswith(BACKBONE)}
    differing = sorted(
        key
        for key in given.keys() | taken.keys()
        if key not in given or key not in taken or given[key].shape != taken[key].shape
    )
    if differing:
        raise ValueError(
            f"the student cannot inherit the teacher's neck and head: {len(differing)} entries differ, "
            f"the first is {differing[0]}"
        )
    for key, value in taken.items():
        value.copy_(given[key])
    return list(taken)
