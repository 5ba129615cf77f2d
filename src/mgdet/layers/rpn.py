"""Region Proposal Network (arXiv 1506.01497): where there may be an object, of whatever class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdet.layers.anchors import AnchorGrid
from mgdet.layers.boxes import decode, encode, pairwise_iou
from mgdet.layers.conv import head_std, init_normal
from mgdet.layers.matching import NEGATIVE, match_by_iou
from mgdet.layers.postprocess import class_nms
from mgdet.layers.sampling import choose_balanced
from mgdet.structures import Target

STRIDES = (4, 8, 16, 32, 64)
ANCHORS_PER_IMAGE = 256
POSITIVE_SHARE = 0.5


class RPNHead(nn.Module):
    """Objectness and box deltas of three anchors a cell, on pyramid levels P2 to P6.

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

    def losses(self, logits: list[Tensor], deltas: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Binary cross entropy and box loss of each level, `loss_rpn_cls` and `loss_rpn_bbox`, (L,) each.

        Both count only the sampled anchors and are divided by their number, where an image without positives, or
        without negatives, counts one.

        Args:
            logits: L tensors (B, A, H_l, W_l) from `forward`.
            deltas: L tensors (B, A * 4, H_l, W_l) from `forward`.
            targets: B targets.
        """
        level_sizes = [_size(level) for level in logits]
        level_anchors = self.anchors.boxes(level_sizes, logits[0].device)
        anchors = torch.cat(level_anchors)
        assigned = [self.assign(anchors, level_sizes, target) for target in targets]
        positive, negative, boxes = (torch.stack(column) for column in zip(*assigned))
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
        self, anchors: Tensor, level_sizes: list[tuple[int, int]], target: Target
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples the anchors that an image trains.

        Args:
            anchors: (A, 4) xyxy of all levels.
            level_sizes: (H_l, W_l) of each level.
            target: the image's objects.

        Returns:
            positive (A,) bool, negative (A,) bool, and the box (A, 4) that a positive wants.
        """
        objects = target.boxes.float()
        allowed = self._allowed(anchors, level_sizes, target)
        iou = torch.where(allowed[:, None], pairwise_iou(anchors, objects), -1.0)
        match = match_by_iou(iou, positive=0.7, negative=0.3, min_positive=0.3)
        positive, negative = choose_balanced(
            (match >= 0) & allowed, (match == NEGATIVE) & allowed, num=ANCHORS_PER_IMAGE, share=POSITIVE_SHARE
        )
        # Row 0 is a box that no loss reads.
        boxes = torch.cat([objects.new_tensor([[0.0, 0.0, 1.0, 1.0]]), objects])
        return positive, negative, boxes[match.clamp(min=-1) + 1]

    def _allowed(self, anchors: Tensor, level_sizes: list[tuple[int, int]], target: Target) -> Tensor:
        """Which anchors (A,) may be sampled."""
        allowed = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        if target.padded is not None:
            allowed = torch.cat(self.anchors.valid(level_sizes, target.padded, anchors.device))
        if self.inside_only:
            height, width = target.size
            allowed &= (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2] < width) & (anchors[:, 3] < height)
        return allowed

    @torch.no_grad()
    def proposals(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        sizes: list[tuple[int, int]],
        *,
        candidates_per_level: int,
        limit: int,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The best boxes of each image after non-maximum suppression within each level.

        Args:
            logits: L tensors (B, A, H_l, W_l) from `forward`.
            deltas: L tensors (B, A * 4, H_l, W_l) from `forward`.
            sizes: (h, w) of each image without its padding.
            candidates_per_level: how many boxes of a level enter the suppression at most.
            limit: how many boxes of an image are kept at most.

        Returns:
            For each image boxes (N, 4) xyxy inside the image, best first, and their scores (N,).
        """
        anchors = self.anchors.boxes([_size(level) for level in logits], logits[0].device)
        columns = []
        for level, own_anchors in enumerate(anchors):
            scores = _by_anchor(logits[level], 1)[..., 0].sigmoid()
            scores, rows = scores.topk(min(candidates_per_level, scores.shape[1]), dim=1)
            own_deltas = _by_anchor(deltas[level], 4).gather(1, rows[..., None].expand(-1, -1, 4))
            columns.append((scores, own_anchors[rows], own_deltas, torch.full_like(rows, level)))
        scores, boxes, moves, levels = (torch.cat(column, dim=1) for column in zip(*columns))
        kept_boxes, kept_scores = [], []
        for i, size in enumerate(sizes):
            found = decode(boxes[i], moves[i], size)
            solid = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
            found, confidence = found[solid], scores[i][solid]
            keep = class_nms(found, confidence, levels[i][solid], threshold=self.nms_threshold, limit=limit)
            kept_boxes.append(found[keep])
            kept_scores.append(confidence[keep])
        return kept_boxes, kept_scores


def _size(level: Tensor) -> tuple[int, int]:
    return level.shape[-2], level.shape[-1]


def _by_anchor(level: Tensor, width: int) -> Tensor:
    """(B, A * width, H, W) to float32 (B, H * W * A, width)."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, width).float()
