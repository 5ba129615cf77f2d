"""RetinaNet and RepPoints: the best pairs of cell and class of each level, less the overlapping ones."""

from __future__ import annotations

import torch
from torch import Tensor

from mgdet.detectors.reppoints import RepPoints
from mgdet.detectors.retinanet import RetinaNet
from mgdet.export.forms.base import Form, Found, Limits, keep_best
from mgdet.layers.postprocess import best


class DenseForm(Form):
    """One of our one-stage detectors of boxes."""

    def __init__(self, detector: RetinaNet | RepPoints):
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
        scores, box = detector.scored(detector.pyramid(images).maps)
        found = []
        for level, own in enumerate(scores):
            values, pairs = best(own.flatten(1), detector.candidates_per_level)
            cells = pairs[0] // detector.num_classes
            found.append((box(level, 0, cells, limits), values[0], pairs[0] % detector.num_classes))
        boxes, values, labels = (torch.cat(column) for column in zip(*found))
        keep = keep_best(boxes, values, labels, self.limits)
        return Found(boxes[keep], values[keep], labels[keep])
