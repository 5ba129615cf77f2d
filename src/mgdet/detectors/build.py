"""Detectors by name."""

from __future__ import annotations

from typing import Any, Literal

from mgdet.detectors.base import Detector
from mgdet.detectors.cascade_mask_rcnn import CascadeMaskRCNN
from mgdet.detectors.faster_rcnn import FasterRCNN
from mgdet.detectors.mask_rcnn import MaskRCNN
from mgdet.detectors.reppoints import RepPoints
from mgdet.detectors.retinanet import RetinaNet
from mgdet.detectors.solo import SOLO
from mgdet.errors import UserError, nearest
from mgdet.layers.backbone import build_backbone
from mgdet.structures import IMAGENET, Pixels

DETECTORS: dict[str, type[Detector]] = {
    "cascade_mask_rcnn": CascadeMaskRCNN,
    "faster_rcnn": FasterRCNN,
    "mask_rcnn": MaskRCNN,
    "reppoints": RepPoints,
    "retinanet": RetinaNet,
    "solo": SOLO,
}


def detector_class(name: str) -> type[Detector]:
    """The class of a detector.

    Raises:
        UserError: no such detector; the message names the nearest.
    """
    if name not in DETECTORS:
        raise UserError(f"there is no detector '{name}'{nearest(name, DETECTORS)}")
    return DETECTORS[name]


def build_detector(
    name: str,
    *,
    backbone: str,
    num_classes: int,
    deformable: bool = False,
    style: Literal["pytorch", "caffe"] = "pytorch",
    pixels: Pixels = IMAGENET,
    channels: int = 256,
    frozen_stages: int = 1,
    norm_eval: bool = True,
    grids: tuple[int, ...] = (),
) -> Detector:
    """Builds a detector with random weights.

    Args:
        name: a key of `DETECTORS`.
        backbone: name of a timm backbone with four feature stages, e.g. `resnet50` or `resnext101_64x4d`.
        num_classes: classes without background.
        deformable: deformable 3x3 convolutions (version 1) in stages c3 to c5 of a ResNet with bottlenecks.
        style: where a ResNet's bottlenecks have their stride, see `build_backbone`.
        pixels: the normalisation that the backbone's weights expect.
        channels: width of neck and heads.
        frozen_stages: backbone stages, counted with the stem, that do not train.
        norm_eval: keep the backbone's batch norm statistics fixed, also in training.
        grids: cells along each edge of the image at each level of a SOLO; empty: as published.

    Raises:
        UserError: no such detector or backbone, and the message names the nearest; grids of a detector without cells.
    """
    kind = detector_class(name)
    if grids and not kind.grids:
        raise UserError(f"grids does not apply to {name}, whose masks do not belong to cells; remove it")
    stages = build_backbone(backbone, frozen_stages=frozen_stages, deformable=deformable, style=style)
    own: dict[str, Any] = {"grids": grids} if grids else {}
    detector = kind(stages, num_classes=num_classes, channels=channels, norm_eval=norm_eval, **own)
    detector.pixels = pixels
    return detector
