"""`mgdet check RECIPE`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mgdet.cli.distill import DistillArguments, decide, names_two, parse_distill
from mgdet.cli.parsing import check_schedule, count_devices, parse, recipe_or_file, say, take_auto
from mgdet.cli.train import TrainArguments
from mgdet.errors import UserError

STDOUT = "-"


@dataclass(kw_only=True)
class LookArguments:
    """What only a look has."""

    json: str = ""
    """Also write what was found to this file; -: print it, and nothing else."""
    seconds: float = 120.0
    """About how long it may take, not counting reading the data and building the models."""


@dataclass(kw_only=True)
class CheckArguments(TrainArguments, LookArguments):
    """Look at a run without starting it: weights, classes, the teacher's AP, one step, time, memory and disk.

    The arguments are those of train; after `check TEACHER DATA` they are those of distill, and `check TEACHER DATA
    --help` lists them. Exit code 2 if a row says STOP.
    """


@dataclass(kw_only=True)
class CheckDistillArguments(DistillArguments, LookArguments):
    """Look at a distillation without starting it. The arguments are those of distill; a baseline is not looked at.

    Exit code 2 if a row says STOP.
    """


def run(arguments: list[str]) -> int:
    """`mgdet check RECIPE ...`, or `mgdet check TEACHER DATA ...`"""
    parsed: CheckArguments | CheckDistillArguments
    fit_batch = False
    if names_two(arguments):
        parsed = parse_distill(arguments, CheckDistillArguments, "check")
        out = _out(parsed.json)
        plan = decide(parsed, arguments)
        for line in plan.lines if parsed.json != STDOUT else ():
            say(line)
        config, folder = plan.config, Path(parsed.run_dir or plan.folder)
    else:
        start = recipe_or_file(arguments, "check")
        rest, fit_batch = take_auto(start.rest, "--train.batch")
        parsed = parse(CheckArguments, rest, f"check {start.words}", CheckArguments(config=start.config))
        out = _out(parsed.json)
        config, folder = parsed.config, Path(parsed.run_dir) if parsed.run_dir else start.folder(resume=parsed.resume)
        check_schedule(rest, config, folder, resume=parsed.resume)

    from mgdet.api import check
    from mgdet.files import atomic_write

    report = check(
        config,
        folder,
        devices=count_devices(parsed.devices),
        seconds=parsed.seconds,
        fit_batch=fit_batch,
        say=(lambda line: None) if parsed.json == STDOUT else say,
    )
    say(report.to_json() if parsed.json == STDOUT else report.table())
    if out is not None:
        atomic_write(out, lambda file: file.write(report.to_json().encode()))
    return 2 if report.stops else 0


def _out(json: str) -> Path | None:
    """The new file that the report goes to, if it goes to one."""
    out = Path(json) if json and json != STDOUT else None
    if out is not None and out.exists():
        raise UserError(f"{out} exists already; give the name of a new file")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"the folder {out.parent} of {out.name} does not exist; make it first")
    return out
