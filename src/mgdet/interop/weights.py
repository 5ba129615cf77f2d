"""Reads, loads and writes weights, and accounts for every tensor.

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
from torch import Tensor, nn

from mgdet.errors import UserError, git_lfs_note, nearest
from mgdet.files import SUFFIXES, atomic_write, fetch, sha256_of
from mgdet.interop.names import (
    DETECTOR_HEADS,
    DICTS,
    Found,
    backbone_names,
    class_names,
    find_dicts,
    into_backbone,
    plain_names,
    shown,
    some,
)
from mgdet.interop.safe_pickle import StandIn, load_untrusted

DESCRIPTION, OWN_STATE = "mgdet_detector", "teacher_sha256"
"""Signs of this package: the key of a foreign detector's description in `meta`, and one of `state.pth`."""
TEXTS = ("cfg", "config")
"""Where MMDetection 3.x and 2.x keep their config as text, in `meta`."""
METADATA = ("CLASSES", "classes", "mgdet", DESCRIPTION, *TEXTS)
SWAPPING = frozenset(("mmdet_version", "mmcv_version", "mmengine_version"))
"""Signs of MMDetection and MMEngine, which save the average as the weights, and the weights as the average."""
STATISTICS = (".running_mean", ".running_var")
REPEATED_BYTES = 2 << 30
MISSING, UNEXPECTED, RESHAPED = "missing", "unexpected", "of another shape"


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


@dataclass(slots=True)
class LoadReport:
    """What came of loading one file into a detector.

    matched: tensors that were loaded.
    missing: names that only the detector has; they keep their start values.
    unexpected: names that only the file has.
    mismatched: "name: file (shape), model (shape)".
    sha256: the file's hash.
    path: the file.
    taken: which of two copies in the file was loaded; empty where it has one.
    """

    matched: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    sha256: str
    path: Path
    taken: str = ""

    def line(self) -> str:
        """All of it in one line."""
        parts = [f"{self.path}: {self.matched} tensors loaded"]
        for what, names in self.differences():
            parts.append(f"{len(names)} {what} ({some(names)})" if names else f"0 {what}")
        taken = f"; taken: {self.taken}" if self.taken else ""
        return ", ".join(parts) + f"{taken}; SHA-256 {self.sha256}"

    def differences(self) -> list[tuple[str, list[str]]]:
        """What differs and the names that do."""
        return [(MISSING, self.missing), (UNEXPECTED, self.unexpected), (RESHAPED, self.mismatched)]


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


def load_checkpoint(
    detector: nn.Module, source: str | Path | Checkpoint, *, partial: tuple[str, ...] = ()
) -> LoadReport:
    """Loads a file into a detector: all of it, or nothing.

    A backbone's file fills `backbone.`; what it has behind the last stage, such as a classifier, counts as unexpected
    and is left out. Only the batch norms' step counters,
    which no detector reads, may be missing without being named in `partial`.

    Args:
        detector: takes the weights; it is untouched where the file is refused.
        source: what `read_checkpoint` takes, or what it gave.
        partial: prefixes of names that may be missing, unexpected or of another shape; they are in the report.

    Raises:
        UserError: the file cannot be read, anything else differs, or a number is not finite.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    ours = detector.state_dict()
    theirs, beside = checkpoint.state_dict, set[str]()
    if checkpoint.kind == "backbone" and ours.keys().isdisjoint(theirs):
        theirs, beside = into_backbone(theirs, ours)
    fitting = {name: value for name, value in theirs.items() if name in ours and value.shape == ours[name].shape}
    report = LoadReport(
        matched=len(fitting),
        missing=[name for name in ours if name not in theirs],
        unexpected=[name for name in theirs if name not in ours],
        mismatched=[
            f"{name}: file {tuple(value.shape)}, model {tuple(ours[name].shape)}"
            for name, value in theirs.items()
            if name in ours and name not in fitting
        ],
        sha256=checkpoint.sha256,
        path=checkpoint.path,
        taken=checkpoint.taken,
    )
    refused = {
        what: bad
        for what, names in report.differences()
        if (bad := [name for name in names if name not in beside and not _is_allowed(name, what, partial)])
    }
    if refused:
        differences = ", ".join(f"{len(bad)} {what} ({some(bad)})" for what, bad in refused.items())
        raise UserError(
            f"{checkpoint.path} does not fit this detector: {report.matched} tensors match, {differences};"
            f" {_hint(detector, checkpoint, refused)}"
        )
    check_finite(checkpoint.path, detector, fitting)
    detector.load_state_dict(fitting, strict=False)
    return report


def check_finite(path: Path, detector: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuses weights with a NaN or an infinity: a detector with them finds nothing, and says nothing about it.

    Buffers other than the statistics of batch norms may hold infinities, as the anchors of some transformers do.

    Raises:
        UserError: it names the file and the tensors.
    """
    learned = {name for name, _ in detector.named_parameters()}
    bad = [
        name
        for name, value in tensors.items()
        if (name in learned or name.endswith(STATISTICS)) and not value.isfinite().all()
    ]
    if bad:
        raise UserError(
            f"{path} holds numbers that are not finite, in {some(bad)}: its training diverged, or half precision could "
            "not hold them; give an earlier checkpoint"
        )


def _is_allowed(name: str, what: str, prefixes: tuple[str, ...]) -> bool:
    counter = what == MISSING and name.endswith(".num_batches_tracked")
    return counter or name.startswith(prefixes)


def _hint(detector: nn.Module, checkpoint: Checkpoint, refused: Mapping[str, list[str]]) -> str:
    """The probable reason why a file does not fit."""
    names = [name for bad in refused.values() for name in bad]
    if checkpoint.kind == "backbone":
        if any(name.startswith("backbone.") for name in names):
            return "it holds another backbone than this detector's; give weights of the same backbone"
        return "it holds only a backbone; give the checkpoint of a whole detector"
    here = getattr(detector, "num_classes", None)
    there = count_classes(detector, checkpoint)
    only_heads = UNEXPECTED not in refused and all(name.startswith(DETECTOR_HEADS) for name in names)
    if isinstance(here, int) and there not in (None, here) and only_heads:
        return f"it was trained for {there} classes, this detector has {here}"
    student = (checkpoint.config or {}).get("student")
    if isinstance(student, Mapping):
        return f"it holds a {student.get('detector')} with the backbone {student.get('backbone')}"
    if refused.keys() == {RESHAPED}:
        return "the names agree, the sizes do not; check the recipe's backbone and the width of its neck and heads"
    return (
        "it probably holds another architecture, as the file lacks what is missing and the detector what is "
        "unexpected; check the recipe, its detector and its backbone"
    )


def count_classes(detector: nn.Module, checkpoint: Checkpoint) -> int | None:
    """How many classes a file was trained for: its names say so, else the size of the first predictor that differs."""
    if checkpoint.classes is not None:
        return len(checkpoint.classes)
    here = getattr(detector, "num_classes", None)
    for name, ours in detector.state_dict().items():
        theirs = checkpoint.state_dict.get(name)
        if not isinstance(here, int) or theirs is None or theirs.ndim == 0 or theirs.shape[1:] != ours.shape[1:]:
            continue
        for background in (0, 1):
            outputs, rest = divmod(ours.shape[0], here + background)
            if theirs.shape[0] != ours.shape[0] and outputs and not rest:
                return theirs.shape[0] // outputs - background
    return None


def save_checkpoint(
    path: Path,
    state_dict: Mapping[str, Tensor],
    *,
    classes: Sequence[str] | None,
    config: dict[str, Any] | None,
    description: dict[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
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

    def write(file: BinaryIO) -> None:
        if path.suffix == ".safetensors":
            metadata = {"format": "pt"} | {name: json.dumps(value) for name, value in meta.items()}
            file.write(safetensors.torch.save(tensors, metadata))
        else:
            torch.save({"meta": meta, "state_dict": tensors}, file)

    atomic_write(path, write)
