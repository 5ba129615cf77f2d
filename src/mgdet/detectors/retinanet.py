"""RetinaNet (Focal Loss for Dense Object Detection, arXiv 1708.02002)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mgdet.detectors.base import Detector
from mgdet.layers.anchors import AnchorGrid, level_sizes
from mgdet.layers.boxes import decode, encode
from mgdet.layers.conv import ConvBlock, head_std, init_bias, init_normal
from mgdet.layers.fpn import FPN
from mgdet.layers.losses import sigmoid_focal_sum
from mgdet.layers.matching import match_by_iou
from mgdet.layers.padding import IGNORED, PaddedTargets, image_limits
from mgdet.layers.postprocess import BoxOf, dense_detections
from mgdet.structures import Detections, Target

STRIDES = (8, 16, 32, 64, 128)
STACKED_CONVS = 4


class RetinaHead(nn.Module):
    """Two towers over every pyramid level: class logits and box deltas of nine anchors a cell."""

    def __init__(self, num_classes: int, num_forms: int, channels: int):
        super().__init__()
        self.cls_convs = nn.ModuleList(ConvBlock(channels, channels, 3) for _ in range(STACKED_CONVS))
        self.reg_convs = nn.ModuleList(ConvBlock(channels, channels, 3) for _ in range(STACKED_CONVS))
        self.retina_cls = nn.Conv2d(channels, num_forms * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, num_forms * 4, 3, padding=1)
        init_normal(self, std=head_std(channels))
        init_bias(self.retina_cls, probability=0.01)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """L maps (B, C, H_l, W_l) to logits (B, A * num_classes, H_l, W_l) and deltas (B, A * 4, H_l, W_l)."""
        logits, deltas = [], []
        for level in maps:
            cls, reg = level, level
            for block in self.cls_convs:
                cls = block(cls)
            for block in self.reg_convs:
                reg = block(reg)
            logits.append(self.retina_cls(cls))
            deltas.append(self.retina_reg(reg))
        return logits, deltas


class RetinaNet(Detector):
    """One-stage detector on pyramid levels P3 to P7.

    Args:
        backbone: see `Detector`.
        num_classes: classes without background.
        channels: width of neck and head.
        norm_eval: keep the backbone's batch norm statistics fixed.
    """

    num_taps = 5
    class_predictors = ("bbox_head.retina_cls.",)

    def __init__(self, backbone: nn.Module, *, num_classes: int, channels: int = 256, norm_eval: bool = True):
        super().__init__(backbone, num_classes=num_classes, channels=channels, norm_eval=norm_eval)
        self.score_threshold, self.nms_threshold = 0.05, 0.5
        self.candidates_per_level, self.max_detections = 1000, 100
        self.anchors = AnchorGrid(STRIDES, [4 * 2 ** (i / 3) for i in range(3)], [0.5, 1.0, 2.0])
        widths = self.backbone.feature_info.channels()
        self.neck = FPN(widths[1:], channels, num_levels=5, extra="conv")
        self.bbox_head = RetinaHead(num_classes, self.anchors.num_forms, channels)

    def head(self, maps: list[Tensor]) -> Any:
        """Class logits (B, A * num_classes, H_l, W_l) and box deltas (B, A * 4, H_l, W_l) of each level."""
        return self.bbox_head(maps)

    def loss_parts(self, maps: list[Tensor], targets: list[Target], outputs: Any = None) -> dict[str, Tensor]:
        """Focal loss and L1 loss of each level, `loss_cls` and `loss_bbox`, (L,) each.

        Both are divided by the number of positive anchors, counted at least 1 in every image.
        """
        logits, deltas = self._flat_outputs(maps, outputs)
        sizes = level_sizes(maps)
        level_anchors = self.anchors.boxes(sizes)
        labels, boxes = self._assign(torch.cat(level_anchors), sizes, PaddedTargets.of(targets))
        positive = (labels >= 0) & (labels < self.num_classes)
        num_positive = positive.sum(dim=1).clamp(min=1).sum()
        cls_parts, bbox_parts, start = [], [], 0
        for level, level_logits in enumerate(logits):
            span = slice(start, start + len(level_anchors[level]))
            cls_parts.append(sigmoid_focal_sum(level_logits.flatten(0, 1), labels[:, span].flatten()))
            wanted = encode(level_anchors[level], boxes[:, span])
            error = (deltas[level] - wanted).abs().sum(dim=2)
            bbox_parts.append(torch.where(positive[:, span], error, 0.0).sum())
            start = span.stop
        return {
            "loss_cls": torch.stack(cls_parts) / num_positive,
            "loss_bbox": torch.stack(bbox_parts) / num_positive,
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
        """Scores (B, H_l * W_l * A, num_classes) of each level, and what makes the boxes of its anchors."""
        logits, deltas = self._flat_outputs(maps)
        anchors = self.anchors.boxes(level_sizes(maps))

        def box(level: int, image: int, cells: Tensor, limits: Tensor) -> Tensor:
            return decode(anchors[level][cells], deltas[level][image][cells], limits)

        return [level.sigmoid() for level in logits], box

    def _flat_outputs(self, maps: list[Tensor], outputs: Any = None) -> tuple[list[Tensor], list[Tensor]]:
        """The head's outputs in float32 by anchor: logits (B, H_l * W_l * A, num_classes), deltas (B, ..., 4)."""
        logits, deltas = self.head(maps) if outputs is None else outputs
        batch = maps[0].shape[0]
        return (
            [level.permute(0, 2, 3, 1).reshape(batch, -1, self.num_classes).float() for level in logits],
            [level.permute(0, 2, 3, 1).reshape(batch, -1, 4).float() for level in deltas],
        )

    @torch.no_grad()
    def _assign(self, anchors: Tensor, sizes: list[tuple[int, int]], targets: PaddedTargets) -> tuple[Tensor, Tensor]:
        """The label (B, A) of each anchor, num_classes is background and -1 not counted, and the box (B, A, 4)."""
        valid = self.anchors.valid(sizes, targets.padded)
        # An object's best anchor is one that counts.
        match = match_by_iou(targets, anchors, allowed=valid, positive=0.5, negative=0.4, min_positive=0.0)
        match = torch.where(valid, match, IGNORED)
        return targets.labels_of(match, background=self.num_classes), targets.boxes_of(match)
