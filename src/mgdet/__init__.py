"""Masked Generative Distillation for object detectors.

Public names are imported when they are first used: `import mgdet` and `mgdet --help` load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgdet.detectors.base import Detector
    from mgdet.detectors.build import build_detector
    from mgdet.interop.weights import load_checkpoint
    from mgdet.methods.mgd import MGD
    from mgdet.methods.student import DistilledStudent
    from mgdet.methods.teacher import Teacher
    from mgdet.structures import Detections, Pyramid, Target

__version__ = "0.1.0"

__all__ = [
    "MGD",
    "Detections",
    "Detector",
    "DistilledStudent",
    "Pyramid",
    "Target",
    "Teacher",
    "build_detector",
    "load_checkpoint",
]

_ROOMS = {
    "MGD": "mgdet.methods.mgd",
    "Detections": "mgdet.structures",
    "Detector": "mgdet.detectors.base",
    "DistilledStudent": "mgdet.methods.student",
    "Pyramid": "mgdet.structures",
    "Target": "mgdet.structures",
    "Teacher": "mgdet.methods.teacher",
    "build_detector": "mgdet.detectors.build",
    "load_checkpoint": "mgdet.interop.weights",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'mgdet' has no attribute '{name}'")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
