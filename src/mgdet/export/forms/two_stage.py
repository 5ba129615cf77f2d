"""Faster, Mask and Cascade Mask R-CNN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdet.detectors.cascade_mask_rcnn import CascadeRoIHead
from mgdet.detectors.two_stage import TwoStage
from mgdet.export.forms.base import Form, Found, Limits, keep_best
from mgdet.export.ops import pool
from mgdet.layers import box_head, mask_head
from mgdet.layers.mask_head import MaskHead, paste_all
from mgdet.layers.roi import STRIDES, roi_levels

PROPOSALS = 1000
"""Of each level before their suppression, and of the image after it, as in `TwoStage.detect`."""


class TwoStageForm(Form):
    """One of our detectors of two stages, with masks where it has them."""

    chooses_inside = True

    def __init__(self, detector: TwoStage):
        super().__init__()
        self.detector = detector

    @property
    def limits(self) -> Limits:
        """See `Form.limits`."""
        detector = self.detector
        return Limits(detector.score_threshold, detector.nms_threshold, detector.max_detections)

    def forward(self, images: Tensor, limits: Tensor) -> Found:
        """See `Form.forward`."""
        detector = self.detector
        maps = detector.pyramid(images).maps
        proposals = self._proposals(maps, limits)
        roi_head = detector.roi_head
        if isinstance(roi_head, CascadeRoIHead):
            boxes, logits = self._cascade(maps, proposals, limits)
            mask_heads = [head for _, head in roi_head.stages]
        else:
            logits, deltas = roi_head.bbox_head.predict(_pooled(maps, proposals, box_head.POOL_SIZE))
            boxes = roi_head.bbox_head.decode(proposals[None], deltas, limits[None])[0]
            mask_heads = [] if roi_head.mask_head is None else [roi_head.mask_head]
        found = self._best(boxes, logits.softmax(dim=1)[:, :-1])
        return self._with_masks(mask_heads, maps, found, images) if mask_heads else found

    def _proposals(self, maps: list[Tensor], limits: Tensor) -> Tensor:
        """(P, 4): the first stage's boxes, see `RPNHead.proposals`."""
        head = self.detector.rpn_head
        logits, deltas = head(maps)
        boxes, scores, spans = head.candidates(logits, deltas, limits[None], per_level=PROPOSALS)
        solid = (boxes[0, :, 2:] > boxes[0, :, :2]).all(dim=1)
        levels = torch.cat([torch.full((span,), level) for level, span in enumerate(spans)])
        # Scores are at least 0, but for what fills a level up.
        scores = torch.where(solid, scores[0], -1.0)
        keep = keep_best(boxes[0], scores, levels, Limits(-0.5, head.nms_threshold, PROPOSALS))
        return boxes[0, keep]

    def _cascade(self, maps: list[Tensor], boxes: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """The last stage's boxes (P, 1, 4) and the mean of all stages' logits, see `CascadeRoIHead.detect`."""
        stage_logits = []
        for head, _ in self.detector.roi_head.stages:
            logits, deltas = head.predict(_pooled(maps, boxes, box_head.POOL_SIZE))
            stage_logits.append(logits)
            boxes = head.decode(boxes[None], deltas, limits[None])[0, :, 0]
        return boxes[:, None], torch.stack(stage_logits).mean(dim=0)

    def _best(self, boxes: Tensor, scores: Tensor) -> Found:
        """From boxes (P, num_classes or 1, 4) and scores (P, num_classes), see `detect_boxes`."""
        detector = self.detector
        rows, labels = (scores > detector.score_threshold).nonzero().unbind(1)
        values = scores[rows, labels]
        picked = boxes[rows, labels] if boxes.shape[1] > 1 else boxes[rows, 0]
        keep = keep_best(picked, values, labels, self.limits)
        return Found(picked[keep], values[keep], labels[keep])

    def _with_masks(self, heads: Sequence[MaskHead], maps: list[Tensor], found: Found, images: Tensor) -> Found:
        """See `mgdet.layers.mask_head.detect_masks`."""
        pooled = _pooled(maps, found.boxes, mask_head.POOL_SIZE)
        own = found.labels[:, None, None, None].expand(-1, 1, mask_head.MASK_SIZE, mask_head.MASK_SIZE)
        cells = torch.stack([head.predict(pooled).gather(1, own)[:, 0].sigmoid() for head in heads]).mean(dim=0)
        size = (images.shape[2], images.shape[3])
        masks = paste_all(cells, found.boxes, size, threshold=self.detector.mask_threshold)
        return found._replace(masks=masks)


def _pooled(maps: list[Tensor], boxes: Tensor, size: int) -> Tensor:
    """Features (K, C, size, size) of boxes (K, 4), see `mgdet.layers.roi.pool_rois`."""
    scales = [1 / stride for stride in STRIDES]
    levels = roi_levels(F.pad(boxes, (1, 0)))  # regions begin with the image's number
    return pool(maps[: len(STRIDES)], boxes, levels, scales, size, 0, True)
