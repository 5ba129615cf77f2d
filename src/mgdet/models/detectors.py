"""Detectors, ours and of other libraries, as a section of the config or a file describes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mgdet.config import PROPOSALS_PER_LEVEL, ROIS_PER_IMAGE, ModelConfig
from mgdet.detectors.base import Detector
from mgdet.detectors.build import build_detector, detector_class
from mgdet.detectors.face import Face
from mgdet.detectors.foreign import library
from mgdet.detectors.foreign.base import Foreign
from mgdet.errors import UserError
from mgdet.interop.loading import load_checkpoint
from mgdet.interop.weights import Checkpoint
from mgdet.models.agree import check_agrees
from mgdet.structures import Pixels

TWO_STAGES = {"rois_per_image": ROIS_PER_IMAGE, "proposals_per_level": PROPOSALS_PER_LEVEL}
"""Settings that only detectors with a second stage know, and what they are by default."""
OURS_ALONE = (
    "backbone",
    "deformable",
    "style",
    "mean",
    "std",
    "bgr",
    "channels",
    "frozen_stages",
    "norm_eval",
    *TWO_STAGES,
    "grids",
)
"""Settings of a model that mean nothing to a detector of another library."""

Say = Callable[[str], None]


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
        style=config.style,
        pixels=Pixels(config.mean, config.std, config.bgr),
        channels=config.channels,
        frozen_stages=config.frozen_stages,
        norm_eval=config.norm_eval,
        grids=config.grids,
    )
    for name, default in TWO_STAGES.items():
        if detector.rois_per_image:
            setattr(detector, name, getattr(config, name))
        elif getattr(config, name) != default:
            raise UserError(f"{name} does not apply to {config.detector}, which has no second stage; remove it")
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


def foreign_classes(detector: Face) -> tuple[str, ...] | None:
    """The name of each label of another library's detector; None where nothing says them, and for ours."""
    names = detector.output_names if isinstance(detector, Foreign) else None
    return tuple(names[column] for column in detector.columns) if names and isinstance(detector, Foreign) else None


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
        UserError: the file does not fit completely, was trained with other pixels, or knows other classes.
    """
    check_classes(checkpoint.path, checkpoint.classes, classes)
    check_agrees(config, checkpoint, role="student")
    detector: Face
    if not config.source:
        detector = detector_from(config, len(classes))
    elif checkpoint.description is not None:
        detector = library(config.source).rebuild(checkpoint.description, classes)
    else:
        return _foreign_of_file(replace(config, weights=str(checkpoint.path)), checkpoint, classes)
    return detector.eval(), load_checkpoint(detector, checkpoint).line()


def _foreign_of_file(config: ModelConfig, checkpoint: Checkpoint, classes: Sequence[str]) -> tuple[Face, str]:
    """The same of a file that another library wrote, whose head may be of other classes."""

    def build(wanted: Sequence[str] | None) -> Foreign:
        return foreign_from(config, wanted, lambda line: None, role="student")

    detector = build(classes)
    try:
        return detector.eval(), load_checkpoint(detector, checkpoint).line()
    except UserError:
        if (number := build(None).num_classes) != len(classes):
            raise _other_number(checkpoint.path, number, classes) from None
        raise


def check_classes(path: Path, theirs: Sequence[str] | None, classes: Sequence[str]) -> None:
    """Refuses a file at `path` that knows other classes than the data; None: it does not say which.

    Raises:
        UserError: they differ in number, name or order.
    """
    if theirs is None or tuple(theirs) == tuple(classes):
        return
    if len(theirs) != len(classes):
        raise _other_number(path, len(theirs), classes)
    i = next(i for i, (a, b) in enumerate(zip(theirs, classes)) if a != b)
    raise UserError(f"{path} knows class {i} as '{theirs[i]}', in the data it is '{classes[i]}'")


def _other_number(path: Path, number: int, classes: Sequence[str]) -> UserError:
    count = "1 class" if number == 1 else f"{number} classes"
    return UserError(f"{path} knows {count}, the data has {len(classes)}")
