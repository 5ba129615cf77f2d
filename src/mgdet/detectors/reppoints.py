"""RepPoints (Point Set Representation for Object Detection, arXiv 1904.11490), boxes from moments."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdet.detectors.base import Detector
from mgdet.layers.anchors import AnchorGrid, level_sizes
from mgdet.layers.boxes import clip
from mgdet.layers.conv import ConvBlock, head_std, init_bias, init_normal
from mgdet.layers.dcn import convolve_at
from mgdet.layers.fpn import FPN
from mgdet.layers.losses import sigmoid_focal_sum
from mgdet.layers.matching import match_by_iou
from mgdet.layers.padding import IGNORED, NEGATIVE, PaddedTargets, image_limits
from mgdet.layers.postprocess import BoxOf, dense_detections
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
        sizes = level_sizes(maps)
        origins = self.origins.boxes(sizes)
        objects = PaddedTargets.of(targets)
        first_match, second_match = self._match(origins, torch.cat(first, dim=1).detach(), sizes, objects)
        labels = objects.labels_of(second_match, background=self.num_classes)
        first_wanted, second_wanted = objects.boxes_of(first_match), objects.boxes_of(second_match)
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
        scores, box = self.scored(maps)
        return dense_detections(
            scores,
            box,
            image_limits(sizes, maps[0].device),
            scales,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            candidates=self.candidates_per_level,
            limit=self.max_detections,
        )

    def scored(self, maps: list[Tensor]) -> tuple[list[Tensor], BoxOf]:
        """Scores (B, H_l * W_l, num_classes) of each level, and what makes the boxes of its cells."""
        logits, _, refined = self._outputs(maps)

        def box(level: int, image: int, cells: Tensor, limits: Tensor) -> Tensor:
            return clip(refined[level][image][cells], limits)

        return [level.sigmoid() for level in logits], box

    def _outputs(self, maps: list[Tensor], outputs: Any = None) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """By level: logits (B, H_l * W_l, num_classes), first and refined boxes (B, H_l * W_l, 4) in pixels."""
        logits, first, refined = self.head(maps) if outputs is None else outputs
        origins = self.origins.boxes(level_sizes(maps))
        return (
            [level.flatten(2).mT for level in logits],
            [o + s * self.bbox_head.boxes(level.flatten(2).mT) for o, s, level in zip(origins, STRIDES, first)],
            [o + s * self.bbox_head.boxes(level.flatten(2).mT) for o, s, level in zip(origins, STRIDES, refined)],
        )

    @torch.no_grad()
    def _match(
        self, origins: list[Tensor], proposals: Tensor, sizes: list[tuple[int, int]], targets: PaddedTargets
    ) -> tuple[Tensor, Tensor]:
        """The object of each cell in both stages, (B, A) int64 each; `NEGATIVE` or `IGNORED` for none.

        Args:
            origins: of each level, (H_l * W_l, 4).
            proposals: (B, A, 4) xyxy, the first stage's boxes.
            sizes: cells (H_l, W_l) of each level.
            targets: boxes in pixels of the batch images.
        """
        valid = self.origins.valid(sizes, targets.padded)
        first = _match_nearest(*_nearest_cells(origins, targets, valid), valid.shape[1])
        second = match_by_iou(targets, proposals, allowed=valid, positive=0.5, negative=0.4, min_positive=0.0)
        return first, torch.where(valid, second, IGNORED)


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied by `factor`."""
    return factor * x + (1 - factor) * x.detach()


def _nearest_cells(origins: list[Tensor], targets: PaddedTargets, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest cell (B, N) of each object on its own level, and how far it is from the box's centre, (B, N).

    Distances are in the box's edges. The stride of the object's level is the box's size (the geometric mean of its
    edges) / 4, rounded down to a power of two. Where no cell of it is `valid` (B, A) the distance is infinite.
    """
    points = torch.cat(origins)[:, :2]
    levels = torch.cat([torch.full_like(own[:, 0], i) for i, own in enumerate(origins)])
    cells, distances = [], []
    for _, boxes, exists in targets.blocks(len(points)):
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        extent = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
        level = (torch.log2(extent / BASE_SCALE).sum(dim=2) / 2).int() - int(math.log2(STRIDES[0]))
        level = level.clamp(0, len(STRIDES) - 1)
        x, y = (((points[:, axis] - centre[..., axis, None]) / extent[..., axis, None]).square_() for axis in range(2))
        distance = x.add_(y).sqrt_()
        own = (levels == level[..., None]) & valid[:, None] & exists[..., None]
        nearest = distance.masked_fill_(~own, torch.inf).min(dim=2)
        cells.append(nearest.indices)
        distances.append(nearest.values)
    return torch.cat(cells, dim=1), torch.cat(distances, dim=1)


def _match_nearest(cells: Tensor, distances: Tensor, num_cells: int) -> Tensor:
    """Gives each object its nearest cell; of several objects at one cell the nearest keeps it, the first of equals.

    Args:
        cells: (B, N) int64, the nearest cell of each object.
        distances: (B, N), infinite where an object has none.
        num_cells: A.

    Returns:
        (B, A) int64: index of the object, or `NEGATIVE`.
    """
    batch, num = cells.shape
    least = distances.new_full((batch, num_cells), torch.inf).scatter_reduce(1, cells, distances, "amin")
    winner = distances.isfinite() & (distances == least.gather(1, cells))
    number = torch.where(winner, torch.arange(num, device=cells.device), num)
    match = torch.full_like(least, num, dtype=torch.int64).scatter_reduce(1, cells, number, "amin")
    return torch.where(match < num, match, NEGATIVE)


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
