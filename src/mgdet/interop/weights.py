"""Reads, loads and writes weights, and accounts for every tensor.

What a detector's checkpoint may come from: this package, MMDetection 2.x or 3.x, an MGD training run of the original,
a backbone of torchvision or timm, or any file that only holds named tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mgdet.errors import UserError, nearest
from mgdet.files import SUFFIXES, atomic_write, fetch, sha256_of
from mgdet.interop.safe_pickle import load_untrusted

CLASSIFIERS = ("fc.", "head.", "classifier.")
BACKBONE_STARTS = ("conv1.", "layer1.", "stem.", "stem_0.", "stages.", "stages_0.", "patch_embed.")
HEADS = ("bbox_head.", "mask_head.", "roi_head.")
NAMES_SHOWN = 3


@dataclass(slots=True)
class Checkpoint:
    """The weights of one file.

    path: the file.
    sha256: its hash, 64 hexadecimal digits.
    state_dict: plain CPU tensors under MMDetection's names; a backbone's names lack the prefix `backbone.`.
    classes: the class names, where the file holds them.
    config: `Config.to_dict()` of the run, where this package wrote the file.
    kind: "mgdet", "mmdetection", "mgd training", "backbone" or "state_dict".
    entries: tensors in the file, with those that are left out.
    left_out: what else the file holds, and how many tensors of it (0 where it is not weights).
    description: how to rebuild a detector of another library, where this package wrote the file.
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


@dataclass(slots=True)
class LoadReport:
    """What came of loading one file into a detector.

    matched: tensors that were loaded.
    missing: names that only the detector has; they keep their start values.
    unexpected: names that only the file has.
    mismatched: "name: file (shape), model (shape)".
    sha256: the file's hash.
    path: the file.
    """

    matched: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    sha256: str
    path: Path

    def line(self) -> str:
        """All of it in one line."""
        parts = [f"{self.path}: {self.matched} tensors loaded"]
        for what, names in self.differences():
            parts.append(f"{len(names)} {what} ({_some(names)})" if names else f"0 {what}")
        return ", ".join(parts) + f"; SHA-256 {self.sha256}"

    def differences(self) -> list[tuple[str, list[str]]]:
        """What differs and the names that do."""
        return [("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.mismatched)]


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Reads the weights of any file that this module knows; no code of the file runs.

    Args:
        source: a .pth, .pt or .safetensors file, a run's folder, or an http(s) URL.

    Raises:
        UserError: the file is missing, damaged, hostile, or holds no weights.
    """
    path = fetch(source)
    is_safetensors = path.suffix == ".safetensors"
    state_dict, meta, left_out = _read_safetensors(path) if is_safetensors else _unpack(path, load_untrusted(path))
    tensors = {_modern(name): _plain(path, name, value) for name, value in _without_module(state_dict).items()}
    if not tensors:
        raise UserError(f"{path} holds no weights; give the checkpoint of a detector")
    config = meta.get("mgdet")
    kind = _kind(tensors, meta)
    entries = len(tensors)
    if kind == "mgd training":
        tensors, parts = _student_of(tensors)
        left_out = parts | left_out
    return Checkpoint(
        path=path,
        sha256=sha256_of(path),
        state_dict=tensors,
        classes=_classes(meta),
        config=dict(config) if isinstance(config, Mapping) else None,
        kind=kind,
        entries=entries,
        left_out=left_out,
        description=dict(meta["mgdet_detector"]) if isinstance(meta.get("mgdet_detector"), Mapping) else None,
    )


Parts = tuple[Mapping[str, Any], Mapping[str, Any], dict[str, int]]
"""State dict, meta, and how many tensors there are of every other part."""


def _read_safetensors(path: Path) -> Parts:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        meta = {name: json.loads(metadata[name]) for name in ("CLASSES", "mgdet", "mgdet_detector") if name in metadata}
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is truncated, damaged, or no .safetensors file ({error})") from None
    return state_dict, meta, {}


def _unpack(path: Path, content: object) -> Parts:
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, no weights; give the checkpoint of a detector")
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), Mapping):
            meta = content.get("meta")
            rest = {str(key): 0 for key in content if key not in (name, "meta")}
            return content[name], meta if isinstance(meta, Mapping) else {}, rest
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} has no state_dict, only {_some([str(key) for key in content])}; give a checkpoint")
    return content, {}, {}


def _without_module(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Takes away the prefix that DistributedDataParallel puts before every name."""
    if all(str(name).startswith("module.") for name in state_dict):
        return {str(name).removeprefix("module."): value for name, value in state_dict.items()}
    return state_dict


def _modern(name: str) -> str:
    """Old checkpoints with deformable convolutions keep the offsets beside the convolution, not inside."""
    return re.sub(r"(^|\.)conv2_offset\.", r"\1conv2.conv_offset.", str(name))


def _plain(path: Path, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(f"{path} holds a {type(value).__name__} named {name} among its weights, not a tensor")
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise UserError(f"{path} holds {name} as a sparse, quantized or empty tensor; save it as a plain one")
    return value.detach()


def _kind(state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    if any(name.startswith("student.") for name in state_dict):
        return "mgd training"
    if "mgdet" in meta:
        return "mgdet"
    if any(name.startswith("backbone.") for name in state_dict):
        return "mmdetection" if meta else "state_dict"
    return "backbone" if any(name.startswith(BACKBONE_STARTS) for name in state_dict) else "state_dict"


def _student_of(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The student's tensors of an MGD training checkpoint, and how many of the others there are of each sort."""
    student, parts = {}, {"teacher": 0, "generator": 0, "stored feature map": 0, "other": 0}
    for name, value in state_dict.items():
        if name.startswith("student."):
            student[name.removeprefix("student.")] = value
        elif name.startswith("teacher."):
            parts["teacher"] += 1
        elif name.startswith("distill_losses."):
            parts["generator"] += 1
        else:
            parts["stored feature map" if name.startswith(("student_", "teacher_")) else "other"] += 1
    return student, {sort: count for sort, count in parts.items() if count}


def _classes(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names of MMDetection 2.x (`CLASSES`) or 3.x (`dataset_meta`)."""
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    for names in (meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES")):
        if isinstance(names, str):
            return (names,)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def load_checkpoint(
    detector: nn.Module, source: str | Path | Checkpoint, *, partial: tuple[str, ...] = ()
) -> LoadReport:
    """Loads a file into a detector: all of it, or nothing.

    A backbone's file fills `backbone.`; its classifier counts as unexpected. Only the batch norms' step counters,
    which no detector reads, may be missing without being named in `partial`.

    Args:
        detector: takes the weights; it is untouched where the file is refused.
        source: what `read_checkpoint` takes, or what it gave.
        partial: prefixes of names that may be missing, unexpected or of another shape; they are in the report.

    Raises:
        UserError: the file cannot be read, or anything else differs.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    theirs, allowed = checkpoint.state_dict, partial
    if checkpoint.kind == "backbone":
        theirs = {n if n.startswith(CLASSIFIERS) else f"backbone.{n}": value for n, value in theirs.items()}
        allowed = (*partial, *CLASSIFIERS)
    ours = detector.state_dict()
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
    )
    refused = [
        f"{len(bad)} {what} ({_some(bad)})"
        for what, names in report.differences()
        if (bad := [n for n in names if not _is_allowed(n, what, allowed)])
    ]
    if refused:
        differences = ", ".join(refused)
        raise UserError(
            f"{checkpoint.path} does not fit this detector: {report.matched} tensors match, {differences};"
            f" {_hint(detector, checkpoint, report)}"
        )
    detector.load_state_dict(fitting, strict=False)
    return report


def _is_allowed(name: str, what: str, prefixes: tuple[str, ...]) -> bool:
    counter = what == "missing" and name.endswith(".num_batches_tracked")
    return counter or name.startswith(prefixes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def _hint(detector: nn.Module, checkpoint: Checkpoint, report: LoadReport) -> str:
    """The probable reason why a file does not fit."""
    if checkpoint.kind == "backbone":
        if any(name.startswith("backbone.") for name in (*report.mismatched, *report.unexpected)):
            return "it holds another backbone than this detector's; give weights of the same backbone"
        return "it holds only a backbone; give the checkpoint of a whole detector"
    here = getattr(detector, "num_classes", None)
    there = count_classes(detector, checkpoint)
    only_heads = not report.unexpected and all(name.startswith(HEADS) for name in report.missing + report.mismatched)
    if isinstance(here, int) and there not in (None, here) and only_heads:
        return f"it was trained for {there} classes, this detector has {here}"
    student = (checkpoint.config or {}).get("student")
    if isinstance(student, Mapping):
        return f"it holds a {student.get('detector')} with the backbone {student.get('backbone')}"
    return "it probably holds another architecture; check the recipe, its detector and its backbone"


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
) -> None:
    """Writes weights as MMDetection does, or as safetensors; whole or not at all.

    A .pth file holds `{"meta": {"CLASSES", "mgdet"}, "state_dict"}`; a .safetensors file holds both parts of `meta`
    as JSON in its metadata.

    Args:
        path: ends in .pth, .pt or .safetensors.
        state_dict: under MMDetection's names.
        classes: the class names; None leaves them out.
        config: `Config.to_dict()`; None leaves it out.
        description: `Foreign.description()` of a detector of another library; None leaves it out.

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
        meta["mgdet_detector"] = description

    def write(file: BinaryIO) -> None:
        if path.suffix == ".safetensors":
            metadata = {"format": "pt"} | {name: json.dumps(value) for name, value in meta.items()}
            file.write(safetensors.torch.save(tensors, metadata))
        else:
            torch.save({"meta": meta, "state_dict": tensors}, file)

    atomic_write(path, write)
