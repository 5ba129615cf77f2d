"""Student, teacher and methods as a config describes them, with every weight accounted for."""

from mgdet.models.detectors import describe, detector_from, foreign_from, has_masks, load_detector, rebuild
from mgdet.models.run import Models, build_models, with_methods

__all__ = [
    "Models",
    "build_models",
    "describe",
    "detector_from",
    "foreign_from",
    "has_masks",
    "load_detector",
    "rebuild",
    "with_methods",
]
