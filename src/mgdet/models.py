"""Student, teacher and methods as a config describes them, with every weight accounted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from mgdet.config import ROIS_PER_IMAGE, Config, ModelConfig
from mgdet.detectors.base import Detector
from mgdet.detectors.build import build_detector, detector_class
from mgdet.detectors.face import Face
from mgdet.detectors.foreign import library
from mgdet.detectors.foreign.base import Foreign
from mgdet.errors import UserError
from mgdet.files import sha256_of_tensors
from mgdet.interop.backbones import read_timm
from mgdet.interop.weights import Checkpoint, count_classes, load_checkpoint, read_checkpoint
from mgdet.layers.inference import inference_form
from mgdet.methods.fgd import FGD
from mgdet.methods.inherit import inherit
from mgdet.methods.mgd import MGD
from mgdet.methods.pairing import Pair, pair_levels, pairing_lines
from mgdet.methods.pkd import PKD
from mgdet.methods.student import DistilledStudent, LevelMethod
from mgdet.methods.teacher import Teacher
from mgdet.structures import Level, Target

RANDOM, TIMM = "random", "timm:"
OURS_ALONE = ("backbone", "deformable", "channels", "frozen_stages", "norm_eval", "rois_per_image")
"""Settings of a model that mean nothing to a detector of another library."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Models:
    """What a run trains and what it learns from.

    student: the detector and its methods; the only part that trains.
    teacher: frozen; None for a student that learns alone.
    teacher_sha256: hash of the teacher's weights; empty without a teacher.
    """

    student: DistilledStudent
    teacher: Teacher | None
    teacher_sha256: str


def detector_from(config: ModelConfig, num_classes: int) -> Detector:
    """One of our detectors as a config section describes it, with random weights.

    Raises:
        UserError: there is no such detector or backbone, or it does not have what a setting is about.
    """
    if not config.backbone:
        raise UserError(f"the {config.detector} has no backbone; name one of timm's, e.g. --student.backbone resnet50")
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
        raise UserError(f"rois_per_image does not apply to {config.detector}, which has no second stage; remove it")
    return detector


def has_masks(config: ModelConfig) -> bool:
    """Does the detector of a config section learn and find masks? It is not built for that.

    Raises:
        UserError: there is no such detector.
    """
    if config.source:
        return library(config.source).has_masks(config.detector.partition(":")[2])
    return detector_class(config.detector).has_masks


def foreign_from(config: ModelConfig, classes: Sequence[str] | None, say: Say, *, role: str) -> Foreign:
    """A detector of another library, with the weights that it starts from.

    Args:
        config: the section of the config.
        classes: class names of the data; None for a teacher, which keeps its own.
        say: is told what was decided.
        role: student or teacher, for messages.

    Raises:
        UserError: there is no such detector, it cannot be loaded, or a setting does not apply to it.
    """
    defaults = {field.name: field.default for field in fields(ModelConfig)}
    for name in OURS_ALONE:
        value = getattr(config, name)
        if value != defaults[name]:
            raise UserError(
                f"{role}.{name} does not apply to {config.detector}; where you gave it, remove it, and where the "
                f"recipe sets it, to {value}, take the recipe pair, which is for teachers and students of any library"
            )
    source, _, name = config.detector.partition(":")
    if not name:
        raise UserError(f"{role}.detector is '{config.detector}', without a name; give one, e.g. {_examples(source)}")
    return library(source).build(name, classes=classes, weights=config.weights, say=lambda line: say(f"{role}: {line}"))


def _examples(source: str) -> str:
    return f"{source}:{library(source).MODELS[0]}"


def build_models(
    config: Config, classes: Sequence[str], *, fresh: bool, say: Say, description: dict[str, Any] | None = None
) -> Models:
    """Builds student, teacher and methods, and loads what they start from.

    Args:
        config: the run.
        classes: class names of the data.
        fresh: load the student's start weights; a resumed run has its own.
        say: is told one line for every file that is loaded, and the table of paired levels.
        description: of a resumed student of another library, see `Foreign.description`.

    Raises:
        UserError: weights that do not fit, levels that cannot be paired, or a student that cannot inherit.
    """
    student = _student(config.student, classes, say, fresh=fresh, description=description)
    native = student.native_size
    if native is not None and (config.data.square, config.data.square) != native:
        raise UserError(
            f"{config.student.detector} takes images of {native[0]} x {native[1]} pixels only; give --data.square "
            f"{native[0]}"
        )
    if isinstance(student, Foreign):
        _freeze_unlearned(student, say, batch=config.train.batch, square=config.data.square)
    if config.teacher is None or not (config.methods or fresh):
        return Models(DistilledStudent(student), None, "")
    teacher, checkpoint = _teacher(config.teacher, say)
    if config.teacher.canvas not in ((0, 0), teacher.native_size or config.teacher.canvas):
        height, width = teacher.native_size or (0, 0)
        raise UserError(
            f"teacher.canvas does not apply to {config.teacher.detector}, which takes images of {height} x {width} "
            "pixels only; remove it"
        )
    if fresh and config.inherit:
        _inherit(student, teacher, checkpoint, classes, say)
    if not config.methods:
        say("the student only inherits, so the teacher is not run")
        return Models(DistilledStudent(student), None, "")
    if not teacher.num_classes:
        say("the teacher is a backbone, which knows no classes; only its maps are used")
    elif len(classes) != teacher.num_classes or (checkpoint and checkpoint.classes not in (None, tuple(classes))):
        say(f"the teacher knows other classes than the data ({teacher.num_classes}); only its maps are used")
    sha256 = checkpoint.sha256 if checkpoint else sha256_of_tensors(teacher.state_dict())
    distilled = with_methods(config, student, teacher, say)
    precision = config.teacher.precision
    if precision == "step" and config.train.amp == "bf16":
        precision = "bf16"  # the same, and the teacher can keep its weights rounded
    return Models(distilled, Teacher(inference_form(teacher), precision), sha256)


def with_methods(config: Config, student: Face, teacher: Face, say: Say) -> DistilledStudent:
    """A student with the methods that a config turns on, for the levels that pair with those of a teacher.

    Raises:
        UserError: levels cannot be paired as the config asks.
    """
    mine, theirs = student.levels, teacher.levels
    pairs = pair_levels(mine, theirs, config.pairing.pairs)
    for line in pairing_lines(pairs, mine, theirs):
        say(line)
    foreign = isinstance(student, Foreign) or isinstance(teacher, Foreign)
    standardised = foreign if config.pairing.standardise is None else config.pairing.standardise
    return DistilledStudent(student, _level_methods(config, pairs, mine, theirs), standardised=standardised)


def _student(
    config: ModelConfig, classes: Sequence[str], say: Say, *, fresh: bool, description: dict[str, Any] | None
) -> Face:
    student: Face
    if config.source:
        if fresh or description is None:
            student = foreign_from(config, classes, say, role="student")
        else:
            student = library(config.source).rebuild(description, classes)
        if not student.trains:
            raise UserError(f"{config.detector} only teaches: it has no head that could learn; choose another student")
        return student
    student = detector_from(config, len(classes))
    _freeze_unread(student, say)
    if fresh:
        _start(student, config, classes, say)
    return student


def _teacher(config: ModelConfig, say: Say) -> tuple[Face, Checkpoint | None]:
    """The teacher with its own classes, and its file where it is one of ours."""
    if config.source:
        if config.weights == RANDOM:
            raise UserError("teacher.weights is 'random'; a teacher needs trained weights, e.g. pretrained or a file")
        return foreign_from(config, None, say, role="teacher"), None
    if config.weights == RANDOM or config.weights.startswith(TIMM):
        raise UserError(f"teacher.weights is '{config.weights}'; a teacher needs the checkpoint of a trained detector")
    if "://" not in config.weights and not Path(config.weights).exists():
        raise UserError(
            f"the teacher's checkpoint '{config.weights}' is not here; put the file there, or name another one with "
            "--teacher.weights"
        )
    checkpoint = read_checkpoint(config.weights)
    teacher = detector_from(config, len(checkpoint.classes or ()) or 80)
    num_classes = count_classes(teacher, checkpoint)
    if num_classes is not None and num_classes != teacher.num_classes:
        teacher = detector_from(config, num_classes)
    say(f"teacher: {load_checkpoint(teacher, checkpoint).line()}")
    return teacher, checkpoint


def _inherit(student: Face, teacher: Face, checkpoint: Checkpoint | None, classes: Sequence[str], say: Say) -> None:
    if isinstance(student, Foreign) or isinstance(teacher, Foreign):
        raise UserError("only our own detectors inherit a neck and a head; turn that off with --no-inherit")
    if checkpoint is not None:
        try:
            _check_classes(checkpoint, classes)
        except UserError as error:
            raise UserError(
                f"a student inherits only from a teacher of its classes: {error}; add --no-inherit"
            ) from None
    try:
        copied, kept = inherit(student, teacher)
    except ValueError as error:
        raise UserError(f"{error}; turn that off with --no-inherit") from None
    rest = f"; {len(kept)} of other shapes keep their start values ({', '.join(kept)})" if kept else ""
    say(f"student inherits {len(copied)} tensors of the teacher's neck and head{rest}")


def _level_methods(
    config: Config, pairs: Sequence[Pair], student: Sequence[Level], teacher: Sequence[Level]
) -> list[LevelMethod]:
    """One module for each method that is on and each pair of levels."""
    levels = []
    for place, pair in enumerate(pairs):
        widths = student[pair.student].channels, teacher[pair.teacher].channels
        if config.mgd.weight:
            mgd = MGD(*widths, weight=config.mgd.weight, mask_ratio=config.mgd.mask_ratio)
            levels.append(LevelMethod(mgd, pair))
        if config.pkd.weight and place < config.pkd.levels:
            levels.append(LevelMethod(PKD(*widths, weight=config.pkd.weight), pair))
        if config.fgd.weight:
            fgd = FGD(
                *widths,
                weight=config.fgd.weight,
                temperature=config.fgd.temperature,
                foreground=config.fgd.foreground,
                background=config.fgd.background,
                attention=config.fgd.attention,
                relation=config.fgd.relation,
            )
            levels.append(LevelMethod(fgd, pair))
    return levels


def describe(detector: Face) -> dict[str, Any] | None:
    """How to rebuild a detector of another library; None for ours, whose config says it all."""
    return detector.description() if isinstance(detector, Foreign) else None


def rebuild(checkpoint: Checkpoint) -> Foreign:
    """The detector of another library that a file of this package holds, with its weights.

    Raises:
        UserError: the file does not say what it holds, or does not fit it.
    """
    source = ModelConfig(detector=str((checkpoint.config or {}).get("student", {}).get("detector", ""))).source
    if checkpoint.description is None or not source or checkpoint.classes is None:
        raise UserError(f"{checkpoint.path} does not say which detector of which library it holds")
    detector = library(source).rebuild(checkpoint.description, checkpoint.classes)
    load_checkpoint(detector, checkpoint)
    return detector


def load_detector(config: ModelConfig, checkpoint: Checkpoint, classes: Sequence[str]) -> tuple[Face, str]:
    """A detector with all the weights of a file, to test or to predict with, and the line that accounts for them.

    Raises:
        UserError: the file does not fit completely, or knows other classes.
    """
    _check_classes(checkpoint, classes)
    detector: Face
    if config.source:
        if checkpoint.description is None:
            detector = foreign_from(
                replace(config, weights=str(checkpoint.path)), classes, lambda line: None, role="student"
            )
        else:
            detector = library(config.source).rebuild(checkpoint.description, classes)
    else:
        detector = detector_from(config, len(classes))
    return detector.eval(), load_checkpoint(detector, checkpoint).line()


def _freeze_unread(student: Detector, say: Say) -> None:
    """Freezes what no level of the pyramid depends on: joined gradients wait for everything else."""
    trained = {name: p for name, p in student.backbone.named_parameters() if p.requires_grad}
    if not trained:
        return
    flags = {module: module.training for module in student.modules()}
    maps = student.eval().pyramid(torch.zeros(1, 3, 64, 64)).maps
    total = torch.stack([level.sum() for level in maps]).sum()
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    for module, training in flags.items():
        module.training = training
    unread = [name for name, gradient in zip(trained, gradients) if gradient is None]
    for name in unread:
        trained[name].requires_grad_(False)
    if unread:
        say(
            f"{len(unread)} tensors of the student's backbone reach no pyramid level and do not train: {unread[0]}, ..."
        )


def _freeze_unlearned(student: Face, say: Say, *, batch: int, square: int) -> None:
    """Freezes what no loss of a foreign detector depends on, as one synthetic step shows.

    The step has as few images as the run's, and no larger ones where all are squares: what is too few or too small for
    the detector is said here, before anything is written.
    """
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    edge = max(256, student.smallest_side)
    edge = -(-min(edge, square or edge) // student.multiple) * student.multiple
    images = min(2, batch)
    height, width = student.native_size or (edge, edge)
    box = torch.tensor([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]])
    masks = torch.ones(1, height, width, dtype=torch.uint8) if student.has_masks else None
    target = Target(box, torch.zeros(1, dtype=torch.int64), masks, size=(height, width))
    buffers = {name: value.clone() for name, value in student.named_buffers()}
    state = torch.get_rng_state()
    losses, seen = student.train().learn(torch.randn(images, 3, height, width), [target] * images)
    total = torch.stack([loss.sum() for loss in losses.values()]).sum()
    total = total + torch.stack([tap.float().sum() for tap in seen.taps]).sum()
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    torch.set_rng_state(state)
    with torch.no_grad():
        for name, buffer in student.named_buffers():
            buffer.copy_(buffers[name])
    unread = [name for name, gradient in zip(trained, gradients) if gradient is None]
    for name in unread:
        trained[name].requires_grad_(False)
    if unread:
        say(f"{len(unread)} tensors of the student reach no loss and do not train: {unread[0]}, ...")


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


def _check_classes(checkpoint: Checkpoint, classes: Sequence[str]) -> None:
    if checkpoint.classes is None or checkpoint.classes == tuple(classes):
        return
    theirs = checkpoint.classes
    if len(theirs) != len(classes):
        count = "1 class" if len(theirs) == 1 else f"{len(theirs)} classes"
        raise UserError(f"{checkpoint.path} knows {count}, the data has {len(classes)}")
    i = next(i for i, (a, b) in enumerate(zip(theirs, classes)) if a != b)
    raise UserError(f"{checkpoint.path} knows class {i} as '{theirs[i]}', in the data it is '{classes[i]}'")
