"""The run, top to bottom: data, teacher and student from one config, then step by step to the last epoch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from mgdet.config import Config, ModelConfig
from mgdet.data.batch import Batch
from mgdet.data.dataset import DetectionDataset
from mgdet.data.loader import train_loader
from mgdet.detectors.face import Face
from mgdet.distributed import World
from mgdet.engine.ahead import ahead
from mgdet.engine.checkpoint import BEST_FILE, LAST_FILE, State, alone_in, write_config
from mgdet.engine.compiled import compile_pyramids
from mgdet.engine.ema import Average
from mgdet.engine.logging import RunLog
from mgdet.engine.memory import peak_memory
from mgdet.engine.nonfinite import stop_nonfinite
from mgdet.engine.prepare import Prepared, prepare
from mgdet.engine.schedule import learning_rate
from mgdet.engine.signals import Interrupted, StopRequest
from mgdet.engine.step import Step, load_optimizer
from mgdet.engine.trackers import open_trackers
from mgdet.errors import Stalled
from mgdet.evaluate.coco import evaluate, run_detector
from mgdet.files import make_folder
from mgdet.interop.weights import save_checkpoint
from mgdet.models import Models, describe
from mgdet.precision import slow_types


def train(
    config: Config,
    folder: Path,
    *,
    resume: bool,
    world: World,
    fit_batch: bool = False,
    check: Callable[[Prepared], None] | None = None,
) -> int:
    """Trains a student, with a teacher or alone, and leaves everything in `folder`.

    Args:
        config: the run.
        folder: the run's folder.
        resume: resume the run in `folder`, or start it if it has not come to its first save.
        world: this process among the others.
        fit_batch: replace `train.batch` by the largest number that fits on the GPU.
        check: looks at a run that starts, in every process, before anything is written; it may raise a `UserError`
            and must leave the models as they were.

    Returns:
        0 when the schedule, or the asked part of it, is done; 128 + the signal that stopped the run.

    Raises:
        UserError: bad input, said in one sentence.
        TrainingError: a loss or the gradient is not finite, or images stopped coming.
    """
    prepared = prepare(config, folder, resume=resume, world=world, fit_batch=fit_batch)
    config, state, sampler = prepared.config, prepared.state, prepared.sampler
    step = state.step if state is not None else 0
    models, train_data, val_data = prepared.models, prepared.train_data, prepared.val_data
    if check is not None and state is None:
        check(prepared)
    notes = [*prepared.data_notes, *prepared.model_notes, *prepared.schedule_notes]
    notes += slow_types(config, world.device)
    if config.train.compile:
        notes += compile_pyramids(models.student, models.teacher)
    # Nothing is written before here: what is wrong with the input has been said.
    make_folder(folder)
    with (
        alone_in(folder) if world.main else contextlib.nullcontext(),
        RunLog(
            folder,
            title=_title(config, folder, world),
            total_steps=config.schedule.epochs * sampler.steps_per_epoch,
            start_step=step,
            evaluated=state is None or state.evaluated,
            enabled=world.main,
            trackers=lambda: open_trackers(config.train, folder, step, config.to_dict()),
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
        prepared.state = state = None  # it is as large as the models and the optimizer
        loader = train_loader(
            train_data,
            sampler,
            workers=config.data.workers,
            pin=world.device.type == "cuda",
            stopping=lambda: stop.signal > 0,
        )
        with contextlib.closing(loader):
            try:
                run.to_the_end(ahead(loader, world.device))
            except (Interrupted, Stalled) as reason:
                run.save()
                if isinstance(reason, Stalled) and (not stop.signal or world.size > 1):
                    raise  # the other processes wait in the middle of a step
                log.message(f"stopped by {stop.name} after step {run.step:,}; all is saved, --resume goes on from here")
        world.barrier()
    return 128 + stop.signal if stop.signal else 0


def _title(config: Config, folder: Path, world: World) -> str:
    teacher = f"{_name(config.teacher)} teaches " if config.teacher else ""
    processes = f"{world.size} processes on {world.device.type}" if world.size > 1 else str(world.device)
    return f"{folder.name}: {teacher}{_name(config.student)}, {processes}"


def _name(model: ModelConfig) -> str:
    return f"{model.detector} {model.backbone}".rstrip()


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
        val_data: DetectionDataset,
        steps_per_epoch: int,
        state: State | None,
    ):
        self.config, self.folder, self.world, self.log, self.stop = config, folder, world, log, stop
        self.val_data, self.steps_per_epoch = val_data, steps_per_epoch
        self.total_steps = config.schedule.epochs * steps_per_epoch
        self.student, self.teacher_sha256 = models.student, models.teacher_sha256
        self.stepper = Step(models.student, models.teacher, config, world)
        log.message(
            f"learning rate {self.stepper.lr:g} for {self.stepper.images_per_step} images per step "
            f"({config.optimizer.lr:g} for {config.optimizer.base_batch})"
        )
        self.step, self.evaluated, self.sums = 0, True, dict[str, float]()
        self.best, self.stale = -1.0, 0
        self.average = Average(self.student.student, config.train.ema) if config.train.ema else None
        self.shares = dict[str, float]()
        if state is not None:
            self._restore(state)
        self.model = self.stepper.model

    @property
    def result(self) -> Face:
        """The detector that the run is for: the student, or the average of its weights."""
        result: Face = self.average.detector if self.average else self.student.student
        return result

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
        while self.step < last and not self._has_settled():
            stopping = self._take_step(loader)
            ends_epoch = self.step % self.steps_per_epoch == 0
            if self._is_logged(self.step):
                self._log()
            self.evaluated = not (ends_epoch and self._evaluation_is_due())
            saving = ends_epoch or self.step % train.save_every == 0 or self.step == last
            if stopping or saving:
                self._share_buffers()  # all go on with those that are saved
            if stopping:
                raise Interrupted
            if saving:
                self.save()
                if not self.evaluated:
                    self._evaluate()
                    self.model.train()
                self._restart_clock()
        self.log.message(self._ending())

    def _ending(self) -> str:
        """Why no more steps are taken, and what to do about it."""
        left, train = self.total_steps - self.step, self.config.train
        if not left:
            return f"done; the student is {self.folder / LAST_FILE}"
        if self._has_settled():
            last = "the last evaluation" if self.stale == 1 else f"the last {self.stale} evaluations"
            return (
                f"stopped after step {self.step:,}, {left:,} are left: {train.metrics[0]} AP has not risen in {last}; "
                f"the best student, with {self.best:.3f}, is {self.folder / BEST_FILE}; "
                f"--resume with --train.patience {2 * train.patience} goes on from here"
            )
        return f"stopped after step {self.step:,} as asked, {left:,} are left; --resume goes on from here"

    def _has_settled(self) -> bool:
        """Have the last `train.patience` evaluations brought nothing better?"""
        return 0 < self.config.train.patience <= self.stale and self.best >= 0

    def _share_buffers(self) -> None:
        """Gives every process the first one's statistics of norms."""
        self.world.share_buffers(self.student)
        if self.average is not None:
            self.world.share_buffers(self.average.detector)

    def _is_logged(self, step: int) -> bool:
        return step % self.config.train.log_every == 0 or step == self.total_steps

    def _take_step(self, loader: Iterator[Batch]) -> bool:
        """Forward, backward, update. Returns whether any process was asked to stop."""
        started = time.perf_counter()
        batches = [next(loader) for _ in range(self.config.train.accumulate)]
        self._waited += time.perf_counter() - started
        balance = self.student.balance
        balancing = balance.measuring
        outcome = self.stepper.take(
            batches,
            number=self.step,
            lr=self._rate(),
            stop=lambda: self.stop.signal > 0,
            measure=self._is_logged(self.step + 1),
        )
        if not outcome.finite:
            stop_nonfinite(
                self.student,
                batches,
                outcome.local,
                step=self.step + 1,
                folder=self.folder,
                world=self.world,
                autocast=self.stepper.autocast,
            )
        self.step += 1
        self.log.tick(self.step)
        self.shares = {f"share_{name}": share for name, share in outcome.shares.items()}
        if balancing and not balance.measuring:
            self._say_weights()
        values = outcome.losses | {"steps": 1.0}
        if math.isfinite(outcome.grad_norm):  # in fp16 a step that overflows has none, and changed nothing
            values |= {"grad_norm": outcome.grad_norm, "updates": 1.0}
            if self.average is not None:
                self.average.update()
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return outcome.asked

    def _say_weights(self) -> None:
        for line in self.student.balance.lines():
            self.log.message(line)

    def _rate(self) -> float:
        return learning_rate(
            self.step, lr=self.stepper.lr, steps_per_epoch=self.steps_per_epoch, config=self.config.schedule
        )

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
            shares=self.shares,
            lr=self.stepper.optimizer.param_groups[0]["lr"],
            images_per_second=steps * self.stepper.images_per_step / seconds,
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
        self._share_buffers()

        def progress(done: int, total: int) -> None:
            self.log.activity("evaluating", done, total)

        def ask() -> None:
            if self._somebody_stops():
                raise Interrupted

        results = run_detector(
            self.result,
            self.val_data,
            long_edge=data.long_edge,
            short_edge=data.short_edge[1],
            square=data.square,
            device=self.world.device,
            amp=self.config.train.amp,
            workers=data.workers,
            rank=self.world.rank,
            world_size=self.world.size,
            progress=progress,
            together=ask,
            stopping=lambda: self.stop.signal > 0,
        )
        if results is not None:
            scores = evaluate(self.val_data.records, results, metrics)
            for metric in metrics:
                self.log.evaluation(self.step, metric, scores[metric].stats)
            score = scores[metrics[0]].stats["AP"]
            self.stale += int(score >= 0)  # below 0 nothing counts, and it says nothing of the student
            if score > self.best:
                self.best, self.stale = score, 0
                self._save_student(BEST_FILE)
        self.best, self.stale = self.world.gather((self.best, self.stale))[0]
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
            self.result.weights(),
            classes=self.val_data.classes,
            config=self.config.to_dict(),
            description=describe(self.result),
        )

    def save_state(self) -> None:
        """Saves the run without its student's file."""
        if self.world.main:
            State(
                step=self.step,
                images_per_step=self.stepper.images_per_step,
                steps_per_epoch=self.steps_per_epoch,
                classes=list(self.val_data.classes),
                model=self.student.state_dict(),
                optimizer=self.stepper.optimizer.state_dict(),
                scaler=self.stepper.scaler.state_dict(),
                teacher_sha256=self.teacher_sha256,
                evaluated=self.evaluated,
                best=self.best,
                stale=self.stale,
                ema=self.average.state_dict() if self.average else None,
                sums=self.sums,
                description=describe(self.student.student),
                balance=self.student.balance.state(),
            ).save(self.folder)

    def _restore(self, state: State) -> None:
        self.student.load_state_dict(state.model)
        load_optimizer(self.stepper.optimizer, state.optimizer)
        self.stepper.scaler.load_state_dict(state.scaler)
        self.step, self.evaluated, self.sums = state.step, state.evaluated, state.sums
        self.best, self.stale = state.best, state.stale
        if self.average is not None and state.ema is not None:
            self.average.load_state_dict(state.ema)
        self.log.message(f"resumed after step {self.step:,} of {self.total_steps:,}")
        if state.balance:
            self.student.balance.restore(state.balance)
            self._say_weights()
