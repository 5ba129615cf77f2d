"""Mask R-CNN with a feature pyramid (arXiv 1703.06870): Faster R-CNN with a mask branch."""

from __future__ import annotations

from torch import nn

from mgdet.detectors.two_stage import TwoStage
from mgdet.layers.box_head import BoxHead
from mgdet.layers.mask_head import MaskHead
from mgdet.layers.roi_head import RoIHead
from mgdet.layers.rpn import RPNHead


class MaskRCNN(TwoStage):
    """Two-stage detector of boxes and masks; see `TwoStage` for its arguments."""

    class_predictors = ("roi_head.bbox_head.fc_cls.", "roi_head.bbox_head.fc_reg.", "roi_head.mask_head.conv_logits.")
    has_masks = True

    def __init__(self, backbone: nn.Module, *, num_classes: int, channels: int = 256, norm_eval: bool = True):
        super().__init__(backbone, num_classes=num_classes, channels=channels, norm_eval=norm_eval)
        self.rpn_head = RPNHead(channels)
        self.roi_head = RoIHead(BoxHead(channels, num_classes), MaskHead(channels, num_classes))
