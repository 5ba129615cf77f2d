"""Masked Generative Distillation for object detectors."""

from mgdet.detectors.base import Detections, Detector, Pyramid, Target
from mgdet.detectors.build import build_detector
from mgdet.distill.mgd import MGD
from mgdet.distill.student import DistilledStudent
from mgdet.distill.teacher import Teacher
from mgdet.interop.weights import load_checkpoint

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
