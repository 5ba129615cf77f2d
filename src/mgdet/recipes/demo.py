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
BATCH = 8


def demo_student() -> Config:
    """The small detector, alone."""
    return Config(
        student=_model("test_resnet"),
        data=DataConfig(
            root="demo/shapes",
            train_annotations="annotations/train.json",
            train_images="train",
            val_annotations="annotations/val.json",
            val_images="val",
            long_edge=192,
            short_edge=(160, 160),
            workers=1,
        ),
        optimizer=OptimizerConfig(lr=0.3),
        schedule=ScheduleConfig(epochs=6, drops=(5,), warmup_steps=50),
        train=TrainConfig(batch=BATCH, log_every=25, eval_every=1),
    )


def demo_teacher() -> Config:
    """The big detector."""
    config = demo_student()
    config.student = _model("resnet18")
    return config


def demo_distilled() -> Config:
    """The small detector with MGD; `teacher.weights` names the file of the trained teacher.

    The loss is a sum over a map's elements: its weight grows here as the maps are smaller than COCO's.
    """
    config = demo_student()
    config.teacher = demo_teacher().student
    config.teacher.weights = "demo/teacher/student_last.pth"
    config.mgd = MGDConfig(weight=2e-3, mask_ratio=0.65, inherit=True)
    return config


def _model(backbone: str) -> ModelConfig:
    """From random weights everything trains, also the statistics of the batch norms."""
    return ModelConfig(
        detector="retinanet", backbone=backbone, channels=CHANNELS, frozen_stages=0, norm_eval=False, weights="random"
    )
