"""Turns whatever holds a detector's weights into one clean checkpoint."""

from __future__ import annotations

from pathlib import Path

from mgdet.errors import UserError
from mgdet.interop.loading import refuse_infinite
from mgdet.interop.names import is_detector, some
from mgdet.interop.weights import Checkpoint, read_checkpoint, save_checkpoint
from mgdet.layers.conv import MAX_GROUPS, count_groups
from mgdet.models import rebuild, recognise_checkpoint
from mgdet.models.fixed import GROUP_NORMS
from mgdet.models.strangers import OTHER_TOOLS, TORCHVISIONS, lacking, strangers
from mgdet.structures import IMAGENET, Pixels

KINDS = {
    "mgdet": "a checkpoint of mgdet",
    "mmdetection": "an MMDetection checkpoint",
    "mgd training": "an MGD training checkpoint",
    "mmrazor training": "an MMRazor training checkpoint",
    "backbone": "a backbone's weights",
    "state_dict": "a bare state dict",
}


def transfer(source: str | Path, out: Path, *, ema: bool = False) -> str:
    """Writes a detector's weights as an MMDetection checkpoint, or as safetensors where OUT ends so.

    A detector of another library is written as that library reads it: torchvision's state dict, or a folder for Hugging
    Face.

    Only what is not the detector is left out: teacher, generators, stored feature maps, optimizer, logs.

    Args:
        source: a checkpoint file, a run's folder, or an http(s) URL.
        out: a file that does not exist yet, ending in .pth, .pt or .safetensors; for Hugging Face a folder.
        ema: take the copy that the file keeps under the name of an exponential moving average.

    Returns:
        What was read, recognised, left out and written, a line each.

    Raises:
        UserError: the source cannot be read, is not a detector or holds numbers that are not finite, or `out` exists or
            cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; give the name of a new file")
    if not out.parent.is_dir():
        raise UserError(f"the folder {out.parent} of {out.name} does not exist; make it first")
    checkpoint = read_checkpoint(source, ema=ema)
    if checkpoint.description is not None:
        return f"{_read_line(checkpoint)}\n{rebuild(checkpoint).export(out)}"
    _check_detector(checkpoint)
    refuse_infinite(checkpoint.path, checkpoint.state_dict)
    save_checkpoint(
        out,
        checkpoint.state_dict,
        classes=checkpoint.classes,
        config=checkpoint.config,
        texts=checkpoint.texts,
        version=checkpoint.version,
    )
    return "\n".join((_read_line(checkpoint), *_recognised_lines(checkpoint), _written_line(checkpoint, out)))


def _check_detector(checkpoint: Checkpoint) -> None:
    """Refuses weights that no detector could load afterwards."""
    if strangers(checkpoint.state_dict, TORCHVISIONS):
        name = recognise_checkpoint(checkpoint).model.detector
        raise UserError(
            f"{checkpoint.path} holds {name} under torchvision's own names, so there is nothing to transfer: every "
            "command takes it as it is"
        )
    if unknown := strangers(checkpoint.state_dict, OTHER_TOOLS):
        raise lacking(checkpoint.path, unknown)
    if checkpoint.kind == "backbone":
        raise UserError(
            f"{checkpoint.path} holds a backbone, not a detector, so there is nothing to transfer; train from it with "
            f"--student.weights {checkpoint.path}"
        )
    if not is_detector(checkpoint.state_dict):
        raise UserError(
            f"{checkpoint.path} holds no detector under MMDetection's names, only {some(checkpoint.state_dict)}; give "
            "a file with a backbone and a head"
        )


def _read_line(checkpoint: Checkpoint) -> str:
    return (
        f"read {checkpoint.path}: {KINDS[checkpoint.kind]}, {checkpoint.entries} tensors, SHA-256 {checkpoint.sha256}"
    )


def _recognised_lines(checkpoint: Checkpoint) -> list[str]:
    """What the file is, where it does not come from this package, or what MMDetection must be told where it does."""
    try:
        recognised = recognise_checkpoint(checkpoint)
    except UserError as error:
        return [] if checkpoint.config is not None else [f"mgdet cannot run it: {error}"]
    if checkpoint.config is None:
        return list(recognised.lines)
    model, lines = recognised.model, []
    pixels = Pixels(model.mean, model.std, model.bgr)
    if (model.style, pixels) != ("pytorch", IMAGENET):
        lines.append(
            f"MMDetection must build its backbone with style='{model.style}' and normalise with mean={[*pixels.mean]}, "
            f"std={[*pixels.std]} and to_rgb={not pixels.bgr} (bgr_to_rgb={not pixels.bgr} in 3.x)"
        )
    normed, groups = GROUP_NORMS.get(model.detector, ()), count_groups(model.channels)
    if normed and groups != MAX_GROUPS:
        lines.append(
            f"MMDetection must build its {' and '.join(normed)} with norm_cfg=dict(type='GN', num_groups={groups})"
        )
    if model.grids:
        lines.append(f"MMDetection must build its mask_head with num_grids={[*model.grids]}")
    return lines


def _written_line(checkpoint: Checkpoint, out: Path) -> str:
    names = (
        "no class names, the file has none" if checkpoint.classes is None else f"{len(checkpoint.classes)} class names"
    )
    parts = [f"{count} {name} tensors" if count else name for name, count in checkpoint.left_out.items()]
    left = f"; left out {', '.join(parts)}" if parts else ""
    taken = f"; taken: {checkpoint.taken}" if checkpoint.taken else ""
    return f"wrote {out}: {len(checkpoint.state_dict)} tensors, {names}{left}{taken}"
