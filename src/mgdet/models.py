"""Student and teacher as a config describes them, with every weight accounted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mgdet.config import ROIS_PER_IMAGE, Config, ModelConfig
from mgdet.detectors.base import Detector
from mgdet.detectors.build import build_detector
from mgdet.errors import UserError
from mgdet.interop.backbones import read_timm
from mgdet.interop.weights import Checkpoint, load_checkpoint, read_checkpoint
from mgdet.methods.inherit import inherit
from mgdet.methods.mgd import MGD
from mgdet.methods.student import DistilledStudent
from mgdet.methods.teacher import Teacher

RANDOM, TIMM = "random", "timm:"

Say = Callable[[str], None]


@dataclass(slots=True)
class Models:
    """What a run trains and what it learns from.

    student: the detector and its generators; the only part that trains.
    teacher: frozen; None for a student that learns alone.
    teacher_sha256: hash of the teacher's file; empty without a teacher.
    """

    student: DistilledStudent
    teacher: Teacher | None
    teacher_sha256: str


def detector_from(config: ModelConfig, num_classes: int) -> Detector:
    """The detector that a config section describes, with random weights.

    Raises:
        UserError: there is no such detector or backbone, or it does not have what a setting is about.
    """
    detector = build_detector(
        config.detector,
        backbone=config.backbone,
        num_classes=num_classes,
        deformable=config.deformable,
        channels=config.channels,
        frozen_stages=config.frozen_stages,
        norm_eval=config.norm_eval,
    )
    if detector.rois_per_image:
        detector.rois_per_image = config.rois_per_image
    elif config.rois_per_image != ROIS_PER_IMAGE:
        raise UserError(f"a {config.detector} has no second stage, so rois_per_image does not apply to it; remove it")
    return detector


def build_models(config: Config, classes: Sequence[str], *, fresh: bool, say: Say) -> Models:
    """Builds student and teacher and loads what they start from.

    Args:
        config: the run.
        classes: class names of the data.
        fresh: load the student's start weights; a resumed run has its own.
        say: is told one line for every file that is loaded.

    Raises:
        UserError: weights that do not fit, class sets that differ, or a student that cannot inherit.
    """
    student = detector_from(config.student, len(classes))
    _freeze_unread(student, say)
    if fresh:
        _start(student, config.student, classes, say)
    if config.teacher is None or config.mgd is None:
        return Models(DistilledStudent(student), None, "")
    teacher = detector_from(config.teacher, len(classes))
    checkpoint = _load_teacher(teacher, config.teacher.weights, classes, say)
    if student.num_taps != teacher.num_taps:
        raise UserError(
            f"a {config.student.detector} has {student.num_taps} levels to distil and a {config.teacher.detector} "
            f"{teacher.num_taps}; choose a teacher with the same pyramid"
        )
    if fresh and config.mgd.inherit:
        try:
            copied, kept = inherit(student, teacher)
        except ValueError as error:
            raise UserError(f"{error}; turn that off with --mgd.no-inherit") from None
        rest = f"; {len(kept)} of other shapes keep their start values ({', '.join(kept)})" if kept else ""
        say(f"student inherits {len(copied)} tensors of the teacher's neck and head{rest}")
    levels = [
        MGD(
            student.tap_channels,
            teacher.tap_channels,
            weight=config.mgd.weight,
            mask_ratio=config.mgd.mask_ratio,
        )
        for _ in range(student.num_taps)
    ]
    return Models(DistilledStudent(student, levels), Teacher(teacher), checkpoint.sha256)


def load_detector(config: ModelConfig, checkpoint: Checkpoint, classes: Sequence[str]) -> tuple[Detector, str]:
    """A detector with all the weights of a file, to test or to predict with, and the line that accounts for them.

    Raises:
        UserError: the file does not fit completely, or knows other classes.
    """
    detector = detector_from(config, len(classes))
    _check_classes(checkpoint, classes)
    return detector.eval(), load_checkpoint(detector, checkpoint).line()


def _freeze_unread(student: Detector, say: Say) -> None:
    """Takes the gradient from what no level of the pyramid depends on: joined gradients wait for everything else."""
    trained = {name: p for name, p in student.backbone.named_parameters() if p.requires_grad}
    if not trained:
        return
    training = student.training
    maps = student.eval().pyramid(torch.zeros(1, 3, 64, 64)).maps
    total = torch.stack([level.sum() for level in maps]).sum()
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    student.train(training)
    unread = [name for name, gradient in zip(trained, gradients) if gradient is None]
    for name in unread:
        trained[name].requires_grad_(False)
    if unread:
        say(
            f"{len(unread)} tensors of the student's backbone reach no pyramid level and do not train: {unread[0]}, ..."
        )


def _start(student: Detector, config: ModelConfig, classes: Sequence[str], say: Say) -> None:
    weights = config.weights
    if weights.startswith(TIMM) and _base(weights.removeprefix(TIMM)) != _base(config.backbone):
        raise UserError(
            f"student.weights is '{weights}', but student.backbone is '{config.backbone}'; give --student.weights "
            f"{TIMM}{config.backbone}, a file, or {RANDOM}"
        )
    if weights == RANDOM:
        say("student starts from random weights")
        return
    checkpoint = read_timm(weights.removeprefix(TIMM)) if weights.startswith(TIMM) else read_checkpoint(weights)
    partial: tuple[str, ...] = ()
    if checkpoint.kind == "backbone":
        parts = {name.partition(".")[0] for name in student.state_dict()}
        offsets = tuple(name for name in student.state_dict() if ".conv_offset." in name)
        partial = (*(f"{part}." for part in sorted(parts - {"backbone"})), *offsets)
    elif checkpoint.classes is not None and checkpoint.classes != tuple(classes):
        # What predicts other classes is no start for these, also where its shapes fit.
        partial = student.class_predictors
        kept = {name: value for name, value in checkpoint.state_dict.items() if not name.startswith(partial)}
        checkpoint = replace(checkpoint, state_dict=kept)
        say(f"{checkpoint.path} knows other classes than the data, so what predicts classes starts at random")
    say(f"student: {load_checkpoint(student, checkpoint, partial=partial).line()}")


def _base(name: str) -> str:
    """A timm name without its tag."""
    return name.partition(".")[0]


def _load_teacher(teacher: Detector, weights: str, classes: Sequence[str], say: Say) -> Checkpoint:
    if weights == RANDOM or weights.startswith(TIMM):
        raise UserError(f"teacher.weights is '{weights}'; a teacher needs the checkpoint of a trained detector")
    if "://" not in weights and not Path(weights).exists():
        raise UserError(
            f"the teacher's checkpoint '{weights}' is not here; put the file there, or name another one with "
            "--teacher.weights"
        )
    checkpoint = read_checkpoint(weights)
    _check_classes(checkpoint, classes)
    say(f"teacher: {load_checkpoint(teacher, checkpoint).line()}")
    return checkpoint


def _check_classes(checkpoint: Checkpoint, classes: Sequence[str]) -> None:
    if checkpoint.classes is None or checkpoint.classes == tuple(classes):
        return
    theirs = checkpoint.classes
    if len(theirs) != len(classes):
        raise UserError(f"{checkpoint.path} knows {len(theirs)} classes, the data has {len(classes)}")
    i = next(i for i, (a, b) in enumerate(zip(theirs, classes)) if a != b)
    raise UserError(f"{checkpoint.path} knows class {i} as '{theirs[i]}', in the data it is '{classes[i]}'")
