"""Detectors of torchvision by name: built, given their weights, and built again from a description."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision.models import (
    MobileNet_V3_Large_Weights,
    ResNet50_Weights,
    VGG16_Weights,
    WeightsEnum,
    get_model_builder,
    get_model_weights,
    mobilenet_v3_large,
)
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.ssdlite import SSDLiteHead, _mobilenet_extractor
from torchvision.ops import FrozenBatchNorm2d

from mgdet.detectors.foreign.base import PLACEHOLDERS, head_columns
from mgdet.detectors.foreign.torchvision_detector import NOTE, TorchvisionDetector
from mgdet.errors import UserError, nearest
from mgdet.files import HASH_IN_NAME, fetch, sha256_of
from mgdet.interop.loading import load_checkpoint
from mgdet.interop.safe_pickle import load_untrusted
from mgdet.interop.weights import Checkpoint, read_checkpoint
from mgdet.layers.meta import on_meta

MODELS = (
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
"""Every detector of torchvision but the one for keypoints."""

FROZEN_NORMS_EPS = {
    "retinanet_resnet50_fpn": 0.0,
    "fcos_resnet50_fpn": 1e-5,
    "fasterrcnn_resnet50_fpn": 0.0,
    "fasterrcnn_mobilenet_v3_large_fpn": 1e-5,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 1e-5,
    "maskrcnn_resnet50_fpn": 0.0,
}
"""Models whose backbone's norms torchvision freezes where it loads weights, and their eps with its COCO weights."""

BACKBONES: dict[str, WeightsEnum] = {
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "mobilenet_v3_large": MobileNet_V3_Large_Weights.IMAGENET1K_V1,
    "vgg16": VGG16_Weights.IMAGENET1K_FEATURES,
}
RANDOM, PRETRAINED, BACKBONE = "random", "pretrained", "backbone"
SSDLITE = "ssdlite320_mobilenet_v3_large"
COCO_OUTPUTS = 91
COUNTER = ".num_batches_tracked"

Say = Callable[[str], None]


def build(name: str, *, classes: Sequence[str] | None, weights: str, say: Say) -> TorchvisionDetector:
    """A detector of torchvision with its weights.

    Args:
        name: one of `MODELS`.
        classes: class names of the data; None keeps the head of the weights, for a teacher that only shows its maps.
        weights: `random`, `pretrained` (torchvision's best), `backbone` (its ImageNet backbone), the name of one of
            torchvision's weights for the detector or its backbone (`COCO_V1`, `IMAGENET1K_V2`), or a file: a state
            dict of torchvision's, or a checkpoint of mgdet.
        say: is told one line for each file, and one for what becomes of the head.

    Raises:
        UserError: the name, the weights or the file is unknown, cannot be downloaded, or does not fit.
    """
    _check_name(name)
    own = _own_outputs(classes)
    if weights == RANDOM:
        say(f"torchvision:{name} starts from random weights")
        return _detector(_random(name, own), name, own, range(1, own), classes)
    members = get_model_weights(name).__members__
    backbones = type(_backbone(name)).__members__
    member = "DEFAULT" if weights == PRETRAINED else weights.rpartition("_Weights.")[2]
    if member in members:
        return _from_coco(name, members[member], classes, say)
    if weights == BACKBONE or member in backbones:
        chosen = _backbone(name) if weights == BACKBONE else backbones[member]
        say(f"torchvision:{name}: its backbone starts from {chosen}, {_bring(chosen)}; everything else is random")
        model = _by_torchvision(name, weights=None, weights_backbone=chosen, num_classes=own)
        return _detector(model, name, own, range(1, own), classes, wide_tail=name == SSDLITE)
    if not Path(weights).exists():
        choices = (RANDOM, PRETRAINED, BACKBONE, *members, *backbones)
        raise UserError(
            f"weights of torchvision:{name} are '{weights}', which is not a file here{nearest(weights, choices)}"
        )
    return _from_file(name, Path(weights), classes, say)


def has_masks(name: str) -> bool:
    """Does the detector learn and find masks?"""
    return name.startswith("maskrcnn")


def known_classes(name: str) -> tuple[str, ...] | None:
    """COCO's classes, as the weights that torchvision publishes name them.

    Raises:
        UserError: torchvision has no such detector.
    """
    _check_name(name)
    return tuple(each for each in get_model_weights(name).DEFAULT.meta["categories"] if each not in PLACEHOLDERS)


def _check_name(name: str) -> None:
    if name not in MODELS:
        raise UserError(f"torchvision has no detector '{name}' that learns boxes{nearest(name, MODELS)}")


def rebuild(description: dict[str, Any], classes: Sequence[str] | None) -> TorchvisionDetector:
    """The detector of a description, with random weights and without a file.

    Args:
        description: what `TorchvisionDetector.description` gave.
        classes: class names of the data, as many as the description has columns; None as in `build`.

    Raises:
        UserError: torchvision no longer knows the name.
    """
    name, outputs = description["name"], int(description["outputs"])
    _check_name(name)
    wide_tail = bool(description["wide_tail"])
    model = _random(name, outputs, wide_tail=wide_tail)
    if description["frozen_norms_eps"] is not None:
        _freeze_norms(model, float(description["frozen_norms_eps"]))
    frozen = set(description["frozen"])
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name not in frozen)
    return _detector(model, name, outputs, description["columns"], classes, wide_tail=wide_tail)


def _detector(
    model: nn.Module,
    name: str,
    outputs: int,
    columns: Sequence[int],
    classes: Sequence[str] | None,
    *,
    wide_tail: bool = False,
) -> TorchvisionDetector:
    return TorchvisionDetector(model, name=name, outputs=outputs, columns=columns, classes=classes, wide_tail=wide_tail)


def _own_outputs(classes: Sequence[str] | None) -> int:
    return COCO_OUTPUTS if classes is None else len(classes) + 1


def _backbone(name: str) -> WeightsEnum:
    return next(weights for part, weights in BACKBONES.items() if part in name)


def _random(name: str, outputs: int, *, wide_tail: bool = False) -> nn.Module:
    model: nn.Module = get_model_builder(name)(weights=None, weights_backbone=None, num_classes=outputs)
    if wide_tail:
        _widen_tail(model, outputs)
    return model


def _widen_tail(model: Any, outputs: int) -> None:
    """Gives SSDlite the backbone that torchvision builds for ImageNet weights: there is no argument for it."""
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    model.backbone = _mobilenet_extractor(mobilenet_v3_large(norm_layer=norm), 6, norm)
    channels = retrieve_out_channels(model.backbone, (320, 320))
    model.head = SSDLiteHead(channels, model.anchor_generator.num_anchors_per_location(), outputs, norm)


def _freeze_norms(model: Any, eps: float) -> None:
    for parent in list(model.backbone.modules()):
        for part, module in list(parent.named_children()):
            if isinstance(module, nn.BatchNorm2d):
                setattr(parent, part, FrozenBatchNorm2d(module.num_features, eps=eps))


@lru_cache
def _class_entries(name: str, wide_tail: bool = False) -> dict[str, int]:
    """The entries of the state dict that grow with the number of outputs, and by how many values for each."""
    with on_meta():
        few, more = (_random(name, outputs, wide_tail=wide_tail).state_dict() for outputs in (3, 4))
    return {entry: len(more[entry]) - len(few[entry]) for entry in few if few[entry].shape != more[entry].shape}


def _by_torchvision(name: str, **arguments: Any) -> nn.Module:
    """What torchvision builds and fills from its cache."""
    try:
        model: nn.Module = get_model_builder(name)(progress=False, **arguments)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"the weights in torch's cache do not fit torchvision:{name}: {first}") from None
    return model


def _bring(weights: WeightsEnum) -> str:
    """Has torchvision's file in torch's cache, and says which file that is.

    torchvision reads what it finds in its cache without a look; here a file that could run code is refused first.
    """
    url = str(weights.url)
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    if not path.is_file():
        path = fetch(url)
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or holds more than weights ({first}); delete it") from None
    sha256 = sha256_of(path)
    named = HASH_IN_NAME.search(path.name)
    other = (
        ", which is not the file that torchvision publishes" if named and named[1] != sha256[: len(named[1])] else ""
    )
    return f"{path}, SHA-256 {sha256}{other}"


def _from_coco(name: str, weights: WeightsEnum, classes: Sequence[str] | None, say: Say) -> TorchvisionDetector:
    say(f"torchvision:{name}: {weights}, {_bring(weights)}")
    model = _by_torchvision(name, weights=weights)
    categories = weights.meta["categories"]
    outputs = len(categories)
    trained = _detector(model, name, outputs, range(1, outputs), None)
    return _fit_head(trained, categories, classes, say)


def _fit_head(
    trained: TorchvisionDetector, known: Sequence[str] | None, classes: Sequence[str] | None, say: Say
) -> TorchvisionDetector:
    """The detector with the head that the data need: its own, where that knows every class, else a new one.

    Args:
        trained: with all of its weights.
        known: the name of each output; None where nobody knows.
        classes: class names of the data, or None to keep the head.
        say: is told what was decided.
    """
    trained.output_names = tuple(known) if known is not None else None
    if classes is None:
        return trained
    columns, note = head_columns(f"torchvision:{trained.name}", known, trained.outputs, classes, first=1)
    say(note)
    if columns is not None:
        trained.assign(columns, classes)
        fitted = trained
    else:
        own = {"outputs": len(classes) + 1, "columns": range(1, len(classes) + 1)}
        fitted = rebuild(trained.description() | own, classes)
        grown = _class_entries(trained.name, trained.wide_tail)
        state = {entry: value for entry, value in trained.state_dict().items() if entry not in grown}
        fitted.load_state_dict(state, strict=False)
    fitted.notes.append(note)
    return fitted


def _from_file(name: str, path: Path, classes: Sequence[str] | None, say: Say) -> TorchvisionDetector:
    checkpoint = read_checkpoint(path)
    written = _written_by_export(checkpoint.path)
    if written is None and checkpoint.description is not None:
        written = checkpoint.description | {"classes": checkpoint.classes}
    if written is not None and (holds := written["name"]) != name:
        source = "torchvision:" if holds in MODELS else ""
        raise UserError(f"{path} holds a {source}{holds}, not a torchvision:{name}")
    description = written or _description_of(name, checkpoint.state_dict)
    if description["frozen_norms_eps"] is not None and written is None:
        eps = description["frozen_norms_eps"]
        say(f"{path} does not give the eps of its frozen norms: it is {eps}, as with torchvision's own COCO weights")
    outputs = int(description["outputs"])
    trained = rebuild(description | {"columns": tuple(range(1, outputs))}, None)
    say(f"torchvision:{name}: {load_checkpoint(trained, checkpoint).line()}")
    return _fit_head(trained, _output_names(name, outputs, checkpoint.classes, written), classes, say)


def _output_names(
    name: str, outputs: int, classes: Sequence[str] | None, written: dict[str, Any] | None
) -> list[str] | None:
    """What the outputs of a file's head are called; None where nothing says it.

    Args:
        name: of the detector.
        outputs: how many there are, with the background.
        classes: names that the file holds.
        written: what mgdet wrote of the detector into the file.
    """
    if written is not None and written["classes"]:
        named = dict(zip(written["columns"], written["classes"]))
        return [named.get(column, "N/A") for column in range(outputs)]
    if classes is not None and len(classes) == outputs - 1:
        return ["__background__", *classes]
    return list(get_model_weights(name).DEFAULT.meta["categories"]) if outputs == COCO_OUTPUTS else None


def recognise(checkpoint: Checkpoint) -> list[str]:
    """The detectors whose names and shapes a file has, but for the number of classes.

    Two may have the same: torchvision's Faster R-CNNs with MobileNetV3 differ in the size of their images alone.
    """
    state = {entry: tuple(value.shape) for entry, value in checkpoint.state_dict.items()}
    names = [name for name in MODELS if any(_fits(state, name, tail) for tail in {False, name == SSDLITE})]
    written = _written_by_export(checkpoint.path) if len(names) > 1 else None
    return [name for name in names if written is None or written["name"] == name]


def read_classes(name: str, checkpoint: Checkpoint) -> tuple[int, tuple[str, ...] | None]:
    """How many classes a file's detector knows, and their names; None where nothing says them.

    Args:
        name: of the detector, as `recognise` found it.
        checkpoint: the file.
    """
    written = _written_by_export(checkpoint.path)
    outputs = int((written or _description_of(name, checkpoint.state_dict))["outputs"])
    known = _output_names(name, outputs, checkpoint.classes, written)
    if known is None:
        return outputs - 1, None
    classes = tuple(each for each in known if each not in PLACEHOLDERS)
    return len(classes), classes


def only_square(name: str) -> int:
    """The edge in pixels of the squares that a detector takes; 0 where it takes images of any size."""
    with on_meta():
        transform: Any = _random(name, COCO_OUTPUTS).transform
    return int(transform.fixed_size[0]) if transform.fixed_size is not None else 0


@lru_cache
def _shapes(name: str, wide_tail: bool) -> dict[str, tuple[int, ...]]:
    """The state dict of a detector, but for the counters of its norms, which frozen ones lack."""
    with on_meta():
        state = _random(name, COCO_OUTPUTS, wide_tail=wide_tail).state_dict()
    return {entry: tuple(value.shape) for entry, value in state.items() if not entry.endswith(COUNTER)}


def _fits(state: Mapping[str, tuple[int, ...]], name: str, wide_tail: bool) -> bool:
    own, grown = _shapes(name, wide_tail), _class_entries(name, wide_tail)
    if own.keys() != {entry for entry in state if not entry.endswith(COUNTER)}:
        return False
    first = {entry: 1 if entry in grown else 0 for entry in own}
    return all(state[entry][first[entry] :] == shape[first[entry] :] for entry, shape in own.items())


def _written_by_export(path: Path) -> dict[str, Any] | None:
    """What `TorchvisionDetector.export` noted in a state dict's metadata."""
    if path.suffix == ".safetensors":
        return None
    metadata = getattr(load_untrusted(path), "_metadata", None)
    note = metadata.get(NOTE) if isinstance(metadata, dict) else None
    return note if isinstance(note, dict) else None


def _description_of(name: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """What a plain state dict shows of the model that it came from."""
    with on_meta():
        plain = {n: value for n, value in _random(name, COCO_OUTPUTS).state_dict().items() if n.startswith("backbone.")}
    others = [entry for entry, value in plain.items() if entry in state and state[entry].shape != value.shape]
    wide_tail = name == SSDLITE and bool(others)
    entries = _class_entries(name, wide_tail)
    found = {len(state[entry]) // entries[entry] for entry in entries if entry in state and state[entry].ndim}
    counters = [entry for entry in plain if entry.endswith(COUNTER)]
    frozen = name in FROZEN_NORMS_EPS and not any(entry in state for entry in counters)
    return {
        "name": name,
        "outputs": found.pop() if len(found) == 1 else COCO_OUTPUTS,
        "columns": (),
        "frozen_norms_eps": FROZEN_NORMS_EPS[name] if frozen else None,
        "frozen": (),
        "wide_tail": wide_tail,
    }
