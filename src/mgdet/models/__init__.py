"""Student, teacher and methods as a config describes them, with every weight accounted for."""

from mgdet.models.agree import check_agrees
from mgdet.models.detectors import (
    check_classes,
    describe,
    detector_from,
    foreign_from,
    has_masks,
    load_detector,
    rebuild,
)
from mgdet.models.recognise import Recognised, recognise, recognise_checkpoint
from mgdet.models.run import Models, build_models, with_methods

__all__ = [
    "Models",
    "Recognised",
    "build_models",
    "check_agrees",
    "check_classes",
    "describe",
    "detector_from",
    "foreign_from",
    "has_masks",
    "load_detector",
    "rebuild",
    "recognise",
    "recognise_checkpoint",
    "with_methods",
]
