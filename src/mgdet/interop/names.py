"""Which of a file's names are the weights: wrappers, copies and companions told apart, without reading a number.

Training tools put a model's names behind prefixes, in dicts of dicts, and beside teachers, averages and losses. All of
that is taken off or set aside here, and what is set aside is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

DICTS = ("state_dict", "model_state_dict", "model", "net", "weights", "module")
"""Keys under which tools save the weights; the first that holds a dict is taken."""
EMA_DICTS = ("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema", "ema_weights")
"""Keys under which they save a moving average of the weights, or what that is an average of."""
PURE_WRAPPERS, WRAPPERS = ("module.", "_orig_mod."), ("model.", "net.")
"""Prefixes that only wrap; and those that may also be a part of another library's detector."""
OTHER_LIBRARIES = ("encoder.", "decoder.")
"""Parts that `model.` has in transformers' detectors, which need the prefix."""
STUDENTS = {"student.": "mgd training", "architecture.": "mmrazor training"}
"""Prefixes of the student in the checkpoint of a distiller, and what such a file is."""
TEACHERS = ("teacher.", "teacher_model.")
EMA_PARTS = ("ema.", "ema_model.", "model_ema.", "averaged_model.")
COUNTERS = ("steps", "n_averaged", "updates", "num_updates")
"""What averages count beside the weights."""
DETECTOR_HEADS = ("bbox_head.", "mask_head.", "roi_head.", "rpn_head.")
OTHER_HEADS = ("head.", "head_dist.", "fc.", "classifier.", "neck.", "norm.", "decode_head.", "auxiliary_head.")
"""Parts beside a `backbone.` that classifies or segments."""
PYRAMID_NAMES = ("neck.lateral_convs.", "neck.fpn_convs.")
NEARLY_ALL = 0.9
"""Of a file's tensors: what is under one prefix with so many, and a backbone among them, is the model."""
DEPTH, NESTING = 4, 20
SHOWN_NAMES, SHOWN_LETTERS = 3, 80


@dataclass(slots=True)
class Found:
    """What a checkpoint's dicts hold.

    weights: the state dict, under the names of the file.
    ema: the state dict of the EMA's copy beside it; None if there is none.
    ema_key: where that is, for people.
    meta: what the file says of itself.
    rest: the other keys of the dicts, which are not weights.
    """

    weights: Mapping[str, Any] | None
    ema: Mapping[str, Any] | None = None
    ema_key: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Sorted:
    """Weights under their plain names.

    weights: without wrappers, teachers and copies.
    ema: the EMA's copy of them, which may lack some; None if there is none.
    kind: what the names say that the file is: "mgd training", "mmrazor training" or "".
    left_out: how many entries of each other sort there are.
    """

    weights: dict[str, Any]
    ema: dict[str, Any] | None = None
    kind: str = ""
    left_out: Counter[str] = field(default_factory=Counter)


def find_dicts(content: Mapping[Any, Any], depth: int = 0) -> Found:
    """Looks for the state dict in what a file holds, and for the EMA's copy of it.

    Where only an EMA's copy is there, it is the weights.

    Args:
        content: what was saved.
        depth: how many dicts it is in; what is inside of one counts as weights, whatever it holds.
    """
    meta = content.get("meta")
    found = Found(None, meta=meta if isinstance(meta, Mapping) else {})
    taken: list[Any] = ["meta"]
    if depth < DEPTH and (key := _first_dict(content, DICTS)):
        inner = find_dicts(content[key], depth + 1)
        found.weights, found.ema, found.ema_key, found.rest = inner.weights, inner.ema, inner.ema_key, inner.rest
        found.meta = found.meta or inner.meta
        taken.append(key)
    if depth < DEPTH and (key := _first_dict(content, EMA_DICTS)):
        copy = find_dicts(content[key], depth + 1).weights
        if _holds_tensors(copy):
            found.ema, found.ema_key = copy, key
            taken.append(key)
    if found.weights is None and found.ema is None and (depth or _holds_tensors(content)):
        return Found(content)
    found.rest += [shown(key) for key in content if key not in taken]
    return found


def _holds_tensors(content: Mapping[Any, Any] | None) -> bool:
    return content is not None and any(isinstance(v, Tensor) for k, v in content.items() if k not in COUNTERS)


def _first_dict(content: Mapping[Any, Any], keys: Iterable[str]) -> str:
    return next((key for key in keys if isinstance(content.get(key), Mapping)), "")


def plain_names(state_dict: Mapping[Any, Any], *, own: bool = False) -> Sorted:
    """Takes off every prefix that wraps a model, in any nesting, and sets aside what is not the model.

    Args:
        state_dict: under the names of the file.
        own: did this package write the names, perhaps of another library's detector? Then only a student's prefix goes.
    """
    result = Sorted({str(name): value for name, value in state_dict.items()})
    if own:
        if any(name.startswith("student.") for name in result.weights):
            result.kind = STUDENTS["student."]
            _keep(result, "student.")
        return result
    for _ in range(NESTING):
        if not (_set_aside(result) or _unwrap(result)):
            break
    result.weights = {_modern(name): value for name, value in result.weights.items()}
    return result


def _modern(name: str) -> str:
    """Old checkpoints with deformable convolutions keep the offsets beside the convolution, not inside."""
    return re.sub(r"(^|\.)conv2_offset\.", r"\1conv2.conv_offset.", name)


def _set_aside(result: Sorted) -> bool:
    """Moves the EMA's copy, teachers, the preprocessor's constants and counters out; has anything changed?"""
    names = result.weights
    spelled = {f"ema_{name.replace('.', '_')}": name for name in names}
    ema: dict[str, Any] = {}
    left: dict[str, Any] = {}
    dropped: Counter[str] = Counter()
    for name, value in names.items():
        part = next((part for part in EMA_PARTS if name.startswith(part)), "")
        if name in spelled or part:
            ema[spelled[name] if name in spelled else name.removeprefix(part)] = value
        elif name.startswith("data_preprocessor."):
            dropped["data preprocessor"] += 1
        elif name.startswith(TEACHERS):
            dropped["teacher"] += 1
        elif name in COUNTERS:
            dropped["counter"] += 1
        else:
            left[name] = value
    if not left or len(left) == len(names):
        return False
    result.weights = left
    result.left_out += dropped
    if ema:
        result.ema = plain_names(ema).weights
    return True


def _unwrap(result: Sorted) -> bool:
    """Takes off one prefix, with what stands beside it; has there been one?"""
    names = result.weights
    for prefix, kind in STUDENTS.items():
        if any(name.startswith(prefix) for name in names):
            result.kind = kind
            _keep(result, prefix)
            return True
    if any(name.startswith("backbone.") for name in names):
        return False
    unknown = {name[: name.index(".backbone.") + 1] for name in names if ".backbone." in name}
    for prefix in (*PURE_WRAPPERS, *WRAPPERS, *(unknown if len(unknown) == 1 else ())):
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        sure = prefix in PURE_WRAPPERS or not any(name.startswith(OTHER_LIBRARIES) for name in inside)
        whole = len(inside) == len(names) or (unknown == {prefix} and len(inside) >= NEARLY_ALL * len(names))
        if inside and ((whole and sure) or is_detector(inside)):
            _keep(result, prefix)
            return True
    return False


def _keep(result: Sorted, prefix: str) -> None:
    """Keeps the names behind a prefix, without it, and counts the others by sort."""
    kept: dict[str, Any] = {}
    for name, value in result.weights.items():
        if name.startswith(prefix):
            kept[name.removeprefix(prefix)] = value
        else:
            result.left_out[_sort_of_companion(name)] += 1
    result.weights = kept


def _sort_of_companion(name: str) -> str:
    if name.startswith(TEACHERS):
        return "teacher"
    if name.startswith("distill_losses."):
        return "generator"
    return "stored feature map" if name.startswith(("student_", "teacher_")) else "other"


def is_detector(names: Iterable[str]) -> bool:
    """Do the names, under MMDetection's, belong to a whole detector?"""
    names = list(names)
    return all(any(name.startswith(part) for name in names) for part in ("backbone.", DETECTOR_HEADS))


def backbone_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights of a backbone with or without a classifier, without the prefix `backbone.`; None for anything else.

    What is under `backbone.` is a backbone if only parts of classifiers and segmenters stand beside it. Bare names
    are one's if a convolution or a patch embedding is among them and no part of a detector.
    """
    if any(name.startswith("backbone.") for name in weights):
        beside = [name for name in weights if not name.startswith("backbone.")]
        if any(not name.startswith(OTHER_HEADS) or name.startswith(PYRAMID_NAMES) for name in beside):
            return None
        if any(name.startswith(("head.", "neck.")) and weights[name].ndim > 2 for name in beside):
            return None
        return {name.removeprefix("backbone."): value for name, value in weights.items()}
    if any(name.startswith((*DETECTOR_HEADS, *PYRAMID_NAMES)) for name in weights):
        return None
    return dict(weights) if any(value.ndim == 4 for value in weights.values()) else None


def into_backbone(weights: Mapping[str, Tensor], ours: Mapping[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
    """The names in a detector for those of a backbone's own file.

    Timm's extractors of features write the first number of `stages.0.blocks` as `stages_0.blocks`, or put the whole
    model under `model.`. They lack what comes after the last stage.

    Args:
        weights: under the backbone's own names.
        ours: the names of a detector.

    Returns:
        The weights under the detector's names; and the names of parts that this backbone does not have at all, such
        as a classifier.
    """
    own = {part for name in ours if name.startswith("backbone.") for part in name.split(".")[1:3]}
    named: dict[str, Tensor] = {}
    beside: set[str] = set()
    for name, value in weights.items():
        flat = re.sub(r"^(\w+)\.(\d+)(?=\.)", r"\1_\2", name)
        tried = (f"backbone.{name}", f"backbone.{flat}", f"backbone.model.{name}")
        fits = next((name for name in tried if name in ours), None)
        if fits is None and not own & {name.partition(".")[0], flat.partition(".")[0]}:
            fits = name if name not in ours else tried[0]
            beside.add(fits)
        named[fits or tried[0]] = value
    return named, beside


def class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names that a file's `meta` gives: MMDetection 2.x says `CLASSES`, 3.x `dataset_meta`."""
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    for given in (meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES"), meta.get("classes")):
        if isinstance(given, str):
            return (given,)
        names: Any = given
        if isinstance(given, Mapping) and list(given) == list(range(len(given))):
            names = list(given.values())
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def shown(text: object, letters: int = SHOWN_LETTERS) -> str:
    """Text of a file as part of a sentence: on one line and not too long, whatever the file holds."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in str(text)[: letters + 1])
    return clean if len(clean) <= letters else f"{clean[:letters]}..."


def some(names: Iterable[object]) -> str:
    """The first few of some names."""
    names = list(names)
    return ", ".join(shown(name) for name in names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
