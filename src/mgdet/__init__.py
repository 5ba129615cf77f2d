"""Masked Generative Distillation for object detectors."""

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
