"""The decisions of a plan, one after the other: each changes the config where the user did not, and says why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from mgdet.config import Config, DataConfig, ScheduleConfig
from mgdet.data.dataset import DetectionDataset
from mgdet.data.records import Records
from mgdet.data.sampler import steps_in_epoch
from mgdet.detectors.face import Face
from mgdet.detectors.solo_targets import GRIDS
from mgdet.engine.schedule import check_given, scaled_lr, usual_drops
from mgdet.models.recognise import Recognised
from mgdet.planning.memory import measure_footprint, memory_for_training
from mgdet.planning.rules import (
    EDGE_DIVISOR,
    FEWEST_STEPS,
    MOST_EPOCHS,
    SHARE,
    Edges,
    at_scale,
    epochs_for,
    evaluation_interval,
    fitting_batch,
    stretched,
    within,
)

PUBLISHED_SIZE, PUBLISHED_CHANNELS, LEAST_AREA = (800, 1333), 256, 0.5
"""What the published weights are for: (h, w) of images, of which half the area will do, and the width of the necks."""
EDGES = {"data.long_edge", "data.short_edge"}


class Images(NamedTuple):
    """The data set of a plan.

    data: with the names of its splits.
    train: the images to train on.
    val: what is there to evaluate on.
    masks, val_masks: has the split masks, as far as they were asked for?
    line: what was found.
    """

    data: DataConfig
    train: DetectionDataset
    val: Records
    masks: bool
    val_masks: bool
    line: str


@dataclass(frozen=True)
class Decisions:
    """Changes a config in place. Every decision is one method, which returns a sentence for people.

    config: the run, with teacher, student, data set and the user's settings in place.
    recipe: the same before the user's settings.
    given: names of the settings that the user set.
    known: the teacher.
    images: the data set.
    processes: that train together.
    device: what each of them trains on.
    """

    config: Config
    recipe: Config
    given: frozenset[str]
    known: Recognised
    images: Images
    processes: int
    device: torch.device

    def methods(self) -> str:
        """MGD with its published weight, or with a share of the gradient where images or widths are others.

        Decided after the size of the images.
        """
        config, other = self.config, ""
        if config.mgd.weight and "mgd.weight" not in self.given and (other := self._not_published()):
            config.mgd.weight, config.mgd.share = 0.0, config.mgd.share or SHARE
        parts = []
        for name in config.methods:
            section = getattr(config, name)
            strength = (
                f"weight {section.weight:g}" if section.weight else f"{section.share:g} times the detector's gradient"
            )
            reason = f" ({other})" if other and name == "mgd" else ""
            masked = f"mask ratio {section.mask_ratio:g}, " if name == "mgd" else ""
            parts.append(f"{name}, {masked}{strength}{reason}")
        return "; ".join(parts) or "none: the student only inherits"

    def inherits(self) -> str:
        """Whether the student starts from the teacher's neck and head."""
        reason = self._cannot_inherit()
        if "inherit" not in self.given:
            self.config.inherit = not reason
        elif not self.config.inherit:
            reason = "as given"
        if not self.config.inherit:
            return f"nothing: {reason}"
        alike = self.config.student.detector == self.known.model.detector
        return "the teacher's neck and head" if alike else "the parts of neck and head that the teacher has, too"

    def _cannot_inherit(self) -> str:
        """Why the student cannot take over the teacher's neck and head; empty if it can."""
        student, teacher = self.config.student, self.known.model
        if student.source or teacher.source:
            return "only this package's own detectors can"
        if student.detector != teacher.detector:
            return f"a {student.detector} has another head than a {teacher.detector}"
        if not self._same_classes():
            return "the teacher knows other classes"
        if student.channels != teacher.channels:
            return f"the widths differ, {student.channels} and {teacher.channels}"
        if (student.grids or GRIDS) != (teacher.grids or GRIDS):
            return "the grids differ"
        return ""

    def _not_published(self) -> str:
        """Why the published weight of MGD does not apply; empty where it does. Its loss is a sum over cells."""
        config, known = self.config, self.known.model
        if "mgd.share" in self.given:
            return "as given" if config.mgd.share else ""
        if config.student.source or known.source:
            return "the published weight is for our own detectors"
        if {config.student.channels, known.channels} != {PUBLISHED_CHANNELS}:
            return f"the published weight is for necks of {PUBLISHED_CHANNELS} channels"
        height, width = _padded(config.data)
        if height * width < LEAST_AREA * PUBLISHED_SIZE[0] * PUBLISHED_SIZE[1]:
            return f"the published weight is for images of {PUBLISHED_SIZE[1]} x {PUBLISHED_SIZE[0]} pixels"
        return ""

    def _same_classes(self) -> bool:
        classes = self.images.train.classes
        if self.known.classes is None:
            return self.known.num_classes == len(classes)
        return self.known.classes == classes

    def size(self, native: tuple[int, int] | None) -> str:
        """The size of the images: the teacher's or the recipe's, but not above that of the images themselves.

        Args:
            native: the one (h, w) that the student takes; None for any.
        """
        data = self.config.data
        if native is not None and "data.square" not in self.given:
            data.square = native[0]
            return f"squares of {native[0]} pixels, the only size that the student takes"
        if data.square:
            return f"squares of {data.square} pixels, as given"
        if self.known.square and self._same_classes() and not (EDGES | {"data.square"}) & self.given:
            data.square = self.known.square
            return f"squares of {data.square} pixels, as the teacher was tested on"
        if self.given >= EDGES:
            return f"{_edges(data)}, as given"
        edges, why = self._edges()
        long, short = edges
        if "data.short_edge" in self.given:
            long, short, why = max(long, data.short_edge[1]), data.short_edge, "the shorter edge as given"
        if "data.long_edge" in self.given:
            long, why = data.long_edge, "the longer edge as given"
            short = (min(short[0], long), min(short[1], long))
        data.long_edge, data.short_edge = long, short
        return f"{_edges(data)}: {why}"

    def _edges(self) -> tuple[Edges, str]:
        known, data = self.known, self.recipe.data
        wanted, why = Edges(data.long_edge, data.short_edge), "the recipe's size"
        if known.long_edge and known.short_edge:
            wanted, why = at_scale(data, known.long_edge, known.short_edge), "the size that the teacher was tested at"
        if self._same_classes():
            return wanted, why
        fitted = within(wanted, *self._sizes())
        return fitted, why if fitted == wanted else "nine in ten images are no larger"

    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        images = self.images.train.images
        return np.array([image.width for image in images]), np.array([image.height for image in images])

    def batch(self, student: Face, teacher: Face | None) -> str:
        """Images per step: on a GPU those that the rate is meant for, on a CPU the recipe's few, if they fit.

        Args:
            student, teacher: with any weights, to estimate on how much memory a step takes.
        """
        config, train = self.config, self.config.train
        together = self.processes * train.accumulate
        if "train.batch" in self.given:
            return f"{self._per_step()}, as given"
        most = (
            max(1, config.optimizer.base_batch // together) if self.device.type == "cuda" else self.recipe.train.batch
        )
        memory = memory_for_training(self.device, self.processes)
        footprint = measure_footprint(config, student, teacher)
        size = _padded(config.data)

        def fits(images: int) -> bool:
            return memory is None or footprint.of(images, size) <= memory

        train.batch = fitting_batch(most, len(self.images.train), together=together, fits=fits)
        need = f"an estimated {footprint.of(train.batch, size) / 2**30:.1f} GiB of memory"
        have = f", of {memory / 2**30:.1f} that may be used" if memory else ""
        return f"{self._per_step()}, {need}{have}{'' if fits(train.batch) else ', which may be too little'}"

    def _per_step(self) -> str:
        train = self.config.train
        total = self._images_per_step()
        parts = [f"{train.batch}"]
        parts += [f"{train.accumulate} passes"] if train.accumulate > 1 else []
        parts += [f"{self.processes} processes"] if self.processes > 1 else []
        detail = f" ({' x '.join(parts)})" if len(parts) > 1 else ""
        return f"{total} {'image' if total == 1 else 'images'} per step{detail}"

    def _images_per_step(self) -> int:
        return self.config.train.batch * self.config.train.accumulate * self.processes

    def schedule(self) -> str:
        """How many epochs, when the rate falls, and how often is evaluated, for as many steps as the images make."""
        config, recipe, given = self.config, self._schedule_in_shape(), self.given
        steps = steps_in_epoch(self.images.train.portrait, self._images_per_step())
        epochs = config.schedule.epochs if "schedule.epochs" in given else epochs_for(recipe.epochs, steps)
        planned = stretched(recipe, epochs, steps)
        for name in ("epochs", "drops", "warmup_steps"):
            if f"schedule.{name}" not in given:
                setattr(config.schedule, name, getattr(planned, name))
        if "train.eval_every" not in given:
            config.train.eval_every = evaluation_interval(recipe.epochs, epochs)
        total = f"{_count(epochs, 'epoch')} of {_count(steps, 'step')}, {epochs * steps:,} in all"
        if "schedule.epochs" in given:
            why = "as given"
        elif epochs == recipe.epochs:
            why = "as in the recipe"
        else:
            why = f"the recipe's {recipe.epochs} would make {recipe.epochs * steps:,}, and "
            why += f"{FEWEST_STEPS:,} is the minimum"
            why += f", but {MOST_EPOCHS} epochs is the maximum" if epochs == MOST_EPOCHS else ""
        return f"{total}: {why}"

    def _schedule_in_shape(self) -> ScheduleConfig:
        """The recipe's schedule in the shape that is asked for: given drops ask for steps.

        Raises:
            UserError: a setting of the other shape is given.
        """
        schedule, recipe, given = self.config.schedule, self.recipe.schedule, self.given
        if schedule.drops and "schedule.drops" in given and "schedule.shape" not in given:
            schedule.shape = "steps"
        check_given(schedule, given)
        if schedule.shape == recipe.shape:
            return recipe
        return replace(recipe, drops=usual_drops(recipe.epochs) if schedule.shape == "steps" else ())

    def rate(self) -> str:
        """What the rate comes to for the images of a step; nothing is decided here."""
        optimizer, schedule, images = self.config.optimizer, self.config.schedule, self._images_per_step()
        falls = "falling as a cosine"
        if schedule.shape == "steps":
            after = " and ".join(map(str, schedule.drops))
            falls = f"divided by 10 after {_epochs(after, len(schedule.drops))}" if schedule.drops else "constant"
        rate = f"{optimizer.name} at {scaled_lr(optimizer, images):.3g}"
        return f"{rate} ({optimizer.lr:g} for {optimizer.base_batch} images), {falls}"


def _epochs(numbers: str, count: int) -> str:
    return f"epoch {numbers}" if count == 1 else f"epochs {numbers}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _edges(data: DataConfig) -> str:
    low, high = data.short_edge
    short = f"{low} to {high}" if low < high else f"{high}"
    return f"shorter edge {short} pixels, longer edge at most {data.long_edge}"


def _padded(data: DataConfig) -> tuple[int, int]:
    """The (h, w) of the largest image, padded."""
    if data.square:
        return data.square, data.square
    height, width = (-(-edge // EDGE_DIVISOR) * EDGE_DIVISOR for edge in (data.short_edge[1], data.long_edge))
    return height, width
