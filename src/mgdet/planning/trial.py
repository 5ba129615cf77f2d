"""One step of a run on its own first images, taken by the loop's own `Step` and undone."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from mgdet.data.batch import Batch, collate
from mgdet.distributed import World
from mgdet.engine.memory import memory_now, peak_memory
from mgdet.engine.prepare import Prepared
from mgdet.engine.schedule import learning_rate, scaled_lr
from mgdet.engine.step import Outcome, Step
from mgdet.methods.student import DistilledStudent

MOST_STEPS = 3
"""Steps that are timed: the first one also measures, and prepares what the others find done."""
LONG_RUN = 600.0
"""Seconds from which on it matters how long a run takes."""


@dataclass(slots=True)
class Trial:
    """What a step came to.

    images: in its batch.
    outcome: losses and gradients of the first step.
    unreached: names of trained parameters that got no gradient.
    seconds: of the fastest step that was taken.
    reading: seconds to read one image.
    before: GiB in use before the steps.
    peak: GiB in use at most.
    state_bytes: of the student, the methods and the optimizer, as a run saves them.
    """

    images: int
    outcome: Outcome
    unreached: list[str]
    seconds: float
    reading: float
    before: float
    peak: float
    state_bytes: int


def first_batch(prepared: Prepared, images: int) -> tuple[Batch, float]:
    """The first images of the run as its first step sees them, and the seconds that one of them took to read."""
    views = next(iter(prepared.sampler))[:images]
    started = time.perf_counter()
    examples = [prepared.train_data[view] for view in views]
    return collate(examples), (time.perf_counter() - started) / len(examples)


def try_step(prepared: Prepared, batch: Batch, reading: float, *, bf16: bool = False, seconds: float = 0.0) -> Trial:
    """Takes the first step of the run, with one micro-batch, and undoes it.

    Args:
        prepared: the run; its student ends as it was, and so do the random numbers.
        batch: on the CPU.
        reading: seconds to read one image, to be noted.
        bf16: with `train.amp` bf16, whatever the run has.
        seconds: further steps are taken as long as they end within this, where the run is long.
    """
    config, device = prepared.config, prepared.world.device
    images = config.train.batch * config.train.accumulate * prepared.processes
    lr = scaled_lr(config.optimizer, images)
    # A step divides its losses by its micro-batches, and here is one.
    config = replace(config, train=replace(config.train, accumulate=1, amp="bf16" if bf16 else config.train.amp))
    student = prepared.models.student
    with undone(student, device):
        stepper = Step(student, prepared.models.teacher, config, World(rank=0, size=1, device=device))
        stepper.model.train()
        rate = learning_rate(0, lr=lr, steps_per_epoch=prepared.sampler.steps_per_epoch, config=config.schedule)
        before = memory_now(device)
        times, outcome = list[float](), None
        while not times or (
            len(times) < MOST_STEPS and sum(times) + times[-1] <= seconds and is_long(prepared, times[-1])
        ):
            started = time.perf_counter()
            found = stepper.take([batch], number=0, lr=rate, measure=outcome is None)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
            outcome = outcome or found
        assert outcome is not None
        return Trial(
            images=len(batch.files),
            outcome=outcome,
            unreached=[name for name, p in student.named_parameters() if p.requires_grad and p.grad is None],
            seconds=min(times),
            reading=reading,
            before=before,
            peak=peak_memory(device),
            state_bytes=size_of(student.state_dict()) + size_of(stepper.optimizer.state_dict()["state"]),
        )


def is_long(prepared: Prepared, step: float) -> bool:
    """Does a run take so long that it matters, at so many seconds per step?"""
    return step * prepared.config.schedule.epochs * prepared.sampler.steps_per_epoch >= LONG_RUN


@contextmanager
def undone(student: DistilledStudent, device: torch.device) -> Iterator[None]:
    """Brings back everything of a student, and of the random numbers, that is changed inside."""
    state = {name: value.detach().clone() for name, value in student.state_dict().items()}
    balance, flags = copy.deepcopy(student.balance), {module: module.training for module in student.modules()}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            student.load_state_dict(state)
            student.balance = balance
            for module, training in flags.items():
                module.training = training
            for parameter in student.parameters():
                parameter.grad = None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def size_of(values: Any) -> int:
    """Bytes of all tensors inside of dicts and lists."""
    if isinstance(values, torch.Tensor):
        return values.numel() * values.element_size()
    if isinstance(values, dict):
        values = list(values.values())
    return sum(map(size_of, values)) if isinstance(values, list | tuple) else 0
