"""Detectors of Hugging Face transformers (DETR, RT-DETR, D-FINE, RF-DETR, ...) and its backbones, built by name.

A name is a repository of the hub (`PekingU/rtdetr_v2_r50vd`), a folder that `save_pretrained` wrote, or a model type
(`rt_detr_v2`), which stands for the library's default settings with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgdet.detectors.foreign.base import PLACEHOLDERS, Foreign, match_classes
from mgdet.detectors.foreign.hf_detector import PLACEHOLDER, HuggingFace
from mgdet.detectors.foreign.hf_families import FAMILIES
from mgdet.detectors.foreign.hf_features import BACKBONES, build_features, rebuild_features
from mgdet.detectors.foreign.hf_hub import (
    Source,
    locate,
    make_config,
    names_of_now,
    processor_in,
    quiet,
    read_folder,
    read_weights,
    require,
)
from mgdet.errors import UserError, nearest
from mgdet.files import RUN_FILES
from mgdet.interop.loading import load_checkpoint
from mgdet.interop.weights import Checkpoint, read_checkpoint
from mgdet.layers.meta import on_meta

MODELS = (
    "PekingU/rtdetr_r50vd",
    "PekingU/rtdetr_v2_r50vd",
    "ustc-community/dfine-large-obj2coco-e25",
    "Intellindust/DEIMv2_HGNetv2_N_COCO",
    "SenseTime/deformable-detr",
    "AnnaZhang/lwdetr_small_60e_coco",
    "Roboflow/rf-detr-base",
    "facebook/detr-resnet-50",
    "microsoft/conditional-detr-resnet-50",
    "IDEA-Research/dab-detr-resnet-50",
    "hustvl/yolos-small",
)
"""One repository of the hub for every detector, in the order of `FAMILIES`."""

RANDOM, PRETRAINED = "random", "pretrained"
FILES = (".pth", ".pt", ".safetensors", ".bin")
SHOWN = 3

Say = Callable[[str], None]


def build(name: str, *, classes: Sequence[str] | None, weights: str, say: Say) -> Foreign:
    """A detector or a backbone of the library.

    Args:
        name: what comes after `hf:`: owner/name on the hub, a folder, or a model type.
        classes: the data's class names. Where the weights know all of them, by name, their head is kept; otherwise
            the head is new. None keeps the head and its classes: for a teacher whose maps alone are used.
        weights: random, pretrained, a folder that `save_pretrained` wrote, or a checkpoint of mgdet.
        say: is told one line for everything that was decided.

    Raises:
        UserError: the library, the model, the network or the weights are missing, or do not fit each other.
    """
    require()
    checkpoint = read_checkpoint(Path(weights)) if _is_checkpoint(weights) else None
    described = _described(name, checkpoint)
    if described is not None:
        source = Source(name, described["config"], None, False)
    elif _is_folder(name, weights):
        source = _folder(name, weights)
    else:
        source = _named(name, weights=weights == PRETRAINED)
    kind = source.config["model_type"]
    if kind in BACKBONES:
        return build_features(source, random=weights == RANDOM, say=say)
    if kind not in FAMILIES:
        raise UserError(f"hf:{name} is a {kind}, not a detector or backbone that mgdet knows{nearest(kind, FAMILIES)}")
    if checkpoint is not None:
        detector = _from_checkpoint(source, checkpoint, classes, described)
    elif weights == RANDOM:
        detector = _random(source, classes)
    else:
        detector = _pretrained(source, classes)
    for note in detector.notes:
        say(f"hf:{name}: {note}")
    return detector


def has_masks(name: str) -> bool:
    """Detectors of the library are taken for their boxes alone."""
    return False


def known_classes(name: str) -> tuple[str, ...] | None:
    """The classes that a folder's settings name; None for a name of the hub, which is not asked.

    Raises:
        UserError: the folder has no settings that can be read.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    names = read_folder(folder, name, weights=False).config.get("id2label")
    known = [names[place] for place in sorted(names, key=int)] if isinstance(names, dict) else []
    return tuple(str(each) for each in known if each not in PLACEHOLDERS) or None


def rebuild(description: Mapping[str, Any], classes: Sequence[str]) -> Foreign:
    """The architecture of a description with random weights, without a look at the network.

    Raises:
        UserError: the library is missing, or does not know what is described.
    """
    require()
    if description["config"]["model_type"] in BACKBONES:
        return rebuild_features(description)
    config = config_from(description["config"])
    columns = description["columns"]
    if len(columns) != len(classes):
        raise UserError(f"hf:{description['name']} was made for {len(columns)} classes, the data has {len(classes)}")
    processor = _processor_of(description)
    return HuggingFace(new_library(config), processor, name=description["name"], columns=columns)


def config_from(settings: Mapping[str, Any]) -> Any:
    """The library's config of plain settings, made without a look at the network.

    Raises:
        UserError: the library does not know the model type, or refuses a setting.
    """
    config = make_config(_offline(settings))
    if config.model_type == "lw_detr" and not config.projector_scale_factors:
        raise UserError(
            f"these settings of a lw_detr have no level (projector_scale_factors is empty, as by default); give "
            f"a name of the hub or a folder{_example('lw_detr')}"
        )
    return config


def _offline(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Writes out a backbone that is only named: the library would ask the hub whether it is one of its own."""
    settings = dict(settings)
    backbone, extra = settings.get("backbone"), settings.get("backbone_kwargs")
    if backbone is None or settings.get("backbone_config") is not None:
        return settings
    if "/" in backbone:
        raise UserError(
            f"these settings take their backbone from the hub ({backbone}); "
            f"write it out as backbone_config in config.json"
        )
    if extra or not settings.get("use_timm_backbone", True):
        settings["backbone_config"] = {"model_type": "timm_backbone", "backbone": backbone, **(extra or {})}
        settings["backbone"] = settings["backbone_kwargs"] = None
    return settings


def new_library(config: Any) -> Any:
    """A model of the library with random weights."""
    from transformers import AutoModelForObjectDetection

    with quiet():
        return AutoModelForObjectDetection.from_config(config)


def class_entries(config: Any) -> set[str]:
    """The entries of the state dict whose shape depends on the number of classes: heads of all layers, embeddings."""
    larger = type(config).from_dict(config.to_dict())
    _name_classes(larger, [str(place) for place in range(config.num_labels + 1)])
    shapes = _shapes(larger)
    return {name for name, shape in _shapes(config).items() if shapes[name] != shape}


def _shapes(config: Any) -> dict[str, torch.Size]:
    """The shape of each entry of the state dict, without making it."""
    with on_meta():
        return {name: value.shape for name, value in new_library(config).state_dict().items()}


def _is_checkpoint(weights: str) -> bool:
    """Is it a file, or the folder of a run?"""
    folder = Path(weights).expanduser()
    return folder.suffix in FILES or any((folder / file).is_file() for file in RUN_FILES)


def _is_folder(name: str, weights: str) -> bool:
    if weights in (RANDOM, PRETRAINED) or _is_checkpoint(weights):
        return False
    if Path(weights).expanduser().is_dir():
        return True
    raise UserError(
        f"'{weights}' are not weights of hf:{name}; choose {RANDOM}, {PRETRAINED}, a folder or a checkpoint"
    )


def _named(name: str, *, weights: bool) -> Source:
    """The files behind a name: of a folder, of the hub, or none for a model type."""
    kinds = {*FAMILIES, *BACKBONES}
    if Path(name).is_dir() or "/" in name:
        return locate(name, weights=weights)
    if name not in kinds:
        raise UserError(f"there is no hf:{name}{nearest(name, kinds)}")
    if weights:
        raise UserError(f"hf:{name} is a model type without weights; give a name of the hub{_example(name)}")
    return Source(name, {"model_type": name}, None, False)


def _folder(name: str, weights: str) -> Source:
    """A folder of weights with its own settings; it must hold what the name says."""
    folder = read_folder(Path(weights).expanduser(), weights, weights=True)
    wanted, held = _named(name, weights=False).config["model_type"], folder.config["model_type"]
    if wanted != held:
        raise UserError(f"{weights} holds a {held}, and hf:{name} is a {wanted}; give weights of the same model type")
    return folder


def _example(kind: str) -> str:
    return f", such as hf:{dict(zip(FAMILIES, MODELS))[kind]}" if kind in FAMILIES else ""


def _random(source: Source, classes: Sequence[str] | None) -> HuggingFace:
    config = config_from(source.config)
    if classes is not None:
        _name_classes(config, classes)
    notes = [f"random weights, {config.num_labels} outputs"]
    columns = range(config.num_labels)
    return HuggingFace(new_library(config), _processor(source), name=source.name, columns=columns, notes=notes)


def _pretrained(source: Source, classes: Sequence[str] | None) -> HuggingFace:
    from transformers import AutoModelForObjectDetection

    library, left = read_weights(AutoModelForObjectDetection, source, config_from(source.config))
    notes = [f"{len(left)} tensors of the file have no place ({', '.join(left[:SHOWN])})"] if left else []
    return _with_classes(library, source, classes, notes)


def _described(name: str, checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """The description in a checkpoint of mgdet, where it is of this name, or of the model type that the name is."""
    description = None if checkpoint is None else checkpoint.description
    if description is None or not isinstance(description.get("config"), Mapping):
        return None
    return description if name in (description["name"], description["config"].get("model_type")) else None


def _from_checkpoint(
    source: Source, checkpoint: Checkpoint, classes: Sequence[str] | None, described: Mapping[str, Any] | None
) -> HuggingFace:
    config = config_from(source.config)
    outputs = _outputs(config, checkpoint.state_dict)
    if outputs is not None and outputs != config.num_labels:
        known = checkpoint.classes
        if known is None or len(known) != outputs:
            known = tuple(f"{PLACEHOLDER} {place}" for place in range(outputs))
        _name_classes(config, known)
    elif described is None and checkpoint.classes is not None and len(checkpoint.classes) == config.num_labels:
        _name_classes(config, checkpoint.classes)
    library = new_library(config)
    if not described:
        checkpoint = replace(checkpoint, state_dict=names_of_now(library, checkpoint.state_dict))
    report = load_checkpoint(library, checkpoint)
    processor = None if described is None else _processor_of(described)
    return _with_classes(library, source, classes, [report.line()], processor)


def _outputs(config: Any, state_dict: Mapping[str, Tensor]) -> int | None:
    """How many outputs the head of a checkpoint has; None where none of its entries is known."""
    here = _shapes(config)
    for name in sorted(class_entries(config)):
        if name in state_dict:
            return int(config.num_labels + state_dict[name].shape[0] - here[name][0])
    return None


def _with_classes(
    library: Any, source: Source, classes: Sequence[str] | None, notes: list[str], processor: Any = None
) -> HuggingFace:
    """Keeps the head where it knows all classes of the data, by name; otherwise gives it a new one."""
    config = library.config
    outputs = config.num_labels
    columns: Sequence[int] | None = range(outputs)
    if classes is not None:
        known = [config.id2label.get(place, PLACEHOLDER) for place in range(outputs)]
        columns = match_classes(known, classes)
        if columns is None:
            strange = [name for name in classes if match_classes(known, [name]) is None]
            why = f"the weights know {outputs} other classes, not {', '.join(strange[:SHOWN])}"
            notes = [*notes, f"new head with {len(classes)} outputs: {why}"]
            library, columns = _new_head(library, classes), range(len(classes))
        else:
            notes = [*notes, f"keeps its head with {outputs} outputs; {len(columns)} of them are the data's classes"]
            for place, name in zip(columns, classes):
                config.id2label[place] = name
            config.label2id = {name: place for place, name in config.id2label.items()}
    assert columns is not None
    processor = processor or _processor(source)
    return HuggingFace(library, processor, name=source.name, columns=columns, notes=notes)


def _new_head(library: Any, classes: Sequence[str]) -> Any:
    """The same model for other classes: all entries that do not depend on their number are kept."""
    config = type(library.config).from_dict(library.config.to_dict())
    dependent = class_entries(config)
    _name_classes(config, classes)
    fresh = new_library(config)
    kept = {name: value for name, value in library.state_dict().items() if name not in dependent}
    fresh.load_state_dict(kept, strict=False)
    return fresh


def _name_classes(config: Any, classes: Sequence[str]) -> None:
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: place for place, name in enumerate(classes)}


def _processor_of(description: Mapping[str, Any]) -> Any:
    """The image processor of a description."""
    settings = dict(description["processor"])
    own = FAMILIES[description["config"]["model_type"]].processor
    return getattr(require(), settings.get("image_processor_type", own)).from_dict(settings)


def _processor(source: Source) -> Any:
    """The image processor that came with the weights, else the library's own for this model type."""
    processor = processor_in(source)
    own = FAMILIES[source.config["model_type"]].processor
    return getattr(require(), own)() if processor is None else processor
