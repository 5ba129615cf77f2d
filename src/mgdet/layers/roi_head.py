"""The second stage of Faster and Mask R-CNN: what the heads make of the proposals."""

from __future__ import annotations

from torch import Tensor, nn

from mgdet.layers.box_head import BoxHead, detect_boxes
from mgdet.layers.host import to_host
from mgdet.layers.mask_head import MaskHead, detect_masks
from mgdet.layers.padding import PaddedTargets, image_limits
from mgdet.layers.roi import join_rois
from mgdet.layers.rpn import Proposals
from mgdet.layers.sampling import sample_rois
from mgdet.structures import Detections

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
        self, maps: list[Tensor], proposals: Proposals, targets: PaddedTargets, *, rois_per_image: int
    ) -> dict[str, Tensor]:
        """`loss_cls`, `loss_bbox` and, with a mask head, `loss_mask`, scalars.

        Args:
            maps: pyramid levels (B, C, H_l, W_l).
            proposals: of B images, pixels of the batch images.
            targets: of B images.
            rois_per_image: how many regions of an image train the heads at most.
        """
        sample = sample_rois(
            proposals.boxes,
            proposals.usable,
            targets,
            num=rois_per_image,
            iou=POSITIVE_IOU,
            low_quality=self.low_quality,
            num_classes=self.bbox_head.num_classes,
        )
        logits, deltas = self.bbox_head(maps, join_rois(sample.boxes))
        losses = self.bbox_head.losses(logits, deltas, sample, targets)
        if self.mask_head is not None:
            losses["loss_mask"] = self.mask_head.loss(maps, sample, to_host(sample.num_positive), targets)
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
        """Detections, see `Detector.detect`, from proposals in pixels of the batch images."""
        logits, deltas = self.bbox_head(maps, join_rois(proposals.boxes))
        found = detect_boxes(
            self.bbox_head.decode(proposals.boxes, deltas, image_limits(sizes, deltas.device)),
            logits.unflatten(0, proposals.usable.shape),
            proposals.usable,
            scales,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            limit=limit,
        )
        if self.mask_head is None:
            return found
        return detect_masks([self.mask_head], maps, found, sizes, scales, threshold=mask_threshold)
