"""Cascade Mask R-CNN (arXiv 1906.09756): three box stages, each stricter than the one before, and three mask heads."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from mgdet.detectors.base import Detector
from mgdet.layers.box_head import BoxHead, detect_boxes
from mgdet.layers.fpn import FPN
from mgdet.layers.mask_head import MaskHead, detect_masks
from mgdet.layers.roi import join_rois
from mgdet.layers.rpn import RPNHead
from mgdet.layers.sampling import sample_rois
from mgdet.structures import Detections, Target

NUM_STAGES = 3
STAGE_IOU = (0.5, 0.6, 0.7)
STAGE_WEIGHT = (1.0, 0.5, 0.25)
STAGE_STD = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


class CascadeRoIHead(nn.Module):
    """Three box heads, each working on the boxes of the one before, and a mask head beside each.

    Args:
        channels: width of the pyramid.
        num_classes: classes without background.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.bbox_head = nn.ModuleList(
            BoxHead(channels, num_classes, class_agnostic=True, std=std, smooth_l1_beta=1.0) for std in STAGE_STD
        )
        self.mask_head = nn.ModuleList(MaskHead(channels, num_classes) for _ in range(NUM_STAGES))

    @property
    def stages(self) -> list[tuple[BoxHead, MaskHead]]:
        """Box head and mask head of each stage."""
        return cast(list[tuple[BoxHead, MaskHead]], list(zip(self.bbox_head, self.mask_head)))

    def losses(
        self, maps: list[Tensor], proposals: list[Tensor], targets: list[Target], *, rois_per_image: int
    ) -> dict[str, Tensor]:
        """`s<i>.loss_cls`, `s<i>.loss_bbox` and `s<i>.loss_mask` of stages 0 to 2, weighted scalars.

        Args:
            maps: pyramid levels (B, C, H_l, W_l).
            proposals: for each image (N, 4) xyxy, pixels of the batch images.
            targets: B targets, with masks.
            rois_per_image: how many regions of an image train each stage at most.
        """
        losses: dict[str, Tensor] = {}
        for stage, (box_head, mask_head) in enumerate(self.stages):
            samples = [
                sample_rois(boxes, target, num=rois_per_image, iou=STAGE_IOU[stage], num_classes=self.num_classes)
                for boxes, target in zip(proposals, targets)
            ]
            boxes = [sample.boxes for sample in samples]
            logits, deltas = box_head(maps, join_rois(boxes))
            parts = box_head.losses(logits, deltas, samples, targets)
            parts["loss_mask"] = mask_head.loss(maps, samples, targets)
            losses |= {f"s{stage}.{name}": STAGE_WEIGHT[stage] * value for name, value in parts.items()}
            refined = _refine(box_head, boxes, deltas.detach(), [target.size for target in targets])
            # The objects' own boxes join again in the next stage.
            proposals = [
                own[sample.rows >= len(target.boxes)] for own, sample, target in zip(refined, samples, targets)
            ]
        return losses

    def detect(
        self, maps: list[Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The last stage's boxes and the mean logits of all stages.

        Args:
            maps: pyramid levels (B, C, H_l, W_l).
            proposals: for each image (N, 4) xyxy, pixels of the batch images.
            sizes: (h, w) of each image without its padding.

        Returns:
            For each image boxes (N, 4) xyxy and logits (N, num_classes + 1).
        """
        boxes, stage_logits = proposals, []
        for head, _ in self.stages:
            logits, deltas = head(maps, join_rois(boxes))
            stage_logits.append(logits)
            boxes = _refine(head, boxes, deltas, sizes)
        return boxes, list(torch.stack(stage_logits).mean(dim=0).split([len(own) for own in boxes]))


def _refine(head: BoxHead, boxes: list[Tensor], deltas: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Boxes (N, 4) of each image, moved by the head's deltas (sum N, 1, 4) within the image."""
    parts = deltas.split([len(own) for own in boxes])
    return [head.decode(*triple)[:, 0] for triple in zip(boxes, parts, sizes)]


class CascadeMaskRCNN(Detector):
    """Two-stage detector of boxes and masks whose second stage runs three times.

    Args:
        backbone: see `Detector`.
        num_classes: classes without background.
        channels: width of neck, first stage and mask heads; the box heads are four times as wide.
        norm_eval: keep the backbone's batch norm statistics fixed.
    """

    num_taps = 4
    class_predictors = tuple(
        f"roi_head.{part}."
        for i in range(NUM_STAGES)
        for part in (f"bbox_head.{i}.fc_cls", f"mask_head.{i}.conv_logits")
    )
    has_masks = True

    def __init__(self, backbone: nn.Module, *, num_classes: int, channels: int = 256, norm_eval: bool = True):
        super().__init__(backbone, num_classes=num_classes, channels=channels, norm_eval=norm_eval)
        self.rois_per_image = 512
        self.score_threshold, self.nms_threshold, self.max_detections = 0.05, 0.5, 100
        self.mask_threshold = 0.5
        self.neck = FPN(self.backbone.feature_info.channels(), channels, num_levels=5, extra="pool")
        self.rpn_head = RPNHead(channels, smooth_l1_beta=1 / 9, inside_only=True)
        self.roi_head = CascadeRoIHead(channels, num_classes)

    def head(self, maps: list[Tensor]) -> Any:
        """The first stage: objectness logits (B, A, H_l, W_l) and box deltas (B, A * 4, H_l, W_l) of each level."""
        return self.rpn_head(maps)

    def loss_parts(self, maps: list[Tensor], targets: list[Target], outputs: Any = None) -> dict[str, Tensor]:
        """`loss_rpn_cls` and `loss_rpn_bbox`, (L,) each, and the scalars of `CascadeRoIHead.losses`.

        Raises:
            ValueError: a target has no masks.
        """
        logits, deltas = self.head(maps) if outputs is None else outputs
        sizes = [target.size for target in targets]
        proposals, _ = self.rpn_head.proposals(logits, deltas, sizes, candidates_per_level=2000, limit=2000)
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
        boxes, region_logits = self.roi_head.detect(maps, proposals, sizes)
        found = detect_boxes(
            [own[:, None] for own in boxes],
            region_logits,
            scales,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            limit=self.max_detections,
        )
        mask_heads = [mask_head for _, mask_head in self.roi_head.stages]
        return detect_masks(mask_heads, maps, found, sizes, scales, threshold=self.mask_threshold)
