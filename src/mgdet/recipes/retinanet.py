"""RetinaNet X101-64x4d teaches RetinaNet R50 (the paper's table 4) or a MobileNetV3, and each alone."""

from __future__ import annotations

from dataclasses import replace

from mgdet.config import Config
from mgdet.recipes.base import (
    IMAGENET_MOBILENETV3,
    IMAGENET_X101_64X4D,
    MMDETECTION,
    Recipe,
    coco_r50,
    one_stage_mgd,
    schedule_1x,
    schedule_2x,
    schedule_3x,
)

TEACHER_3X = "retinanet_x101_64x4d_fpn_mstrain_3x_coco_20210719_051838-022c2187.pth"
TEACHER_1X = "retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth"


def retinanet_r50() -> Config:
    """RetinaNet R50, schedule 2x: the student's baseline."""
    return coco_r50("retinanet", lr=0.01, schedule=schedule_2x())


def retinanet_r50_1x() -> Config:
    """The same, schedule 1x."""
    config = retinanet_r50()
    config.schedule = schedule_1x()
    return config


def retinanet_mobilenetv3() -> Config:
    """RetinaNet with timm's MobileNetV3-Large. Its batch norms stay as ImageNet left them: two images are too few."""
    config = retinanet_r50()
    config.student.backbone = "mobilenetv3_large_100"
    config.student.weights = IMAGENET_MOBILENETV3
    return config


def retinanet_x101_64x4d() -> Config:
    """RetinaNet X101-64x4d, schedule 3x, multi-scale: the teacher of mAP 41.6."""
    config = retinanet_x101_64x4d_1x()
    config.data.short_edge = (640, 800)
    config.schedule = schedule_3x()
    return config


def retinanet_x101_64x4d_1x() -> Config:
    """The same, schedule 1x, one scale: the teacher of mAP 41.0."""
    config = retinanet_r50_1x()
    config.student.backbone = "resnext101_64x4d"
    config.student.weights = IMAGENET_X101_64X4D
    return config


def retinanet_x101_to_r50() -> Config:
    """The published distillation, with the multi-scale 3x teacher of mAP 41.6."""
    config = retinanet_r50()
    config.teacher = replace(
        retinanet_x101_64x4d().student,
        weights=f"{MMDETECTION}retinanet/retinanet_x101_64x4d_fpn_mstrain_3x_coco/{TEACHER_3X}",
    )
    config.mgd, config.inherit = one_stage_mgd(), True
    return config


def retinanet_x101_1x_to_r50() -> Config:
    """The same with the teacher that the paper reports, schedule 1x, mAP 41.0."""
    config = retinanet_x101_to_r50()
    config.teacher = replace(
        retinanet_x101_64x4d_1x().student,
        weights=f"{MMDETECTION}retinanet/retinanet_x101_64x4d_fpn_1x_coco/{TEACHER_1X}",
    )
    return config


def retinanet_x101_to_mobilenetv3() -> Config:
    """The published distillation with another backbone as the student: any timm model with four stages will do.

    The student inherits all but the neck's convolutions that read its backbone, whose stages have other widths.
    """
    config = retinanet_x101_to_r50()
    config.student = retinanet_mobilenetv3().student
    return config


RECIPES = {
    "retinanet_x101_to_r50": Recipe(
        build=retinanet_x101_to_r50,
        kind="distillation",
        student="RetinaNet R50 2x",
        teacher="RetinaNet X101-64x4d 3x (box 41.6)",
        baseline="box 37.4",
        distilled="box 41.0",
        original="retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco",
        checkpoint=TEACHER_3X,
    ),
    "retinanet_x101_1x_to_r50": Recipe(
        build=retinanet_x101_1x_to_r50,
        kind="distillation",
        student="RetinaNet R50 2x",
        teacher="RetinaNet X101-64x4d 1x (box 41.0)",
        baseline="box 37.4",
        distilled="box 41.0",
        original="retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco",
        checkpoint=TEACHER_1X,
    ),
    "retinanet_x101_to_mobilenetv3": Recipe(
        build=retinanet_x101_to_mobilenetv3,
        kind="distillation",
        student="RetinaNet MobileNetV3-Large 2x",
        teacher="RetinaNet X101-64x4d 3x (box 41.6)",
        checkpoint=TEACHER_3X,
    ),
    "retinanet_r50": Recipe(
        build=retinanet_r50,
        kind="student",
        student="RetinaNet R50 2x",
        baseline="box 37.4",
        original="retinanet_r50_fpn_2x_coco",
        checkpoint="retinanet_r50_fpn_2x_coco_20200131-fdb43119.pth",
    ),
    "retinanet_r50_1x": Recipe(
        build=retinanet_r50_1x,
        kind="student",
        student="RetinaNet R50 1x",
        baseline="box 36.5",
        original="retinanet_r50_fpn_1x_coco",
        checkpoint="retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth",
    ),
    "retinanet_mobilenetv3": Recipe(
        build=retinanet_mobilenetv3,
        kind="student",
        student="RetinaNet MobileNetV3-Large 2x",
    ),
    "retinanet_x101_64x4d": Recipe(
        build=retinanet_x101_64x4d,
        kind="teacher",
        student="RetinaNet X101-64x4d 3x",
        baseline="box 41.6",
        original="retinanet_x101_64x4d_fpn_mstrain_640-800_3x_coco",
        checkpoint=TEACHER_3X,
    ),
    "retinanet_x101_64x4d_1x": Recipe(
        build=retinanet_x101_64x4d_1x,
        kind="teacher",
        student="RetinaNet X101-64x4d 1x",
        baseline="box 41.0",
        original="retinanet_x101_64x4d_fpn_1x_coco",
        checkpoint=TEACHER_1X,
    ),
}
