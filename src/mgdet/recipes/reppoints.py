"""RepPoints X101-32x4d with deformable convolutions teaches RepPoints R50, and both alone; group norm in neck and head.

The original calls its config 64x4d, but its teacher is the 32x4d one.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

from mgdet.config import Config
from mgdet.recipes.base import (
    IMAGENET_X101_32X4D,
    MMDETECTION,
    Recipe,
    coco_r50,
    one_stage_mgd,
    schedule_1x,
    schedule_2x,
)

TEACHER_FOLDER = "reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck+head_2x_coco"
TEACHER = f"{TEACHER_FOLDER}_20200329-f87da1ea.pth"


def reppoints_r50() -> Config:
    """RepPoints R50, schedule 2x: the student's baseline."""
    return coco_r50("reppoints", lr=0.01, schedule=schedule_2x())


def reppoints_r50_1x() -> Config:
    """The same, schedule 1x."""
    config = reppoints_r50()
    config.schedule = schedule_1x()
    return config


def reppoints_x101_32x4d_dcn() -> Config:
    """RepPoints X101-32x4d, deformable in c3 to c5, schedule 2x: the teacher, to train."""
    config = reppoints_r50()
    config.student.backbone = "resnext101_32x4d"
    config.student.deformable = True
    config.student.weights = IMAGENET_X101_32X4D
    return config


def reppoints_x101_dcn_to_r50() -> Config:
    """The published distillation."""
    config = reppoints_r50()
    config.teacher = replace(
        reppoints_x101_32x4d_dcn().student, weights=MMDETECTION + quote(f"reppoints/{TEACHER_FOLDER}/{TEACHER}")
    )
    config.mgd, config.inherit = one_stage_mgd(), True
    return config


RECIPES = {
    "reppoints_x101_dcn_to_r50": Recipe(
        build=reppoints_x101_dcn_to_r50,
        kind="distillation",
        student="RepPoints R50 2x",
        teacher="RepPoints X101-32x4d DCN 2x (box 44.2)",
        baseline="box 38.6",
        distilled="box 42.3",
        original="reppoints_rx101_64x4d_distill_reppoints_r50_fpn_2x_coco",
        checkpoint=TEACHER,
    ),
    "reppoints_r50": Recipe(
        build=reppoints_r50,
        kind="student",
        student="RepPoints R50 2x",
        baseline="box 38.6",
        original="reppoints_moment_r50_fpn_gn-neck+head_2x_coco",
        checkpoint="reppoints_moment_r50_fpn_gn-neck+head_2x_coco_20200329-91babaa2.pth",
    ),
    "reppoints_r50_1x": Recipe(
        build=reppoints_r50_1x,
        kind="student",
        student="RepPoints R50 1x",
        baseline="box 38.1",
        original="reppoints_moment_r50_fpn_gn-neck+head_1x_coco",
        checkpoint="reppoints_moment_r50_fpn_gn-neck+head_1x_coco_20200329-4b38409a.pth",
    ),
    "reppoints_x101_32x4d_dcn": Recipe(
        build=reppoints_x101_32x4d_dcn,
        kind="teacher",
        student="RepPoints X101-32x4d DCN 2x",
        baseline="box 44.2",
        original="reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck+head_2x_coco",
        checkpoint=TEACHER,
    ),
}
