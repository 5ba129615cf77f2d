"""One training step: forward, backward, clip and update. The loop, the check and the benchmarks take this one."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from mgdet.config import Config, OptimizerConfig
from mgdet.data.batch import Batch
from mgdet.distributed import World
from mgdet.engine.schedule import scaled_lr
from mgdet.layers.winograd import quicken
from mgdet.methods.student import DistilledStudent, Measured
from mgdet.methods.teacher import Teacher
from mgdet.precision import autocast
from mgdet.structures import Pixels, Seen


class Outcome(NamedTuple):
    """What a step came to.

    losses: means over micro-batches and processes, the total `loss` first.
    grad_norm: L2 norm of all gradients before clipping; not finite where the step changed nothing.
    finite: are all losses, and but for an overflow of fp16 the norm?
    asked: was any process asked to stop?
    local: the losses of each micro-batch of this process.
    norms: of the gradients on the student's taps, means like the losses, where they were measured; see
        `mgdet.methods.balance.gradient_norms`.
    shares: of the methods in these, see `Balance.found`.
    """

    losses: dict[str, float]
    grad_norm: float
    finite: bool
    asked: bool
    local: list[dict[str, float]]
    norms: dict[str, float]
    shares: dict[str, float]


class Step:
    """Everything that one step needs, ready on the device.

    A step whose losses or gradient are not finite changes no weight and no state of the optimizer, in any precision;
    statistics of batch norms that train have seen its batch. The device is waited for once, at the end.

    Args:
        student: the detector and its methods; moved to the device.
        teacher: None for a student that learns alone.
        config: the run.
        world: this process among the others.
    """

    def __init__(self, student: DistilledStudent, teacher: Teacher | None, config: Config, world: World):
        self.config, self.world = config, world
        self.student = student.to(world.device).to(memory_format=torch.channels_last)
        quicken(self.student)
        self.teacher = teacher
        if teacher is not None:
            teacher.to(world.device).to(memory_format=torch.channels_last)
        self.images_per_step = config.train.batch * config.train.accumulate * world.size
        self.lr = scaled_lr(config.optimizer, self.images_per_step)
        self.parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(config.optimizer, self.student, lr=self.lr)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.amp == "fp16")
        self.model: nn.Module = self.student
        if world.size > 1:
            # It warns where a gradient of a 1x1 convolution comes in another, equivalent order in memory.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            # Constants would travel with every forward; what norms gather is shared where it is read or saved. Newer
            # versions of torch warn of this name and have no other that leaves buffers alone.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            self.model = DistributedDataParallel(
                self.student,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,
            )

    def take(
        self,
        batches: Sequence[Batch],
        *,
        number: int,
        lr: float,
        stop: Callable[[], bool] = lambda: False,
        measure: bool = False,
    ) -> Outcome:
        """Takes one step on its micro-batches.

        Args:
            batches: `train.accumulate` micro-batches.
            number: of the step, from 0; every random draw is a function of it, of the seed and of the rank.
            lr: the learning rate.
            stop: says at the end of the step whether this process was asked to stop.
            measure: also measure how hard each loss pulls on the student's maps. While the weights of methods with a
                share are found every step does.
        """
        self._seed(number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        self.optimizer.zero_grad(set_to_none=True)
        balance = self.student.balance
        measure = bool(balance.levels) and (measure or balance.measuring)
        parts = [self._forward_backward(batch, last=batch is batches[-1], measure=measure) for batch in batches]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

        names, measured = list(parts[0].losses), list(parts[0].norms)
        stacked = torch.stack([torch.stack([*losses.values(), *norms.values()]) for losses, norms in parts])
        asked = torch.full((1,), float(stop()), device=stacked.device)
        means = self.world.mean(torch.cat([stacked.mean(dim=0), asked]))
        self._update(means[: len(names)], norm)
        scale = self.scaler.scale(means.new_ones(1))
        # The one wait for the device.
        *values, asked_share, norm_value, scale_value = torch.cat([means, norm.reshape(1).to(means), scale]).tolist()
        values, norms = values[: len(names)], dict(zip(measured, values[len(names) :]))
        finite = all(map(math.isfinite, values)) and (math.isfinite(norm_value) or self._can_fall(scale_value))
        local = [dict(zip(names, row)) for row in stacked.tolist()] if not finite else []
        shares = balance.found(norms) if norms else {}  # with the weights of this step
        if finite and norms:
            balance.take(norms)
        return Outcome(dict(zip(names, values)), norm_value, finite, asked_share > 0, local, norms, shares)

    def _update(self, means: Tensor, norm: Tensor) -> None:
        """Clips and updates, unless a loss or the norm is not finite; which it is, only the device knows yet."""
        finite = norm.isfinite()
        # Gradients that are not finite stay as they are, so that it can be said which ones they are.
        nn.utils.clip_grads_with_norm_(self.parameters, self.config.optimizer.clip_norm, torch.where(finite, norm, 0))
        bad = (~(means.isfinite().all() & finite)).float()
        # Not by the scaler's own step: that one would ask the gradients alone.
        self.optimizer.grad_scale, self.optimizer.found_inf = None, bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()

    def _forward_backward(self, batch: Batch, *, last: bool, measure: bool) -> Measured:
        """The losses of one micro-batch, their sum first, and what was measured; gradients join with the `last`."""
        face = self.student.student
        batch = batch.to(self.world.device, non_blocking=True).fitted(face.multiple, face.native_size)
        images = batch.images(face.pixels).contiguous(memory_format=torch.channels_last)
        apart = not last and isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if apart else contextlib.nullcontext():  # type: ignore[operator]
            with self.autocast():
                shown = self.show(batch, images)
                if measure:
                    losses, norms = self.model(images, batch.targets, shown, measure=True)
                else:
                    losses, norms = self.model(images, batch.targets, shown), {}
            total = torch.stack(list(losses.values())).sum()
            self.scaler.scale(total / self.config.train.accumulate).backward()
        return Measured({"loss": total.detach()} | {name: value.detach() for name, value in losses.items()}, norms)

    def show(self, batch: Batch, images: Tensor) -> Seen | tuple[Tensor, ...]:
        """What the teacher shows of a batch, on its own canvas and with its own normalisation; nothing without one.

        Args:
            batch: on the device.
            images: (B, 3, H, W), the batch as the student takes it.
        """
        if self.teacher is None or self.config.teacher is None:
            return ()
        own = self.student.student.pixels
        return show(self.teacher, self.config.teacher.canvas, batch, images, own, outputs=self.student.reads_outputs)

    def autocast(self) -> torch.autocast:
        """The context in which losses are computed."""
        return autocast(self.world.device, self.config.train.amp)

    def _can_fall(self, scale: float) -> bool:
        """In fp16 a gradient that overflows skips its step and halves the scale; below 1 that is no cure any more."""
        return self.scaler.is_enabled() and scale >= 1.0

    def _seed(self, number: int) -> None:
        """Every random draw of a step is a function of seed, step and rank: resuming needs no generator's state."""
        sequence = np.random.SeedSequence((self.config.train.seed, number, self.world.rank))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def show(
    teacher: Teacher,
    wanted: tuple[int, int],
    batch: Batch,
    images: Tensor,
    pixels: Pixels,
    *,
    outputs: bool = False,
) -> Seen:
    """What a teacher shows of a batch, on its own canvas and with its own normalisation.

    Args:
        teacher: on the device of the batch.
        wanted: `teacher.canvas` of the config.
        batch: what `images` were made of.
        images: (B, 3, H, W), the batch as the student takes it.
        pixels: the normalisation of `images`.
        outputs: also run the teacher's head.
    """
    face, size, sizes = teacher.detector, (images.shape[2], images.shape[3]), batch.sizes
    canvas = teacher_canvas(size, wanted, face.native_size, face.multiple)
    if face.pixels != pixels or canvas != size:
        images, sizes = batch.images_on(canvas, face.pixels)
        images = images.contiguous(memory_format=torch.channels_last)
    return teacher.see(images, sizes, outputs=outputs)


def teacher_canvas(
    size: tuple[int, int], wanted: tuple[int, int], native: tuple[int, int] | None, multiple: int
) -> tuple[int, int]:
    """The (h, w) of the images that a teacher sees: its native size, or a multiple near the wanted one."""
    if native is not None:
        return native
    height, width = wanted if wanted != (0, 0) else size
    return max(1, round(height / multiple)) * multiple, max(1, round(width / multiple)) * multiple


def make_optimizer(config: OptimizerConfig, student: DistilledStudent, *, lr: float) -> Optimizer:
    """The optimizer that a config section describes, over everything that trains.

    It is fused: such an optimizer can leave out an update that the device finds to be not finite. There is one group
    of parameters, and a second one for the backbone where its share of the rate is not 1; `share` is in each group.
    """
    prefixes = tuple(f"student.{prefix}" for prefix in student.student.backbone_prefixes)
    trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    if config.backbone_share == 1:
        groups = [{"params": [p for _, p in trained], "share": 1.0}]
    else:
        groups = [
            {"params": [p for name, p in trained if not name.startswith(prefixes)], "share": 1.0},
            {"params": [p for name, p in trained if name.startswith(prefixes)], "share": config.backbone_share},
        ]
        groups = [group for group in groups if group["params"]]
    optimizer: Optimizer
    if config.name == "adamw":
        optimizer = AdamW(groups, lr=lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay, fused=True)
    else:
        optimizer = SGD(groups, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)
        if config.momentum:  # what a first step that is left out would otherwise leave undefined
            for _, p in trained:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def load_optimizer(optimizer: Optimizer, state: dict) -> None:
    """Restores an optimizer; what an earlier version did not store keeps its value."""
    kept = [{name: group[name] for name in ("fused", "share")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, kept):
        group.update(values, foreach=None)
