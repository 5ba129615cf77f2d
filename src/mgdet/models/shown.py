"""What the names and the shapes of a file's weights show: which of our detectors they are, on which backbone."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import timm

from mgdet.config import ModelConfig
from mgdet.detectors.base import Detector
from mgdet.detectors.solo_targets import GRIDS
from mgdet.errors import UserError
from mgdet.interop.backbones import timm_names
from mgdet.interop.names import DETECTOR_HEADS, is_detector, some
from mgdet.interop.weights import Checkpoint
from mgdet.layers.meta import on_meta
from mgdet.models.agree import BOTTLENECKS
from mgdet.models.detectors import detector_from
from mgdet.models.strangers import CASCADE, FASTER, FPN, OTHER_TOOLS, RETINANET, Stranger, lacking, strangers

Shapes = Mapping[str, tuple[int, ...]]

CLASSIFIERS = {
    "bbox_head.retina_cls.weight": ("retinanet", 9, 0),
    "bbox_head.reppoints_cls_out.weight": ("reppoints", 1, 0),
    "mask_head.conv_cls.weight": ("solo", 1, 0),
    "roi_head.bbox_head.0.fc_cls.weight": ("cascade_mask_rcnn", 1, 1),
    "roi_head.bbox_head.fc_cls.weight": ("faster_rcnn", 1, 1),
}
"""What predicts classes, in which detector, how many outputs it has for each class, and how many for the background."""
ANCHORS = {"bbox_head.retina_reg.weight": (9, RETINANET), "rpn_head.rpn_reg.weight": (3, FASTER)}
"""What predicts four numbers for each anchor, and how many anchors ours have."""
MASKS = {
    "faster_rcnn": "roi_head.mask_head.conv_logits.weight",
    "cascade_mask_rcnn": "roi_head.mask_head.0.conv_logits.weight",
}
RESNETS = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
"""The depth of a ResNet by the kind of its blocks and how many there are in each stage."""
RESNET_BLOCK = re.compile(r"layer[1-4]\.\d+\.")
OFFSETS_V1 = 18


@dataclass(frozen=True, slots=True)
class Shown:
    """A detector, as its weights show it.

    model: the detector, without what weights do not show.
    num_classes: without background.
    depth: of its ResNet or ResNeXt; 0 for other backbones.
    detector: ours, of the same names and shapes, without memory for its weights.
    """

    model: ModelConfig
    num_classes: int
    depth: int
    detector: Detector

    @property
    def has_style(self) -> bool:
        """Has the backbone bottlenecks, so that their stride may be in either convolution?"""
        return self.depth >= BOTTLENECKS


def read_shapes(checkpoint: Checkpoint) -> Shown:
    """Finds the detector whose names and shapes are those of a file.

    Raises:
        UserError: the file holds no detector, or one that this package does not have; the message names the part.
    """
    path = checkpoint.path
    shapes: Shapes = {name: tuple(value.shape) for name, value in checkpoint.state_dict.items()}
    if checkpoint.kind == "backbone":
        if unknown := strangers(shapes, OTHER_TOOLS):
            raise lacking(path, unknown)
        raise UserError(f"{path} holds a backbone, not a detector; give a detector's checkpoint, or timm:NAME")
    if unknown := strangers(shapes):
        raise lacking(path, unknown)
    if not is_detector(shapes):
        raise UserError(f"{path} holds no detector under MMDetection's names, only {some(shapes)}")
    name, num_classes = _kind(path, shapes)
    channels = _width(shapes, "neck.fpn_convs.0.conv.weight")
    if not channels:
        necks = [name for name in shapes if name.startswith("neck.")]
        raise lacking(path, [Stranger(f"a neck with {some(necks)}" if necks else "no neck", FPN)])
    backbone, depth = _backbone(path, shapes)
    offsets = _width(shapes, "backbone.layer2.0.conv2.conv_offset.weight")
    if offsets not in (0, OFFSETS_V1):
        what = Stranger(f"deformable convolutions with {offsets} offsets (version 2, or in groups)", "version 1")
        raise lacking(path, [what])
    try:
        model = ModelConfig(
            detector=name,
            backbone=backbone,
            deformable=offsets > 0,
            channels=channels,
            frozen_stages=0,
            grids=_grids(shapes),
        )
        with on_meta():
            detector = detector_from(model, num_classes)
    except UserError as error:
        raise UserError(f"{path} holds a {name} with {backbone}, but {error}") from None
    _compare(path, shapes, detector, f"{name} with {backbone}")
    return Shown(replace(model, frozen_stages=1), num_classes, depth, detector)


def _grids(shapes: Shapes) -> tuple[int, ...]:
    """SOLO's cells along each edge of the image, where they are others than published."""
    cells = [_width(shapes, f"mask_head.conv_mask_list.{level}.weight") for level in range(len(GRIDS))]
    grids = tuple(map(math.isqrt, cells))
    return grids if 0 not in grids and grids != GRIDS else ()


def _width(shapes: Shapes, name: str) -> int:
    """The first length of a tensor; 0 where there is none."""
    return (*shapes.get(name, ()), 0)[0]


def _kind(path: Path, shapes: Shapes) -> tuple[str, int]:
    """The detector's name and its number of classes."""
    for entry, (ours, what) in ANCHORS.items():
        anchors = _width(shapes, entry) // 4
        if anchors not in (0, ours):
            raise lacking(path, [Stranger(f"{anchors} anchors per cell in place of {ours}", what)])
    entry = next((entry for entry in CLASSIFIERS if entry in shapes), "")
    if not entry:
        heads = [name for name in shapes if name.startswith(DETECTOR_HEADS)]
        raise lacking(path, [Stranger(f"a head with {some(heads)}", RETINANET)])
    name, each, background = CLASSIFIERS[entry]
    has_masks = MASKS.get(name) in shapes
    if name == "cascade_mask_rcnn" and not has_masks:
        raise lacking(path, [Stranger("a Cascade R-CNN without masks", CASCADE)])
    if name == "faster_rcnn" and has_masks:
        name = "mask_rcnn"
    return name, max(1, _width(shapes, entry) // each - background)


def _backbone(path: Path, shapes: Shapes) -> tuple[str, int]:
    """The timm name of the backbone, and its depth where it is a ResNet or ResNeXt of MMDetection's."""
    own = {name.removeprefix("backbone."): shape for name, shape in shapes.items() if name.startswith("backbone.")}
    blocks = {match[0] for match in map(RESNET_BLOCK.match, own) if match}  # also of a file that lacks a few tensors
    first, second, third, last = (sum(name.startswith(f"layer{stage}.") for name in blocks) for stage in (1, 2, 3, 4))
    kind = "bottleneck" if any(RESNET_BLOCK.match(name) and ".conv3." in name for name in own) else "basic"
    depth = RESNETS.get((kind, (first, second, third, last)), 0)
    if depth and _width(own, "conv1.weight") == 64:
        width, inputs = (*own.get("layer1.0.conv2.weight", ()), 0, 0)[:2]
        name = _resnet(depth, width, inputs)
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models("*resne*"), n=1)
            raise lacking(path, [Stranger(f"a {name} as its backbone", close[0] if close else "a resnet50")])
        return name, depth
    names = timm_names({name: shape for name, shape in own.items() if ".conv_offset." not in name})
    if not names:
        raise lacking(
            path, [Stranger(f"a backbone with {some(own)}", "any of timm's with the strides 4, 8, 16 and 32")]
        )
    if len(names) > 1:
        raise UserError(
            f"the backbone in {path} may be any of {', '.join(names)}, which have the same shapes and compute "
            "otherwise; give a checkpoint that holds its config, or name the backbone to mgdet train pair"
        )
    return names[0], 0


def _resnet(depth: int, width: int, inputs: int) -> str:
    """Timm's name of a ResNet whose first 3x3 convolution has so many outputs, and so many inputs in a group."""
    if inputs < width:
        return f"resnext{depth}_{width // max(1, inputs)}x{inputs}d"
    return f"resnet{depth}" if width <= 64 else f"wide_resnet{depth}_{width / 64:g}"


def _compare(path: Path, shapes: Shapes, detector: Detector, what: str) -> None:
    """Refuses a file whose names or shapes differ from those of our detector.

    Raises:
        UserError: names the part that differs.
    """
    ours = {name: tuple(value.shape) for name, value in detector.state_dict().items()}
    missing = [name for name in ours if name not in shapes and not name.endswith(".num_batches_tracked")]
    more = [name for name in shapes if name not in ours]
    other = [
        f"{name} of {shapes[name]}, not {ours[name]}" for name in shapes if shapes[name] != ours.get(name, shapes[name])
    ]
    if more:
        difference = f"it also has {some(more)}"
    elif other:
        difference = f"it has {some(other)}"
    else:
        difference = f"it lacks {some(missing)}"
    if not (missing or more or other):
        return
    extra = [name for name in other if name.startswith("neck.fpn_convs.")]
    if extra and not missing and not more and len(extra) == len(other):
        raise lacking(path, [Stranger("an FPN whose extra levels come from its own (add_extra_convs)", FPN)])
    nearest = f"{what} without that" if more or other else f"a whole {what}"
    raise UserError(f"{path} holds nearly a {what}: {difference}; the nearest is {nearest}")
