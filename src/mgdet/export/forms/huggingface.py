"""Detectors of Hugging Face transformers: the library's forward, and the detections of its image processor."""

from __future__ import annotations

import torch
from torch import Tensor

from mgdet.detectors.foreign.hf_detector import HuggingFace
from mgdet.export.forms.base import Form, Found, Limits


class HuggingFaceForm(Form):
    """A detector of the library."""

    def __init__(self, detector: HuggingFace):
        super().__init__()
        self.detector = detector
        self.chooses_inside = bool(detector.family.queries)

    @property
    def limits(self) -> Limits:
        """See `Form.limits`. Nothing is suppressed, and the lowest score is that of the last query that is kept."""
        return Limits(0.0, None, 1)

    def forward(self, images: Tensor, limits: Tensor) -> Found:
        """See `Form.forward`."""
        detector = self.detector
        canvas = images.shape[2:]
        padding, span = {}, torch.stack([torch.scalar_tensor(edge, dtype=limits.dtype) for edge in canvas])
        if detector.family.reads_padding:
            rows, columns = (torch.arange(edge) < limit for edge, limit in zip(canvas, (limits[1], limits[0])))
            padding = {"pixel_mask": (rows[:, None] & columns)[None].long()}
            span = torch.stack([limits[1], limits[0]])
        raw = detector.library(pixel_values=images, **padding)
        (found,) = detector.processor.post_process_object_detection(raw, threshold=0.0, target_sizes=span[None])
        return Found(*detector.as_detections(found, None))
