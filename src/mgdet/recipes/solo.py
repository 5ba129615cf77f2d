"""SOLO R101 teaches SOLO R50, and both alone.

MMDetection publishes no SOLO R101. The original's teacher file, `Solo_r101_3x.pth`, is SOLO_R101_3x of
github.com/WXinlong/SOLO (mask mAP 37.1) with its entries renamed to MMDetection's. Bring that file, or train
`solo_r101` and distill with `--teacher.weights runs/solo_r101`.
"""

from __future__ import annotations

from dataclasses import replace

from mgdet.config import Config
from mgdet.recipes.base import IMAGENET_R101, Recipe, coco_r50, one_stage_mgd, schedule_1x, schedule_3x

TEACHER = "Solo_r101_3x.pth"


def solo_r50() -> Config:
    """SOLO R50, schedule 1x: the student's baseline."""
    config = coco_r50("solo", lr=0.01, schedule=schedule_1x())
    config.train.metrics = ("segm", "bbox")
    return config


def solo_r50_3x() -> Config:
    """The same, schedule 3x, at one of six scales: 640, 672, ... 800."""
    config = solo_r50()
    config.data.short_edge, config.data.short_edge_step = (640, 800), 32
    config.schedule = replace(schedule_3x(), warmup_ratio=1 / 3)
    return config


def solo_r101() -> Config:
    """SOLO R101, schedule 3x, multi-scale: the teacher, to train."""
    config = solo_r50_3x()
    config.student.backbone = "resnet101"
    config.student.weights = IMAGENET_R101
    return config


def solo_r101_to_r50() -> Config:
    """The published distillation."""
    config = solo_r50()
    config.teacher = replace(solo_r101().student, weights=TEACHER)
    config.mgd, config.inherit = one_stage_mgd(), True
    return config


RECIPES = {
    "solo_r101_to_r50": Recipe(
        build=solo_r101_to_r50,
        kind="distillation",
        student="SOLO R50 1x",
        teacher="SOLO R101 3x (mask 37.1)",
        baseline="mask 33.1",
        distilled="mask 36.2",
        original="solo_r101_ms_distill_solo_r50_coco",
        checkpoint=TEACHER,
    ),
    "solo_r50": Recipe(
        build=solo_r50,
        kind="student",
        student="SOLO R50 1x",
        baseline="mask 33.1",
        original="solo_r50_fpn_1x_coco",
        checkpoint="solo_r50_fpn_1x_coco_20210821_035055-2290a6b8.pth",
    ),
    "solo_r50_3x": Recipe(
        build=solo_r50_3x,
        kind="student",
        student="SOLO R50 3x",
        baseline="mask 35.9",
        original="solo_r50_fpn_3x_coco",
        checkpoint="solo_r50_fpn_3x_coco_20210901_012353-11d224d7.pth",
    ),
    "solo_r101": Recipe(
        build=solo_r101,
        kind="teacher",
        student="SOLO R101 3x",
        baseline="mask 37.1",
        original="solo_r101_fpn_3x_coco",
        checkpoint=TEACHER,
    ),
}
