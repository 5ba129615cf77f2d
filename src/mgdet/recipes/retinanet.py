"""RetinaNet X101-64x4d teaches RetinaNet R50 (the paper's table 4), and both alone."""

from __future__ import annotations

from mgdet.config import (
    Config,
    DataConfig,
    MGDConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from mgdet.recipes.base import IMAGENET_R50, MMDETECTION

TEACHER_3X = "retinanet_x101_64x4d_fpn_mstrain_3x_coco_20210719_051838-022c2187.pth"
TEACHER_1X = "retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth"


def retinanet_r50() -> Config:
    """RetinaNet R50, schedule 2x: the student's baseline."""
    return Config(
        student=ModelConfig(detector="retinanet", backbone="resnet50", weights=IMAGENET_R50),
        data=DataConfig(),
        optimizer=OptimizerConfig(lr=0.01),
        schedule=ScheduleConfig(epochs=24, drops=(16, 22)),
        train=TrainConfig(),
    )


def retinanet_x101_64x4d() -> Config:
    """RetinaNet X101-64x4d, schedule 3x, multi-scale: the teacher."""
    config = retinanet_r50()
    config.student.backbone = "resnext101_64x4d"
    config.student.weights = "timm:resnext101_64x4d.tv_in1k"
    config.data.short_edge = (640, 800)
    config.schedule = ScheduleConfig(epochs=36, drops=(27, 33))
    return config


def retinanet_x101_to_r50() -> Config:
    """The published distillation, with the multi-scale 3x teacher of mAP 41.6."""
    config = retinanet_r50()
    config.teacher = ModelConfig(
        detector="retinanet",
        backbone="resnext101_64x4d",
        weights=f"{MMDETECTION}retinanet/retinanet_x101_64x4d_fpn_mstrain_3x_coco/{TEACHER_3X}",
    )
    config.mgd = MGDConfig(weight=2e-5, mask_ratio=0.65, inherit=True)
    return config


def retinanet_x101_1x_to_r50() -> Config:
    """The same with the teacher that the paper reports, schedule 1x, mAP 41.0."""
    config = retinanet_x101_to_r50()
    assert config.teacher is not None
    config.teacher.weights = f"{MMDETECTION}retinanet/retinanet_x101_64x4d_fpn_1x_coco/{TEACHER_1X}"
    return config
