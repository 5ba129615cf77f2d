"""Non-maximum suppression of a whole batch's proposals, each level of each image apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdet.layers.boxes import pairwise_iou
from mgdet.layers.host import to_host
from mgdet.layers.nms import nms
from mgdet.layers.postprocess import apart

ROUNDS = 16
"""Rounds of suppression between two looks at whether anything still changes; 2000 proposals need fewer than ten."""
PAIRS_PER_IMAGE = 2**21
"""How many pairs of boxes of an image are compared in one go, on a device."""


def suppress(boxes: Tensor, scores: Tensor, spans: Sequence[int], *, threshold: float) -> Tensor:
    """Which boxes are left once those that overlap a better one of their level and image have gone.

    Args:
        boxes: (B, T, 4) xyxy, level after level, best first within each.
        scores: (B, T).
        spans: boxes of each level; they add up to T.
        threshold: a box that overlaps a better one by more than this IoU goes.

    Returns:
        (B, T) bool, false also for boxes without extent.
    """
    way = _image_by_image if boxes.device.type == "cpu" else _all_together
    return way(boxes, scores, spans, threshold)


def _image_by_image(boxes: Tensor, scores: Tensor, spans: Sequence[int], threshold: float) -> Tensor:
    """One box after the other: the least work, but every image would be a wait for a device."""
    levels = torch.arange(len(spans)).repeat_interleave(torch.tensor(spans))
    solid = _solid(boxes)
    kept = torch.zeros_like(solid)
    for i, own in enumerate(solid):
        # Moved apart as in the original, for its rounding; the levels do not touch, so each goes by itself.
        moved = apart(boxes[i], levels, boxes[i, own].max()) if own.any() else boxes[i]
        for level in range(len(spans)):
            rows = (own & (levels == level)).nonzero()[:, 0]
            kept[i, rows[nms(moved[rows], scores[i, rows], threshold)]] = True
    return kept


def _all_together(boxes: Tensor, scores: Tensor, spans: Sequence[int], threshold: float) -> Tensor:
    """All images and levels side by side, in rounds, as in Cluster NMS (arXiv 2005.03572, algorithm 2).

    A box stays when no better box that stays overlaps it. Starting from all boxes, round after round decides on boxes
    whose better neighbours are decided, so what no longer changes is exactly what one box after the other gives.
    """
    longest = max(spans)
    levels = [F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in boxes.split(list(spans), dim=1)]
    groups = torch.stack(levels, dim=1).flatten(0, 1)  # (B * L, M, 4)
    # (B * L, M, M): does the better box, a row, overlap the worse one, a column?
    overlapping = torch.empty((len(groups), longest, longest), dtype=torch.float16, device=boxes.device)
    step = max(1, PAIRS_PER_IMAGE // (longest * len(spans)))
    for part, rows in zip(groups.split(step, dim=1), overlapping.split(step, dim=1)):
        rows.copy_(pairwise_iou(part, groups) > threshold)
    overlapping.triu_(diagonal=1)
    kept, settled = overlapping.new_ones(len(groups), 1, longest), False
    with torch.autocast(boxes.device.type, enabled=False):
        while not settled:
            for _ in range(ROUNDS):
                before, kept = kept, (kept @ overlapping == 0).half()
            settled = bool(to_host((before == kept).all()))
    by_level = kept.bool().view(len(boxes), len(spans), longest)
    return torch.cat([by_level[:, level, :span] for level, span in enumerate(spans)], dim=1) & _solid(boxes)


def _solid(boxes: Tensor) -> Tensor:
    """Which boxes (B, T, 4) have an extent, (B, T) bool."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
