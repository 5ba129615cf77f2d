"""The package in a few functions: what the commands call, and what a script or a notebook calls."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdet.config import METHODS, Config, DataConfig
from mgdet.config.file import CONFIG_FILE
from mgdet.distributed import World, join, launch, under_torchrun
from mgdet.engine.checkpoint import BEST_FILE, LAST_FILE
from mgdet.engine.loop import train as run_training
from mgdet.errors import UserError
from mgdet.planning.check import SECONDS, before_training
from mgdet.planning.plan import plan
from mgdet.planning.resume import planned_before

if TYPE_CHECKING:
    from mgdet.planning.report import Report
    from mgdet.report.numbers import Comparison

__all__ = ["Trained", "check", "compare", "distill", "train"]

DISTILLED, ALONE, REPORT = "distilled", "alone", "report"
"""What lies in the folder of a distillation with its baseline."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training left.

    folder: the run.
    code: 0 when the schedule, or the part of it that was asked for, is done; 128 + the signal that stopped it.
    alone: the run of the same student without its teacher; None without a baseline.
    report: the folder of the page that compares the two; None without a baseline.
    """

    folder: Path
    code: int = 0
    alone: Path | None = None
    report: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """The student at its best evaluation, or as it is now if there was none."""
        best = self.folder / BEST_FILE
        return best if best.exists() else self.folder / LAST_FILE


def train(
    config: Config,
    run_dir: str | Path,
    *,
    resume: bool = False,
    check: bool = True,
    devices: int = 1,
    fit_batch: bool = False,
    say: Say = print,
) -> Trained:
    """Trains a student, with its teacher or alone.

    Args:
        config: the run, as a recipe or `mgdet.planning.plan.plan` returns it.
        run_dir: folder of the run.
        resume: resume the run in the folder, or start it if there is none.
        check: look at a run that starts, before anything is written, and refuse it if a row says STOP.
        devices: processes on this machine, one for each GPU, or each with its share of the CPU.
        fit_batch: try batches on the GPU, and train with the largest that fits instead of `config.train.batch`.
        say: is told what the check found.

    Raises:
        UserError: bad input, said in one sentence.
        TrainingError: a loss or the gradient is not finite, or images stopped coming.
    """
    folder = Path(run_dir)
    if devices > 1 and not under_torchrun():
        return Trained(
            folder, _launch(config, folder, resume=resume, check=check, devices=devices, fit_batch=fit_batch)
        )
    with join() as world:
        code = _train(config, folder, resume=resume, check=check, world=world, fit_batch=fit_batch, say=say)
        return Trained(folder, code)


def distill(
    teacher: str | Path,
    data: str | Path,
    *,
    student: str = "",
    run_dir: str | Path = "",
    baseline: bool = False,
    resume: bool = False,
    check: bool = True,
    devices: int = 1,
    settings: Mapping[str, Any] | None = None,
    say: Say = print,
) -> Trained:
    """Decides a distillation by the rules of docs/distill.md, and runs it.

    Args:
        teacher: a checkpoint file, its URL, a run's folder, or SOURCE:NAME of another library.
        data: folder of a data set, in any layout of docs/data.md.
        student: a timm backbone, one of our detectors, DETECTOR:BACKBONE, or SOURCE:NAME of another library; empty: the
            teacher's detector with a ResNet-18.
        run_dir: folder of the run; empty: `runs/` and the names of data and student.
        baseline: also train the same student alone, from the same seed, and compare the two. The runs then lie in
            `distilled` and `alone` inside of the folder, and the page in `report`.
        resume: go on with what the folder holds.
        check, devices: as in `train`.
        settings: fields of the config by their names with dots, which are not decided: `{"schedule.epochs": 3}`.
        say: is told what was decided, what the check found, and the comparison.

    Raises:
        UserError: bad input, said in one sentence.
        TrainingError: a loss or the gradient is not finite, or images stopped coming.
    """
    asked = _Asked(str(teacher), str(data), student, str(run_dir), baseline, resume, dict(settings or {}))
    if devices > 1 and not under_torchrun():
        config, folder = asked.decide(devices, say)

        def launched(own: Config, place: Path, look: bool) -> int:
            return _launch(own, place, resume=resume, check=look and check, devices=devices)

        return _run_all(config, folder, launched, baseline=baseline, say=say)
    with join() as world:
        decided = world.gather(asked.decide(world.size, say) if world.main else None)
        config, folder = decided[0]

        def trained(own: Config, place: Path, look: bool) -> int:
            return _train(own, place, resume=resume, check=look and check, world=world, say=say)

        result = _run_all(config, folder, trained, baseline=baseline, say=say if world.main else None)
        world.barrier()
        return result


def check(
    config: Config,
    run_dir: str | Path,
    *,
    devices: int = 1,
    seconds: float = SECONDS,
    fit_batch: bool = False,
    say: Say = print,
) -> Report:
    """Looks at a run without starting it: weights, classes, the teacher's AP, one step, time, memory and disk.

    Args:
        config: the run, as a recipe or `mgdet.plan` returns it.
        run_dir: the folder that it is meant for; nothing is written there.
        devices: processes that will train together.
        seconds: about how long it may take, beside reading the data and building the models.
        fit_batch: as in `train`.
        say: is told what is looked at, as it goes.

    Raises:
        UserError: bad input, said in one sentence.
    """
    from mgdet.planning.check import check as run_check

    return run_check(config, folder=Path(run_dir), processes=devices, seconds=seconds, fit_batch=fit_batch, say=say)


def compare(
    sources: Sequence[str | Path],
    *,
    data: str | Path | DataConfig | None = None,
    teacher: str | Path | None = None,
    out: str | Path | None = None,
    say: Say = print,
) -> Comparison:
    """Measures runs, checkpoints and detections on the same images, with intervals of their differences.

    Args:
        sources: runs' folders, checkpoint files, and .json files of detections in COCO's results format; the first is
            what the others are compared with. NAME=... gives one a name.
        data: folder of the data set, or its section of a config; None: that of the first run.
        teacher: what taught them, in the same forms; None: what the first distilled run names, if it is here.
        out: a folder for the page; None writes nothing.
        say: is told the numbers as tables, and where the page is.

    Raises:
        UserError: bad input, said in one sentence.
    """
    from mgdet.report.compare import compare as run_compare
    from mgdet.report.sources import data_of

    texts = [str(source) for source in sources]
    images = data if isinstance(data, DataConfig) else DataConfig(root=str(data)) if data else data_of(texts)
    return run_compare(
        texts,
        data=images or DataConfig(),
        teacher=str(teacher) if teacher else None,
        out=Path(out) if out else None,
        say=say,
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What `distill` is asked for."""

    teacher: str
    data: str
    student: str
    run_dir: str
    baseline: bool
    resume: bool
    settings: Mapping[str, Any]

    def decide(self, processes: int, say: Say) -> tuple[Config, Path]:
        """The run and its folder: what the folder holds, or what is decided now, which is said."""
        if self.run_dir:
            folder = Path(self.run_dir)
            if (before := self._before(folder)) is not None:
                return before, folder
        decided = plan(self.teacher, self.data, student=self.student, settings=self.settings, processes=processes)
        folder = Path(self.run_dir or decided.folder)
        if not self.run_dir and (before := self._before(folder)) is not None:
            return before, folder
        for line in decided.lines:
            say(line)
        return decided.config, folder

    def _before(self, folder: Path) -> Config | None:
        """The run that the folder holds, to go on with."""
        kinds = {False: folder / CONFIG_FILE, True: folder / DISTILLED / CONFIG_FILE}
        if kinds[not self.baseline].exists():
            has, way = ("no", "without") if self.baseline else ("a", "with")
            advice = f"go on {way} --baseline, or choose another --run-dir"
            raise UserError(f"{folder} holds a distillation with {has} baseline; {advice}")
        return planned_before(
            kinds[self.baseline].parent,
            teacher=self.teacher,
            data=self.data,
            student=self.student,
            settings=self.settings,
            resume=self.resume,
        )


def _run_all(
    config: Config, folder: Path, run: Callable[[Config, Path, bool], int], *, baseline: bool, say: Say | None
) -> Trained:
    """Runs the distillation and, with a baseline, the same student alone, and compares them.

    Args:
        run: trains one config in a folder, after a look at it or not; returns the exit code.
        say: None in processes that only train.
    """
    if not baseline:
        return Trained(folder, run(config, folder, True))
    distilled, alone, report = folder / DISTILLED, folder / ALONE, folder / REPORT
    for own, place in ((config, distilled), (_without_teacher(config), alone)):
        if code := run(own, place, place is distilled):
            return Trained(distilled, code, alone)
    if say is None or config.train.stop_after:
        return Trained(distilled, 0, alone)
    from mgdet.report.compare import PAGE_FILE

    if (report / PAGE_FILE).exists():
        say(f"the comparison is in {report / PAGE_FILE}")
    else:
        compare([f"alone={alone}", f"distilled={distilled}"], data=config.data, out=report, say=say)
    return Trained(distilled, 0, alone, report)


def _without_teacher(config: Config) -> Config:
    """The same student, data, schedule and seed, alone."""
    off = {name: type(getattr(config, name))() for name in METHODS}
    return replace(config, teacher=None, inherit=False, pairing=type(config.pairing)(), **off)


def _train(
    config: Config, folder: Path, *, resume: bool, check: bool, world: World, say: Say, fit_batch: bool = False
) -> int:
    look = before_training(folder, say=say) if check else None
    return run_training(config, folder, resume=resume, world=world, fit_batch=fit_batch, check=look)


def _launch(config: Config, folder: Path, *, resume: bool, check: bool, devices: int, fit_batch: bool = False) -> int:
    """Trains in processes of their own, which read the config from a file."""
    with tempfile.TemporaryDirectory(prefix="mgdet") as place:
        file = Path(place, "plan.json")
        file.write_text(json.dumps(config.to_dict()))
        options = [*(["--resume"] if resume else []), *([] if check else ["--no-check"])]
        options += ["--train.batch", "auto"] if fit_batch else []
        return launch(devices, ["train", "--config", str(file), "--run-dir", str(folder), *options])
