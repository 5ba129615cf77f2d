"""What a check says of one step: its losses, the pull of each method, and what the step asks of the machine."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch

from mgdet.config import Config
from mgdet.engine.memory import total_memory
from mgdet.engine.prepare import Prepared
from mgdet.methods.balance import Balance, level_of
from mgdet.planning.report import Report, Status
from mgdet.planning.rules import SHARE
from mgdet.planning.trial import Trial, size_of

STRONG, WEAK = 20.0, 0.01
"""Shares above and below which a method is likely to drown the detector's own losses, or to do nothing. In the rounds
of docs/method.md the best weights of MGD and PKD had shares of up to 19; MGD lost one to two AP at 30 to 40."""
TIGHT = 0.9
"""The share of the memory that is as good as all of it."""
NAMES_SHOWN = 3
DISK_TO_SPARE = 2


def judge_losses(trial: Trial, files: Sequence[str], report: Report) -> None:
    """Adds the losses of the step on these images."""
    losses = trial.outcome.losses
    report.values |= {"losses": losses, "grad_norm": trial.outcome.grad_norm, "unreached": trial.unreached}
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        report.add("stop", "step", f"the first step is not finite: {', '.join(bad)} on {', '.join(files)}")
        return
    if not trial.outcome.finite:
        report.add("stop", "step", "the losses of the first step are finite, but its gradient is not")
        return
    (total, value), *parts = losses.items()
    text = " + ".join(f"{name} {part:.3g}" for name, part in parts)
    report.add("ok", "step", f"{total} {value:.4g} = {text}; the gradient's norm is {trial.outcome.grad_norm:.3g}")


def judge_parameters(trial: Trial, trained: int, processes: int, report: Report) -> None:
    """Adds which of the trained parameters no loss reaches; processes that join gradients wait for each."""
    if not trial.unreached:
        report.add("ok", "parameters", f"each of the {trained} trained tensors has a gradient")
        return
    more = f" and {len(trial.unreached) - NAMES_SHOWN} more" if len(trial.unreached) > NAMES_SHOWN else ""
    report.add(
        "stop" if processes > 1 else "warning",
        "parameters",
        f"no loss reaches {len(trial.unreached)} of the {trained} trained tensors: "
        f"{', '.join(trial.unreached[:NAMES_SHOWN])}{more}",
    )


def judge_pull(config: Config, balance: Balance, trial: Trial, report: Report) -> None:
    """Adds for each method how strong its gradient is on the student's maps, and which weight would be right.

    Args:
        config: the run.
        balance: the student's, before the step.
        trial: the step.
    """
    norms, shares = trial.outcome.norms, trial.outcome.shares
    values = report.values.setdefault("shares", {})
    for method, names in balance.methods().items():
        section = getattr(config, method)
        intended = section.share or SHARE
        found = balance.weights_for(norms, dict.fromkeys(names, intended))
        weights = {level_of(name): weight * section.own_weight for name, weight in found.items()}
        values[method] = {"intended": intended, "weights": weights}
        if section.share:
            _judge_share(method, intended, weights, report)
        elif method in shares:
            levels = {level_of(name): shares[name.removeprefix("loss_")] for name in names}
            values[method] |= {"share": shares[method], "levels": levels}
            _judge_weight(method, section.weight, shares[method], levels, weights, report)
        else:
            report.add(
                "warning", "gradient", f"the detector's own losses have no gradient on the maps that {method} reads"
            )


def _judge_share(method: str, share: float, weights: Mapping[str, float], report: Report) -> None:
    if not any(weights.values()):
        report.add(
            "stop",
            "gradient",
            f"{method}.share is {share:g}, but the student's own losses have no gradient on its maps; give "
            f"--{method}.share 0 and a --{method}.weight",
        )
        return
    line = (
        f"{method}.share {share:g} means weights of about {_listed(weights)}, going by this one step; the first "
        "steps of the run settle them"
    )
    report.add("ok", "gradient", line)


def _judge_weight(
    method: str,
    weight: float,
    share: float,
    levels: Mapping[str, float],
    weights: Mapping[str, float],
    report: Report,
) -> None:
    line = (
        f"{method} at weight {weight:g} pulls {share:.2g} times as hard on the student's maps as the detector's own "
        f"losses ({_listed(levels)})"
    )
    strong = [level for level, part in levels.items() if part > STRONG]
    status: Status = "ok"
    if strong or share > STRONG:
        status, line = "warning", f"{line}, which drowns them{' at ' + ', '.join(strong) if strong else ''}"
    elif share < WEAK:
        status, line = "warning", f"{line}, which hardly moves the student"
    if share > 0:
        line += (
            f"; for {SHARE:g} give --{method}.weight {weight * SHARE / share:.2g}, or --{method}.weight 0 "
            f"--{method}.share {SHARE:g} for a weight of each level (in this one step {_listed(weights)})"
        )
    report.add(status, "gradient", line)


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{level} {value:.2g}" for level, value in values.items())


def judge_memory(trial: Trial, batch: int, device: torch.device, report: Report) -> None:
    """Adds the peak of memory, on to the run's whole batch where the step had fewer images."""
    total = total_memory(device)
    peak = max(trial.peak, trial.before + (trial.peak - trial.before) / trial.images * batch)
    report.values |= {"memory_gib": peak, "memory_total_gib": total}
    where = "of the GPU" if device.type == "cuda" else "of this machine"
    part = "" if trial.images == batch else f", going by a step of {trial.images}"
    line = f"about {peak:.1f} GiB for {batch} images at once{part}; {total:.1f} GiB are what there is {where}"
    if total and peak > TIGHT * total:
        report.add("warning", "memory", f"{line}: lower --train.batch and raise --train.accumulate as much")
    else:
        report.add("ok", "memory", line)


def judge_time(prepared: Prepared, trial: Trial, find: float, report: Report) -> None:
    """Adds how long a step, and so the whole schedule with its evaluations, takes on this machine.

    Args:
        prepared: the run.
        trial: one step.
        find: seconds for one image in an evaluation.
    """
    config = prepared.config
    train, steps_per_epoch = config.train, prepared.sampler.steps_per_epoch
    step = trial.seconds / trial.images * train.batch * train.accumulate
    steps, epochs = config.schedule.epochs * steps_per_epoch, config.schedule.epochs
    evaluations = -(-epochs // train.eval_every) if train.eval_every else 0
    evaluating = evaluations * len(prepared.val_data) * find / prepared.processes
    seconds = steps * step + evaluating
    report.values |= {"seconds_per_step": step, "steps": steps, "seconds": seconds, "seconds_evaluating": evaluating}
    report.add(
        "ok",
        "time",
        f"about {_clock(step)} for each of {steps:,} steps and {_clock(evaluating)} for {_times(evaluations)}: "
        f"{_clock(seconds)} in all",
    )
    images = train.batch * train.accumulate
    reading = trial.reading * images / max(1, config.data.workers)
    if config.data.workers and reading > step:
        wanted = math.ceil(trial.reading * images / step)
        report.add(
            "warning",
            "reading",
            f"reading {images} images takes {_clock(reading)} with {config.data.workers} workers, longer than a step; "
            f"give --data.workers {wanted}",
        )


def _times(number: int) -> str:
    return "1 evaluation" if number == 1 else f"{number} evaluations"


def _clock(seconds: float) -> str:
    """As in `340 ms`, `12.5 s`, `3:05:00` and `12 days, 1:00:00`."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def judge_disk(prepared: Prepared, trial: Trial, folder: Path, report: Report) -> None:
    """Adds whether what a run writes fits on the disk: two students and its state, of which one is there twice."""
    student = size_of(prepared.models.student.student.weights())
    state = trial.state_bytes + (student if prepared.config.train.ema else 0)
    needed = 2 * student + state + max(student, state)
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    report.values |= {"disk_bytes": needed, "disk_free_bytes": free}
    status: Status = "stop" if free < needed else "warning" if free < DISK_TO_SPARE * needed else "ok"
    report.add(status, "disk", f"a run writes up to {_size(needed)} into {folder}, where {_size(free)} are free")


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
