"""The run, top to bottom: data, teacher and student from one config, then step by step to the last epoch."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from mgdet.config import Config, OptimizerConfig
from mgdet.data.batch import Batch
from mgdet.data.coco import CocoDataset
from mgdet.data.loader import train_loader
from mgdet.data.pictures import depth_notes
from mgdet.data.sampler import TrainSampler
from mgdet.detectors.build import detector_class
from mgdet.distributed import World
from mgdet.engine.checkpoint import (
    BEST_FILE,
    LAST_FILE,
    State,
    alone_in,
    check_all_see_it,
    find_run,
    make_folder,
    write_config,
)
from mgdet.engine.logging import RunLog
from mgdet.engine.memory import peak_memory
from mgdet.engine.nonfinite import stop_nonfinite
from mgdet.engine.schedule import learning_rate, scaled_lr
from mgdet.engine.signals import Interrupted, StopRequest
from mgdet.errors import Stalled, UserError
from mgdet.evaluate.coco import check_truth, evaluate, run_detector
from mgdet.interop.weights import save_checkpoint
from mgdet.models import Models, build_models

AMP_TYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

IMAGES_BETWEEN_ASKING = 4
"""An evaluation asks that often whether to stop: all processes together, so not at every image."""


def train(config: Config, folder: Path, *, resume: bool, world: World) -> int:
    """Trains a student, with a teacher or alone, and leaves everything in `folder`.

    Args:
        config: the run.
        folder: the run's folder.
        resume: go on with the run in `folder`, or start it if it has not come to its first save.
        world: this process among the others.

    Returns:
        0 when the schedule, or the asked part of it, is done; 128 + the signal that stopped the run.

    Raises:
        UserError: bad input, said in one sentence.
        TrainingError: a loss or the gradient is not finite, or images stopped coming.
    """
    config.check_together()
    train_data, val_data = open_data(config)
    state = find_run(folder, config, resume=resume)
    step, evaluated = (state.step, state.evaluated) if state else (0, True)
    check_all_see_it(folder, world.gather(step))
    sampler = TrainSampler(
        train_data.portrait,
        batch=config.train.batch,
        accumulate=config.train.accumulate,
        rank=world.rank,
        world_size=world.size,
        seed=config.train.seed,
        long_edge=config.data.long_edge,
        short_edge=config.data.short_edge,
        short_edge_step=config.data.short_edge_step,
        flip=config.data.flip,
        start_step=step,
    )
    if state is not None:
        state.check(
            folder,
            images_per_step=config.train.batch * config.train.accumulate * world.size,
            steps_per_epoch=sampler.steps_per_epoch,
            classes=train_data.classes,
        )
    first = [train_data.folder / image.file_name for image in train_data.images[:8]]
    notes = [*train_data.notes, *depth_notes(first)]
    torch.manual_seed(config.train.seed)
    models = world.in_turn(lambda: build_models(config, train_data.classes, fresh=state is None, say=notes.append))
    if state is not None:
        state.check_teacher(folder, models.teacher_sha256)
    # Nothing is written before here: what is wrong with the input has been said.
    make_folder(folder)
    with (
        alone_in(folder) if world.main else contextlib.nullcontext(),
        RunLog(
            folder,
            title=_title(config, folder, world),
            total_steps=config.schedule.epochs * sampler.steps_per_epoch,
            start_step=step,
            evaluated=evaluated,
            enabled=world.main,
            tensorboard=config.train.tensorboard,
            wandb=config.train.wandb,
        ) as log,
        StopRequest() as stop,
    ):
        if world.main:
            write_config(folder, config)
        for note in notes:
            log.message(note)
        run = Run(config, folder, world, log, stop, models, val_data, sampler.steps_per_epoch, state)
        if state is None:
            run.save_state()  # from here on a run without its state has lost it
        state = None  # it is as large as the models and the optimizer
        loader = train_loader(
            train_data,
            sampler,
            workers=config.data.workers,
            pin=world.device.type == "cuda",
            stopping=lambda: stop.signal > 0,
        )
        with contextlib.closing(loader):
            try:
                run.to_the_end(loader)
            except (Interrupted, Stalled) as reason:
                run.save()
                if isinstance(reason, Stalled) and (not stop.signal or world.size > 1):
                    raise  # the other processes wait in the middle of a step
                log.message(f"stopped by {stop.name} after step {run.step:,}; all is saved, --resume goes on from here")
        world.barrier()
    return 128 + stop.signal if stop.signal else 0


def open_data(config: Config) -> tuple[CocoDataset, CocoDataset]:
    """The data sets to train and to evaluate on.

    Raises:
        UserError: files are missing or not COCO's, the two have other classes, or masks are to be measured where the
            detector or the annotations have none.
    """
    root, masks = Path(config.data.root), detector_class(config.student.detector).has_masks
    if "segm" in config.train.metrics and not masks:
        raise UserError(f"train.metrics has segm, but a {config.student.detector} finds only boxes; choose bbox")
    train_data = CocoDataset(
        root / config.data.train_annotations, root / config.data.train_images, training=True, masks=masks
    )
    val_data = CocoDataset(root / config.data.val_annotations, root / config.data.val_images, training=False)
    check_truth(val_data.annotations, config.train.metrics)
    if train_data.classes != val_data.classes:
        raise UserError(
            f"{train_data.annotations} has {len(train_data.classes)} classes and {val_data.annotations} other ones "
            f"({len(val_data.classes)}); both files must declare the same categories"
        )
    return train_data, val_data


def make_optimizer(config: OptimizerConfig, parameters: list[nn.Parameter], *, lr: float) -> Optimizer:
    """The optimizer that a config section describes, over one parameter group."""
    if config.name == "adamw":
        return AdamW(parameters, lr=lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay)
    return SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _title(config: Config, folder: Path, world: World) -> str:
    teacher = f"{config.teacher.detector} {config.teacher.backbone} teaches " if config.teacher else ""
    processes = f"{world.size} processes on {world.device.type}" if world.size > 1 else str(world.device)
    return f"{folder.name}: {teacher}{config.student.detector} {config.student.backbone}, {processes}"


class Run:
    """A run in motion."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        world: World,
        log: RunLog,
        stop: StopRequest,
        models: Models,
        val_data: CocoDataset,
        steps_per_epoch: int,
        state: State | None,
    ):
        self.config, self.folder, self.world, self.log, self.stop = config, folder, world, log, stop
        self.val_data, self.steps_per_epoch = val_data, steps_per_epoch
        self.images_per_step = config.train.batch * config.train.accumulate * world.size
        self.total_steps = config.schedule.epochs * steps_per_epoch
        self.lr = scaled_lr(config.optimizer, self.images_per_step)
        log.message(
            f"learning rate {self.lr:g} for {self.images_per_step} images a step "
            f"({config.optimizer.lr:g} for {config.optimizer.base_batch})"
        )
        self.student = models.student.to(world.device).to(memory_format=torch.channels_last)
        self.teacher = models.teacher
        if self.teacher is not None:
            self.teacher.to(world.device).to(memory_format=torch.channels_last)
        self.teacher_sha256 = models.teacher_sha256
        self.parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(config.optimizer, self.parameters, lr=self.lr)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.amp == "fp16")
        self.step, self.evaluated, self.best, self.sums = 0, True, -1.0, dict[str, float]()
        if state is not None:
            self._restore(state)
        self.model: nn.Module = self.student
        if world.size > 1:
            # It warns where a gradient of a 1x1 convolution comes in another, equivalent order in memory.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            self.model = DistributedDataParallel(
                self.student,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    def to_the_end(self, loader: Iterator[Batch]) -> None:
        """Takes every step that is left, with a log line, an evaluation and a save where they are due.

        Raises:
            Interrupted: a signal came; nothing of the current step is half done.
        """
        train, last = self.config.train, self.total_steps
        if train.stop_after:
            last = min(last, train.stop_after)
        if not self.evaluated:
            self._evaluate()
        self.model.train()
        self._restart_clock()
        while self.step < last:
            stopping = self._take_step(loader)
            ends_epoch = self.step % self.steps_per_epoch == 0
            if self.step % train.log_every == 0 or self.step == self.total_steps:
                self._log()
            self.evaluated = not (ends_epoch and self._evaluation_is_due())
            if stopping:
                raise Interrupted
            if ends_epoch or self.step % train.save_every == 0 or self.step == last:
                self.save()
                if not self.evaluated:
                    self._evaluate()
                    self.model.train()
                self._restart_clock()
        left = self.total_steps - self.step
        self.log.message(
            f"stopped after step {self.step:,} as asked, {left:,} are left; --resume goes on from here"
            if left
            else f"done; the student is {self.folder / LAST_FILE}"
        )

    def _take_step(self, loader: Iterator[Batch]) -> bool:
        """Forward, backward, update. Returns whether any process was asked to stop."""
        config = self.config
        self._seed_step()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        started = time.perf_counter()
        batches = [next(loader) for _ in range(config.train.accumulate)]
        self._waited += time.perf_counter() - started

        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._forward_backward(batch, last=batch is batches[-1]) for batch in batches]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

        # One exchange and one wait a step: the mean losses, the norm, and whether somebody wants to stop.
        stacked = torch.stack([torch.stack(list(values.values())) for values in losses])
        asked = stacked.new_tensor([float(self.stop.signal > 0)])
        *means, asked_share = self.world.mean(torch.cat([stacked.mean(dim=0), asked])).tolist()
        values = dict(zip(losses[0], means))
        if not all(map(math.isfinite, means)) or not (math.isfinite(norm.item()) or self._scale_can_fall()):
            local = [dict(zip(losses[0], row)) for row in stacked.tolist()]
            stop_nonfinite(
                self.student,
                batches,
                local,
                step=self.step + 1,
                folder=self.folder,
                world=self.world,
                autocast=self._autocast,
            )
        nn.utils.clip_grads_with_norm_(self.parameters, config.optimizer.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

        self.step += 1
        self.log.tick(self.step)
        values["steps"] = 1.0
        if math.isfinite(norm.item()):  # in fp16 a step that overflows has none, and changed nothing
            values |= {"grad_norm": norm.item(), "updates": 1.0}
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return asked_share > 0

    def _forward_backward(self, batch: Batch, *, last: bool) -> dict[str, Tensor]:
        """The losses of one micro-batch, their sum first; gradients join over processes with the `last`."""
        batch = batch.to(self.world.device, non_blocking=True)
        images = batch.images().contiguous(memory_format=torch.channels_last)
        apart = not last and isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if apart else contextlib.nullcontext():  # type: ignore[operator]
            with self._autocast():
                taps = self.teacher(images) if self.teacher is not None else ()
                losses: dict[str, Tensor] = self.model(images, batch.targets, taps)
            total = torch.stack(list(losses.values())).sum()
            self.scaler.scale(total / self.config.train.accumulate).backward()
        return {"loss": total.detach()} | {name: value.detach() for name, value in losses.items()}

    def _autocast(self) -> torch.autocast:
        amp = self.config.train.amp
        return torch.autocast(self.world.device.type, dtype=AMP_TYPES[amp], enabled=amp != "off")

    def _scale_can_fall(self) -> bool:
        """In fp16 a gradient that overflows skips its step and halves the scale; below 1 that is no cure any more."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1.0

    def _rate(self) -> float:
        return learning_rate(self.step, lr=self.lr, steps_per_epoch=self.steps_per_epoch, config=self.config.schedule)

    def _seed_step(self) -> None:
        """Every random draw of a step is a function of seed, step and rank: resuming needs no generator's state."""
        words = np.random.SeedSequence((self.config.train.seed, self.step, self.world.rank)).generate_state(
            1, np.uint64
        )
        torch.manual_seed(int(words[0]))

    def _restart_clock(self) -> None:
        self._clock, self._waited, self._clock_step = time.perf_counter(), 0.0, self.step

    def _log(self) -> None:
        """One log point: means since the last one. The rate is that of the step just taken."""
        count, steps = self.sums.pop("steps"), self.step - self._clock_step
        updates = self.sums.pop("updates", 0.0)
        grad_norm = self.sums.pop("grad_norm") / updates if updates else math.nan
        means = {name: value / count for name, value in self.sums.items()}
        seconds = time.perf_counter() - self._clock
        self.log.step(
            self.step,
            epoch=self.step / self.steps_per_epoch,
            grad_norm=grad_norm,
            losses=means,
            lr=self.optimizer.param_groups[0]["lr"],
            images_per_second=steps * self.images_per_step / seconds,
            data_seconds=self._waited / steps,
            memory_gib=peak_memory(self.world.device),
        )
        self.sums = {}
        self._restart_clock()

    def _evaluation_is_due(self) -> bool:
        every, epoch = self.config.train.eval_every, self.step // self.steps_per_epoch
        return every > 0 and (epoch % every == 0 or self.step == self.total_steps)

    def _evaluate(self) -> None:
        """Scores the student, keeps it if it is the best so far, and notes that this is done."""
        data, metrics = self.config.data, self.config.train.metrics
        everyone_has = len(self.val_data) // self.world.size
        self.world.share_buffers(self.student)

        def progress(done: int, total: int) -> None:
            self.log.activity("evaluating", done, total)
            if done % IMAGES_BETWEEN_ASKING == 0 and done <= everyone_has and self._somebody_stops():
                raise Interrupted

        results = run_detector(
            self.student.student,
            self.val_data,
            long_edge=data.long_edge,
            short_edge=data.short_edge[1],
            device=self.world.device,
            amp=self.config.train.amp,
            workers=data.workers,
            rank=self.world.rank,
            world_size=self.world.size,
            progress=progress,
        )
        if results is not None:
            scores = evaluate(self.val_data.annotations, results, metrics)
            for metric in metrics:
                self.log.evaluation(self.step, metric, scores[metric].stats)
            score = scores[metrics[0]].stats["AP"]
            if score > self.best:
                self.best = score
                self._save_student(BEST_FILE)
        self.evaluated = True
        self.save_state()

    def _somebody_stops(self) -> bool:
        """Was any process asked to stop? All call it together."""
        return bool(self.world.mean(torch.tensor(float(self.stop.signal > 0), device=self.world.device)) > 0)

    def save(self) -> None:
        """Saves the student and then the run: a run that dies between the two saves its student again."""
        if self.world.main:
            self._save_student(LAST_FILE)
        self.save_state()

    def _save_student(self, name: str) -> None:
        save_checkpoint(
            self.folder / name,
            self.student.student.state_dict(),
            classes=self.val_data.classes,
            config=self.config.to_dict(),
        )

    def save_state(self) -> None:
        """Saves the run without its student's file."""
        if self.world.main:
            State(
                step=self.step,
                images_per_step=self.images_per_step,
                steps_per_epoch=self.steps_per_epoch,
                classes=list(self.val_data.classes),
                model=self.student.state_dict(),
                optimizer=self.optimizer.state_dict(),
                scaler=self.scaler.state_dict(),
                teacher_sha256=self.teacher_sha256,
                evaluated=self.evaluated,
                best=self.best,
                sums=self.sums,
            ).save(self.folder)

    def _restore(self, state: State) -> None:
        self.student.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.scaler.load_state_dict(state.scaler)
        self.step, self.evaluated, self.best, self.sums = state.step, state.evaluated, state.best, state.sums
        self.log.message(f"resumed after step {self.step:,} of {self.total_steps:,}")
