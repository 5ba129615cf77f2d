"""The second stage of Faster and Mask R-CNN: what the heads make of the proposals."""

from __future__ import annotations

from torch import Tensor, nn

from mgdet.layers.box_head import BoxHead, detect_boxes
from mgdet.layers.mask_head import MaskHead, detect_masks
from mgdet.layers.roi import join_rois
from mgdet.layers.sampling import sample_rois
from mgdet.structures import Detections, Target

POSITIVE_IOU = 0.5


class RoIHead(nn.Module):
    """A box head and, for detectors with masks, a mask head.

    Args:
        bbox_head: classifies and refines every region.
        mask_head: draws the mask of every region with an object; None for boxes alone.
    """

    def __init__(self, bbox_head: BoxHead, mask_head: MaskHead | None = None):
        super().__init__()
        self.bbox_head = bbox_head
        self.mask_head = mask_head
        # With masks, an object's best proposal takes that object even where it overlaps another one more.
        self.low_quality = mask_head is not None

    def losses(
        self, maps: list[Tensor], proposals: list[Tensor], targets: list[Target], *, rois_per_image: int
    ) -> dict[str, Tensor]:
        """`loss_cls`, `loss_bbox` and, with a mask head, `loss_mask`, scalars.

        Args:
            maps: pyramid levels (B, C, H_l, W_l).
            proposals: for each image (N, 4) xyxy, pixels of the batch images.
            targets: B targets.
            rois_per_image: how many regions of an image train the heads at most.
        """
        samples = [
            sample_rois(
                boxes,
                target,
                num=rois_per_image,
                iou=POSITIVE_IOU,
                low_quality=self.low_quality,
                num_classes=self.bbox_head.num_classes,
            )
            for boxes, target in zip(proposals, targets)
        ]
        logits, deltas = self.bbox_head(maps, join_rois([sample.boxes for sample in samples]))
        losses = self.bbox_head.losses(logits, deltas, samples, targets)
        if self.mask_head is not None:
            losses["loss_mask"] = self.mask_head.loss(maps, samples, targets)
        return losses

    def detect(
        self,
        maps: list[Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        scales: list[tuple[float, float]] | None,
        *,
        score_threshold: float,
        nms_threshold: float,
        limit: int,
        mask_threshold: float = 0.5,
    ) -> list[Detections]:
        """Detections, see `Detector.detect`, from proposals (N, 4) xyxy in pixels of the batch images."""
        counts = [len(boxes) for boxes in proposals]
        logits, deltas = self.bbox_head(maps, join_rois(proposals))
        refined = [self.bbox_head.decode(*triple) for triple in zip(proposals, deltas.split(counts), sizes)]
        found = detect_boxes(
            refined,
            list(logits.split(counts)),
            scales,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            limit=limit,
        )
        if self.mask_head is None:
            return found
        return detect_masks([self.mask_head], maps, found, sizes, scales, threshold=mask_threshold)
