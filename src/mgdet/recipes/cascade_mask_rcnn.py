"""Cascade Mask R-CNN X101-32x4d with deformable convolutions: the teacher of Faster and Mask R-CNN."""

from __future__ import annotations

from dataclasses import replace

from mgdet.config import Config, ModelConfig
from mgdet.recipes.base import IMAGENET_X101_32X4D, MMDETECTION, Recipe, coco_r50, schedule_1x

CONFIG = "cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco"
CHECKPOINT = f"{CONFIG}-e75f90c8.pth"


def cascade_mask_rcnn_x101_32x4d_dcn() -> Config:
    """Cascade Mask R-CNN X101-32x4d, deformable in c3 to c5, schedule 1x: the teacher, to train."""
    config = coco_r50("cascade_mask_rcnn", lr=0.02, schedule=schedule_1x())
    config.student.backbone = "resnext101_32x4d"
    config.student.deformable = True
    config.student.weights = IMAGENET_X101_32X4D
    config.train.metrics = ("bbox", "segm")
    return config


def published_teacher() -> ModelConfig:
    """The teacher as MMDetection published it."""
    return replace(cascade_mask_rcnn_x101_32x4d_dcn().student, weights=f"{MMDETECTION}dcn/{CONFIG}/{CHECKPOINT}")


RECIPES = {
    "cascade_mask_rcnn_x101_32x4d_dcn": Recipe(
        build=cascade_mask_rcnn_x101_32x4d_dcn,
        kind="teacher",
        student="Cascade Mask R-CNN X101-32x4d DCN 1x",
        baseline="box 47.3, mask 41.1",
        original=CONFIG,
        checkpoint=CHECKPOINT,
    ),
}
