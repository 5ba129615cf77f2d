"""Every choice, by AP of the last student on the validation images, with a seed that is not reported.

1. The teacher's length: doubled while that gains `GAIN` or more; the better of the last two is the teacher.
2. A learning rate for the student alone at length 1x, and with it the student's length: the shortest of 1x, 2x, 4x, ...
   from which twice as long gains no more than `GAIN`.
3. One search for each arm at length 1x, all of one size: the learning rate of the arms without a method, and the
   strength of each method at the rate of the arm that starts as it does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evidence.arms import ALONE, Arm, arm_config, arms_of, student_config, teacher_config
from evidence.pairs import PAIRS, Pair
from evidence.runs import Finished, Planned, read_finished
from mgdet.files import atomic_write

SEED = 1000
"""Of all runs that choices are made with; the reported ones count from 0."""
GAIN = 0.005
"""AP, in shares of 1, that twice the length must gain to be worth it."""
LONGEST = 16
"""No schedule is longer than this many times 1x."""
CHOICES_FILE = "choices.json"

Tried = list[dict[str, Any]]


class Missing(Exception):
    """A choice needs runs that are not finished.

    runs: these.
    """

    def __init__(self, runs: Sequence[Planned]):
        super().__init__(f"{len(runs)} runs are missing")
        self.runs = list(runs)


def read_choices(root: Path, name: str) -> dict[str, Any] | None:
    """The choices of a pair; None before they have been made."""
    path = root / name / CHOICES_FILE
    choices: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return choices


def write_choices(root: Path, name: str, choices: dict[str, Any]) -> None:
    """Writes the choices of a pair."""
    text = json.dumps(choices, indent=1)
    atomic_write(root / name / CHOICES_FILE, lambda file: file.write(text.encode()))


def choose(pair: Pair, root: Path, name: str) -> dict[str, Any]:
    """The choices of a pair, each with the runs that made it: folder, what was tried, and AP.

    Raises:
        Missing: runs are to be done first.
    """
    folder = root / name
    # The student's runs come first: they are short, and say how long all that follows will take.
    ((first, length), teacher) = _together(
        lambda: _student(pair, root, folder),
        lambda: _teacher(pair, root, name),
    )
    common: dict[str, Any] = {"teacher": root / teacher["folder"], "epochs": pair.epochs}
    arms = arms_of(pair)
    plain = [arm for arm in arms if not arm.method]
    # The student alone is searched first: it needs no teacher and the rates of other arms follow from it.
    rates = _together(*(_search(pair, root, folder, arm, pair.rates, "rate", strength=0.0, **common) for arm in plain))
    chosen = {arm.name: own for arm, own in zip(plain, rates)}
    methods = [arm for arm in arms if arm.method]
    strengths = _together(
        *(
            _search(
                pair,
                root,
                folder,
                arm,
                pair.strengths[arm.method],
                "strength",
                rate=chosen[arm.base.name]["rate"],
                **common,
            )
            for arm in methods
        )
    )
    chosen |= {arm.name: own for arm, own in zip(methods, strengths)}
    return {"seed": SEED, "teacher": teacher, "first_rate": first, "length": length, "arms": chosen}


def _together(*questions: Callable[[], Any]) -> list[Any]:
    """The answers to questions that do not depend on each other; what they miss is asked for at once."""
    answers, missing = [], list[Planned]()
    for question in questions:
        try:
            answers.append(question())
        except Missing as own:
            missing += own.runs
    if missing:
        raise Missing(missing)
    return answers


def _teacher(pair: Pair, root: Path, name: str) -> dict[str, Any]:
    if pair.teacher_of:
        name, pair = pair.teacher_of, PAIRS[pair.teacher_of]

    def run(epochs: int) -> Planned:
        config = teacher_config(pair, root, epochs=epochs, seed=SEED)
        return Planned(root / name / "teacher" / f"{epochs}-epochs", config)

    tried, plateau = _lengthen(root, pair.teacher_epochs, run)
    best = max(tried[-2:], key=lambda one: one["AP"])
    return {"folder": best["folder"], "epochs": best["epochs"], "AP": best["AP"], "plateau": plateau, "tried": tried}


def _student(pair: Pair, root: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rate at 1x, and the length."""

    def run(epochs: int, rate: float) -> Planned:
        config = student_config(pair, root, epochs=epochs, rate=rate, seed=SEED)
        return Planned(folder / "search" / _name(ALONE, epochs, rate), config)

    first = _best(root, [(rate, run(pair.epochs, rate)) for rate in pair.rates])
    tried, plateau = _lengthen(root, pair.epochs, lambda epochs: run(epochs, first["value"]))
    chosen = tried[-2 if plateau else -1]
    return first, {"epochs": chosen["epochs"], "AP": chosen["AP"], "plateau": plateau, "tried": tried}


def _search(
    pair: Pair,
    root: Path,
    folder: Path,
    arm: Arm,
    values: Sequence[float],
    what: str,
    *,
    teacher: Path,
    epochs: int,
    **fixed: float,
) -> Callable[[], dict[str, Any]]:
    """The search of one arm for its rate or its strength; `fixed` is the other of the two."""

    def run(value: float) -> Planned:
        own = {**fixed, what: value}
        config = arm_config(pair, root, arm, teacher=teacher, epochs=epochs, seed=SEED, **own)
        return Planned(folder / "search" / _name(arm, epochs, own["rate"], own["strength"], pair.strength), config)

    def answer() -> dict[str, Any]:
        best = _best(root, [(value, run(value)) for value in values])
        return {"what": what, **fixed, what: best["value"], **best}

    return answer


def _name(arm: Arm, epochs: int, rate: float, strength: float = 0.0, what: str = "") -> str:
    return f"{arm.name}-{epochs}-epochs-lr-{rate:g}" + (f"-{what}-{strength:g}" if arm.method else "")


def _lengthen(root: Path, first: int, run: Callable[[int], Planned]) -> tuple[Tried, bool]:
    """Lengths from 1x on, doubled until that gains no more than `GAIN`, and whether that point was reached."""
    epochs = [first, 2 * first]
    while True:
        found = _results([run(own) for own in epochs])
        gain = found[-1].ap - found[-2].ap
        if gain <= GAIN or 2 * epochs[-1] > LONGEST * first:
            tried = [
                {"epochs": own, "AP": result.ap, "folder": _relative(run(own), root)}
                for own, result in zip(epochs, found)
            ]
            return tried, gain <= GAIN
        epochs.append(2 * epochs[-1])


def _best(root: Path, runs: Sequence[tuple[float, Planned]]) -> dict[str, Any]:
    """The value with the highest AP, the first of equals, and whether it lies at the edge of what was tried."""
    found = _results([run for _, run in runs])
    tried: Tried = [
        {"value": value, "AP": result.ap, "folder": _relative(run, root)} for (value, run), result in zip(runs, found)
    ]
    best = max(tried, key=lambda one: one["AP"])
    values = sorted(one["value"] for one in tried)
    edge = len(values) > 1 and best["value"] in (values[0], values[-1])
    return {"value": best["value"], "AP": best["AP"], "at_edge": edge, "tried": tried}


def _results(runs: Sequence[Planned]) -> list[Finished]:
    found = [read_finished(run.folder) for run in runs]
    missing = [run for run, result in zip(runs, found) if result is None]
    if missing:
        raise Missing(missing)
    return [result for result in found if result is not None]


def _relative(run: Planned, root: Path) -> str:
    return str(run.folder.relative_to(root))
