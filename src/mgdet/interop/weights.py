"""Files of weights: reads and writes them.

What a detector's checkpoint may come from: this package, MMDetection 2.x or 3.x, an MGD training run of the original,
a backbone of torchvision or timm, or any file that only holds named tensors.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mgdet.errors import UserError, git_lfs_note, nearest
from mgdet.files import SUFFIXES, atomic_write, fetch, sha256_of
from mgdet.interop.names import (
    DICTS,
    Found,
    backbone_names,
    class_names,
    find_dicts,
    plain_names,
    shown,
    some,
)
from mgdet.interop.safe_pickle import StandIn, load_untrusted

DESCRIPTION, OWN_STATE = "mgdet_detector", "teacher_sha256"
"""Signs of this package: the key of a foreign detector's description in `meta`, and one of `state.pth`."""
TEXTS = ("cfg", "config")
"""Where MMDetection 3.x and 2.x keep their config as text, in `meta`."""
VERSION = "mmdet_version"
METADATA = ("CLASSES", "classes", "mgdet", DESCRIPTION, VERSION, *TEXTS)
SWAPPING = frozenset((VERSION, "mmcv_version", "mmengine_version"))
"""Signs of MMDetection and MMEngine, which save the average as the weights, and the weights as the average."""
REPEATED_BYTES = 2 << 30


@dataclass(slots=True)
class Checkpoint:
    """The weights of one file.

    path: the file.
    sha256: its hash, 64 hexadecimal digits.
    state_dict: plain CPU tensors under MMDetection's names; a backbone's names lack the prefix `backbone.`.
    classes: the class names, where the file holds them.
    config: `Config.to_dict()` of the run, where this package wrote the file.
    kind: "mgdet", "mmdetection", "mgd training", "mmrazor training", "backbone" or "state_dict".
    entries: tensors in the file, with those that are left out.
    left_out: what else the file holds, and how many tensors of it (0 where it is not weights).
    description: how to rebuild a detector of another library, where this package wrote the file.
    taken: which of two copies of the weights these are; empty where the file has one.
    texts: MMDetection's config as text, by its name in `meta`: cfg (3.x) or config (2.x).
    version: of the MMDetection that wrote it; empty where the file does not say it.
    """

    path: Path
    sha256: str
    state_dict: dict[str, Tensor]
    classes: tuple[str, ...] | None
    config: dict[str, Any] | None
    kind: str
    entries: int
    left_out: dict[str, int] = field(default_factory=dict)
    description: dict[str, Any] | None = None
    taken: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    version: str = ""


def read_checkpoint(source: str | Path, *, ema: bool = False) -> Checkpoint:
    """Reads the weights of any file that this module knows; no code of the file runs.

    Args:
        source: a .pth, .pt or .safetensors file, a run's folder, or an http(s) URL.
        ema: take the copy that the file keeps under the name of an exponential moving average.

    Raises:
        UserError: the file is missing, damaged, hostile, or holds no weights, or no such copy.
    """
    path = fetch(source)
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _unpack(path, load_untrusted(path))
    entries = len(found.weights or {}) + len(found.ema or {})
    if not entries:
        raise UserError(f"{path} holds no weights; give the checkpoint of a detector")
    weights, left_out, kind, taken = _choose(path, found, ema)
    tensors = {name: _plain(path, name, value) for name, value in weights.items()}
    _check_sizes(path, tensors)
    config = found.meta.get("mgdet")
    own = kind or "mgdet" in found.meta or DESCRIPTION in found.meta
    backbone = None if own else backbone_names(tensors)
    return Checkpoint(
        path=path,
        sha256=sha256_of(path),
        state_dict=tensors if backbone is None else backbone,
        classes=class_names(found.meta),
        config=dict(config) if isinstance(config, Mapping) else None,
        kind=kind or _kind(tensors, found.meta, backbone is not None),
        entries=entries,
        left_out=dict(left_out) | dict.fromkeys(found.rest, 0),
        taken=taken,
        description=dict(described) if isinstance(described := found.meta.get(DESCRIPTION), Mapping) else None,
        texts={name: text for name in TEXTS if isinstance(text := found.meta.get(name), str)},
        version=version if isinstance(version := found.meta.get(VERSION), str) else "",
    )


def _choose(path: Path, found: Found, ema: bool) -> tuple[dict[str, Any], Counter[str], str, str]:
    """The weights or the EMA's copy of them: names and values, what is left out, the kind, and which it is."""
    if found.weights is None:
        names = plain_names(found.ema or {})
        return (
            names.weights,
            names.left_out,
            names.kind,
            f"the EMA copy under '{found.ema_key}', as the file has no other",
        )
    own = DESCRIPTION in found.meta or OWN_STATE in found.rest
    names = plain_names(found.weights, own=own)
    copy, place = names.ema, "under the ema names"
    if found.ema is not None:
        copy, place = plain_names(found.ema, own=own).weights, f"under '{found.ema_key}'"
    if copy is None:
        if ema:
            why = ": they are the average already, which train.ema made" if _is_average(found.meta) else ""
            raise UserError(f"{path} holds no EMA copy of its weights{why}; leave --ema out")
        return names.weights, names.left_out, names.kind, ""
    swapped = bool(SWAPPING.intersection(found.meta))
    if not ema:
        names.left_out["EMA copy"] += len(copy)
        note = ", where MMDetection usually saves the average" if swapped else ""
        taken = f"the weights under their own names{note}; the EMA copy {place} is left out"
        return names.weights, names.left_out, names.kind, taken
    names.left_out["plain copy"] += sum(name in copy for name in names.weights)
    note = ", where MMDetection usually saves the weights before averaging" if swapped else ""
    # An average of the parameters alone takes the other tensors from beside it.
    weights = names.weights | copy if copy.keys() <= names.weights.keys() else copy
    return weights, names.left_out, names.kind, f"the EMA copy {place}{note}"


def _is_average(meta: Mapping[str, Any]) -> bool:
    """Did this package write the file, of a run that averages its weights?"""
    config = meta.get("mgdet")
    train = config.get("train") if isinstance(config, Mapping) else None
    return isinstance(train, Mapping) and bool(train.get("ema"))


def _read_safetensors(path: Path) -> Found:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = shown(error)
        if isinstance(error, safetensors.SafetensorError):
            with path.open("rb") as stream:
                reason = git_lfs_note(stream.read(64)) or reason
        raise UserError(f"{path} is truncated, damaged, or not a .safetensors file ({reason})") from None
    meta = {name: value for name in METADATA if (value := _json(metadata.get(name))) is not None}
    return Found(state_dict, meta=meta)


def _json(text: str | None) -> Any:
    """What is not JSON was written by others, for a purpose of theirs."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _unpack(path: Path, content: object) -> Found:
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not weights; give the checkpoint of a detector")
    found = find_dicts(content)
    if found.weights is None and found.ema is None:
        objects = [f"'{key}' is a {shown(type(content[key]).__name__)}" for key in DICTS if _is_object(content, key)]
        if objects:
            raise UserError(f"{path} holds a Python object, not weights: {objects[0]}; save its state_dict() instead")
        raise UserError(f"{path} has no state_dict, only {some(content)}; give a checkpoint")
    return found


def _is_object(content: Mapping[Any, Any], key: str) -> bool:
    return isinstance(content.get(key), StandIn)


def _plain(path: Path, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(f"{path} holds a {type(value).__name__} named {shown(name)} among its weights, not a tensor")
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise UserError(f"{path} holds {shown(name)} as a sparse, quantized or empty tensor; save it as a plain one")
    return value.detach()


def _check_sizes(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuses tensors that claim far more numbers than the file has, before anything copies them."""
    repeated = sum(
        value.numel() * value.element_size()
        for value in tensors.values()
        if value.numel() * value.element_size() > value.untyped_storage().nbytes()
    )
    if repeated > REPEATED_BYTES:
        raise UserError(f"{path} claims tensors of {repeated / 2**30:.0f} GiB that it does not hold; it is damaged")


def _kind(tensors: Mapping[str, Tensor], meta: Mapping[str, Any], backbone: bool) -> str:
    if "mgdet" in meta:
        return "mgdet"
    if backbone:
        return "backbone"
    return "mmdetection" if meta and any(name.startswith("backbone.") for name in tensors) else "state_dict"


def save_checkpoint(
    path: Path,
    state_dict: Mapping[str, Tensor],
    *,
    classes: Sequence[str] | None,
    config: dict[str, Any] | None,
    description: dict[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    version: str = "",
) -> None:
    """Writes weights as MMDetection does, or as safetensors; whole or not at all.

    A .pth file holds `{"meta": {"CLASSES", "mgdet"}, "state_dict"}`; a .safetensors file holds the parts of `meta`
    as JSON in its metadata.

    Args:
        path: ends in .pth, .pt or .safetensors.
        state_dict: under MMDetection's names.
        classes: the class names; None leaves them out.
        config: `Config.to_dict()`; None leaves it out.
        description: `Foreign.description()` of a detector of another library; None leaves it out.
        texts: `Checkpoint.texts` of the file that the weights come from, without which nobody could tell how they take
            pixels; None leaves them out.
        version: `Checkpoint.version` of that file; empty leaves it out.

    Raises:
        UserError: another file type, no space left, or the file may not be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} ends in '{path.suffix}'{nearest(path.suffix, SUFFIXES)}")
    tensors = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in state_dict.items()
    }
    meta: dict[str, Any] = {}
    if classes is not None:
        meta["CLASSES"] = tuple(classes)
    if config is not None:
        meta["mgdet"] = config
    if description is not None:
        meta[DESCRIPTION] = description
    meta |= texts or {}
    if version:
        meta[VERSION] = version

    def write(file: BinaryIO) -> None:
        if path.suffix == ".safetensors":
            metadata = {"format": "pt"} | {name: json.dumps(value) for name, value in meta.items()}
            file.write(safetensors.torch.save(tensors, metadata))
        else:
            torch.save({"meta": meta, "state_dict": tensors}, file)

    atomic_write(path, write)
