"""Cascade Mask R-CNN X101-32x4d teaches Faster R-CNN R50, and the student alone."""

from __future__ import annotations

from mgdet.config import Config
from mgdet.recipes import cascade_mask_rcnn
from mgdet.recipes.base import Recipe, coco_r50, schedule_1x, schedule_2x, two_stage_mgd


def faster_rcnn_r50() -> Config:
    """Faster R-CNN R50, schedule 2x: the student's baseline."""
    return coco_r50("faster_rcnn", lr=0.02, schedule=schedule_2x())


def faster_rcnn_r50_1x() -> Config:
    """The same, schedule 1x."""
    config = faster_rcnn_r50()
    config.schedule = schedule_1x()
    return config


def cascade_mask_rcnn_x101_dcn_to_faster_rcnn_r50() -> Config:
    """The published distillation."""
    config = faster_rcnn_r50()
    config.teacher = cascade_mask_rcnn.published_teacher()
    config.mgd = two_stage_mgd()
    return config


RECIPES = {
    "cascade_mask_rcnn_x101_dcn_to_faster_rcnn_r50": Recipe(
        build=cascade_mask_rcnn_x101_dcn_to_faster_rcnn_r50,
        kind="distillation",
        student="Faster R-CNN R50 2x",
        teacher="Cascade Mask R-CNN X101-32x4d DCN 1x (box 47.3, mask 41.1)",
        baseline="box 38.4",
        distilled="box 42.1",
        original="cascade_mask_rcnn_rx101_32x4d_distill_faster_rcnn_r50_fpn_2x_coco",
        checkpoint=cascade_mask_rcnn.CHECKPOINT,
    ),
    "faster_rcnn_r50": Recipe(
        build=faster_rcnn_r50,
        kind="student",
        student="Faster R-CNN R50 2x",
        baseline="box 38.4",
        original="faster_rcnn_r50_fpn_2x_coco",
        checkpoint="faster_rcnn_r50_fpn_2x_coco_bbox_mAP-0.384_20200504_210434-a5d8aa15.pth",
    ),
    "faster_rcnn_r50_1x": Recipe(
        build=faster_rcnn_r50_1x,
        kind="student",
        student="Faster R-CNN R50 1x",
        baseline="box 37.4",
        original="faster_rcnn_r50_fpn_1x_coco",
        checkpoint="faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth",
    ),
}
