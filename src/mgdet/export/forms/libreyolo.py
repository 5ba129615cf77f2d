"""LibreYOLO's YOLOX and YOLOv9: the library's networks and its decoding, and its rules of what is kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mgdet.detectors.foreign.libreyolo_detector import LibreYolo, YoloX
from mgdet.export.forms.base import Form, Found, Limits
from mgdet.export.ops import suppress_by_class
from mgdet.layers.boxes import clip


def libreyolo_form(detector: LibreYolo) -> Form:
    """The form of one of the library's detectors."""
    return YoloXForm(detector) if isinstance(detector, YoloX) else YoloV9Form(detector)


class _YoloForm(Form):
    """What both share: suppression within each class, and classes of the data for outputs of the head."""

    def __init__(self, detector: LibreYolo):
        super().__init__()
        self.detector = detector

    @property
    def limits(self) -> Limits:
        """See `Form.limits`."""
        return Limits(self.detector.score_thresh, self.detector.nms_thresh, self.detector.max_detections)

    def forward(self, images: Tensor, limits: Tensor) -> Found:
        """See `Form.forward`."""
        detector = self.detector
        boxes, scores, columns = self.candidates(detector.levels_of(detector.as_library(images)))
        boxes = clip(boxes, limits)
        solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        scores = torch.where(solid, scores, -1.0)
        keep = suppress_by_class(boxes, scores, columns, len(detector.names), *self.limits)
        labels = detector.label_of[columns[keep]]
        if detector.num_classes < len(detector.names):
            own = (labels >= 0).nonzero()[:, 0]
            keep, labels = keep[own], labels[own]
        return Found(boxes[keep], scores[keep], labels)

    @abstractmethod
    def candidates(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, 4) xyxy, scores (N,) and outputs of the head (N,), from the three levels of one image."""


class YoloXForm(_YoloForm):
    """YOLOX: the best class of each cell."""

    def candidates(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `_YoloForm.candidates`."""
        from libreyolo.postprocess.yolox import decode_outputs

        decoded = decode_outputs(self.detector.head(levels))[0]
        centre, half = decoded[:, :2], decoded[:, 2:4] / 2
        scores, columns = (decoded[:, 4:5] * decoded[:, 5:]).max(dim=1)
        return torch.cat([centre - half, centre + half], dim=1), scores, columns


class YoloV9Form(_YoloForm):
    """YOLOv9: each class of each cell."""

    def candidates(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `_YoloForm.candidates`."""
        with _without_cache(self.detector.head) as head:
            decoded = head(levels)[0][0].T
        scores = decoded[:, 4:]
        cells, columns = (scores > self.detector.score_thresh).nonzero().unbind(1)
        return decoded[cells, :4], scores[cells, columns], columns


@contextmanager
def _without_cache(head: Any) -> Iterator[Any]:
    """The library's head as it exports it itself: it keeps no grid of the image that it is traced with."""
    before, head.export = head.export, True
    try:
        yield head
    finally:
        head.export = before
