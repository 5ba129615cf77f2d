"""`train.checkpoint_backbone`: a larger batch in the same memory, as the backbone is computed a second time."""

from __future__ import annotations

from torch import nn

from mgdet.detectors.face import Face
from mgdet.errors import UserError
from mgdet.layers.recompute import blocks_of, recompute_blocks


def recompute_backbone(student: Face) -> str:
    """Has the blocks of a student's backbone keep only their inputs, and computes them again in the backward pass.

    Args:
        student: ours or another library's; losses, gradients and statistics stay the same to the bit.

    Returns:
        A sentence for the log.

    Raises:
        UserError: the backbone has no blocks.
    """
    number = sum(recompute_blocks(part) for part in _parts(student))
    if not number:
        raise UserError(
            "train.checkpoint_backbone finds no blocks in the student's backbone that could be computed again; leave "
            "it off, and lower train.batch and raise train.accumulate as much"
        )
    return f"the {number} blocks of the student's backbone are computed a second time in the backward pass"


def recomputed_blocks(student: Face) -> list[nn.Module]:
    """The blocks that `recompute_backbone` would have computed again; nothing is changed."""
    return [block for part in _parts(student) for block in blocks_of(part)]


def _parts(student: Face) -> list[nn.Module]:
    modules = dict(student.named_modules())
    return [modules[prefix.rstrip(".")] for prefix in student.backbone_prefixes if prefix.rstrip(".") in modules]
