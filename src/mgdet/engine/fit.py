"""`--train.batch auto`: the largest batch whose steps fit into the memory of the GPU, found by taking some."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from mgdet.config import Config
from mgdet.data.augment import crop_around, extreme_crops
from mgdet.data.batch import collate
from mgdet.data.dataset import DetectionDataset
from mgdet.data.transforms import Example, View, make_example, padded_size
from mgdet.distributed import World
from mgdet.engine.checkpoint import read_config
from mgdet.engine.ema import Average
from mgdet.engine.recomputed import recompute_backbone
from mgdet.engine.step import Step
from mgdet.errors import UserError, shortage
from mgdet.models import build_models
from mgdet.precision import set_float32

STEPS = 2
"""Steps of each size: the first makes the optimizer's state, the second has it from the start."""
SHARE = 0.9
"""Share of the free memory that a step may take; the rest is for images with more objects and for other processes."""
MOST = 1024


class Memory(Protocol):
    """The memory of a device, in bytes."""

    @property
    def free(self) -> int:
        """How much this process could have at most, at the start."""

    def forget(self) -> None:
        """Gives back what is not used, and starts to watch for a new peak."""

    def peak(self) -> int:
        """The most that this process has held since then."""


@dataclass(slots=True)
class GpuMemory:
    """The memory of a GPU, as torch's allocator takes it."""

    device: torch.device

    @property
    def free(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)

    def forget(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_reserved(self.device)


def with_batch(config: Config, data: DetectionDataset, world: World, folder: Path | None) -> tuple[Config, str]:
    """A config whose `train.batch` fills the GPUs of a run, and a sentence that says so.

    A run that is resumed keeps the number that it began with.

    Args:
        config: the run.
        data: its training images.
        world: this process among the others.
        folder: the run's folder; None: the run starts, whatever is where.

    Raises:
        UserError: there is no GPU, or not even the smallest batch fits.
    """
    old = read_config(folder) if folder is not None else None
    if old is not None:
        number, why = old.train.batch, "with which this run began"
    else:
        number, why = find_batch(config, data, world)
    train = dataclasses.replace(config.train, batch=number)
    return dataclasses.replace(config, train=train), f"train.batch auto: {number} images per forward pass, {why}"


def find_batch(config: Config, data: DetectionDataset, world: World, memory: Memory | None = None) -> tuple[int, str]:
    """The largest batch that fits on each of a run's GPUs, and why it is no larger.

    Every process tries on its own GPU, and the smallest number counts. Steps are those of the run, with its largest
    images and the one with the most objects, at a learning rate of 0 on models that are given up afterwards.

    Args:
        config: the run.
        data: its training images.
        world: this process among the others.
        memory: what is filled; None: the GPU of this process.

    Raises:
        UserError: there is no GPU, or not even the smallest batch fits.
    """
    if memory is None:
        if world.device.type != "cuda":
            raise UserError(
                "train.batch auto fills the memory of a GPU, and torch can use none on this machine; give a number"
            )
        memory = GpuMemory(world.device)
    limit = int(SHARE * memory.free)
    most = min(MOST, max(1, len(data) // (config.train.accumulate * world.size)))
    examples = hardest_examples(config, data)
    trial = Trial(config, data.classes, examples, world, memory)
    least = trial.least()
    most = max(most, least)
    own = trial.largest(limit, most, least)
    del trial
    memory.forget()
    number = min(world.gather(own))
    height, width = padded_size(examples[0].target.size)
    room = f"{limit / 2**30:.1f} GiB"
    if not number:
        images, fit = ("one image", "fits") if least == 1 else (f"{least} images", "fit")
        raise UserError(
            f"train.batch auto: not even {images} of {height} x {width} pixels {fit} into {room}; add --train.amp bf16 "
            "or --train.checkpoint-backbone, or lower --data.short-edge and --data.long-edge"
        )
    return number, "as many as an epoch has" if number == most else f"the most that fit into {room}"


def largest(fits: Callable[[int], bool], most: int, least: int = 1) -> int:
    """The largest number from `least` to `most` that fits, where all smaller ones fit, too; 0 if none does.

    Numbers are doubled until one does not fit, and then halved in between.
    """
    good, number = least - 1, least
    while number <= most and fits(number):
        good, number = number, min(2 * number, most) if number < most else most + 1
    bad = number
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good if good >= least else 0


def hardest_examples(config: Config, data: DetectionDataset) -> list[Example]:
    """The images that need the most memory: those of the largest canvas of one orientation, and one of many objects.

    A batch's canvas is as high as its highest image and as wide as its widest. Crops are resized as whole images are,
    so those of extreme ratios may make the largest.
    """
    views = [
        View(i, config.data.long_edge, config.data.short_edge[1], False, config.data.square) for i in range(len(data))
    ]
    shapes = [_shapes(config, (info.height, info.width)) for info in data.images]
    sizes = np.array([[padded_size(view.size_of(shape)) for shape in own] for view, own in zip(views, shapes)])
    portrait = np.asarray(data.portrait)
    groups = [group for group in (np.flatnonzero(portrait), np.flatnonzero(~portrait)) if len(group)]
    group = max(groups, key=lambda g: int(sizes[g].max(axis=(0, 1)).prod()))
    extremes = [divmod(int(sizes[group, :, axis].argmax()), sizes.shape[1]) for axis in (0, 1)]
    chosen = [(int(group[i]), shapes[group[i]][shape]) for i, shape in extremes]
    many = int(group[data.num_objects[group].argmax()])
    return [_example(data, views[i], shape) for i, shape in dict.fromkeys([*chosen, (many, shapes[many][0])])]


def _shapes(config: Config, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The (h, w) of an image file of (h, w) pixels, and of its crops of extreme ratios where images are cropped."""
    return [size, *extreme_crops(size, config.augment)] if config.augment.crop else [size]


def _example(data: DetectionDataset, view: View, shape: tuple[int, int]) -> Example:
    """An image of the data set, or a crop of (h, w) pixels of it."""
    info = data.images[view.index]
    if shape == (info.height, info.width):
        return data[view]
    return make_example(view=view, **crop_around(data.picture(view.index), shape)._asdict())


class Trial:
    """Models, optimizer and step of a run, to be tried with batches of any size and thrown away."""

    def __init__(
        self, config: Config, classes: Sequence[str], examples: Sequence[Example], world: World, memory: Memory
    ):
        self._examples, self._memory = examples, memory
        set_float32(world.device, exact=False)
        torch.manual_seed(config.train.seed)
        # Else a student that needs two images would be refused before it is tried with them.
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch=max(2, config.train.batch)))
        models = world.in_turn(lambda: build_models(config, classes, fresh=True, say=lambda line: None))
        if config.train.checkpoint_backbone:
            recompute_backbone(models.student.student)
        # Alone: a process whose memory is full must not keep the others waiting.
        self._step = Step(models.student, models.teacher, config, World(rank=0, size=1, device=world.device))
        self._step.model.train()
        self._average = Average(models.student.student, config.train.ema) if config.train.ema else None
        self._passes = min(2, config.train.accumulate)  # the second has the gradients of the first beside it

    def least(self) -> int:
        """The smallest batch that the student takes: 2 where a norm over the batch cannot learn from one image."""
        try:
            self.peak(1)
        except UserError:
            return 2
        return 1

    def largest(self, limit: int, most: int, least: int) -> int:
        """The largest batch from `least` to `most` that takes at most `limit` bytes; 0 if not even `least` does."""
        return largest(lambda batch: self.peak(batch) <= limit, most, least)

    def peak(self, batch: int) -> float:
        """The most memory that steps with so many images take, in bytes; infinite where there is not enough."""
        self._memory.forget()
        content = collate([self._examples[i % len(self._examples)] for i in range(batch)])
        try:
            for number in range(STEPS):
                self._step.take([content] * self._passes, number=number, lr=0.0)
        except (RuntimeError, MemoryError) as error:
            if not shortage(error):
                raise
            return math.inf
        return self._memory.peak()
