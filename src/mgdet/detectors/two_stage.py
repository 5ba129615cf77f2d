"""What detectors of two stages have in common: proposals first, then a class and a better box for each."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mgdet.detectors.base import Detector
from mgdet.layers.fpn import FPN
from mgdet.layers.padding import PaddedTargets, image_limits
from mgdet.layers.rpn import RPNHead
from mgdet.structures import Detections, Target


class TwoStage(Detector):
    """Proposals from pyramid levels P2 to P6, regions pooled from P2 to P5.

    A subclass adds both stages.

    rpn_head: maps to proposals.
    roi_head: proposals to losses and detections, see `mgdet.layers.roi_head.RoIHead`.
    training_proposals: how many proposals of an image reach the second stage in training at most.

    Args:
        backbone: see `Detector`.
        num_classes: classes without background.
        channels: width of neck and first stage; the second stage is four times as wide.
        norm_eval: keep the backbone's batch norm statistics fixed.
    """

    rpn_head: RPNHead
    roi_head: Any
    num_taps = 4
    training_proposals = 1000

    def __init__(self, backbone: nn.Module, *, num_classes: int, channels: int = 256, norm_eval: bool = True):
        super().__init__(backbone, num_classes=num_classes, channels=channels, norm_eval=norm_eval)
        self.rois_per_image, self.proposals_per_level = 512, 2000
        self.score_threshold, self.nms_threshold, self.max_detections = 0.05, 0.5, 100
        self.mask_threshold = 0.5
        self.neck = FPN(self.backbone.feature_info.channels(), channels, num_levels=5, extra="pool")

    def head(self, maps: list[Tensor]) -> Any:
        """The first stage: objectness logits (B, A, H_l, W_l) and box deltas (B, A * 4, H_l, W_l) of each level."""
        return self.rpn_head(maps)

    def loss_parts(self, maps: list[Tensor], targets: list[Target], outputs: Any = None) -> dict[str, Tensor]:
        """`loss_rpn_cls` and `loss_rpn_bbox`, (L,) each, and the scalars of the second stage.

        Raises:
            ValueError: the detector learns masks and a target has none.
        """
        logits, deltas = self.head(maps) if outputs is None else outputs
        objects = PaddedTargets.of(targets)
        proposals = self.rpn_head.proposals(
            logits,
            deltas,
            objects.limits,
            candidates_per_level=self.proposals_per_level,
            limit=self.training_proposals,
        )
        losses = self.rpn_head.losses(logits, deltas, objects)
        return losses | self.roi_head.losses(maps, proposals, objects, rois_per_image=self.rois_per_image)

    def detect(
        self,
        maps: list[Tensor],
        sizes: list[tuple[int, int]],
        scales: list[tuple[float, float]] | None = None,
    ) -> list[Detections]:
        """See `Detector.detect`."""
        logits, deltas = self.head(maps)
        limits = image_limits(sizes, maps[0].device)
        proposals = self.rpn_head.proposals(logits, deltas, limits, candidates_per_level=1000, limit=1000)
        return self.roi_head.detect(
            maps,
            proposals.shortened(),
            sizes,
            scales,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            limit=self.max_detections,
            mask_threshold=self.mask_threshold,
        )
