"""SOLO: masks of cells, and boxes of masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mgdet.detectors.solo import SOLO, mask_boxes
from mgdet.export.forms.base import Form, Found, Limits
from mgdet.layers.matrix_nms import matrix_nms


class SOLOForm(Form):
    """Our SOLO."""

    def __init__(self, detector: SOLO):
        super().__init__()
        self.detector = detector

    @property
    def limits(self) -> Limits:
        """See `Form.limits`. Overlap lowers scores instead."""
        return Limits(self.detector.filter_threshold, None, self.detector.max_detections)

    def forward(self, images: Tensor, limits: Tensor) -> Found:
        """See `Form.forward`."""
        detector = self.detector
        features, scores = detector.scored(detector.pyramid(images).maps)
        masks, values, labels = detector.candidates(features, scores, 0)
        values = matrix_nms(masks > detector.mask_threshold, values, labels, sigma=detector.nms_sigma)
        values, order = values.sort(descending=True)
        kept = (values >= detector.filter_threshold).nonzero()[: detector.max_detections, 0]
        order = order[kept]
        drawn = self._drawn(masks[order], limits, (images.shape[2], images.shape[3]))
        return Found(mask_boxes(drawn), values[kept], labels[order], drawn)

    def _drawn(self, masks: Tensor, limits: Tensor, size: tuple[int, int]) -> Tensor:
        """Probabilities (N, H / 4, W / 4) as masks of the padded image's size, see `mgdet.detectors.solo.resize_masks`.

        What lies in the padding is cut off before the boxes are read from the masks.
        """
        full = F.interpolate(masks[:, None], size=size, mode="bilinear")[:, 0]
        rows, columns = (torch.arange(edge) < limit for edge, limit in zip(size, (limits[1], limits[0])))
        return (full > self.detector.mask_threshold) & rows[:, None] & columns
