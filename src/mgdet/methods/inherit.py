"""Starting a student from its teacher's neck and head (the published recipes call it inheriting)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

BACKBONE, NECK = "backbone", "neck"


class Inherited(NamedTuple):
    """What became of the student's state-dict entries outside its backbone.

    copied: keys that have the teacher's values.
    kept: keys of inherited parts that kept the student's values.
    own: parts that the teacher does not have in this form, e.g. `roi_head`; all their entries are the student's.
    """

    copied: list[str]
    kept: list[str]
    own: list[str]


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> Inherited:
    """Copies the teacher's state-dict entries outside its backbone into the student.

    A teacher of the student's class gives all of them. Only the neck's convolutions that read the backbone may have
    other shapes, where the backbones' stages have other widths; they keep the student's values. A teacher of another
    class gives the parts that both have in the same form: a Cascade Mask R-CNN gives a Faster R-CNN its neck and its
    first stage.

    Args:
        student: the detector that receives.
        teacher: the detector that gives.

    Raises:
        ValueError: the two differ in more than that, or have no part but the neck in common; nothing was copied.
    """
    given, taken = _parts(teacher), _parts(student)
    own = [part for part in taken if given.get(part, {}).keys() != taken[part].keys()]
    if own and (type(student) is type(teacher) or NECK in own or len(taken) - len(own) < 2):
        raise ValueError(
            f"the student cannot inherit the teacher's neck and head: a {type(student).__name__} and a "
            f"{type(teacher).__name__} share too little of them"
        )
    pairs = {
        f"{part}.{key}": (value, given[part][key])
        for part in taken
        if part not in own
        for key, value in taken[part].items()
    }
    kept = [key for key, (mine, theirs) in pairs.items() if mine.shape != theirs.shape]
    differing = [
        key for key in kept if not key.startswith(f"{NECK}.") or pairs[key][0].shape[0] != pairs[key][1].shape[0]
    ]
    if differing:
        raise ValueError(
            f"the student cannot inherit the teacher's neck and head: {len(differing)} entries differ, "
            f"the first is {differing[0]}"
        )
    copied = [key for key in pairs if key not in kept]
    for key in copied:
        mine, theirs = pairs[key]
        mine.copy_(theirs)
    return Inherited(copied, kept, own)


def _parts(detector: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """State-dict entries by the part of the detector that they belong to, without its backbone."""
    return {
        name: part.state_dict() for name, part in detector.named_children() if name != BACKBONE and part.state_dict()
    }
