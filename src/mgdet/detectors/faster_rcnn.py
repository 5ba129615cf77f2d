"""Faster R-CNN with a feature pyramid (arXiv 1506.01497 and 1612.03144)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mgdet.detectors.base import Detector
from mgdet.layers.box_head import BoxHead
from mgdet.layers.fpn import FPN
from mgdet.layers.roi_head import RoIHead
from mgdet.layers.rpn import RPNHead
from mgdet.structures import Detections, Target


class FasterRCNN(Detector):
    """Two-stage detector: proposals from pyramid levels P2 to P6, regions pooled from P2 to P5.

    Args:
        backbone: see `Detector`.
        num_classes: classes without background.
        channels: width of neck and first stage; the second stage is four times as wide.
        norm_eval: keep the backbone's batch norm statistics fixed.
    """

    num_taps = 4
    class_predictors = ("roi_head.bbox_head.fc_cls.", "roi_head.bbox_head.fc_reg.")

    def __init__(self, backbone: nn.Module, *, num_classes: int, channels: int = 256, norm_eval: bool = True):
        super().__init__(backbone, num_classes=num_classes, channels=channels, norm_eval=norm_eval)
        self.rois_per_image = 512
        self.score_threshold, self.nms_threshold, self.max_detections = 0.05, 0.5, 100
        self.neck = FPN(self.backbone.feature_info.channels(), channels, num_levels=5, extra="pool")
        self.rpn_head = RPNHead(channels)
        self.roi_head = RoIHead(BoxHead(channels, num_classes))

    def head(self, maps: list[Tensor]) -> Any:
        """The first stage: objectness logits (B, A, H_l, W_l) and box deltas (B, A * 4, H_l, W_l) of each level."""
        return self.rpn_head(maps)

    def loss_parts(self, maps: list[Tensor], targets: list[Target], outputs: Any = None) -> dict[str, Tensor]:
        """`loss_rpn_cls` and `loss_rpn_bbox`, (L,) each, and the scalars `loss_cls` and `loss_bbox`."""
        logits, deltas = self.head(maps) if outputs is None else outputs
        sizes = [target.size for target in targets]
        proposals, _ = self.rpn_head.proposals(logits, deltas, sizes, candidates_per_level=2000, limit=1000)
        losses = self.rpn_head.losses(logits, deltas, targets)
        return losses | self.roi_head.losses(maps, proposals, targets, rois_per_image=self.rois_per_image)

    def detect(
        self,
        maps: list[Tensor],
        sizes: list[tuple[int, int]],
        scales: list[tuple[float, float]] | None = None,
    ) -> list[Detections]:
        """See `Detector.detect`."""
        logits, deltas = self.head(maps)
        proposals, _ = self.rpn_head.proposals(logits, deltas, sizes, candidates_per_level=1000, limit=1000)
        return self.roi_head.detect(
            maps,
            proposals,
            sizes,
            scales,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            limit=self.max_detections,
        )
