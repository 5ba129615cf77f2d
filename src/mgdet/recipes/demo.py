"""The demo: a teacher, a student alone and the same student with MGD, all from random weights on `shapes`.

Any of the paper's five pairs of detectors, with backbones small enough for a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mgdet.config import (
    Config,
    DataConfig,
    Metric,
    MGDConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from mgdet.recipes.base import Recipe

CHANNELS = 64
TEACHER_BACKBONE, STUDENT_BACKBONE = "resnet18", "test_resnet"
IMAGE_SIZE = (128, 160)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A pair of the paper in small.

    teacher: name of the detector that teaches.
    student: name of the detector that learns.
    metrics: what is measured; the first is what the table compares.
    mgd_weight: alpha.
    mask_ratio: lambda, as published.
    inherit: as published.
    """

    teacher: str
    student: str
    metrics: tuple[Metric, ...]
    mgd_weight: float
    mask_ratio: float
    inherit: bool


PAIRS: dict[str, Pair] = {
    "retinanet": Pair(
        teacher="retinanet",
        student="retinanet",
        metrics=("bbox",),
        mgd_weight=2e-5,
        mask_ratio=0.65,
        inherit=True,
    ),
    "faster_rcnn": Pair(
        teacher="cascade_mask_rcnn",
        student="faster_rcnn",
        metrics=("bbox",),
        mgd_weight=5e-6,
        mask_ratio=0.45,
        inherit=False,
    ),
    "mask_rcnn": Pair(
        teacher="cascade_mask_rcnn",
        student="mask_rcnn",
        metrics=("segm", "bbox"),
        mgd_weight=5e-6,
        mask_ratio=0.45,
        inherit=False,
    ),
    "reppoints": Pair(
        teacher="reppoints",
        student="reppoints",
        metrics=("bbox",),
        mgd_weight=2e-5,
        mask_ratio=0.65,
        inherit=True,
    ),
    "solo": Pair(
        teacher="solo",
        student="solo",
        metrics=("segm", "bbox"),
        mgd_weight=2e-5,
        mask_ratio=0.65,
        inherit=True,
    ),
}


def demo_student(pair: str = "retinanet") -> Config:
    """The small detector, alone."""
    return Config(
        student=_model(PAIRS[pair].student, STUDENT_BACKBONE),
        data=DataConfig(
            root="demo/shapes",
            train_annotations="annotations/train.json",
            train_images="train",
            val_annotations="annotations/val.json",
            val_images="val",
            long_edge=max(IMAGE_SIZE),
            short_edge=(min(IMAGE_SIZE), min(IMAGE_SIZE)),
            workers=1,
        ),
        optimizer=OptimizerConfig(name="adamw", lr=0.006, weight_decay=0.01, clip_norm=5.0),
        schedule=ScheduleConfig(epochs=2, drops=(1,), warmup_steps=100),
        train=TrainConfig(batch=8, log_every=25, metrics=PAIRS[pair].metrics),
    )


def demo_teacher(pair: str = "retinanet") -> Config:
    """The big detector, with a longer schedule."""
    config = demo_student(pair)
    config.student = _model(PAIRS[pair].teacher, TEACHER_BACKBONE)
    config.optimizer.lr = 0.004
    config.schedule = ScheduleConfig(epochs=9, drops=(7, 8), warmup_steps=100)
    return config


def demo_distilled(pair: str = "retinanet") -> Config:
    """The small detector with MGD; `teacher.weights` names the file of the trained teacher."""
    config = demo_student(pair)
    config.teacher = demo_teacher(pair).student
    config.teacher.weights = "demo/teacher/student_last.pth"
    config.mgd = MGDConfig(
        weight=PAIRS[pair].mgd_weight, mask_ratio=PAIRS[pair].mask_ratio, inherit=PAIRS[pair].inherit
    )
    return config


def _model(detector: str, backbone: str) -> ModelConfig:
    """From random weights everything trains, also the statistics of the batch norms."""
    return ModelConfig(
        detector=detector, backbone=backbone, channels=CHANNELS, frozen_stages=0, norm_eval=False, weights="random"
    )


RECIPES: dict[str, Recipe] = {}
for _name, _pair in PAIRS.items():
    RECIPES |= {
        f"demo_{_name}_teacher": Recipe(
            build=partial(demo_teacher, _name), kind="demo", student=f"{_pair.teacher} {TEACHER_BACKBONE}"
        ),
        f"demo_{_name}_student": Recipe(
            build=partial(demo_student, _name), kind="demo", student=f"{_pair.student} {STUDENT_BACKBONE}"
        ),
        f"demo_{_name}_distilled": Recipe(
            build=partial(demo_distilled, _name),
            kind="demo",
            student=f"{_pair.student} {STUDENT_BACKBONE}",
            teacher=f"{_pair.teacher} {TEACHER_BACKBONE}",
        ),
    }
