"""Region Proposal Network (arXiv 1506.01497): where there may be an object, of whatever class."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdet.layers.anchors import AnchorGrid, level_sizes
from mgdet.layers.boxes import decode, encode
from mgdet.layers.conv import head_std, init_normal
from mgdet.layers.host import to_host
from mgdet.layers.matching import match_by_iou
from mgdet.layers.padding import NEGATIVE, PaddedTargets
from mgdet.layers.postprocess import best
from mgdet.layers.sampling import choose_balanced
from mgdet.layers.suppress import suppress

STRIDES = (4, 8, 16, 32, 64)
ANCHORS_PER_IMAGE = 256
POSITIVE_SHARE = 0.5


class Proposals(NamedTuple):
    """Boxes of B images that may hold an object, best first, padded to P of every image.

    boxes: (B, P, 4) xyxy inside the image.
    scores: (B, P) in [0, 1].
    usable: (B, P) bool; what is not usable stands last and is padding.
    """

    boxes: Tensor
    scores: Tensor
    usable: Tensor

    def shortened(self) -> Proposals:
        """The same proposals, padded only to the most of an image; a wait."""
        length = max(to_host(self.usable.sum(dim=1)))
        return Proposals(*(column[:, :length] for column in self))


class RPNHead(nn.Module):
    """Objectness and box deltas of three anchors per cell, on pyramid levels P2 to P6.

    Args:
        channels: width of the levels and of the head.
        smooth_l1_beta: where the box loss turns from square to linear; 0 is the plain L1 loss.
        inside_only: train only on anchors that lie inside the image.
    """

    def __init__(self, channels: int, *, smooth_l1_beta: float = 0.0, inside_only: bool = False):
        super().__init__()
        self.smooth_l1_beta, self.inside_only = smooth_l1_beta, inside_only
        self.nms_threshold = 0.7
        self.anchors = AnchorGrid(STRIDES, [8], [0.5, 1.0, 2.0])
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, self.anchors.num_forms, 1)
        self.rpn_reg = nn.Conv2d(channels, self.anchors.num_forms * 4, 1)
        init_normal(self, std=head_std(channels))

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """L maps (B, C, H_l, W_l) to logits (B, A, H_l, W_l) and deltas (B, A * 4, H_l, W_l)."""
        features = [F.relu(self.rpn_conv(level), inplace=True) for level in maps]
        return [self.rpn_cls(level) for level in features], [self.rpn_reg(level) for level in features]

    def losses(self, logits: list[Tensor], deltas: list[Tensor], targets: PaddedTargets) -> dict[str, Tensor]:
        """Binary cross entropy and box loss of each level, `loss_rpn_cls` and `loss_rpn_bbox`, (L,) each.

        Both count only the sampled anchors and are divided by their number, where an image without positives, or
        without negatives, counts one.

        Args:
            logits: L tensors (B, A, H_l, W_l) from `forward`.
            deltas: L tensors (B, A * 4, H_l, W_l) from `forward`.
            targets: of B images.
        """
        sizes = level_sizes(logits)
        level_anchors = self.anchors.boxes(sizes)
        positive, negative, boxes = self.assign(torch.cat(level_anchors), sizes, targets)
        num = positive.sum(dim=1).clamp(min=1).sum() + negative.sum(dim=1).clamp(min=1).sum()
        cls_parts, bbox_parts, start = [], [], 0
        for level, own_anchors in enumerate(level_anchors):
            span = slice(start, start + len(own_anchors))
            is_object, is_nothing = positive[:, span], negative[:, span]
            errors = F.binary_cross_entropy_with_logits(
                _by_anchor(logits[level], 1)[..., 0], is_object.float(), reduction="none"
            )
            cls_parts.append((errors * (is_object | is_nothing)).sum())
            wanted = encode(own_anchors, boxes[:, span])
            errors = F.smooth_l1_loss(
                _by_anchor(deltas[level], 4), wanted, reduction="none", beta=self.smooth_l1_beta
            ).sum(dim=2)
            bbox_parts.append(torch.where(is_object, errors, 0.0).sum())
            start = span.stop
        return {"loss_rpn_cls": torch.stack(cls_parts) / num, "loss_rpn_bbox": torch.stack(bbox_parts) / num}

    @torch.no_grad()
    def assign(
        self, anchors: Tensor, sizes: list[tuple[int, int]], targets: PaddedTargets
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples the anchors that each image trains.

        Args:
            anchors: (A, 4) xyxy of all levels.
            sizes: (H_l, W_l) of each level.
            targets: the images' objects.

        Returns:
            positive (B, A) bool, negative (B, A) bool, and the box (B, A, 4) that a positive wants.
        """
        allowed = self._allowed(anchors, sizes, targets)
        match = match_by_iou(targets, anchors, allowed=allowed, positive=0.7, negative=0.3, min_positive=0.3)
        positive, negative = choose_balanced(
            (match >= 0) & allowed, (match == NEGATIVE) & allowed, num=ANCHORS_PER_IMAGE, share=POSITIVE_SHARE
        )
        return positive, negative, targets.boxes_of(match)

    def _allowed(self, anchors: Tensor, sizes: list[tuple[int, int]], targets: PaddedTargets) -> Tensor:
        """Which anchors of each image, (B, A) bool, may be sampled."""
        allowed = self.anchors.valid(sizes, targets.padded)
        if self.inside_only:
            allowed &= (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] < targets.limits[:, None, 2:]).all(dim=2)
        return allowed

    @torch.no_grad()
    def proposals(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        limits: Tensor,
        *,
        candidates_per_level: int,
        limit: int,
    ) -> Proposals:
        """The best boxes of each image after non-maximum suppression within each level.

        Args:
            logits: L tensors (B, A, H_l, W_l) from `forward`.
            deltas: L tensors (B, A * 4, H_l, W_l) from `forward`.
            limits: (B, 4), (w, h, w, h) of each image without its padding.
            candidates_per_level: how many boxes of a level enter the suppression at most.
            limit: how many boxes of an image are kept at most.
        """
        boxes, scores, spans = self.candidates(logits, deltas, limits, per_level=candidates_per_level)
        kept = suppress(boxes, scores, spans, threshold=self.nms_threshold)
        scores, order = torch.where(kept, scores, -1.0).sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, :limit], order[:, :limit]
        return Proposals(boxes.gather(1, order[..., None].expand(-1, -1, 4)), scores, scores >= 0)

    def candidates(
        self, logits: list[Tensor], deltas: list[Tensor], limits: Tensor, *, per_level: int
    ) -> tuple[Tensor, Tensor, list[int]]:
        """The best boxes of each level, before any is suppressed.

        Args:
            logits: L tensors (B, A, H_l, W_l) from `forward`.
            deltas: L tensors (B, A * 4, H_l, W_l) from `forward`.
            limits: (B, 4), (w, h, w, h) of each image without its padding.
            per_level: how many boxes of a level at most.

        Returns:
            boxes (B, T, 4) xyxy and scores (B, T), level after level, best first within each, and how many of each.
        """
        anchors = self.anchors.boxes(level_sizes(logits))
        columns = []
        for level, own_anchors in enumerate(anchors):
            scores, rows = best(_by_anchor(logits[level], 1)[..., 0].sigmoid(), per_level)
            own_deltas = _by_anchor(deltas[level], 4).gather(1, rows[..., None].expand(-1, -1, 4))
            columns.append((scores, own_anchors[rows], own_deltas))
        scores, starts, moves = (torch.cat(column, dim=1) for column in zip(*columns))
        return decode(starts, moves, limits[:, None]), scores, [part[0].shape[1] for part in columns]


def _by_anchor(level: Tensor, width: int) -> Tensor:
    """(B, A * width, H, W) to float32 (B, H * W * A, width)."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, width).float()
