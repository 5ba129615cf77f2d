"""Masked Generative Distillation for object detectors.

Public names are imported when they are first used: `import mgdet` and `mgdet --help` load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mgdet.version import __version__ as __version__

if TYPE_CHECKING:
    from mgdet.api import Trained, check, compare, distill, train
    from mgdet.detectors.base import Detector
    from mgdet.detectors.build import build_detector
    from mgdet.interop.loading import load_checkpoint
    from mgdet.loaded import Model, Prediction, load
    from mgdet.methods.mgd import MGD
    from mgdet.methods.student import DistilledStudent
    from mgdet.methods.teacher import Teacher
    from mgdet.planning.plan import Plan, plan
    from mgdet.structures import Detections, Pyramid, Target

__all__ = [
    "MGD",
    "Detections",
    "Detector",
    "DistilledStudent",
    "Model",
    "Plan",
    "Prediction",
    "Pyramid",
    "Target",
    "Teacher",
    "Trained",
    "build_detector",
    "check",
    "compare",
    "distill",
    "load",
    "load_checkpoint",
    "plan",
    "train",
]

_ROOMS = {
    "MGD": "mgdet.methods.mgd",
    "Detections": "mgdet.structures",
    "Detector": "mgdet.detectors.base",
    "DistilledStudent": "mgdet.methods.student",
    "Model": "mgdet.loaded",
    "Plan": "mgdet.planning.plan",
    "Prediction": "mgdet.loaded",
    "Pyramid": "mgdet.structures",
    "Target": "mgdet.structures",
    "Teacher": "mgdet.methods.teacher",
    "Trained": "mgdet.api",
    "build_detector": "mgdet.detectors.build",
    "check": "mgdet.api",
    "compare": "mgdet.api",
    "distill": "mgdet.api",
    "load": "mgdet.loaded",
    "load_checkpoint": "mgdet.interop.loading",
    "plan": "mgdet.planning.plan",
    "train": "mgdet.api",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'mgdet' has no attribute '{name}'")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
