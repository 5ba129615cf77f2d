"""Cascade Mask R-CNN X101-32x4d teaches Mask R-CNN R50, and the student alone."""

from __future__ import annotations

from mgdet.config import Config
from mgdet.recipes import cascade_mask_rcnn
from mgdet.recipes.base import Recipe, coco_r50, schedule_1x, schedule_2x, two_stage_mgd


def mask_rcnn_r50() -> Config:
    """Mask R-CNN R50, schedule 2x: the student's baseline."""
    config = coco_r50("mask_rcnn", lr=0.02, schedule=schedule_2x())
    config.train.metrics = ("bbox", "segm")
    return config


def mask_rcnn_r50_1x() -> Config:
    """The same, schedule 1x."""
    config = mask_rcnn_r50()
    config.schedule = schedule_1x()
    return config


def cascade_mask_rcnn_x101_dcn_to_mask_rcnn_r50() -> Config:
    """The published distillation."""
    config = mask_rcnn_r50()
    config.teacher = cascade_mask_rcnn.published_teacher()
    config.mgd = two_stage_mgd()
    return config


RECIPES = {
    "cascade_mask_rcnn_x101_dcn_to_mask_rcnn_r50": Recipe(
        build=cascade_mask_rcnn_x101_dcn_to_mask_rcnn_r50,
        kind="distillation",
        student="Mask R-CNN R50 2x",
        teacher="Cascade Mask R-CNN X101-32x4d DCN 1x (box 47.3, mask 41.1)",
        baseline="mask 35.4",
        distilled="mask 38.1",
        original="cascade_mask_rcnn_rx101_32x4d_distill_mask_rcnn_r50_fpn_2x_coco",
        checkpoint=cascade_mask_rcnn.CHECKPOINT,
    ),
    "mask_rcnn_r50": Recipe(
        build=mask_rcnn_r50,
        kind="student",
        student="Mask R-CNN R50 2x",
        baseline="box 39.2, mask 35.4",
        original="mask_rcnn_r50_fpn_2x_coco",
        checkpoint="mask_rcnn_r50_fpn_2x_coco_bbox_mAP-0.392__segm_mAP-0.354_20200505_003907-3e542a40.pth",
    ),
    "mask_rcnn_r50_1x": Recipe(
        build=mask_rcnn_r50_1x,
        kind="student",
        student="Mask R-CNN R50 1x",
        baseline="box 38.2, mask 34.7",
        original="mask_rcnn_r50_fpn_1x_coco",
        checkpoint="mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth",
    ),
}
