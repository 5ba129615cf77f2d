"""Which anchor or proposal answers for which object."""

from __future__ import annotations

import torch
from torch import Tensor

NEGATIVE, IGNORED = -1, -2


def match_by_iou(
    iou: Tensor, *, positive: float, negative: float, min_positive: float, low_quality: bool = True
) -> Tensor:
    """Assigns each of A anchors to one of N objects by overlap.

    An anchor takes the object that it overlaps most when their IoU reaches `positive`, is negative below `negative`
    and ignored between. With `low_quality`, every anchor that ties for an object's best IoU takes that object when
    this IoU reaches `min_positive`; of several such objects the last wins.

    Args:
        iou: (A, N) overlaps.

    Returns:
        (A,) int64: index of the object, or `NEGATIVE`, or `IGNORED`.
    """
    num_anchors, num_objects = iou.shape
    if iou.numel() == 0:
        return torch.full((num_anchors,), NEGATIVE, dtype=torch.int64, device=iou.device)
    best, match = iou.max(dim=1)
    match = torch.where(best >= positive, match, torch.where(best < negative, NEGATIVE, IGNORED))
    if low_quality:
        best_of_object = iou.max(dim=0).values
        ties = (iou == best_of_object) & (best_of_object >= min_positive)
        order = torch.arange(1, num_objects + 1, device=iou.device)
        last = (ties * order).max(dim=1).values
        match = torch.where(last > 0, last - 1, match)
    return match
