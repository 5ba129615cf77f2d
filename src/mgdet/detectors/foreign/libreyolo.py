"""YOLOX and YOLOv9 of LibreYOLO by name: built, given their weights, and built again from a description."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgdet.detectors.foreign.base import head_columns
from mgdet.detectors.foreign.libreyolo_detector import LibreYolo, YoloV9, YoloX
from mgdet.errors import UserError, nearest
from mgdet.files import fetch
from mgdet.interop.loading import load_checkpoint
from mgdet.interop.safe_pickle import load_untrusted
from mgdet.interop.weights import Checkpoint, read_checkpoint

MODELS = (
    "yolox-n",
    "yolox-t",
    "yolox-s",
    "yolox-m",
    "yolox-l",
    "yolox-x",
    "yolov9-t",
    "yolov9-s",
    "yolov9-m",
    "yolov9-c",
)
"""Every size that the library has."""

FACES: dict[str, type[LibreYolo]] = {"yolox": YoloX, "yolov9": YoloV9}
RANDOM, PRETRAINED = "random", "pretrained"
COCO_OUTPUTS = 80
OLDEST = (1, 6)
HUB = "https://huggingface.co"
CLASSIFIERS = {"yolox": "head.cls_preds.0.weight", "yolov9": "head.cv3.0.2.weight"}
CLASS_ENTRIES = re.compile(r"head\.(cls_preds\.\d|cv3\.\d\.2)\.")
"""What depends on the number of classes, where the towers of YOLOv9 keep their width."""
TOWER = "head.cv3.0.0.conv.weight"
AUXILIARY = ("aux.", "aux_head.")
"""YOLOv9's branch for training alone, which the library leaves out as well where it reads a file to predict."""
OLD_DFL = "head.dfl.conv.weight"
"""A constant that older files hold."""

Say = Callable[[str], None]


def build(name: str, *, classes: Sequence[str] | None, weights: str, say: Say) -> LibreYolo:
    """A detector of the library with its weights.

    Args:
        name: one of `MODELS`.
        classes: class names of the data. Where the weights know all of them, by name, their head is kept; otherwise
            the head is new. None keeps the head, for a teacher that only shows its maps.
        weights: `random`, `pretrained` (the library's own for COCO), or a file: a checkpoint of the library or of
            mgdet.
        say: is told one line for the file, and one for what becomes of the head.

    Raises:
        UserError: the library is missing; the name, the weights or the file is unknown, cannot be downloaded, or does
            not fit.
    """
    _check_name(name)
    require()
    if weights == RANDOM:
        say(f"libreyolo:{name} starts from random weights")
        names = _coco_names() if classes is None else classes
        return _detector(name, names, range(len(names)), None)
    path = Path(weights).expanduser()
    if weights == PRETRAINED:
        path = _published(name)
    elif not path.exists():
        choices = (RANDOM, PRETRAINED)
        raise UserError(
            f"weights of libreyolo:{name} are '{weights}', which is not a file here{nearest(weights, choices)}"
        )
    return _from_file(name, path, classes, say)


def has_masks(name: str) -> bool:
    """These models learn boxes alone."""
    return False


def known_classes(name: str) -> tuple[str, ...] | None:
    """COCO's classes, as the library names them.

    Raises:
        UserError: the library is missing, or has no such model.
    """
    _check_name(name)
    require()
    return _coco_names()


def rebuild(description: Mapping[str, Any], classes: Sequence[str] | None) -> LibreYolo:
    """The detector of a description, with random weights and without a file.

    Args:
        description: what `LibreYolo.description` gave.
        classes: class names of the data, as many as the description has columns; None as in `build`.

    Raises:
        UserError: the library is missing or no longer knows the name, or the number of classes differs.
    """
    name, columns = description["name"], description["columns"]
    _check_name(name)
    require()
    if classes is not None and len(classes) != len(columns):
        raise UserError(f"libreyolo:{name} was made for {len(columns)} classes, the data has {len(classes)}")
    return _detector(name, description["names"], columns, description["towers"])


def require() -> None:
    """Has the library, which takes seconds to import.

    Raises:
        UserError: it is not installed, or too old.
    """
    try:
        import libreyolo.models  # noqa: F401
    except ImportError as error:
        missing = error.name.partition(".")[0] if error.name else error
        raise UserError(f"libreyolo: models need {missing}: pip install 'mgdet[yolo]'") from None
    found = version("libreyolo")
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise UserError(f"libreyolo {found} is too old, {wanted} is needed: pip install --upgrade 'mgdet[yolo]'")


def _check_name(name: str) -> None:
    if name not in MODELS:
        raise UserError(f"LibreYOLO has no model '{name}' that mgdet knows{nearest(name, MODELS)}")


def _family(name: str) -> str:
    return name.partition("-")[0]


def _coco_names() -> tuple[str, ...]:
    from libreyolo.utils.serialization import build_class_names

    return tuple(build_class_names(COCO_OUTPUTS).values())


def _detector(name: str, names: Sequence[str], columns: Sequence[int], towers: int | None) -> LibreYolo:
    """A face around random weights.

    Args:
        name: one of `MODELS`.
        names: of all outputs.
        columns: as `LibreYolo` takes them.
        towers: as `LibreYolo` has it; None also for a YOLOv9 made for as many classes as it has outputs.
    """
    outputs = len(names)
    if _family(name) == "yolox":
        from libreyolo.models.yolox.nn import LibreYOLOXModel

        model = LibreYOLOXModel(config=name[-1], nb_classes=outputs)
        model.init_weights()
        return YoloX(model, name=name, names=names, columns=columns)
    from libreyolo.models.yolo9.nn import LibreYOLO9Model

    towers = towers or outputs
    model = LibreYOLO9Model(config=name[-1], nb_classes=towers)
    if towers != outputs:
        _replace_classifiers(model, outputs)
    return YoloV9(model, name=name, names=names, columns=columns, towers=towers)


def _replace_classifiers(model: Any, outputs: int) -> None:
    """Gives a YOLOv9 another number of classes and leaves its towers as wide as they are, as the library does."""
    for tower in model.head.cv3:
        old = tower[-1]
        tower[-1] = nn.Conv2d(old.in_channels, outputs, 1)
        nn.init.constant_(tower[-1].bias, old.bias[0].item())
    model.nc = model.head.nc = outputs
    model.head.no = outputs + 4 * model.head.reg_max


def _published(name: str) -> Path:
    """The library's own weights: from the folder where it keeps them, else from torch's cache or the hub."""
    from huggingface_hub import constants

    wrapper = FACES[_family(name)].wrapper()
    file = f"{wrapper.FILENAME_PREFIX}{name[-1]}{wrapper.WEIGHT_EXT}"
    cached = Path(torch.hub.get_dir(), "checkpoints", file)
    for path in (Path("weights", file), Path(file), cached):
        if path.is_file():
            return path
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"libreyolo:{name} is not here and HF_HUB_OFFLINE is set; bring the file {file} to {cached}")
    return fetch(wrapper.get_download_url(file).replace(HUB, constants.ENDPOINT))


def _from_file(name: str, path: Path, classes: Sequence[str] | None, say: Say) -> LibreYolo:
    checkpoint = read_checkpoint(path)
    content = {} if checkpoint.path.suffix == ".safetensors" else load_untrusted(checkpoint.path)
    written = checkpoint.description or {}
    holds = written.get("name") or _name_in(content)
    if holds not in (None, name):
        raise UserError(f"{checkpoint.path} holds a {holds}, not a libreyolo:{name}")
    left, checkpoint = _own_names(checkpoint)
    if left:
        say(f"libreyolo:{name}: {left} tensors of the auxiliary branch, which only trains, are left out")
    outputs = _length(checkpoint.state_dict, CLASSIFIERS[_family(name)], COCO_OUTPUTS)
    known = _names_in(written or content, checkpoint, outputs)
    names = known or tuple(f"class_{place}" for place in range(outputs))
    trained = _detector(name, names, range(outputs), None)
    width = _length(checkpoint.state_dict, TOWER, 0)
    if width and width != len(trained.state_dict()[TOWER]):
        # Class towers keep their width where the classes change; the library makes them as wide for that many classes.
        trained = _detector(name, names, range(outputs), width)
    say(f"libreyolo:{name}: {load_checkpoint(trained, checkpoint).line()}")
    return trained if classes is None else _fit_head(trained, known, classes, say)


def _name_in(content: object) -> str | None:
    """The name of the model that a checkpoint of the library says it holds."""
    if not isinstance(content, Mapping) or not isinstance(content.get("model_family"), str):
        return None
    family = {"yolo9": "yolov9"}.get(content["model_family"], content["model_family"])
    return f"{family}-{content.get('size')}"


def _own_names(checkpoint: Checkpoint) -> tuple[int, Checkpoint]:
    """The weights under today's names, and how many of the auxiliary branch were left out, as the library does it."""
    state = {re.sub(r"^detect\.", "head.", entry): value for entry, value in checkpoint.state_dict.items()}
    kept = {n: value for n, value in state.items() if not n.startswith(AUXILIARY) and n != OLD_DFL}
    return sum(n.startswith(AUXILIARY) for n in state), replace(checkpoint, state_dict=kept)


def _length(state: Mapping[str, Tensor], entry: str, otherwise: int) -> int:
    """The first dimension of an entry; without it the file does not fit, which is said where it is loaded."""
    return len(state[entry]) if entry in state and state[entry].ndim else otherwise


def _names_in(content: object, checkpoint: Checkpoint, outputs: int) -> tuple[str, ...] | None:
    """The name of each output that a file gives; for 80 without names the library's, which are COCO's."""
    given = content.get("names") if isinstance(content, Mapping) else None
    if isinstance(given, Mapping):
        given = [given.get(place, given.get(str(place))) for place in range(outputs)]
    for names in (given, checkpoint.classes):
        if isinstance(names, list | tuple) and len(names) == outputs and all(isinstance(n, str) for n in names):
            return tuple(names)
    return _coco_names() if outputs == COCO_OUTPUTS else None


def _fit_head(trained: LibreYolo, known: Sequence[str] | None, classes: Sequence[str], say: Say) -> LibreYolo:
    """The detector with the head that the data need: its own, where that knows every class, else a new one.

    Args:
        trained: with all of its weights.
        known: the name of each output; None where nobody knows.
        classes: class names of the data.
        say: is told what was decided.
    """
    columns, note = head_columns(f"libreyolo:{trained.name}", known, len(trained.names), classes)
    say(note)
    fitted = trained
    if columns is None:
        fitted = _detector(trained.name, classes, range(len(classes)), trained.towers)
        state = {n: value for n, value in trained.state_dict().items() if not CLASS_ENTRIES.match(n)}
        fitted.load_state_dict(state, strict=False)
    else:
        names = list(trained.names)
        for column, each in zip(columns, classes):
            names[column] = each
        trained.assign(columns, names)
    fitted.notes.append(note)
    return fitted
