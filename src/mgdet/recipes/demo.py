"""The demo: a teacher, a student alone and the same student with MGD, all from random weights on `shapes`."""

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

CHANNELS = 64


def demo_student() -> Config:
    """The small detector, alone."""
    return Config(
        student=_model("resnet10t"),
        data=DataConfig(
            root="demo/shapes",
            train_annotations="annotations/train.json",
            train_images="train",
            val_annotations="annotations/val.json",
            val_images="val",
            long_edge=192,
            short_edge=(160, 160),
        ),
        optimizer=OptimizerConfig(lr=0.02),
        schedule=ScheduleConfig(epochs=8, drops=(6, 7), warmup_steps=50),
        train=TrainConfig(batch=8, log_every=25),
    )


def demo_teacher() -> Config:
    """The big detector."""
    config = demo_student()
    config.student = _model("resnet34")
    return config


def demo_distilled() -> Config:
    """The small detector with MGD; `teacher.weights` names the file of the trained teacher."""
    config = demo_student()
    config.teacher = _model("resnet34")
    config.mgd = MGDConfig(weight=2e-5, mask_ratio=0.65, inherit=True)
    return config


def _model(backbone: str) -> ModelConfig:
    return ModelConfig(
        detector="retinanet", backbone=backbone, channels=CHANNELS, frozen_stages=0, norm_eval=False, weights="random"
    )
