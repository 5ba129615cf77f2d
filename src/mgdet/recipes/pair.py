"""Any teacher with any student, and any student alone: the recipes for pairs that nobody published."""

from __future__ import annotations

from mgdet.config import Config, DataConfig, MGDConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from mgdet.recipes.base import Recipe

TEACHER = ModelConfig(detector="torchvision:fasterrcnn_resnet50_fpn_v2", weights="pretrained")
STUDENT = ModelConfig(detector="torchvision:fasterrcnn_mobilenet_v3_large_fpn", weights="backbone")


def pair() -> Config:
    """A teacher and a student of any kind, named by --teacher.detector and --student.detector.

    AdamW and a cosine suit detectors of every family; SGD does not suit those of the DETR family.
    """
    return Config(
        student=ModelConfig(detector=STUDENT.detector, weights=STUDENT.weights),
        teacher=ModelConfig(detector=TEACHER.detector, weights=TEACHER.weights),
        mgd=MGDConfig(weight=2e-5, mask_ratio=0.65),
        data=DataConfig(long_edge=640, short_edge=(480, 640)),
        optimizer=OptimizerConfig(name="adamw", lr=2e-4, weight_decay=1e-4, clip_norm=5.0, backbone_share=0.5),
        schedule=ScheduleConfig(epochs=24, drops=(), shape="cosine"),
        train=TrainConfig(batch=8),
    )


def alone() -> Config:
    """The student of `pair` without a teacher: what the pair is to be compared with."""
    config = pair()
    config.teacher, config.mgd = None, MGDConfig()
    return config


RECIPES = {
    "pair": Recipe(
        build=pair,
        kind="any",
        student="any detector",
        teacher="any detector or backbone: ours, torchvision:, hf:, libreyolo:, timm:",
    ),
    "alone": Recipe(
        build=alone,
        kind="any",
        student="the same student alone, to compare a pair with",
    ),
}
