"""RepPoints (Point Set Representation for Object Detection, arXiv 1904.11490), boxes from moments."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdet.detectors.base import Detector
from mgdet.layers.anchors import AnchorGrid
from mgdet.layers.boxes import clip, pairwise_iou
from mgdet.layers.conv import ConvBlock, head_std, init_bias, init_normal
from mgdet.layers.dcn import convolve_at
from mgdet.layers.fpn import FPN
from mgdet.layers.losses import sigmoid_focal_sum
from mgdet.layers.matching import IGNORED, NEGATIVE, match_by_iou
from mgdet.layers.postprocess import class_nms, top_pairs
from mgdet.structures import Detections, Target

STRIDES = (8, 16, 32, 64, 128)
STACKED_CONVS = 3
KERNEL_SIZE = 3
NUM_POINTS = KERNEL_SIZE**2
BASE_SCALE = 4
SMOOTH_L1_BETA = 0.11
FIRST_WEIGHT = 0.5
OFFSET_GRADIENT = 0.1
MOMENT_GRADIENT = 0.01


class RepPointsHead(nn.Module):
    """Nine points a cell, drawn twice: first from the features of the cell, then from the features at the first points.

    Points are offsets to their cell in units of its stride, the y of each before its x.
    """

    kernel_points: Tensor

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.cls_convs = nn.ModuleList(ConvBlock(channels, channels, 3, group_norm=True) for _ in range(STACKED_CONVS))
        self.reg_convs = nn.ModuleList(ConvBlock(channels, channels, 3, group_norm=True) for _ in range(STACKED_CONVS))
        self.reppoints_pts_init_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.reppoints_pts_init_out = nn.Conv2d(channels, 2 * NUM_POINTS, 1)
        self.reppoints_cls_conv = nn.Conv2d(channels, channels, KERNEL_SIZE, padding=1, bias=False)
        self.reppoints_cls_out = nn.Conv2d(channels, num_classes, 1)
        self.reppoints_pts_refine_conv = nn.Conv2d(channels, channels, KERNEL_SIZE, padding=1, bias=False)
        self.reppoints_pts_refine_out = nn.Conv2d(channels, 2 * NUM_POINTS, 1)
        self.moment_transfer = nn.Parameter(torch.zeros(2))
        steps = torch.arange(KERNEL_SIZE, dtype=torch.float32) - KERNEL_SIZE // 2
        self.register_buffer("kernel_points", torch.cartesian_prod(steps, steps).reshape(1, -1, 1, 1), persistent=False)
        init_normal(self, std=head_std(channels))
        init_bias(self.reppoints_cls_out, probability=0.01)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """L maps (B, C, H_l, W_l) to logits (B, num_classes, H_l, W_l), first and refined points (B, 18, H_l, W_l)."""
        logits, first, refined = zip(*(self._level(level) for level in maps))
        return list(logits), list(first), list(refined)

    def _level(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cls, reg = level, level
        for block in self.cls_convs:
            cls = block(cls)
        for block in self.reg_convs:
            reg = block(reg)
        first = self.reppoints_pts_init_out(F.relu(self.reppoints_pts_init_conv(reg))).float()
        offsets = _scale_gradient(first, OFFSET_GRADIENT) - self.kernel_points
        logits = self.reppoints_cls_out(F.relu(convolve_at(self.reppoints_cls_conv, cls, offsets)))
        moves = self.reppoints_pts_refine_out(F.relu(convolve_at(self.reppoints_pts_refine_conv, reg, offsets))).float()
        return logits.float(), first, first.detach() + moves

    def boxes(self, points: Tensor) -> Tensor:
        """Points (..., 18) to boxes (..., 4) xyxy in the same units.

        The mean of the points is the centre; their standard deviation, times a learned factor for x and for y, is half
        the edge.
        """
        y_x = points.unflatten(-1, (NUM_POINTS, 2))
        centre = y_x.mean(dim=-2).flip(-1)
        half = y_x.std(dim=-2).flip(-1) * _scale_gradient(self.moment_transfer, MOMENT_GRADIENT).exp()
        return torch.cat([centre - half, centre + half], dim=-1)


class RepPoints(Detector):
    """One-stage detector on pyramid levels P3 to P7 without anchors, group norm in neck and head.

    Args:
        backbone: see `Detector`.
        num_classes: classes without background.
        channels: width of neck and head, a multiple of 32.
        norm_eval: keep the backbone's batch norm statistics fixed.
    """

    num_taps = 5
    class_predictors = ("bbox_head.reppoints_cls_out.",)

    def __init__(self, backbone: nn.Module, *, num_classes: int, channels: int = 256, norm_eval: bool = True):
        super().__init__(backbone, num_classes=num_classes, channels=channels, norm_eval=norm_eval)
        self.score_threshold, self.nms_threshold = 0.05, 0.5
        self.candidates_per_level, self.max_detections = 1000, 100
        # Anchors without extent: the corner origin (x, y, x, y) of each cell, which its points are counted from.
        self.origins = AnchorGrid(STRIDES, [0.0], [1.0])
        widths = self.backbone.feature_info.channels()
        self.neck = FPN(widths[1:], channels, num_levels=5, extra="conv", group_norm=True)
        self.bbox_head = RepPointsHead(num_classes, channels)

    def head(self, maps: list[Tensor]) -> Any:
        """Class logits, first and refined point offsets of each level, (B, channels, H_l, W_l) each."""
        return self.bbox_head(maps)

    def loss_parts(self, maps: list[Tensor], targets: list[Target], outputs: Any = None) -> dict[str, Tensor]:
        """Losses of each level, (L,) each: focal `loss_cls`, smooth L1 `loss_pts_init` and `loss_pts_refine`.

        Each is divided by the number of its stage's positive cells, counted at least 1 in every image. Classes belong
        to the second stage.
        """
        logits, first, refined = self._outputs(maps, outputs)
        sizes = _sizes(maps)
        origins = self.origins.boxes(sizes, maps[0].device)
        proposals = torch.cat(first, dim=1).detach()
        matches = [self._match(origins, boxes, sizes, target) for boxes, target in zip(proposals, targets)]
        first_match, second_match = (torch.stack(column) for column in zip(*matches))
        labels, second_wanted = self._wanted(second_match, targets)
        _, first_wanted = self._wanted(first_match, targets)
        spans = [len(points) for points in origins]
        cls_parts = [
            sigmoid_focal_sum(level.flatten(0, 1), wanted.flatten())
            for level, wanted in zip(logits, labels.split(spans, dim=1))
        ]
        return {
            "loss_cls": torch.stack(cls_parts) / _count(second_match),
            "loss_pts_init": FIRST_WEIGHT * _box_losses(first, first_wanted, first_match),
            "loss_pts_refine": _box_losses(refined, second_wanted, second_match),
        }

    def detect(
        self,
        maps: list[Tensor],
        sizes: list[tuple[int, int]],
        scales: list[tuple[float, float]] | None = None,
    ) -> list[Detections]:
        """See `Detector.detect`."""
        logits, _, refined = self._outputs(maps)
        results = []
        for i, size in enumerate(sizes):
            candidates = []
            for level_logits, level_boxes in zip(logits, refined):
                scores, cells, labels = top_pairs(
                    level_logits[i].sigmoid(), threshold=self.score_threshold, limit=self.candidates_per_level
                )
                candidates.append((clip(level_boxes[i][cells], size), scores, labels))
            boxes, scores, labels = (torch.cat(column) for column in zip(*candidates))
            if scales is not None:
                boxes = boxes / boxes.new_tensor(scales[i] * 2)
            keep = class_nms(boxes, scores, labels, threshold=self.nms_threshold, limit=self.max_detections)
            results.append(Detections(boxes[keep], scores[keep], labels[keep]))
        return results

    def _outputs(self, maps: list[Tensor], outputs: Any = None) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """By level: logits (B, H_l * W_l, num_classes), first and refined boxes (B, H_l * W_l, 4) in pixels."""
        logits, first, refined = self.head(maps) if outputs is None else outputs
        origins = self.origins.boxes(_sizes(maps), maps[0].device)
        return (
            [level.flatten(2).mT for level in logits],
            [o + s * self.bbox_head.boxes(level.flatten(2).mT) for o, s, level in zip(origins, STRIDES, first)],
            [o + s * self.bbox_head.boxes(level.flatten(2).mT) for o, s, level in zip(origins, STRIDES, refined)],
        )

    @torch.no_grad()
    def _match(
        self, origins: list[Tensor], proposals: Tensor, sizes: list[tuple[int, int]], target: Target
    ) -> tuple[Tensor, Tensor]:
        """The object of each cell of one image in both stages, (A,) int64 each; `NEGATIVE` or `IGNORED` for none.

        Args:
            origins: of each level, (H_l * W_l, 4).
            proposals: (A, 4) xyxy, the first stage's boxes.
            sizes: cells (H_l, W_l) of each level.
            target: boxes in pixels of the batch image.
        """
        boxes = target.boxes.float()
        distance = _distances(origins, boxes)
        iou = pairwise_iou(proposals, boxes)
        if target.padded is None:
            return _match_nearest(distance), _match_overlap(iou)
        valid = torch.cat(self.origins.valid(sizes, target.padded, boxes.device))
        first = _match_nearest(torch.where(valid[:, None], distance, torch.inf))
        second = _match_overlap(torch.where(valid[:, None], iou, -1.0))
        return first, torch.where(valid, second, IGNORED)

    def _wanted(self, match: Tensor, targets: list[Target]) -> tuple[Tensor, Tensor]:
        """For matches (B, A): labels (B, A), num_classes is background and -1 not counted, and boxes (B, A, 4)."""
        labels, boxes = [], []
        for row, target in zip(match.clamp(min=NEGATIVE) + 1, targets):
            # Row 0 stands for "no object": background, with a box that no loss reads.
            labels.append(torch.cat([target.labels.new_tensor([self.num_classes]), target.labels])[row])
            boxes.append(torch.cat([target.boxes.new_zeros(1, 4), target.boxes]).float()[row])
        return torch.where(match == IGNORED, -1, torch.stack(labels)), torch.stack(boxes)


def _sizes(maps: list[Tensor]) -> list[tuple[int, int]]:
    return [(level.shape[-2], level.shape[-1]) for level in maps]


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied by `factor`."""
    return factor * x + (1 - factor) * x.detach()


def _distances(origins: list[Tensor], boxes: Tensor) -> Tensor:
    """Distance (A, N) of each cell to the centre of each box, in the box's edges; infinite off the box's own level.

    The level's stride is the box's size (the geometric mean of its edges) / 4, rounded down to a power of two.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    level_of_box = (torch.log2(extent / BASE_SCALE).sum(dim=1) / 2).int() - int(math.log2(STRIDES[0]))
    level_of_box = level_of_box.clamp(0, len(STRIDES) - 1)
    parts = []
    for level, points in enumerate(origins):
        distance = ((points[:, None, :2] - centre) / extent).norm(dim=2)
        parts.append(torch.where(level_of_box == level, distance, torch.inf))
    return torch.cat(parts)


def _match_nearest(distance: Tensor) -> Tensor:
    """Gives each object its nearest cell; of several objects at one cell the nearest keeps it, the first of equals.

    Args:
        distance: (A, N).

    Returns:
        (A,) int64: index of the object, or `NEGATIVE`.
    """
    if distance.shape[1] == 0:
        return torch.full(distance.shape[:1], NEGATIVE, dtype=torch.int64, device=distance.device)
    nearest = distance.argmin(dim=0, keepdim=True)
    claims = torch.full_like(distance, torch.inf).scatter(0, nearest, distance.gather(0, nearest))
    return torch.where(claims.isfinite().any(dim=1), claims.argmin(dim=1), NEGATIVE)


def _match_overlap(iou: Tensor) -> Tensor:
    """The second stage's rule for overlaps (A, N)."""
    return match_by_iou(iou, positive=0.5, negative=0.4, min_positive=0.0)


def _count(match: Tensor) -> Tensor:
    """Positive cells of matches (B, A), at least 1 in every image."""
    return (match >= 0).sum(dim=1).clamp(min=1).sum()


def _box_losses(boxes: list[Tensor], wanted: Tensor, match: Tensor) -> Tensor:
    """Smooth L1 loss of each level, (L,), over the positive cells, coordinates in units of 4 strides.

    Args:
        boxes: of each level, (B, H_l * W_l, 4) xyxy.
        wanted: (B, A, 4) xyxy.
        match: (B, A), what is at least 0 is positive.
    """
    spans = [level.shape[1] for level in boxes]
    losses = []
    for level, goal, own, stride in zip(boxes, wanted.split(spans, dim=1), match.split(spans, dim=1), STRIDES):
        unit = BASE_SCALE * stride
        error = F.smooth_l1_loss(level / unit, goal / unit, beta=SMOOTH_L1_BETA, reduction="none").sum(dim=2)
        losses.append(torch.where(own >= 0, error, 0.0).sum())
    return torch.stack(losses) / _count(match)
