"""Student, teacher and methods of one run, with every weight accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mgdet.config import Config, ModelConfig
from mgdet.detectors.face import Face
from mgdet.detectors.foreign import library
from mgdet.detectors.foreign.base import Foreign
from mgdet.errors import UserError
from mgdet.files import sha256_of_tensors
from mgdet.interop.loading import count_classes, load_checkpoint
from mgdet.interop.weights import Checkpoint, read_checkpoint
from mgdet.layers.inference import inference_form
from mgdet.methods.base import FeatureMethod
from mgdet.methods.fgd import FGD
from mgdet.methods.inherit import inherit
from mgdet.methods.mgd import MGD
from mgdet.methods.pairing import Pair, check_pairs, pair_levels, pairing_lines
from mgdet.methods.pkd import PKD
from mgdet.methods.student import DistilledStudent, LevelMethod
from mgdet.methods.teacher import Teacher
from mgdet.models.agree import check_agrees
from mgdet.models.detectors import Say, check_classes, detector_from, foreign_classes, foreign_from
from mgdet.models.said import classes_by
from mgdet.models.start import RANDOM, TIMM, freeze_unlearned, freeze_unread, start
from mgdet.structures import Level


@dataclass(slots=True)
class Models:
    """What a run trains and what it learns from.

    student: the detector and its methods; the only part that trains.
    teacher: frozen; None for a student that learns alone.
    teacher_sha256: hash of the teacher's weights; empty without a teacher.
    teacher_classes: the name of each of the teacher's labels; None where nothing says them.
    """

    student: DistilledStudent
    teacher: Teacher | None
    teacher_sha256: str
    teacher_classes: tuple[str, ...] | None = None


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
        freeze_unlearned(student, say, batch=config.train.batch, square=config.data.square)
    if config.teacher is None or not (config.methods or fresh):
        return Models(DistilledStudent(student), None, "")
    teacher, checkpoint = _teacher(config.teacher, say, inherit=config.inherit)
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
    if fresh:
        finest = config.pkd.levels if config.pkd.on else 0
        check_pairs(config.pairing.pairs, student.levels, teacher.levels, finest=finest)
    distilled = with_methods(config, student, teacher, say)
    precision = config.teacher.precision
    if precision == "step" and config.train.amp == "bf16":
        precision = "bf16"  # the same, and the teacher can keep its weights rounded
    names = checkpoint.classes if checkpoint is not None else foreign_classes(teacher)
    return Models(distilled, Teacher(inference_form(teacher), precision), sha256, names)


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
    freeze_unread(student, say)
    if fresh:
        start(student, config, classes, say)
    return student


def _teacher(config: ModelConfig, say: Say, *, inherit: bool) -> tuple[Face, Checkpoint | None]:
    """The teacher with its own classes, and its file where it is one of ours.

    Without `inherit` its maps alone count, and not how its head was trained.
    """
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
    check_agrees(config, checkpoint, role="teacher", head=inherit)
    teacher = detector_from(config, len(checkpoint.classes or ()) or 80)
    num_classes = count_classes(teacher, checkpoint)
    if num_classes is not None and num_classes != teacher.num_classes:
        teacher = detector_from(config, num_classes)
    say(f"teacher: {load_checkpoint(teacher, checkpoint).line()}")
    return teacher, replace(checkpoint, classes=classes_by(checkpoint, num_classes))


def _inherit(student: Face, teacher: Face, checkpoint: Checkpoint | None, classes: Sequence[str], say: Say) -> None:
    if isinstance(student, Foreign) or isinstance(teacher, Foreign):
        raise UserError("only our own detectors inherit a neck and a head; turn that off with --no-inherit")
    if checkpoint is not None:
        try:
            check_classes(checkpoint.path, checkpoint.classes, classes)
        except UserError as error:
            raise UserError(
                f"a student inherits only from a teacher of its classes: {error}; add --no-inherit"
            ) from None
    try:
        copied, kept, own = inherit(student, teacher)
    except ValueError as error:
        raise UserError(f"{error}; turn that off with --no-inherit") from None
    rest = f"; {len(kept)} of other shapes keep their start values ({', '.join(kept)})" if kept else ""
    rest += f"; the teacher has no such {' and '.join(own)}, which start on their own" if own else ""
    say(f"student inherits {len(copied)} tensors of the teacher's neck and head{rest}")


def _level_methods(
    config: Config, pairs: Sequence[Pair], student: Sequence[Level], teacher: Sequence[Level]
) -> list[LevelMethod]:
    """One module for each method that is on and each pair of levels."""
    levels = []
    mgd, pkd, fgd = config.mgd, config.pkd, config.fgd
    for place, pair in enumerate(pairs):
        widths = student[pair.student].channels, teacher[pair.teacher].channels
        if mgd.on:
            module: FeatureMethod = MGD(*widths, weight=mgd.own_weight, mask_ratio=mgd.mask_ratio)
            levels.append(LevelMethod(module, pair, mgd.share))
        if pkd.on and place < pkd.levels:
            levels.append(LevelMethod(PKD(*widths, weight=pkd.own_weight), pair, pkd.share))
        if fgd.on:
            module = FGD(
                *widths,
                weight=fgd.own_weight,
                temperature=fgd.temperature,
                foreground=fgd.foreground,
                background=fgd.background,
                attention=fgd.attention,
                relation=fgd.relation,
            )
            levels.append(LevelMethod(module, pair, fgd.share))
    return levels
