"""Cascade Mask R-CNN (arXiv 1906.09756): three box stages, each stricter than the one before, and three mask heads."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mgdet.detectors.two_stage import TwoStage
from mgdet.layers.box_head import BoxHead, detect_boxes
from mgdet.layers.host import to_host
from mgdet.layers.mask_head import MaskHead, detect_masks
from mgdet.layers.padding import PaddedTargets, image_limits
from mgdet.layers.roi import join_rois
from mgdet.layers.rpn import Proposals, RPNHead
from mgdet.layers.sampling import NO_LABEL, sample_rois
from mgdet.structures import Detections

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
        self, maps: list[Tensor], proposals: Proposals, targets: PaddedTargets, *, rois_per_image: int
    ) -> dict[str, Tensor]:
        """`s<i>.loss_cls`, `s<i>.loss_bbox` and `s<i>.loss_mask` of stages 0 to 2, weighted scalars.

        Args:
            maps: pyramid levels (B, C, H_l, W_l).
            proposals: of B images, pixels of the batch images.
            targets: of B images, with masks.
            rois_per_image: how many regions of an image train each stage at most.
        """
        boxes, usable = proposals.boxes, proposals.usable
        samples, parts = [], []
        for (head, _), iou in zip(self.stages, STAGE_IOU):
            sample = sample_rois(boxes, usable, targets, num=rois_per_image, iou=iou, num_classes=self.num_classes)
            logits, deltas = head(maps, join_rois(sample.boxes))
            samples.append(sample)
            parts.append(head.losses(logits, deltas, sample, targets))
            boxes = head.decode(sample.boxes, deltas.detach(), targets.limits)[:, :, 0]
            # The objects' own boxes join again in the next stage.
            usable = (sample.labels != NO_LABEL) & (sample.rows >= targets.exists.shape[1])
        # One wait for all stages: the masks of all come after the boxes of all.
        counts = to_host(torch.stack([sample.num_positive for sample in samples]))
        losses: dict[str, Tensor] = {}
        for stage, (_, mask_head) in enumerate(self.stages):
            parts[stage]["loss_mask"] = mask_head.loss(maps, samples[stage], counts[stage], targets)
            losses |= {f"s{stage}.{name}": STAGE_WEIGHT[stage] * value for name, value in parts[stage].items()}
        return losses

    def detect(
        self,
        maps: list[Tensor],
        proposals: Proposals,
        sizes: list[tuple[int, int]],
        scales: list[tuple[float, float]] | None,
        *,
        score_threshold: float,
        nms_threshold: float,
        limit: int,
        mask_threshold: float,
    ) -> list[Detections]:
        """Detections, see `Detector.detect`: the last stage's boxes, and the mean of all stages' logits and masks."""
        boxes, limits, stage_logits = proposals.boxes, image_limits(sizes, maps[0].device), []
        for head, _ in self.stages:
            logits, deltas = head(maps, join_rois(boxes))
            stage_logits.append(logits)
            boxes = head.decode(boxes, deltas, limits)[:, :, 0]
        found = detect_boxes(
            boxes[:, :, None],
            torch.stack(stage_logits).mean(dim=0).unflatten(0, proposals.usable.shape),
            proposals.usable,
            scales,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            limit=limit,
        )
        return detect_masks([head for _, head in self.stages], maps, found, sizes, scales, threshold=mask_threshold)


class CascadeMaskRCNN(TwoStage):
    """Two-stage detector of boxes and masks whose second stage runs three times; see `TwoStage` for its arguments."""

    class_predictors = tuple(
        f"roi_head.{part}."
        for i in range(NUM_STAGES)
        for part in (f"bbox_head.{i}.fc_cls", f"mask_head.{i}.conv_logits")
    )
    has_masks = True
    training_proposals = 2000

    def __init__(self, backbone: nn.Module, *, num_classes: int, channels: int = 256, norm_eval: bool = True):
        super().__init__(backbone, num_classes=num_classes, channels=channels, norm_eval=norm_eval)
        self.rpn_head = RPNHead(channels, smooth_l1_beta=1 / 9, inside_only=True)
        self.roi_head = CascadeRoIHead(channels, num_classes)
