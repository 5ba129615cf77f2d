"""What `mgdet check` does, and `mgdet train` before it starts: a look at a run on its own data and weights.

Nothing is written, and a run that follows is the same to the bit as without it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mgdet.config import Config
from mgdet.data.batch import Batch, collate
from mgdet.data.doubts import seen_in_training
from mgdet.data.transforms import View
from mgdet.detectors.foreign.base import Foreign
from mgdet.distributed import World
from mgdet.engine.checkpoint import CONFIG_FILE
from mgdet.engine.prepare import Prepared, prepare
from mgdet.errors import UserError, shortage
from mgdet.evaluate.coco import detect
from mgdet.layers.inference import inference_form
from mgdet.methods.pairing import HALF_AN_OCTAVE, octaves, pair_levels, pairing_lines
from mgdet.models.start import RANDOM
from mgdet.planning.judge_step import (
    judge_disk,
    judge_losses,
    judge_memory,
    judge_parameters,
    judge_pull,
    judge_time,
)
from mgdet.planning.judge_teacher import judge_teacher
from mgdet.planning.report import Report
from mgdet.planning.trial import Trial, first_batch, is_long, try_step
from mgdet.precision import cpu_has_bfloat16, slow_types
from mgdet.recipes import published_ap

SECONDS = 120.0
TEACHER_SHARE = 0.4
"""The share of the time that the teacher's score may take."""
STEP_COST = 4.5
"""A step of a student in times of its forward pass: it also goes back, and through the methods."""
WORTH_SAYING = 0.85
"""A step in bfloat16 is proposed where it takes at most this share of the time."""

Say = Callable[[str], None]


def check(
    config: Config,
    *,
    folder: Path,
    say: Say,
    seconds: float = SECONDS,
    processes: int = 1,
    fit_batch: bool = False,
) -> Report:
    """Looks at a run without starting it: weights, classes, levels, the teacher's AP, one step, memory, time and disk.

    Args:
        config: the run.
        folder: where it would write.
        say: is told how far it is.
        seconds: about how long it may take, beside what reading the data and building the models takes.
        processes: of the run; the look takes one.
        fit_batch: replace `train.batch` by the largest number that fits on the GPU.

    Returns:
        Also what cannot be read or built is a row, and a reason to stop.
    """
    world = World.alone()
    say("reading the data and building the models")
    try:
        prepared = prepare(config, None, resume=False, world=world, processes=processes, fit_batch=fit_batch)
    except UserError as error:
        report = Report()
        report.add("stop", "start", str(error))
        return report
    report = examine(prepared, folder, say=say, seconds=seconds)
    if (folder / CONFIG_FILE).exists():
        report.add("warning", "folder", f"{folder} already holds a run; give train --resume, or another --run-dir")
    return report


def before_training(folder: Path, *, say: Say, seconds: float = SECONDS) -> Callable[[Prepared], None]:
    """The check as `mgdet.engine.loop.train` takes it: the first process makes it, and a stop ends all of them."""

    def look(prepared: Prepared) -> None:
        stops: list[str] = []
        if prepared.world.main:
            report = examine(prepared, folder, say=say, seconds=seconds)
            say(report.table(known={*prepared.data_notes, *prepared.model_notes}))  # the run's log begins with these
            stops = report.stops
        (stops, *_) = prepared.world.gather(stops)
        if stops:
            more = f", and {len(stops) - 1} more of the rows above" if len(stops) > 1 else ""
            raise UserError(f"the run does not start: {stops[0]}{more}; --no-check starts it all the same")

    return look


def examine(prepared: Prepared, folder: Path, *, say: Say, seconds: float) -> Report:
    """Looks at a run that is read and built; arguments as in `check`."""
    end, report = time.perf_counter() + seconds, Report()
    _judge_data(prepared, report)
    _judge_weights(prepared, report)
    _judge_levels(prepared, report)
    for note in prepared.schedule_notes:
        report.add("warning", "schedule", note)
    see = 0.0
    if prepared.models.teacher is not None:
        say("measuring the teacher on validation images")
        with _stops(report, "teacher"):
            published = published_ap(prepared.config)
            see = judge_teacher(prepared, report, published=published, seconds=TEACHER_SHARE * seconds)
    say("taking one step, which is undone")
    with _stops(report, "step"):
        _judge_step(prepared, folder, report, end=end, see=see)
    return report


@contextmanager
def _stops(report: Report, what: str) -> Iterator[None]:
    """What the user's input, or the machine's memory, does not allow is a reason to stop."""
    try:
        yield
    except UserError as error:
        report.add("stop", what, str(error))
    except (RuntimeError, MemoryError) as error:
        lacking = shortage(error)
        if not lacking:
            raise
        report.add("stop", "memory", f"{lacking}; lower --train.batch and raise --train.accumulate as much")


def _judge_data(prepared: Prepared, report: Report) -> None:
    for note in prepared.data_notes:
        report.add("ok", "data", note)
    train, val = prepared.train_data, prepared.val_data
    for doubt in seen_in_training(map(train.file, range(len(train))), map(val.file, range(len(val)))):
        report.add("warning", "data", doubt)


def _judge_weights(prepared: Prepared, report: Report) -> None:
    levels = _level_lines(prepared)
    for note in prepared.model_notes:
        if note not in levels:
            report.add("ok", "weights", note)
    student = prepared.config.student
    if student.weights == RANDOM and not student.source and (student.frozen_stages or student.norm_eval):
        still = ["its first stages do not train"] if student.frozen_stages else []
        still += ["its norms keep the statistics that they start with"] if student.norm_eval else []
        report.add(
            "warning",
            "weights",
            f"the student starts from random weights, but {' and '.join(still)}; give --student.frozen-stages 0 "
            "--student.no-norm-eval",
        )


def _level_lines(prepared: Prepared) -> list[str]:
    models = prepared.models
    if models.teacher is None:
        return []
    mine, theirs = models.student.student.levels, models.teacher.detector.levels
    return pairing_lines(pair_levels(mine, theirs, prepared.config.pairing.pairs), mine, theirs)


def _judge_levels(prepared: Prepared, report: Report) -> None:
    models = prepared.models
    if models.teacher is None:
        return
    for line in _level_lines(prepared):
        report.add("ok", "levels", line)
    mine, theirs = models.student.student.levels, models.teacher.detector.levels
    for pair in pair_levels(mine, theirs, prepared.config.pairing.pairs):
        if octaves(mine[pair.student], theirs[pair.teacher]) > HALF_AN_OCTAVE:
            report.add(
                "warning",
                "levels",
                f"stride {mine[pair.student].stride:g} of the student takes stride {theirs[pair.teacher].stride:g} of "
                "the teacher, which is far from it but the nearest that there is",
            )


def _judge_step(prepared: Prepared, folder: Path, report: Report, *, end: float, see: float) -> None:
    """Adds what one step shows.

    Args:
        prepared: the run.
        folder: where the run would write.
        report: takes the rows.
        end: when the check should be done.
        see: seconds of the teacher for one image.
    """
    config, world, student = prepared.config, prepared.world, prepared.models.student
    find = _seconds_to_find(prepared)
    left = end - time.perf_counter()
    images = config.train.batch
    if world.device.type != "cuda":
        # Two steps are to fit into what is left: this one, and half of one in bfloat16.
        images = max(1, min(images, int(left / 1.5 / (see + STEP_COST * find))))
        if isinstance(student.student, Foreign):
            images = max(images, min(2, config.train.batch))  # their norms may need more than one image
    batch, reading = first_batch(prepared, images)
    trial = try_step(prepared, batch, reading, seconds=left / 4)
    judge_losses(trial, batch.files, report)
    if trial.outcome.norms:
        judge_pull(config, student.balance, trial, report)
    trained = sum(parameter.requires_grad for parameter in student.parameters())
    judge_parameters(trial, trained, prepared.processes, report)
    _judge_precision(prepared, batch, trial, report, end)
    judge_memory(trial, config.train.batch, world.device, report)
    judge_time(prepared, trial, find, report)
    judge_disk(prepared, trial, folder, report)


def _seconds_to_find(prepared: Prepared) -> float:
    """Seconds that the student takes for one image of an evaluation."""
    data, device = prepared.config.data, prepared.world.device
    example = prepared.val_data[View(0, data.long_edge, data.short_edge[1], False, data.square)]
    form = inference_form(prepared.models.student.student).to(device)
    batch: Batch = collate([example]).to(device)
    if device.type == "cuda":
        detect(form, batch, prepared.config.train.amp)  # the first time it also prepares what the second finds done
    started = time.perf_counter()
    detect(form, batch, prepared.config.train.amp)
    return time.perf_counter() - started


def _judge_precision(prepared: Prepared, batch: Batch, trial: Trial, report: Report, end: float) -> None:
    """Adds what bfloat16 would save on a CPU that has it, and warns of it where torch computes it wrongly."""
    config, models = prepared.config, prepared.models
    if prepared.world.device.type != "cpu":
        return
    for note in slow_types(config, prepared.world.device):
        report.add("warning", "precision", note)
    narrow = min(
        min(math.ceil(edge / level.stride) for edge in batch.pixels.shape[1:3])
        for level in models.student.student.levels
    )
    if narrow < 2:
        if config.train.amp == "bf16":
            report.add(
                "warning",
                "precision",
                "a level of the student is one cell wide, and on CPUs torch computes gradients of such maps wrongly in "
                "bfloat16; give --train.amp off, or larger images",
            )
        return
    late = time.perf_counter() + trial.seconds > end
    if config.train.amp != "off" or late or not is_long(prepared, trial.seconds) or not cpu_has_bfloat16():
        return
    other = try_step(prepared, batch, trial.reading, bf16=True, seconds=trial.seconds)
    share = other.seconds / trial.seconds
    report.values["bf16_share_of_time"] = share
    if share <= WORTH_SAYING:
        report.add("ok", "precision", f"with --train.amp bf16 a step takes {share:.0%} of the time on this CPU")
