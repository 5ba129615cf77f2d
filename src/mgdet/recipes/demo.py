"""The demo: a teacher, and a student alone, with what it inherits from the teacher, and with MGD too, on `shapes`.

All start from random weights.

Any of the paper's five pairs of detectors, with backbones small enough for a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from mgdet.config import (
    PROPOSALS_PER_LEVEL,
    ROIS_PER_IMAGE,
    Config,
    DataConfig,
    Metric,
    MGDConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from mgdet.recipes.base import Recipe, one_stage_mgd, two_stage_mgd

TEACHER_BACKBONE, STUDENT_BACKBONE = "resnet10t", "test_resnet"
DEFAULT_PAIR = "faster_rcnn"
"""A Cascade Mask R-CNN learns the quickest by far, so its student has something to learn from within minutes."""
IMAGE_SIZE = (128, 160)


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How much a demo does.

    num_train, num_val, num_test: images of the data set; the table is measured on the last, which no choice saw.
    teacher_epochs, student_epochs: passes over the training images.
    warmup_steps: of every run.
    """

    num_train: int
    num_val: int
    num_test: int
    teacher_epochs: int
    student_epochs: int
    warmup_steps: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A pair of the paper in small.

    teacher: name of the detector that teaches.
    student: name of the detector that learns.
    metrics: what is measured; the first is what the table compares.
    mgd: as published; only the weight may differ, because small images have other maps to sum over.
    channels: width of necks and heads.
    teacher_rois, student_rois: regions that train a second stage; a student learns faster with more, at little cost.
    proposals_per_level: boxes of a level that compete for it; the most of them come to nothing on such small images.
    grids: of a SOLO.
    teacher_rate, student_rate: learning rates, for 16 images per step.
    smallest: area in square pixels that no object of the pictures is drawn smaller than.
    full, quick: how much it does.
    """

    teacher: str
    student: str
    metrics: tuple[Metric, ...]
    mgd: MGDConfig
    channels: int = 32
    teacher_rois: int = ROIS_PER_IMAGE
    student_rois: int = ROIS_PER_IMAGE
    proposals_per_level: int = PROPOSALS_PER_LEVEL
    grids: tuple[int, ...] = ()
    teacher_rate: float = 0.004
    student_rate: float = 0.006
    smallest: float = 0.0
    full: Length = Length(num_train=2000, num_val=250, num_test=500, teacher_epochs=3, student_epochs=2)
    quick: Length = Length(num_train=600, num_val=60, num_test=120, teacher_epochs=2, student_epochs=1, warmup_steps=50)


CASCADE = Pair(
    teacher="cascade_mask_rcnn",
    student="faster_rcnn",
    metrics=("bbox",),
    mgd=replace(two_stage_mgd(), weight=5e-6),
    teacher_rois=32,
    student_rois=64,
    proposals_per_level=400,
    full=Length(num_train=2000, num_val=100, num_test=500, teacher_epochs=4, student_epochs=3),
    quick=Length(num_train=450, num_val=60, num_test=120, teacher_epochs=4, student_epochs=3, warmup_steps=50),
)

PAIRS: dict[str, Pair] = {
    "retinanet": Pair(
        teacher="retinanet",
        student="retinanet",
        metrics=("bbox",),
        mgd=replace(one_stage_mgd(), weight=5e-6),
        channels=64,
        full=Length(num_train=2000, num_val=250, num_test=500, teacher_epochs=9, student_epochs=2),
        quick=Length(num_train=600, num_val=60, num_test=120, teacher_epochs=6, student_epochs=3, warmup_steps=50),
    ),
    "faster_rcnn": CASCADE,
    "mask_rcnn": replace(CASCADE, student="mask_rcnn", metrics=("segm", "bbox")),
    "reppoints": Pair(
        teacher="reppoints",
        student="reppoints",
        metrics=("bbox",),
        mgd=one_stage_mgd(),
    ),
    "solo": Pair(
        teacher="solo",
        student="solo",
        metrics=("segm", "bbox"),
        mgd=one_stage_mgd(),
        grids=(16, 14, 10, 8, 6),
        teacher_rate=0.0015,
        student_rate=0.003,
        smallest=1080.0,
        full=Length(num_train=2000, num_val=250, num_test=500, teacher_epochs=8, student_epochs=3),
        quick=Length(num_train=600, num_val=60, num_test=120, teacher_epochs=3, student_epochs=2, warmup_steps=50),
    ),
}


def demo_student(pair: str = DEFAULT_PAIR, *, quick: bool = False) -> Config:
    """The small detector, alone."""
    own, length = PAIRS[pair], _length(pair, quick)
    return Config(
        student=_model(own.student, STUDENT_BACKBONE, own, own.student_rois),
        data=DataConfig(
            root="demo/shapes",
            train_annotations="annotations/train.json",
            train_images="train",
            val_annotations="annotations/val.json",
            val_images="val",
            long_edge=max(IMAGE_SIZE),
            short_edge=(min(IMAGE_SIZE), min(IMAGE_SIZE)),
            workers=0,  # on two cores a process that reads takes more from the steps than reading does
        ),
        optimizer=OptimizerConfig(name="adamw", lr=own.student_rate, weight_decay=0.01, clip_norm=5.0),
        schedule=_schedule(length.student_epochs, length.warmup_steps),
        train=TrainConfig(batch=8, log_every=25, metrics=own.metrics),
    )


def demo_teacher(pair: str = DEFAULT_PAIR, *, quick: bool = False) -> Config:
    """The big detector, with a longer schedule."""
    own, length = PAIRS[pair], _length(pair, quick)
    config = demo_student(pair, quick=quick)
    config.student = _model(own.teacher, TEACHER_BACKBONE, own, own.teacher_rois)
    config.optimizer.lr = own.teacher_rate
    config.schedule = _schedule(length.teacher_epochs, length.warmup_steps)
    return config


def demo_distilled(pair: str = DEFAULT_PAIR, *, quick: bool = False) -> Config:
    """The small detector with MGD; `teacher.weights` names the file of the trained teacher."""
    config = demo_student(pair, quick=quick)
    config.teacher = demo_teacher(pair).student
    config.teacher.weights = "demo/teacher/student_last.pth"
    config.mgd, config.inherit = replace(PAIRS[pair].mgd), True
    return config


def demo_inherits(pair: str = DEFAULT_PAIR, *, quick: bool = False) -> Config:
    """The small detector that starts with what it shares of its teacher's neck and head, and learns nothing else."""
    config = demo_distilled(pair, quick=quick)
    config.mgd = MGDConfig()
    return config


def _length(pair: str, quick: bool) -> Length:
    return PAIRS[pair].quick if quick else PAIRS[pair].full


def _schedule(epochs: int, warmup_steps: int) -> ScheduleConfig:
    """Drops before the last epoch and, of a long schedule, before the one before it too."""
    first = epochs - (2 if epochs > 6 else 1)
    return ScheduleConfig(epochs=epochs, drops=tuple(range(max(1, first), epochs)), warmup_steps=warmup_steps)


def _model(detector: str, backbone: str, pair: Pair, rois: int) -> ModelConfig:
    """From random weights everything trains, also the statistics of the batch norms."""
    return ModelConfig(
        detector=detector,
        backbone=backbone,
        channels=pair.channels,
        frozen_stages=0,
        norm_eval=False,
        rois_per_image=rois,
        proposals_per_level=pair.proposals_per_level,
        grids=pair.grids,
        weights="random",
    )


RECIPES: dict[str, Recipe] = {}
for _name, _pair in PAIRS.items():
    _teacher, _student = f"{_pair.teacher} {TEACHER_BACKBONE}", f"{_pair.student} {STUDENT_BACKBONE}"
    RECIPES |= {
        f"demo_{_name}_teacher": Recipe(build=partial(demo_teacher, _name), kind="demo", student=_teacher),
        f"demo_{_name}_student": Recipe(build=partial(demo_student, _name), kind="demo", student=_student),
        f"demo_{_name}_distilled": Recipe(
            build=partial(demo_distilled, _name), kind="demo", student=_student, teacher=_teacher
        ),
        f"demo_{_name}_inherits": Recipe(
            build=partial(demo_inherits, _name), kind="demo", student=_student, teacher=_teacher
        ),
    }
