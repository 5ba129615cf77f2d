"""Faster R-CNN with a feature pyramid (arXiv 1506.01497 and 1612.03144)."""

from __future__ import annotations

from torch import nn

from mgdet.detectors.two_stage import TwoStage
from mgdet.layers.box_head import BoxHead
from mgdet.layers.roi_head import RoIHead
from mgdet.layers.rpn import RPNHead


class FasterRCNN(TwoStage):
    """Two-stage detector of boxes; see `TwoStage` for its arguments."""

    class_predictors = ("roi_head.bbox_head.fc_cls.", "roi_head.bbox_head.fc_reg.")

    def __init__(self, backbone: nn.Module, *, num_classes: int, channels: int = 256, norm_eval: bool = True):
        super().__init__(backbone, num_classes=num_classes, channels=channels, norm_eval=norm_eval)
        self.rpn_head = RPNHead(channels)
        self.roi_head = RoIHead(BoxHead(channels, num_classes))
