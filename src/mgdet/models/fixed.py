"""Settings of MMDetection's that our detectors have fixed and no weight shows, and what a config has in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mgdet.detectors import cascade_mask_rcnn, reppoints, retinanet, solo_targets
from mgdet.detectors.base import Detector
from mgdet.interop.mmdet_config import UNKNOWN, get
from mgdet.interop.names import shown
from mgdet.layers import box_head, mask_head, roi, rpn
from mgdet.layers.conv import MAX_GROUPS, count_groups

Part = Literal["backbone", "neck", "head"]

RATIOS, UNIT, ZERO = (0.5, 1.0, 2.0), (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0)
NONE = "none"
"""Where ours have nothing: whatever a config says is something else."""
PYRAMID_OF_ONE_STAGE = ("retinanet", "reppoints")
GROUP_NORMS: dict[str, tuple[str, ...]] = {"reppoints": ("neck", "bbox_head"), "solo": ("mask_head",)}
"""The parts of our detectors whose norms have groups; no weight shows how many."""


class Fixed(NamedTuple):
    """A setting that our detectors have fixed.

    path: where MMDetection's config has it, inside of the model; some have moved over the years.
    value: ours.
    """

    path: str
    value: Any


class Lack(NamedTuple):
    """What a config sets otherwise than ours: in which part, and in words."""

    part: Part
    what: str


def _anchors(head: str, scales: Sequence[float], strides: Sequence[int]) -> list[Fixed]:
    """What a head's generator of anchors has fixed."""
    values = {
        "type": "AnchorGenerator",
        "scales": scales,
        "ratios": RATIOS,
        "strides": strides,
        "base_sizes": strides,
        "scale_major": True,
        "centers": NONE,
        "center_offset": 0,
    }
    return [Fixed(f"{head}.anchor_generator.{name}", value) for name, value in values.items()]


BACKBONE = [
    Fixed("backbone.strides", (1, 2, 2, 2)),
    Fixed("backbone.dilations", (1, 1, 1, 1)),
    Fixed("backbone.conv_cfg.type", "Conv2d"),
]
NECK = [
    Fixed("neck.upsample_cfg.mode", "nearest"),
    Fixed("neck.relu_before_extra_convs", False),
    Fixed("neck.act_cfg.type", NONE),
]
EXTRA_LEVELS = [Fixed("neck.add_extra_convs", "on_input")]
RETINANET = [
    *_anchors("bbox_head", [4 * 2 ** (i / 3) for i in range(3)], retinanet.STRIDES),
    Fixed("bbox_head.anchor_generator.octave_base_scale", 4),
    Fixed("bbox_head.anchor_generator.scales_per_octave", 3),
    Fixed("bbox_head.octave_base_scale", 4),
    Fixed("bbox_head.scales_per_octave", 3),
    Fixed("bbox_head.anchor_ratios", RATIOS),
    Fixed("bbox_head.anchor_strides", retinanet.STRIDES),
    Fixed("bbox_head.bbox_coder.type", "DeltaXYWHBBoxCoder"),
    Fixed("bbox_head.bbox_coder.target_means", ZERO),
    Fixed("bbox_head.bbox_coder.target_stds", UNIT),
    Fixed("bbox_head.target_means", ZERO),
    Fixed("bbox_head.target_stds", UNIT),
    Fixed("bbox_head.loss_cls.use_sigmoid", True),
]
REPPOINTS = [
    Fixed("bbox_head.point_strides", reppoints.STRIDES),
    Fixed("bbox_head.num_points", reppoints.NUM_POINTS),
    Fixed("bbox_head.transform_method", "moment"),
    Fixed("bbox_head.use_grid_points", False),
    Fixed("bbox_head.loss_cls.use_sigmoid", True),
]
SOLO = [
    Fixed("mask_head.strides", solo_targets.STRIDES),
    Fixed("mask_head.cls_down_index", 0),
    Fixed("mask_head.loss_cls.use_sigmoid", True),
]
RPN = [
    *_anchors("rpn_head", [8], rpn.STRIDES),
    Fixed("rpn_head.anchor_scales", [8]),
    Fixed("rpn_head.anchor_ratios", RATIOS),
    Fixed("rpn_head.anchor_strides", rpn.STRIDES),
    Fixed("rpn_head.bbox_coder.type", "DeltaXYWHBBoxCoder"),
    Fixed("rpn_head.bbox_coder.target_means", ZERO),
    Fixed("rpn_head.bbox_coder.target_stds", UNIT),
    Fixed("rpn_head.target_stds", UNIT),
    Fixed("rpn_head.loss_cls.use_sigmoid", True),
]
REGIONS = [
    Fixed(f"roi_head.{extractor}.{name}", value)
    for extractor, size in (("bbox_roi_extractor", box_head.POOL_SIZE), ("mask_roi_extractor", mask_head.POOL_SIZE))
    for name, value in (
        ("type", "SingleRoIExtractor"),
        ("featmap_strides", roi.STRIDES),
        ("finest_scale", roi.FINEST_SIZE),
        ("roi_layer.type", "RoIAlign"),
        ("roi_layer.output_size", size),
        ("roi_layer.out_size", size),
        ("roi_layer.aligned", True),
    )
]
BOXES = [
    Fixed("roi_head.bbox_head.bbox_coder.type", "DeltaXYWHBBoxCoder"),
    Fixed("roi_head.bbox_head.bbox_coder.target_means", ZERO),
    Fixed("roi_head.bbox_head.bbox_coder.target_stds", box_head.BOX_STD),
    Fixed("roi_head.bbox_head.target_stds", box_head.BOX_STD),
    Fixed("roi_head.bbox_head.loss_cls.use_sigmoid", False),
]
CASCADE = [
    Fixed(f"roi_head.bbox_head.{stage}.{name}", value)
    for stage, std in enumerate(cascade_mask_rcnn.STAGE_STD)
    for name, value in (
        ("bbox_coder.type", "DeltaXYWHBBoxCoder"),
        ("bbox_coder.target_means", ZERO),
        ("bbox_coder.target_stds", std),
        ("target_stds", std),
        ("loss_cls.use_sigmoid", False),
    )
]
HEADS = {
    "retinanet": RETINANET,
    "reppoints": REPPOINTS,
    "solo": SOLO,
    "faster_rcnn": RPN + REGIONS + BOXES,
    "mask_rcnn": RPN + REGIONS + BOXES,
    "cascade_mask_rcnn": RPN + REGIONS + CASCADE,
}


def lacks(model: Mapping[str, Any], detector: str, channels: int) -> tuple[Lack, ...]:
    """What the config of a model sets otherwise than our detector of a name and a width has it fixed."""
    parts: list[tuple[Part, list[Fixed]]] = [
        ("backbone", BACKBONE),
        ("neck", NECK + (EXTRA_LEVELS if detector in PYRAMID_OF_ONE_STAGE else [])),
        ("head", HEADS.get(detector, [])),
    ]
    found = [(part, fixed, _at(model, fixed.path)) for part, settings in parts for fixed in settings]
    for place, number in groups_said(model, detector).items():
        groups = Fixed(f"{place}.norm_cfg.num_groups", count_groups(channels))
        found.append(("neck" if place == "neck" else "head", groups, number))
    return tuple(
        Lack(part, f"{fixed.path} {_words(value)} in place of {_words(fixed.value)}")
        for part, fixed, value in found
        if _differs(value, fixed.value)
    )


def groups_said(model: Mapping[str, Any], detector: str) -> dict[str, Any]:
    """How many groups the norms have in each part of `GROUP_NORMS`, as a config says it; else `UNKNOWN`."""
    said = {place: _at(model, f"{place}.norm_cfg.num_groups") for place in GROUP_NORMS.get(detector, ())}
    if detector == "solo" and get(model, "mask_head") is not UNKNOWN and _at(model, "mask_head.norm_cfg") is UNKNOWN:
        said["mask_head"] = MAX_GROUPS  # what MMDetection's SOLO takes where its config does not say it
    return said


def testing_notes(model: Mapping[str, Any], settings: Mapping[str, Any], detector: Detector) -> tuple[str, ...]:
    """What a config tests with, where our detector of the same kind takes other numbers."""
    test = get(model, "test_cfg")
    test = get(settings, "test_cfg") if not isinstance(test, Mapping) else test
    own = get(test, "rcnn") if get(test, "rcnn") is not UNKNOWN else test
    names = {
        "score_thr": getattr(detector, "score_threshold", None),
        "max_per_img": getattr(detector, "max_detections", None),
        "nms.type": "nms",
        "nms.iou_threshold": getattr(detector, "nms_threshold", None),
        "nms.iou_thr": getattr(detector, "nms_threshold", None),
        "sigma": getattr(detector, "nms_sigma", None),
        "nms_pre": getattr(detector, "candidates_per_level", getattr(detector, "nms_candidates", None)),
    }
    other = [
        f"{name} {_words(found)} (here {_words(value)})"
        for name, value in names.items()
        if value is not None and _differs(found := _at(own, name), value)
    ]
    points = [_at(model, f"roi_head.bbox_roi_extractor.roi_layer.{name}") for name in ("sampling_ratio", "sample_num")]
    other += [
        f"{found} points per cell of a region (here as many as it covers)"
        for found in points
        if found not in (0, UNKNOWN)
    ]
    return tuple(other)


def _at(settings: object, path: str) -> Any:
    return get(settings, *(int(name) if name.isdecimal() else name for name in path.split(".")))


def _differs(found: Any, ours: Any) -> bool:
    """Is what a config says another value than ours? What it does not say, or only in code, is no other."""
    if found is UNKNOWN or found is None:
        return False
    if isinstance(ours, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(ours):
            return True
        return any(_differs(one, other) for one, other in zip(found, ours))
    if ours == "on_input" and isinstance(found, bool):
        return not found
    if isinstance(found, str) or isinstance(ours, str):
        return str(found).rpartition(".")[2] != ours
    if not isinstance(found, int | float):
        return True
    return not math.isclose(found, ours, rel_tol=1e-3, abs_tol=1e-6)


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return shown(" ".join(_words(item) for item in value[:20]))
    return f"{value:g}" if isinstance(value, float) else shown(value)
