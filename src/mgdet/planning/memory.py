"""How much memory a training step takes, estimated from one small forward pass, and how much this machine has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mgdet.config import Config, ModelConfig
from mgdet.data.batch import Batch
from mgdet.detectors.face import Face
from mgdet.distributed import World
from mgdet.engine.memory import free_memory
from mgdet.engine.recomputed import recomputed_blocks
from mgdet.engine.step import Step
from mgdet.layers.inference import inference_form
from mgdet.methods.student import DistilledStudent
from mgdet.methods.teacher import Teacher
from mgdet.models import detector_from, foreign_from, with_methods
from mgdet.models.start import RANDOM
from mgdet.structures import Target

PROBED = 2
"""Images of a small forward pass; some detectors take no single one."""
OBJECTS = 64
"""On each of them: as many regions train the heads of a second stage. They are strips, which no anchor meets by chance:
their number is the same in both sizes."""
PROBE_EDGES = (192, 320)
"""What does not grow with the image, such as the regions of a second stage, is told from the rest by two sizes."""
WORKING_COPIES = 4
"""Of the teacher's largest map so many are alive at once: what goes into a layer, what comes out, and the library's."""
GRADIENTS = 1.25
"""The backward pass adds a quarter to what the forward pass keeps: gradients of maps, and the library's buffers."""
CONTEXT = 1 << 30
"""Bytes that the process takes before there is a model: CUDA's context and code, or torch's own."""
GPU_SHARE, HOST_SHARE = 0.8, 0.5
"""Shares of the free memory that a plan fills: the rest is for other programs, readers of images, and errors."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a step of training takes, in bytes.

    fixed: weights, gradients and the optimizer's state, whatever the batch.
    per_image: whatever its size.
    per_pixel: of an image.
    """

    fixed: int
    per_image: float
    per_pixel: float

    def of(self, images: int, size: tuple[int, int]) -> int:
        """Bytes for a batch of `images` of (h, w) pixels."""
        return int(self.fixed + images * (self.per_image + size[0] * size[1] * self.per_pixel))


def probe_detectors(config: Config, classes: Sequence[str]) -> tuple[Face, Face | None]:
    """Student and teacher of a run with random weights, to measure on.

    Raises:
        UserError: one of them cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        student = _random(config.student, classes, role="student")
        return student, None if config.teacher is None else _random(config.teacher, classes, role="teacher")


def measure_footprint(config: Config, student: Face, teacher: Face | None) -> Footprint:
    """What a training step keeps in memory, from forward passes over small images on the CPU.

    Every tensor that the backward pass will need is counted once.

    Args:
        config: the run; its methods, optimizer and precision count.
        student: with random weights, which are as large as any.
        teacher: None for a student that learns alone.
    """
    with torch.random.fork_rng(devices=[]):
        return _measure(config, student, teacher)


def _measure(config: Config, student: Face, teacher: Face | None) -> Footprint:
    distilled, form = DistilledStudent(student), None
    if teacher is not None and config.methods:
        distilled = with_methods(config, student, teacher, lambda line: None)
        form = Teacher(inference_form(teacher), "fp32")
    step = Step(distilled, form, config, World(rank=0, size=1, device=torch.device("cpu")))
    fixed = CONTEXT + _weights(step)
    if student.native_size is not None:
        return Footprint(fixed, _per_image(step, student.native_size), 0.0)
    edges = [-(-max(edge, student.smallest_side) // student.multiple) * student.multiple for edge in PROBE_EDGES]
    small, large = (_per_image(step, (edge, edge)) for edge in edges)
    if edges[0] == edges[1]:
        return Footprint(fixed, 0.0, large / edges[1] ** 2)
    per_pixel = (large - small) / (edges[1] ** 2 - edges[0] ** 2)
    return Footprint(fixed, max(0.0, small - per_pixel * edges[0] ** 2), per_pixel)


def memory_for_training(device: torch.device, processes: int) -> int | None:
    """Bytes that a process may take on its device; None where the system does not tell.

    Args:
        device: a GPU of each process's own, or the CPU whose memory `processes` share.
        processes: on this machine.
    """
    free = free_memory(device) * 2**30
    if device.type == "cuda":
        return int(GPU_SHARE * free)
    return int(HOST_SHARE * free / processes) or None


def _random(config: ModelConfig, classes: Sequence[str], *, role: str) -> Face:
    if config.source:
        return foreign_from(replace(config, weights=RANDOM), classes, lambda line: None, role=role)
    return detector_from(config, len(classes))


def _per_image(step: Step, size: tuple[int, int]) -> float:
    """Bytes that a step on images of (h, w) takes for each of them."""
    face = step.student.student
    batch = _batch(size, masks=face.has_masks)
    torch.manual_seed(0)
    images = batch.images(face.pixels).contiguous(memory_format=torch.channels_last)
    step.model.train()
    blocks = recomputed_blocks(face) if step.config.train.checkpoint_backbone else []
    with step.autocast(), _largest_output(step.teacher) as largest:
        shown = step.show(batch, images)
        with _kept() as kept, _computed_again(blocks, kept) as block:
            step.model(images, batch.targets, shown)
    seen = sum(_bytes(tap) for tap in getattr(shown, "taps", ()))
    total = GRADIENTS * (kept.total() + block.bytes) + WORKING_COPIES * largest.bytes + seen + _bytes(images)
    return total / PROBED


def _batch(size: tuple[int, int], *, masks: bool) -> Batch:
    """Two noisy images of (h, w), each with the same objects whatever the size."""
    height, width = size
    tops = torch.arange(OBJECTS) * (min(PROBE_EDGES) / OBJECTS)
    boxes = torch.stack([torch.zeros(OBJECTS), tops, torch.full((OBJECTS,), min(PROBE_EDGES)), tops + 2], dim=1)
    filled = torch.zeros(OBJECTS, height, width, dtype=torch.uint8)
    for mask, top in zip(filled, tops.long().tolist()):
        mask[top : top + 2, : min(PROBE_EDGES)] = 1
    labels = torch.zeros(OBJECTS, dtype=torch.int64)
    return Batch(
        pixels=torch.randint(0, 256, (PROBED, height, width, 3), dtype=torch.uint8),
        targets=[Target(boxes, labels, filled if masks else None, size=size, padded=size)] * PROBED,
        files=[""] * PROBED,
        image_ids=[0] * PROBED,
        originals=[size] * PROBED,
        scales=[(1.0, 1.0)] * PROBED,
    )


class _Kept:
    """Tensors that wait for the backward pass: bytes by the place in memory."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        self.alive: list[Tensor] = []  # else the place of one that is gone is given to another

    def add(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()
            self.alive.append(tensor)
        return tensor

    def total(self) -> int:
        return sum(self.storages.values())


@contextlib.contextmanager
def _kept() -> Iterator[_Kept]:
    kept = _Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
        yield kept


@dataclass(slots=True)
class _Largest:
    bytes: int = 0


@contextlib.contextmanager
def _computed_again(blocks: Sequence[nn.Module], kept: _Kept) -> Iterator[_Largest]:
    """Has only the inputs of blocks count as kept, and gives the bytes of the block that keeps most: the backward pass
    computes one after the other again."""
    largest, before = _Largest(), dict[int, int]()

    def enter(block: nn.Module, inputs: Any) -> None:
        nonlocal before
        before = dict(kept.storages)

    def leave(block: nn.Module, inputs: Any, output: Any) -> None:
        largest.bytes = max(largest.bytes, kept.total() - sum(before.values()))
        kept.storages = before
        for tensor in inputs:
            for part in tensor if isinstance(tensor, list | tuple) else [tensor]:
                if isinstance(part, Tensor):
                    kept.add(part)

    handles = [block.register_forward_pre_hook(enter) for block in blocks]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _largest_output(module: nn.Module | None) -> Iterator[_Largest]:
    """The bytes of the largest tensor that a layer inside of `module` gives."""
    largest = _Largest()

    def look(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            largest.bytes = max(largest.bytes, _bytes(output))

    layers = [] if module is None else [layer for layer in module.modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(look) for layer in layers]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()


def _weights(step: Step) -> int:
    """Bytes of all weights and their average, of the gradients, and of what the optimizer remembers of each."""
    trained = sum(_bytes(parameter) for parameter in step.parameters)
    copies = 3 if step.config.optimizer.name == "adamw" else 2
    everything: list[Callable[[], Iterator[Tensor]]] = [step.student.parameters, step.student.buffers]
    if step.teacher is not None:
        everything += [step.teacher.parameters, step.teacher.buffers]
    if step.config.train.ema:
        everything += [step.student.student.parameters, step.student.student.buffers]
    return sum(_bytes(tensor) for tensors in everything for tensor in tensors()) + copies * trained


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
