"""A student by the name that a person gives it: a backbone, a detector, both, or a detector of another library."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm

from mgdet.config import ModelConfig
from mgdet.detectors.build import DETECTORS
from mgdet.detectors.foreign import SOURCES, library
from mgdet.errors import UserError, nearest
from mgdet.models import has_masks
from mgdet.models.start import RANDOM, TIMM
from mgdet.recipes.base import IMAGENET_MOBILENETV3, IMAGENET_R101, IMAGENET_X101_32X4D, IMAGENET_X101_64X4D

SMALL = "resnet18"
"""The backbone of a student of which only the detector is named, or nothing."""
IMAGENET = {
    SMALL: "timm:resnet18.tv_in1k",
    "resnet34": "timm:resnet34.tv_in1k",
    "resnet50": "timm:resnet50.tv_in1k",
    "resnet101": IMAGENET_R101,
    "resnext101_32x4d": IMAGENET_X101_32X4D,
    "resnext101_64x4d": IMAGENET_X101_64X4D,
    "mobilenetv3_large_100": IMAGENET_MOBILENETV3,
}
"""Weights as in the published recipes; all other backbones start from timm's own choice."""
BOXES_ONLY = {"mask_rcnn": "faster_rcnn", "cascade_mask_rcnn": "faster_rcnn", "solo": "retinanet"}
"""Detectors that learn masks, and the nearest one for data that has none."""
ONLY_TEACHES = "timm"


@dataclass(frozen=True, slots=True)
class Student:
    """A student that was chosen.

    model: the detector and what it starts from.
    why: what was decided about it, for people; empty where the name says it all.
    """

    model: ModelConfig
    why: str = ""


def choose_student(name: str, teacher: ModelConfig, *, masks: bool) -> Student:
    """The student of a name.

    Args:
        name: a timm backbone, with or without a tag of weights; one of our detectors; DETECTOR:BACKBONE; SOURCE:NAME of
            another library; or empty for the teacher's own detector with a `SMALL` backbone.
        teacher: what it learns from. A student of its detector takes over its width and the settings of its head.
        masks: can masks be learned from the data?

    Raises:
        UserError: nothing has this name, or it learns masks and the data has none.
    """
    first, colon, rest = name.partition(":")
    if colon and first in SOURCES:
        return _named(_foreign(name), name, masks)
    if name in DETECTORS or (colon and first in DETECTORS):
        return _named(_ours(first, rest or SMALL, teacher), name, masks)
    if colon:
        raise UserError(
            f"there is no detector '{first}' for the student '{name}'{nearest(first, [*DETECTORS, *SOURCES])}"
        )
    if name and not timm.is_model(name):
        raise UserError(f"there is no student '{name}'{_meant(name)}")
    detector, why = _detector_for(teacher, masks)
    return Student(_ours(detector, name or SMALL, teacher), why)


def settled(model: ModelConfig, given: set[str]) -> ModelConfig:
    """The same student with what follows from its weights.

    From random weights everything trains: random stages that are frozen learn nothing. Weights of timm bring the
    normalisation that they were trained with.

    Args:
        model: with the user's settings.
        given: names of the settings that the user set, which stay.
    """
    follows: dict[str, Any] = {}
    if model.source:
        return model
    if model.weights == RANDOM:
        follows = {"frozen_stages": 0, "norm_eval": False}
    elif model.weights.startswith(TIMM) and (settings := timm.get_pretrained_cfg(model.weights.removeprefix(TIMM))):
        mean, std = (tuple(round(255 * value, 3) for value in values) for values in (settings.mean, settings.std))
        follows = {"mean": mean, "std": std}
    return replace(model, **{name: value for name, value in follows.items() if f"student.{name}" not in given})


def _named(model: ModelConfig, name: str, masks: bool) -> Student:
    if has_masks(model) and not masks:
        other = BOXES_ONLY.get(model.detector, "faster_rcnn")
        raise UserError(
            f"the student '{name}' learns masks, and the data has none for it; give e.g. --student {other}, which "
            "learns boxes"
        )
    return Student(model)


def _detector_for(teacher: ModelConfig, masks: bool) -> tuple[str, str]:
    """Which of our detectors learns from a teacher whose detector nobody named, and why."""
    if not teacher.source:
        if has_masks(teacher) and not masks:
            other = BOXES_ONLY[teacher.detector]
            return other, f"a {teacher.detector} learns masks, and the data has none; the nearest for boxes"
        return teacher.detector, "the teacher's detector"
    if teacher.source == ONLY_TEACHES:
        return "retinanet", "the teacher is a backbone, which has no detector"
    if "rcnn" not in teacher.detector:
        return "retinanet", "the closest of mgdet's detectors to the teacher's, one-stage"
    detector = "mask_rcnn" if has_masks(teacher) and masks else "faster_rcnn"
    return detector, "the closest of mgdet's detectors to the teacher's, two-stage"


def _ours(detector: str, backbone: str, teacher: ModelConfig) -> ModelConfig:
    """One of our detectors on a timm backbone with its ImageNet weights, where timm has any."""
    if not timm.is_model(backbone):
        raise UserError(f"timm has no backbone '{backbone}'{_meant(backbone)}")
    base, _, tag = backbone.partition(".")
    if tag and not timm.is_model_pretrained(backbone):
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")]
        raise UserError(f"timm has no weights '{tag}' of {base}{nearest(tag, tags)}")
    weights = f"{TIMM}{backbone}" if tag else IMAGENET.get(base, "")
    if not weights:
        default = timm.get_pretrained_cfg(base)
        weights = f"{TIMM}{base}.{default.tag}" if default is not None and default.has_weights else RANDOM
    model = ModelConfig(detector=detector, backbone=base, weights=weights)
    if teacher.source:
        return model
    if teacher.detector != detector:
        return replace(model, channels=teacher.channels)
    return replace(
        model,
        channels=teacher.channels,
        rois_per_image=teacher.rois_per_image,
        proposals_per_level=teacher.proposals_per_level,
        grids=teacher.grids,
    )


def _foreign(name: str) -> ModelConfig:
    """A detector of another library with the library's own weights; settings alone, such as a model type, have none."""
    source, _, inner = name.partition(":")
    if source == ONLY_TEACHES:
        raise UserError(
            f"the student '{name}' is a backbone, which only teaches; --student {inner or SMALL} is a detector on it"
        )
    if not inner:
        raise UserError(f"the student '{name}' has no name; give one, e.g. {source}:{library(source).MODELS[0]}")
    known = library(source).MODELS
    settings_alone = source == "hf" and "/" not in inner and not Path(inner).is_dir()
    if source != "hf" and inner not in known:
        raise UserError(f"{source} has no detector '{inner}'{nearest(inner, known)}")
    return ModelConfig(detector=name, weights=RANDOM if settings_alone else "pretrained")


def _meant(name: str) -> str:
    """The nearest names among our detectors, timm's backbones and the libraries' detectors."""
    foreign = [f"{source}:{model}" for source in ("torchvision", "libreyolo") for model in library(source).MODELS]
    inner = {model.partition(":")[2]: model for model in foreign}
    known = [*IMAGENET, *DETECTORS, *timm.list_models(), *inner]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{inner.get(close[0], close[0])}'?"
    return f"; give a timm backbone such as {SMALL}, one of {', '.join(DETECTORS)}, or SOURCE:NAME of another library"
