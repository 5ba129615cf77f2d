"""What MMDetection's config says of a detector that no weight shows: style, pixels, image scale, class names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mgdet.data.coco_names import COCO_CLASSES
from mgdet.interop.mmdet_config import UNKNOWN, get, read_settings
from mgdet.interop.weights import Checkpoint
from mgdet.structures import Pixels

INSIDE = ("model", "architecture", "detector", "algorithm")
"""Where distillers and averages keep the config of the detector that is in them."""
PIPELINES: tuple[tuple[str, ...], ...] = (
    ("test_dataloader", "dataset", "pipeline"),
    ("data", "test", "pipeline"),
    ("test_pipeline",),
    ("val_dataloader", "dataset", "pipeline"),
    ("data", "val", "pipeline"),
)
DATASETS = (("test_dataloader", "dataset"), ("data", "test"), ("train_dataloader", "dataset"), ("data", "train"))
STEPS, DEPTH = 100, 4
"""How many steps of a pipeline are looked at, and how deep in one another."""
LONGEST_EDGE, MOST_ROIS = 1 << 16, 1 << 16
BASIC_DEPTHS = (18, 34)
"""ResNets without bottlenecks, to which a style makes no difference."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a config says; None is what it does not.

    settings: all of it.
    model: the config of the detector itself.
    depth: of its ResNet or ResNeXt.
    style: where bottlenecks have their stride.
    pixels: the normalisation.
    scale: (long, short) edge in pixels that images are resized to in testing.
    keep_ratio: do they keep their ratio there?
    frozen_stages: how many do not train.
    rois_per_image: regions of an image that train the second stage.
    classes: their names.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    depth: int | None = None
    style: Literal["pytorch", "caffe"] | None = None
    pixels: Pixels | None = None
    scale: tuple[int, int] | None = None
    keep_ratio: bool = True
    frozen_stages: int | None = None
    rois_per_image: int | None = None
    classes: tuple[str, ...] | None = None


def said_by(checkpoint: Checkpoint, depth: int) -> tuple[Said, str]:
    """What the config in a file says of its weights, and why it does not say more.

    Args:
        checkpoint: the file.
        depth: of the ResNet that the weights show, 0 for another backbone. A config of another depth says nothing.
    """
    silence = "it holds no config"
    for text in checkpoint.texts.values():
        try:
            said = read_said(read_settings(text))
        except ValueError as error:
            silence = f"its config cannot be read ({error})"
            continue
        if said.depth in (None, depth):
            return said, "its config does not say it"
        silence = f"its config is of a backbone of depth {said.depth}, and its weights are not"
    return Said(), silence


def classes_by(checkpoint: Checkpoint, num_classes: int | None) -> tuple[str, ...] | None:
    """The class names that a file has, or those of the config in it where these are `num_classes`."""
    if checkpoint.classes is not None:
        return checkpoint.classes
    for text in checkpoint.texts.values():
        try:
            names = read_said(read_settings(text)).classes
        except ValueError:
            continue
        if names is not None and len(names) == num_classes:
            return names
    return None


def read_said(settings: Mapping[str, Any]) -> Said:
    """Takes from a config what decides how weights are used.

    Args:
        settings: what `read_settings` gave.
    """
    model = _model(settings)
    steps = list(_steps(_first(settings, PIPELINES)))
    scale, keep_ratio = _scale(steps)
    depth = _whole(get(model, "backbone", "depth"), 1, 1000)
    frozen = _whole(get(model, "backbone", "frozen_stages"), -1, 4)
    rcnn = get(model, "train_cfg", "rcnn")
    rcnn = rcnn if rcnn is not UNKNOWN else get(settings, "train_cfg", "rcnn")
    rois = get(rcnn, "sampler", "num")
    return Said(
        settings=settings,
        model=model,
        depth=depth,
        style=_style(model, depth),
        pixels=_pixels(_preprocessor(settings, model) or _normalize(settings, steps), steps),
        scale=scale,
        keep_ratio=keep_ratio,
        frozen_stages=None if frozen is None else max(0, frozen),
        rois_per_image=_whole(rois if rois is not UNKNOWN else get(rcnn, 0, "sampler", "num"), 1, MOST_ROIS),
        classes=_classes(settings),
    )


def _model(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the detector, also where that of a distiller is around it; empty where there is none."""
    found: Any = settings
    for _ in range(DEPTH):
        if not isinstance(found, Mapping):
            return {}
        if "backbone" in found:
            return found
        found = next((found[name] for name in INSIDE if isinstance(found.get(name), Mapping)), None)
    return {}


def _style(model: Mapping[str, Any], depth: int | None) -> Literal["pytorch", "caffe"] | None:
    backbone = model.get("backbone")
    kind, style = _type(backbone), get(backbone, "style")
    if kind not in ("", "ResNet", "ResNeXt"):
        return None
    if depth in BASIC_DEPTHS or (kind and isinstance(backbone, Mapping) and "style" not in backbone):
        return "pytorch"  # what MMDetection takes where its config does not say it
    return style if style in ("pytorch", "caffe") else None


class Normalisation(NamedTuple):
    """A normalisation as a config has it.

    mean, std: anything.
    swaps: are blue and red swapped before?
    """

    mean: object
    std: object
    swaps: object


def _preprocessor(settings: Mapping[str, Any], model: Mapping[str, Any]) -> Normalisation | None:
    """The normalisation of MMDetection 3.x, which belongs to the model, or to what is around that."""
    places = [get(place, "data_preprocessor") for place in (model, get(settings, "model"), settings)]
    found = next((place for place in places if isinstance(place, Mapping)), None)
    for _ in range(DEPTH):  # one for several branches keeps the real one inside
        inner = get(found, "data_preprocessor")
        found = inner if isinstance(inner, Mapping) else found
    if found is None:
        return None
    swaps = found.get("bgr_to_rgb", False) or found.get("rgb_to_bgr", False)
    if found.get("mean") is None and found.get("std") is None:
        return Normalisation([0, 0, 0], [1, 1, 1], swaps)
    return Normalisation(found.get("mean"), found.get("std"), swaps)


def _normalize(settings: Mapping[str, Any], steps: list[Mapping[str, Any]]) -> Normalisation | None:
    """The normalisation of MMDetection 2.x, which is a step of the pipeline."""
    found = next((step for step in steps if _type(step) == "Normalize"), get(settings, "img_norm_cfg"))
    if not isinstance(found, Mapping):
        return None
    return Normalisation(found.get("mean"), found.get("std"), found.get("to_rgb", True))


def _pixels(found: Normalisation | None, steps: list[Mapping[str, Any]]) -> Pixels | None:
    """The pixels that a model takes; None where the config does not say one of mean, deviation and order."""
    if found is None or not isinstance(found.swaps, bool):
        return None
    means, stds = _numbers(found.mean), _numbers(found.std)
    if len(means) != 3 or len(stds) != 3 or min(stds) <= 0:
        return None
    loads_bgr = all(step.get("channel_order", "bgr") != "rgb" for step in steps)
    return Pixels((means[0], means[1], means[2]), (stds[0], stds[1], stds[2]), bgr=loads_bgr != found.swaps)


def _steps(pipeline: object, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The steps of a pipeline, with those inside of others."""
    for step in pipeline[:STEPS] if isinstance(pipeline, list | tuple) else ():
        if isinstance(step, Mapping):
            yield step
            if depth < DEPTH:
                yield from _steps(step.get("transforms"), depth + 1)
        elif depth < DEPTH:
            yield from _steps(step, depth + 1)


def _scale(steps: list[Mapping[str, Any]]) -> tuple[tuple[int, int] | None, bool]:
    """The (long, short) edge that images are resized to, and do they keep their ratio?"""
    resize = next((step for step in steps if _type(step) in ("Resize", "FixScaleResize")), {})
    outer = next((step for step in steps if "img_scale" in step), resize)
    given = next(
        (value for step in (outer, resize) for name in ("img_scale", "scale") if (value := step.get(name))), None
    )
    if isinstance(given, list) and given and isinstance(given[0], list | tuple):
        given = given[0]
    edges = [int(edge) for edge in _numbers(given)]
    if len(edges) == 1:
        edges *= 2
    if len(edges) != 2 or not 1 <= min(edges) <= max(edges) <= LONGEST_EDGE:
        return None, True
    newer = "img_scale" not in outer  # where the ratio is kept only if the step says so
    return (max(edges), min(edges)), bool(resize.get("keep_ratio", not newer))


def _classes(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names that a config gives, or COCO's where its data set is COCO's own."""
    places = [get(settings, *path) for path in DATASETS]
    named = [get(place, *path) for place in (settings, *places) for path in (("metainfo", "classes"), ("classes",))]
    for names in named:
        if isinstance(names, str):
            return (names,)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return COCO_CLASSES if any(_type(place) == "CocoDataset" for place in places) else None


def _first(settings: Mapping[str, Any], paths: tuple[tuple[str, ...], ...]) -> Any:
    return next((found for path in paths if isinstance(found := get(settings, *path), list | tuple)), None)


def _type(place: object) -> str:
    kind = get(place, "type")
    return kind.rpartition(".")[2] if isinstance(kind, str) else ""


def _whole(value: object, lowest: int, highest: int) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and lowest <= value <= highest else None  # type: ignore[operator, return-value]


def _numbers(value: object) -> list[float]:
    """A list of numbers, or one number; empty for anything else."""
    values = value if isinstance(value, list | tuple) else [value]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return numbers if len(numbers) == len(values) and all(map(math.isfinite, numbers)) else []
