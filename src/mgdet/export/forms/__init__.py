"""Each detector for one image as torch can trace it: its own layers, and nothing that depends on a value in Python."""

from __future__ import annotations

from mgdet.detectors.face import Face
from mgdet.detectors.foreign.hf_detector import HuggingFace
from mgdet.detectors.foreign.libreyolo_detector import LibreYolo
from mgdet.detectors.foreign.torchvision_detector import TorchvisionDetector
from mgdet.detectors.reppoints import RepPoints
from mgdet.detectors.retinanet import RetinaNet
from mgdet.detectors.solo import SOLO
from mgdet.detectors.two_stage import TwoStage
from mgdet.errors import UserError
from mgdet.export.forms.base import Form
from mgdet.export.forms.dense import DenseForm
from mgdet.export.forms.huggingface import HuggingFaceForm
from mgdet.export.forms.libreyolo import libreyolo_form
from mgdet.export.forms.solo import SOLOForm
from mgdet.export.forms.torchvision import torchvision_form
from mgdet.export.forms.two_stage import TwoStageForm


def form_of(detector: Face) -> Form:
    """The form of a detector, on the same layers.

    Raises:
        UserError: there is none, or the detector only teaches.
    """
    if isinstance(detector, RetinaNet | RepPoints):
        return DenseForm(detector)
    if isinstance(detector, TwoStage):
        return TwoStageForm(detector)
    if isinstance(detector, SOLO):
        return SOLOForm(detector)
    if isinstance(detector, TorchvisionDetector):
        return torchvision_form(detector)
    if isinstance(detector, HuggingFace):
        return HuggingFaceForm(detector)
    if isinstance(detector, LibreYolo):
        return libreyolo_form(detector)
    raise UserError(f"a {type(detector).__name__} has no form that can be exported")
