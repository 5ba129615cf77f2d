"""Detectors with random weights that find many different things: no norm starves the signal, and no two scores tie."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mgdet import build_detector
from mgdet.config import DataConfig
from mgdet.detectors.exported import Exported, Preprocessing
from mgdet.detectors.face import Face
from mgdet.export.forms import form_of
from mgdet.export.forms.base import Form
from mgdet.export.metadata import Notes, preprocessing_of
from mgdet.export.pictures import drawn
from mgdet.export.verify import Agreement, as_batch, match
from mgdet.layers.inference import inference_form
from mgdet.structures import Detections

OURS = ("retinanet", "reppoints", "solo", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn")
PREDICTORS = {
    "retina_cls.bias": (-1.5, 0.5),
    "reppoints_cls_out.bias": (-1.5, 0.5),
    "rpn_cls.weight": (0.0, 0.2),
    "rpn_reg.weight": (0.0, 0.1),
    "fc_cls.weight": (0.0, 0.3),
    "fc_reg.weight": (0.0, 0.05),
    "conv_cls.weight": (0.0, 0.3),
    "conv_cls.bias": (-1.5, 0.5),
}
"""Mean and standard deviation of the predictors' parameters, by the end of their names."""


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(h, w, 3) uint8, RGB: shapes on soft noise."""
    return cv2.resize(drawn(seed), (width, height), interpolation=cv2.INTER_AREA)


def settled(detector: Face, size: tuple[int, int] = (128, 160), *, mirrored: bool = False) -> Face:
    """The same detector in eval mode, its batch norms with the statistics of a picture."""
    norms = [module for module in detector.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    batch = as_batch(picture(*(detector.native_size or size))).fitted(detector.multiple, detector.native_size)
    detector.eval()
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    images = batch.images(detector.pixels)
    with torch.no_grad():  # with a mirrored copy: a norm cannot train on the one cell of a single image
        detector.see(torch.cat([images, images.flip(-1)] if mirrored else [images]), batch.sizes * (1 + mirrored))
    for norm, momentum in zip(norms, before):
        norm.momentum = momentum
    return detector.eval()


def ours(name: str, backbone: str = "test_resnet", *, deformable: bool = False) -> Face:
    """One of our detectors, in the form for inference."""
    torch.manual_seed(0)
    detector = build_detector(name, backbone=backbone, num_classes=3, channels=32, deformable=deformable)
    for entry, value in detector.named_parameters():
        for end, (mean, std) in PREDICTORS.items():
            if entry.endswith(end):
                nn.init.normal_(value, mean, std)
        if "conv_mask_list" in entry:
            nn.init.normal_(value, 0.0, 0.3)
        if "conv_offset" in entry:
            nn.init.normal_(value, 0.0, 0.02)
    return inference_form(settled(detector))


@torch.inference_mode()
def formed(detector: Face, form: Form, image: np.ndarray) -> tuple[Detections, Detections]:
    """What a detector finds in an image, and what its form finds, run by torch."""
    batch = as_batch(image).fitted(detector.multiple, detector.native_size)
    images, ((height, width),) = batch.images(detector.pixels), batch.sizes
    (expected,) = detector.find(images, [(height, width)])
    found = Detections(*form(images, torch.tensor([width, height] * 2, dtype=torch.float32)))
    masks = None if found.masks is None else found.masks[:, :height, :width]
    return expected, found._replace(masks=masks)


def assert_same(detector: Face, expected: Detections, found: Detections, *, rounding: int = 0) -> None:
    """They agree as sets, up to so many that a threshold decided by rounding, and are not empty."""
    agreement = Agreement()
    match(expected, found, form_of(detector).limits, agreement)
    assert agreement.lacking == [], (agreement.pairs, agreement.lacking)
    assert agreement.rounding + len(agreement.tied) <= rounding
    assert agreement.pairs > 0


def assert_graph_is(detector: Face, exported: Exported, image: np.ndarray, *, rounding: int = 0) -> None:
    """The graph finds what the detector finds in an image."""
    expected, _ = formed(detector, form_of(detector), image)
    assert_same(detector, expected, exported.run(image), rounding=rounding)


def how_of(detector: Face, size: tuple[int, int] | None) -> Preprocessing:
    """What a detector's graph does to images of one size (h, w) or of any."""
    return preprocessing_of(detector, DataConfig(square=(detector.native_size or (0,))[0]), size, dynamic=size is None)


def graph_of(detector: Face, size: tuple[int, int] | None = None) -> Exported:
    """The exported graph of a detector, for images of one size (h, w) or of any."""
    from mgdet.export.graph import build_graph, canvas_of

    notes = Notes(tuple("abc"), how_of(detector, size), "a retinanet", "")
    return Exported(notes.file_of(build_graph(detector, canvas_of(detector, size)), "fp32"), path=Path("graph.onnx"))
