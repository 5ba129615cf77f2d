"""Which anchor or proposal answers for which object."""

from __future__ import annotations

import torch
from torch import Tensor

from mgdet.layers.boxes import pairwise_iou
from mgdet.layers.padding import IGNORED, NEGATIVE, PaddedTargets


def match_by_iou(
    targets: PaddedTargets,
    anchors: Tensor,
    *,
    allowed: Tensor,
    positive: float,
    negative: float,
    min_positive: float,
    low_quality: bool = True,
) -> Tensor:
    """Assigns each of A anchors of every image to one of its objects by overlap.

    An anchor takes the object that it overlaps most when their IoU reaches `positive`, is negative below `negative`
    and ignored between. With `low_quality`, every anchor that ties for an object's best IoU takes that object when
    this IoU reaches `min_positive`; of several such objects the last wins.

    Objects pass in blocks, so that memory does not grow with their number.

    Args:
        targets: the objects of B images.
        anchors: (A, 4) xyxy, the same for all images, or (B, A, 4).
        allowed: (B, A) bool; other anchors overlap nothing.

    Returns:
        (B, A) int64: index of the object, or `NEGATIVE`, or `IGNORED`.
    """
    best = torch.full_like(allowed, -1.0, dtype=anchors.dtype)
    match = torch.zeros_like(allowed, dtype=torch.int64)
    forced = torch.full_like(allowed, NEGATIVE, dtype=torch.int32)
    for start, boxes, exists in targets.blocks(anchors.shape[-2]):
        iou = pairwise_iou(boxes, anchors)
        iou.masked_fill_(~exists[:, :, None], -1.0).masked_fill_(~allowed[:, None], -1.0)
        top, which = iou.max(dim=1)
        match = torch.where(top > best, which + start, match)
        best = torch.maximum(best, top)
        if low_quality:
            best_of_object = iou.amax(dim=2, keepdim=True)
            ties = (iou == best_of_object) & (best_of_object >= min_positive)
            order = torch.arange(start, start + boxes.shape[1], dtype=torch.int32, device=iou.device)[:, None]
            forced = torch.maximum(forced, torch.where(ties, order, NEGATIVE).amax(dim=1))
    match = torch.where(best >= positive, match, torch.where(best < negative, NEGATIVE, IGNORED))
    return torch.where(forced >= 0, forced.long(), match)
