"""What is compared, and the config of every run: all arms share everything but what an arm is about."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from evidence import backbones
from evidence.data import choose_root, data_config
from evidence.pairs import DECAY, Pair, sweeps_of
from mgdet.config import (
    METHODS,
    PROPOSALS_PER_LEVEL,
    ROIS_PER_IMAGE,
    Config,
    MGDConfig,
    ModelConfig,
    OptimizerConfig,
    PKDConfig,
    ScheduleConfig,
    TrainConfig,
)
from mgdet.engine.checkpoint import LAST_FILE

WARMUP_STEPS = 100
TITLES = {"mgd": "MGD", "pkd": "PKD", "fgd": "FGD"}


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train the student.

    name: its folder.
    method: a section of the config; empty for none.
    inherit: starts with the teacher's neck and head.
    settings: what else it changes, by dotted name; what follows the first goes with it.
    length: how many times as long it trains.
    teacher_images: sees the teacher's images, for as many steps, to the nearest whole epoch.
    """

    name: str
    method: str = ""
    inherit: bool = False
    settings: tuple[tuple[str, float], ...] = ()
    length: int = 1
    teacher_images: bool = False

    @property
    def searched_as(self) -> str:
        """The arm whose search it takes its settings from."""
        return self.name.partition(".")[0]

    @property
    def title(self) -> str:
        """Its row in the table."""
        title = TITLES.get(self.method, self.method) or ("" if self.inherit else "alone")
        title += (", inherits" if title else "inherits only") if self.inherit else ""
        title += (", twice as long" if self.length == 2 else "") + (", teacher's images" if self.teacher_images else "")
        return title + "".join(f", {name} {value:g}" for name, value in self.settings[:1])

    @property
    def base(self) -> Arm:
        """The arm without a method that starts as this one does: what the method has to beat."""
        return INHERITS if self.inherit else ALONE


ALONE = Arm("alone")
INHERITS = Arm("inherits", inherit=True)
TWICE = Arm("alone.twice", length=2)
"""Whether the student alone is at its plateau, on the images and with the seeds that are reported."""
LABELS = Arm("alone.teacher-images", teacher_images=True)
"""What the labels are worth that a teacher has seen and its students have not."""
START = Arm("inherits.teacher-images", inherit=True, teacher_images=True)
SAME = Arm("mgd-inherits.teacher-images", "mgd", True, teacher_images=True)
"""Where teacher and student have seen the same images: what inheriting adds, and what MGD adds to that."""
SWEPT = Arm("mgd-inherits", "mgd", True)
"""The arm that sweeps change."""


def arms_of(pair: Pair) -> list[Arm]:
    """The arms of a pair. PKD and FGD inherit, as MGD does; what a method does without it is shown for MGD."""
    arms = [ALONE, TWICE, INHERITS, Arm("mgd", "mgd")]
    arms += [Arm(f"{method}-inherits", method, True) for method in METHODS if method in pair.strengths]
    return arms + ([LABELS, START, SAME] if pair.teacher_num_train and pair.on_teacher_images else [])


def sweep_arms(pair: Pair, chosen: float) -> list[Arm]:
    """The arms of all sweeps but those that are the arm itself.

    Args:
        pair: the pair.
        chosen: the strength of MGD that the search chose.
    """
    own = {f"mgd.{pair.strength}": chosen, "mgd.mask_ratio": pair.mask_ratio}
    result = []
    for sweep in sweeps_of(pair):
        for value in sweep.values:
            setting = value * own[sweep.setting] if sweep.relative else value
            if setting != own.get(sweep.setting):
                settings = [(sweep.setting, setting)] + [(sweep.instead, 0.0)] * bool(sweep.instead)
                result.append(replace(SWEPT, name=f"{SWEPT.name}.{sweep.name}-{value:g}", settings=tuple(settings)))
    return result


def student_config(pair: Pair, root: Path, *, epochs: int, rate: float, seed: int, decay: float = DECAY) -> Config:
    """The student alone."""
    data = data_config(choose_root(root, pair.images), pair.images.size)
    return Config(
        student=_model(pair, pair.student, pair.student_backbone, _start(pair, root, pair.student_backbone)),
        fgd=replace(pair.fgd, weight=0.0),
        mgd=MGDConfig(mask_ratio=pair.mask_ratio),
        pkd=PKDConfig(),
        data=data,
        optimizer=OptimizerConfig(name="adamw", lr=rate, weight_decay=decay, clip_norm=5.0),
        schedule=ScheduleConfig(shape="cosine", epochs=epochs, drops=(), warmup_steps=WARMUP_STEPS),
        train=TrainConfig(
            batch=pair.batch,
            amp=pair.amp,
            seed=seed,
            log_every=50,
            save_every=200,
            eval_every=max(1, epochs // 4),
            metrics=pair.metrics,
        ),
    )


def teacher_config(pair: Pair, root: Path, *, epochs: int, seed: int) -> Config:
    """The teacher."""
    own = {"rate": pair.teacher_rate, "decay": pair.teacher_decay}
    config = student_config(pair.as_teacher, root, epochs=epochs, seed=seed, **own)
    config.student = _model(pair, pair.teacher, pair.teacher_backbone, _start(pair, root, pair.teacher_backbone))
    return config


def arm_config(
    pair: Pair,
    root: Path,
    arm: Arm,
    *,
    teacher: Path | None,
    strength: float,
    epochs: int,
    rate: float,
    seed: int,
    decay: float = DECAY,
) -> Config:
    """One run of an arm.

    Args:
        pair: the pair.
        root: of everything.
        arm: the arm.
        teacher: folder of the teacher's run; None for the student alone.
        strength: of the arm's method.
        epochs, rate, decay: the schedule, its learning rate and weight decay.
        seed: of the run.
    """
    epochs, sees = arm.length * epochs, pair
    if arm.teacher_images:
        # An epoch ends with a whole batch, so of few images it has more steps than its share of images.
        own, more = (math.ceil(images.num_train / pair.batch) for images in (pair.images, pair.teacher_images))
        epochs, sees = max(1, round(epochs * own / more)), pair.as_teacher
    config = student_config(sees, root, epochs=epochs, rate=rate, seed=seed, decay=decay)
    if arm.method or arm.inherit:
        assert teacher is not None
        config.teacher = _model(pair, pair.teacher, pair.teacher_backbone, str(teacher / LAST_FILE))
        config.inherit = arm.inherit
    if arm.method:
        change(config, f"{arm.method}.{pair.strength}", strength)
    for name, value in arm.settings:
        change(config, name, value)
    return config


def change(config: Config, name: str, value: Any) -> None:
    """Sets a field by its dotted name."""
    section, _, field = name.partition(".")
    assert section in {entry.name for entry in fields(config)}
    setattr(getattr(config, section), field, value)


def _start(pair: Pair, root: Path, backbone: str) -> str:
    return str(backbones.path_of(root, pair, backbone)) if pair.pretraining else "random"


def _model(pair: Pair, detector: str, backbone: str, weights: str) -> ModelConfig:
    """Everything trains, also the statistics of the batch norms: nobody has seen millions of photographs before."""
    two_stages = detector.endswith("rcnn")
    return ModelConfig(
        detector=detector,
        backbone=backbone,
        channels=pair.channels,
        frozen_stages=0,
        norm_eval=False,
        rois_per_image=pair.rois_per_image if two_stages else ROIS_PER_IMAGE,
        proposals_per_level=pair.proposals_per_level if two_stages else PROPOSALS_PER_LEVEL,
        grids=pair.grids,
        weights=weights,
    )
