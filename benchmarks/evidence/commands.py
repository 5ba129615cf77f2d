"""The command line: `data`, `trial`, `tune`, `run`, `plan` and `table`."""

from __future__ import annotations

import argparse
import fnmatch
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import torch

import evidence
from evidence import backbones, data, words
from evidence.arms import SWEPT, Arm, arm_config, arms_of, sweep_arms, teacher_config
from evidence.choose import Missing, choose, read_choices, write_choices
from evidence.differences import Row, fill
from evidence.measure import Measured, TestImages
from evidence.page import Page
from evidence.pairs import PAIRS, Pair
from evidence.runs import Planned, finished_of, only_one
from evidence.trials import seeing, trial
from evidence.work import Asked, Clock, stoppable, work, work_on_one
from mgdet.errors import TrainingError, UserError, nearest
from mgdet.files import atomic_write, check_folder, make_folder

TIME_IS_UP, ELSEWHERE = 75, 76
"""Exit codes where work is left: the time is up, and the same command goes on; other processes work on the rest."""
RESULTS = Path(__file__).parent.parent / "results"


def main(arguments: list[str]) -> int:
    """Runs one command.

    Returns:
        0 when all is done, `TIME_IS_UP`, `ELSEWHERE`, 128 + the signal that stopped it, 1 or 2 for errors as in mgdet.
    """
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    clock = Clock(getattr(options, "hours", 0.0))
    try:
        with working_in(options), stoppable():
            command: Callable[[argparse.Namespace, Clock], int | None] = options.command
            return command(options, clock) or 0
    except Asked as asked:
        say("the time is up; the same command goes on from here" if clock.expired else str(asked))
        return TIME_IS_UP if clock.expired else 128 + asked.number
    except (UserError, TrainingError) as error:
        sys.stderr.write(f"evidence: {error}\n")
        return 2 if isinstance(error, UserError) else 1


@contextmanager
def working_in(options: argparse.Namespace) -> Iterator[None]:
    """Works in the root: runs then hold names inside it, and go on where it is moved or another machine has it."""
    before = Path.cwd()
    for name in ("bccd", "out"):
        path = getattr(options, name, None)
        setattr(options, name, None if path is None else path.resolve())
    check_folder(options.root)
    if options.command is not plan:
        make_folder(options.root)
    if options.root.is_dir():
        os.chdir(options.root)
        options.root = Path()
    try:
        yield
    finally:
        os.chdir(before)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    result = argparse.ArgumentParser(
        prog="evidence", description=evidence.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = result.add_subparsers(required=True, metavar="COMMAND")
    helps = {
        make: ("data", "make splits and backbones; the other commands do so where they are not there"),
        try_one: ("trial", "train one detector alone, as the settings of pairs were found, and say its validation AP"),
        tune: ("tune", "train the teacher, and make every choice on the validation images"),
        run: ("run", "train every arm, seed 0 of all arms first"),
        plan: ("plan", "say what is done and what is left"),
        table: ("table", "measure finished runs on the test images and write a page for each pair"),
    }
    for function, (name, text) in helps.items():
        own = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        own.set_defaults(command=function)
        own.add_argument("--root", type=Path, default=Path("evidence"), help="folder for everything")
        own.add_argument(
            "--only",
            nargs="+",
            default=list(PAIRS),
            metavar="PAIR[/ARM]",
            help="pairs, and of them arms; * stands for any",
        )
        own.add_argument("--threads", type=threads, default=1, help="of torch")
        own.add_argument("--bccd", type=Path, help="folder of BCCD, for the pairs of that name")
        if function is try_one:
            own.add_argument("--of", choices=("teacher", "student"), required=True, help="which of the two detectors")
            own.add_argument("--epochs", type=int, required=True, help="its schedule")
            own.add_argument("--rate", type=float, required=True, help="learning rate for 16 images per step")
            own.add_argument("--decay", type=float, required=True, help="weight decay")
            own.add_argument("--num-train", type=int, help="training images; else as many as the student's")
            own.add_argument("--smallest", type=float, help="area no object is drawn smaller than; else the pair's")
        if function in (try_one, tune, run):
            own.add_argument("--hours", type=hours, default=0.0, help="stop after so many hours; 0: do not")
        if function in (run, plan):
            own.add_argument("--seeds", type=int, nargs="+", help="of the runs; else 0, 1, ... as each pair says")
        if function is run:
            own.add_argument("--anyway", action="store_true", help="also where the teacher is hardly better")
        if function in (run, plan, table):
            own.add_argument("--sweeps", action="store_true", help="also the sweeps of MGD's mask ratio and strength")
        if function is table:
            own.add_argument("--out", type=Path, default=RESULTS, help="folder for the pages")
            own.add_argument("--partial", action="store_true", help="also before all runs are finished")
            own.add_argument("--date", default=time.strftime("%Y-%m"), help="in the name of the page")
    return result


def threads(text: str) -> int:
    """A number of threads."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is too few; give 1 or more")
    return number


def hours(text: str) -> float:
    """A time in hours."""
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no time; give 0 or more")
    return number


def make(options: argparse.Namespace, clock: Clock) -> None:
    """`data`"""
    for name in pairs_of(options.only):
        pair = PAIRS[name]
        _prepare(options, pair)
        folders = {images.name: options.root / "data" / images.name for images in (pair.images, pair.teacher_images)}
        say(f"{name}: {' and '.join(map(str, folders.values()))}")


def try_one(options: argparse.Namespace, clock: Clock) -> None:
    """`trial`"""
    names = pairs_of(options.only)
    if len(names) > 1 or any("/" in pattern for pattern in options.only):
        raise UserError("a trial is of one detector; give --only PAIR")
    pair = seeing(PAIRS[names[0]], num_train=options.num_train, smallest=options.smallest)
    run = trial(pair, options.root, names[0], options.of, epochs=options.epochs, rate=options.rate, decay=options.decay)
    _prepare(options, pair)
    work([run], clock, say)
    finished = finished_of(run)
    if finished is None:
        return
    for metric, found in finished.val.items():
        say(f"{run.folder}: {metric} AP {words.percent(found['AP'])} on the validation images")
    if finished.error:
        say(f"{run.folder}: {finished.error}")


def tune(options: argparse.Namespace, clock: Clock) -> None:
    """`tune`"""
    for name in pairs_of(options.only):
        pair = PAIRS[name]
        _prepare(options, pair)
        while read_choices(options.root, name) is None:
            try:
                choices = choose(pair, options.root, name)
            except Missing as missing:
                work_on_one(missing.runs, clock, say)
            else:
                with only_one(options.root / name):
                    if read_choices(options.root, name) is None:  # another process may just have made them
                        write_choices(options.root, name, {"made": time.strftime("%Y-%m-%d %H:%M:%S"), **choices})
        choices = _choices(options.root, name)
        say(f"{name}: {options.root / name / 'choices.json'}")
        say(words.of_lead(_lead(choices), "AP on the validation images"))


def run(options: argparse.Namespace, clock: Clock) -> int:
    """`run`"""
    lists = []
    for name in pairs_of(options.only):
        choices = _choices(options.root, name)
        if _lead(choices) < words.TEACHER_LEAD and not options.anyway:
            raise UserError(
                f"{name}: {words.of_lead(_lead(choices), 'AP on the validation images')} There is little to learn from "
                "it; --anyway trains the students nevertheless"
            )
        _prepare(options, PAIRS[name])
        lists.append([planned for _, planned in reported(options, name, choices)])
    if not any(lists):
        raise UserError(f"--only and --seeds leave no run{'' if options.sweeps else '; --sweeps adds more arms'}")
    left, number = work(_in_turns(lists), clock, say), sum(map(len, lists))
    say(f"finished: {number - left} of {number} runs" + (f"; other processes work on {left}" if left else ""))
    return ELSEWHERE if left else 0


def plan(options: argparse.Namespace, clock: Clock) -> None:
    """`plan`"""
    for name in pairs_of(options.only):
        choices = read_choices(options.root, name)
        if choices is None:
            say(f"{name}: no choices yet{_waiting(options.root, name)}")
            continue
        runs = reported(options, name, choices)
        found = [(arm, planned, finished_of(planned)) for arm, planned in runs]
        left = [(arm, planned) for arm, planned, finished in found if finished is None]
        seconds = [finished.seconds for *_, finished in found if finished is not None and finished.seconds]
        about = f", about {len(left) * sum(seconds) / len(seconds) / 3600:.1f} hours" if seconds and left else ""
        say(f"{name}: {len(runs) - len(left)} of {len(runs)} runs are finished{about}")
        for arm, planned in left:
            say(f"    {planned.folder.relative_to(options.root)}  {arm.title}")


def table(options: argparse.Namespace, clock: Clock) -> None:
    """`table`"""
    if any("/" in pattern for pattern in options.only):
        raise UserError("a page holds all arms of a pair; give --only PAIR")
    check_folder(options.out)
    make_folder(options.out)
    for name in pairs_of(options.only):
        choices = _choices(options.root, name)
        left = [run for _, run in reported(options, name, choices) if finished_of(run) is None]
        if left and not options.partial:
            raise UserError(f"{name}: {len(left)} runs are not finished, the first in {left[0].folder}; run goes on")
        text = _page(options, name, choices, left).text(options.date).encode()
        path = options.out / f"evidence-{name}-{options.date}{'-partial' if left else ''}.md"
        atomic_write(path, partial(_write, text))
        say(f"{name}: {path}")


def _write(text: bytes, file: BinaryIO) -> None:
    file.write(text)


def _lead(choices: dict[str, Any]) -> float:
    """AP of the teacher above the student alone, on the validation images."""
    lead: float = choices["teacher"]["AP"] - choices["length"]["AP"]
    return lead


def _prepare(options: argparse.Namespace, pair: Pair) -> None:
    for images in (pair.images, pair.teacher_images):
        data.make(options.root, images, options.bccd)
    backbones.make(options.root, pair, say)


def _page(options: argparse.Namespace, name: str, choices: dict[str, Any], left: list[Planned]) -> Page:
    pair, root = PAIRS[name], options.root
    images = TestImages(pair, root, name, say)
    runs = reported(options, name, choices)
    teacher = images.measure([_teacher(pair, root, choices)])

    def rows(sweep: bool) -> list[Row]:
        arms = dict.fromkeys(arm for arm, _ in runs if bool(arm.settings) == sweep)
        found: list[Row] = []
        for arm in arms:
            measured: list[Measured] = images.measure([planned for own, planned in runs if own == arm])
            found += [Row(arm, measured)] if measured else []
        return found

    main_rows, sweeps = rows(sweep=False), rows(sweep=True)
    base = next((row for row in main_rows if row.arm == SWEPT), None)
    fill(main_rows, teacher[0] if teacher else None, images.records, pair.metrics)
    if base is not None:
        fill(sweeps, None, images.records, pair.metrics[:1], others=[base])
    return Page(
        name=name,
        pair=pair,
        root=root,
        choices=choices,
        rows=main_rows,
        sweeps=sweeps,
        base=base,
        teacher=teacher[0] if teacher else None,
        images=len(images.records),
        num_classes=len(images.records.classes),
        looks=images.looks,
        missing=left,
    )


def reported(options: argparse.Namespace, name: str, choices: dict[str, Any]) -> list[tuple[Arm, Planned]]:
    """The runs of a pair that are reported, all arms with one seed before the next seed."""
    pair, given = PAIRS[name], getattr(options, "seeds", None)
    arms = arms_of(pair)
    if options.sweeps:
        arms += sweep_arms(pair, choices["arms"][SWEPT.name]["strength"])
    arms = [arm for arm in arms if _wanted(name, arm, options.only)]

    runs = [
        (arm, seed)
        for seed in range(max(pair.seeds, pair.sweep_seeds))
        for arm in arms
        if seed < (pair.sweep_seeds if arm.settings else pair.seeds) and (given is None or seed in given)
    ]
    return [(arm, planned(pair, options.root, name, arm, choices, seed)) for arm, seed in runs]


def _teacher(pair: Pair, root: Path, choices: dict[str, Any]) -> Planned:
    own, chosen = PAIRS.get(pair.choices_of, pair), choices["teacher"]
    return Planned(root / chosen["folder"], teacher_config(own, root, epochs=chosen["epochs"], seed=choices["seed"]))


def planned(pair: Pair, root: Path, name: str, arm: Arm, choices: dict[str, Any], seed: int) -> Planned:
    """One reported run."""
    searched = choices["arms"][arm.searched_as]
    config = arm_config(
        pair,
        root,
        arm,
        teacher=root / choices["teacher"]["folder"],
        strength=searched["strength"],
        rate=searched["rate"],
        decay=searched["decay"],
        epochs=choices["length"]["epochs"],
        seed=seed,
    )
    return Planned(root / name / arm.name / f"seed-{seed}", config)


def pairs_of(only: Sequence[str]) -> list[str]:
    """The pairs that `--only` names.

    Raises:
        UserError: a name fits no pair, or no arm of it.
    """
    for pattern in only:
        fitting = [name for name in PAIRS if fnmatch.fnmatch(name, pattern.partition("/")[0])]
        if not fitting:
            raise UserError(f"--only has '{pattern}', which fits no pair{nearest(pattern, PAIRS)}")
        arms = {arm.name for name in fitting for arm in (*arms_of(PAIRS[name]), *sweep_arms(PAIRS[name], 1.0))}
        own = pattern.partition("/")[2]
        if own and not any(fnmatch.fnmatch(arm, own) for arm in arms):
            raise UserError(f"--only has '{pattern}', which fits no arm{nearest(own, arms)}")
    return [name for name in PAIRS if any(fnmatch.fnmatch(name, pattern.partition("/")[0]) for pattern in only)]


def _wanted(name: str, arm: Arm, only: Sequence[str]) -> bool:
    """A pattern without an arm stands for all of them."""
    patterns = (pattern if "/" in pattern else f"{pattern}/*" for pattern in only)
    return any(fnmatch.fnmatch(f"{name}/{arm.name}", pattern) for pattern in patterns)


def _choices(root: Path, name: str) -> dict[str, Any]:
    choices = read_choices(root, name)
    if choices is None:
        raise UserError(f"no choices have been made for {name} in {root.resolve()}; run tune first")
    return choices


def _waiting(root: Path, name: str) -> str:
    """What the next choice waits for."""
    try:
        choose(PAIRS[name], root, name)
    except Missing as missing:
        return "; the next needs " + ", ".join(str(run.folder.relative_to(root)) for run in missing.runs)
    return "; tune can make them"


def _in_turns(lists: Sequence[Sequence[Planned]]) -> list[Planned]:
    """One run of each pair in turns, so that all pairs have their first seeds early."""
    return [run for turn in zip_longest(*lists) for run in turn if run is not None]


def say(text: str) -> None:
    """Prints one line at once."""
    print(text, flush=True)
