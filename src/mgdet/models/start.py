"""What a student starts from, and which of its parameters can train at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mgdet.config import ModelConfig
from mgdet.detectors.base import Detector
from mgdet.detectors.face import Face
from mgdet.errors import UserError
from mgdet.interop.backbones import read_timm
from mgdet.interop.loading import load_checkpoint
from mgdet.interop.weights import read_checkpoint
from mgdet.models.agree import check_agrees
from mgdet.models.detectors import Say
from mgdet.structures import Target

RANDOM, TIMM = "random", "timm:"


def start(student: Detector, config: ModelConfig, classes: Sequence[str], say: Say) -> None:
    weights = config.weights
    if weights.startswith(TIMM) and _base(weights.removeprefix(TIMM)) != _base(config.backbone):
        raise UserError(
            f"student.weights is '{weights}', but student.backbone is '{config.backbone}'; give --student.weights "
            f"{TIMM}{config.backbone}, a file, or {RANDOM}"
        )
    if weights == RANDOM:
        say("student starts from random weights")
        return
    if weights.startswith(TIMM) and config.style != "pytorch":
        raise UserError(
            f"student.weights is '{weights}', whose strides are as in style pytorch, but student.style is caffe; give "
            f"--student.style pytorch, or the file of a caffe backbone"
        )
    checkpoint = read_timm(weights.removeprefix(TIMM)) if weights.startswith(TIMM) else read_checkpoint(weights)
    check_agrees(config, checkpoint, role="student")
    partial: tuple[str, ...] = ()
    if checkpoint.kind == "backbone":
        parts = {name.partition(".")[0] for name in student.state_dict()}
        offsets = tuple(name for name in student.state_dict() if ".conv_offset." in name)
        partial = (*(f"{part}." for part in sorted(parts - {"backbone"})), *offsets)
    elif checkpoint.classes is not None and checkpoint.classes != tuple(classes):
        # What predicts other classes is not a start for these, even where its shapes fit.
        partial = student.class_predictors
        kept = {name: value for name, value in checkpoint.state_dict.items() if not name.startswith(partial)}
        checkpoint = replace(checkpoint, state_dict=kept)
        say(f"{checkpoint.path} knows other classes than the data, so what predicts classes starts at random")
    say(f"student: {load_checkpoint(student, checkpoint, partial=partial).line()}")


def _base(name: str) -> str:
    """A timm name without its tag."""
    return name.partition(".")[0]


def freeze_unread(student: Detector, say: Say) -> None:
    """Freezes what no level of the pyramid depends on: joined gradients wait for everything else."""
    trained = {name: p for name, p in student.backbone.named_parameters() if p.requires_grad}
    if not trained:
        return
    flags = {module: module.training for module in student.modules()}
    maps = student.eval().pyramid(torch.zeros(1, 3, 64, 64)).maps
    total = torch.stack([level.sum() for level in maps]).sum()
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    for module, training in flags.items():
        module.training = training
    unread = [name for name, gradient in zip(trained, gradients) if gradient is None]
    for name in unread:
        trained[name].requires_grad_(False)
    if unread:
        say(
            f"{len(unread)} tensors of the student's backbone reach no pyramid level and do not train: {unread[0]}, ..."
        )


def freeze_unlearned(student: Face, say: Say, *, batch: int, square: int) -> None:
    """Freezes what no loss of a foreign detector depends on, as one synthetic step shows.

    The step has as few images as the run's, and no larger ones where all are squares: what is too few or too small for
    the detector is said here, before anything is written.
    """
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    edge = max(256, student.smallest_side)
    edge = -(-min(edge, square or edge) // student.multiple) * student.multiple
    images = min(2, batch)
    height, width = student.native_size or (edge, edge)
    box = torch.tensor([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]])
    masks = torch.ones(1, height, width, dtype=torch.uint8) if student.has_masks else None
    target = Target(box, torch.zeros(1, dtype=torch.int64), masks, size=(height, width))
    buffers = {name: value.clone() for name, value in student.named_buffers()}
    state = torch.get_rng_state()
    losses, seen = student.train().learn(torch.randn(images, 3, height, width), [target] * images)
    total = torch.stack([loss.sum() for loss in losses.values()]).sum()
    total = total + torch.stack([tap.float().sum() for tap in seen.taps]).sum()
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    torch.set_rng_state(state)
    with torch.no_grad():
        for name, buffer in student.named_buffers():
            buffer.copy_(buffers[name])
    unread = [name for name, gradient in zip(trained, gradients) if gradient is None]
    for name in unread:
        trained[name].requires_grad_(False)
    if unread:
        say(f"{len(unread)} tensors of the student reach no loss and do not train: {unread[0]}, ...")
