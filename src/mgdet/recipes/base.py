"""What a recipe is, and the settings that the published recipes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mgdet.config import (
    Config,
    DataConfig,
    MGDConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

MMDETECTION = "https://download.openmmlab.com/mmdetection/v2.0/"
IMAGENET_R50 = "timm:resnet50.tv_in1k"
IMAGENET_R101 = "timm:resnet101.tv_in1k"
IMAGENET_X101_32X4D = "timm:resnext101_32x4d.gluon_in1k"
IMAGENET_X101_64X4D = "timm:resnext101_64x4d.tv_in1k"
IMAGENET_MOBILENETV3 = "timm:mobilenetv3_large_100.ra_in1k"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One experiment: a function that returns its config, and what is published about it.

    build: returns a fresh config.
    kind: where it belongs: a teacher with a student, a student alone, a teacher to train, any pair, or the demo.
    student: the detector that trains, for people.
    teacher: the detector that it learns from, with its published COCO mAP; empty for training alone.
    baseline: published COCO mAP of the student trained alone, e.g. `box 37.4`; empty where none is published.
    distilled: published COCO mAP with MGD; empty for training alone.
    original: name of the original system's config; empty where the original has none.
    checkpoint: file name of the MMDetection checkpoint that belongs to it: the teacher's, or its own; empty where
        none is published.
    """

    build: Callable[[], Config]
    kind: Literal["distillation", "student", "teacher", "any", "demo"]
    student: str
    teacher: str = ""
    baseline: str = ""
    distilled: str = ""
    original: str = ""
    checkpoint: str = ""


def coco_r50(detector: str, *, lr: float, schedule: ScheduleConfig) -> Config:
    """A detector with an ImageNet ResNet-50 that trains alone on COCO, 16 images per step at one scale.

    Args:
        detector: a key of `mgdet.detectors.build.DETECTORS`.
        lr: learning rate for 16 images per step.
        schedule: when it drops.
    """
    return Config(
        student=ModelConfig(detector=detector, backbone="resnet50", weights=IMAGENET_R50),
        data=DataConfig(),
        optimizer=OptimizerConfig(lr=lr),
        schedule=schedule,
        train=TrainConfig(),
    )


def schedule_1x() -> ScheduleConfig:
    """12 epochs."""
    return ScheduleConfig(epochs=12, drops=(8, 11))


def schedule_2x() -> ScheduleConfig:
    """24 epochs."""
    return ScheduleConfig(epochs=24, drops=(16, 22))


def schedule_3x() -> ScheduleConfig:
    """36 epochs."""
    return ScheduleConfig(epochs=36, drops=(27, 33))


def one_stage_mgd() -> MGDConfig:
    """The published setting of RetinaNet, RepPoints and SOLO."""
    return MGDConfig(weight=2e-5, mask_ratio=0.65)


def two_stage_mgd() -> MGDConfig:
    """The published setting of Faster and Mask R-CNN, whose teacher has other heads than they."""
    return MGDConfig(weight=5e-7, mask_ratio=0.45)
