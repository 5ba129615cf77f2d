"""Every choice, by AP of the last student on the validation images, with a seed that is not reported.

1. A learning rate for the student alone at length 1x, and with it the student's length: the shortest of 1x, 2x, 4x, ...
   from which twice as long gains no more than `GAIN`.
2. The teacher's length: doubled while that gains `GAIN` or more; the better of the last two is the teacher.
3. Two searches for each arm at length 1x, all of one size: the learning rate, which an arm with a method takes from the
   arm that starts as it does, and then weight decay, or the method's strength.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evidence.arms import ALONE, Arm, arm_config, arms_of, student_config, teacher_config
from evidence.pairs import DECAY, PAIRS, Pair
from evidence.runs import Finished, Planned, finished_of
from mgdet.errors import UserError
from mgdet.files import atomic_write

SEED = 1000
"""Of all runs that choices are made with; the reported ones count from 0."""
GAIN = 0.005
"""AP, in shares of 1, that twice the length must gain to be worth it."""
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
    """The choices of a pair; None before they have been made.

    Raises:
        UserError: they were made for other settings than `PAIRS` has now.
    """
    path = root / name / CHOICES_FILE
    if not path.exists():
        return None
    choices: dict[str, Any] = json.loads(path.read_text())
    before, now = choices.get("pair", {}), json.loads(json.dumps(asdict(PAIRS[name])))
    changed = [setting for setting in now if before.get(setting) != now[setting]]
    if changed:
        raise UserError(f"{path} was made with another {changed[0]} than {name} has now; move {root / name} away")
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
    length, teacher = _together(
        lambda: _student(pair, root, folder),
        lambda: _teacher(pair, root, name),
    )
    search = _Search(pair, root, folder, root / teacher["folder"])
    arms = [arm for arm in arms_of(pair) if arm.length == 1]
    plain = [arm for arm in arms if not arm.method]
    rates = dict(zip(plain, _together(*(search(arm, "rate", pair.rates) for arm in plain))))
    own = _together(
        *(
            search(arm, "strength", pair.strengths[arm.method], rate=rates[arm.base]["value"])
            if arm.method
            else search(arm, "decay", pair.decays, rate=rates[arm]["value"])
            for arm in arms
        )
    )
    chosen = {
        arm.name: {
            **{"rate": rates[arm.base]["value"], "decay": DECAY, "strength": 0.0, second["what"]: second["value"]},
            "searches": [rates[arm.base], second],
        }
        for arm, second in zip(arms, own)
    }
    return {
        "pair": asdict(pair),
        "seed": SEED,
        "teacher": teacher,
        "length": length,
        "arms": chosen,
    }


@dataclass(frozen=True, slots=True)
class _Search:
    """Searches of a pair at length 1x, as questions for `_together`."""

    pair: Pair
    root: Path
    folder: Path
    teacher: Path

    def __call__(self, arm: Arm, what: str, values: Sequence[float], **fixed: float) -> Callable[[], dict[str, Any]]:
        """The best value of a setting, the others fixed."""

        def run(value: float) -> Planned:
            own = {"rate": 0.0, "decay": DECAY, "strength": 0.0} | fixed | {what: value}
            config = arm_config(
                self.pair, self.root, arm, teacher=self.teacher, epochs=self.pair.epochs, seed=SEED, **own
            )
            return Planned(self.folder / "search" / _name(arm, self.pair, self.pair.epochs, **own), config)

        return lambda: {"what": what, **_best(self.root, [(value, run(value)) for value in values])}


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

    tried, plateau = _lengthen(root, pair.teacher_epochs, pair.teacher_longest, run)
    best = max(tried[-2:], key=lambda one: one["AP"])
    return {"folder": best["folder"], "epochs": best["epochs"], "AP": best["AP"], "plateau": plateau, "tried": tried}


def _student(pair: Pair, root: Path, folder: Path) -> dict[str, Any]:
    """Its length, at the rate that is best at 1x."""

    def run(epochs: int, rate: float) -> Planned:
        config = student_config(pair, root, epochs=epochs, rate=rate, seed=SEED)
        return Planned(folder / "search" / _name(ALONE, pair, epochs, rate=rate), config)

    rate = _best(root, [(rate, run(pair.epochs, rate)) for rate in pair.rates])["value"]
    tried, plateau = _lengthen(root, pair.epochs, pair.longest, lambda epochs: run(epochs, rate))
    chosen = tried[-2 if plateau else -1]
    return {"epochs": chosen["epochs"], "AP": chosen["AP"], "plateau": plateau, "tried": tried}


def _name(arm: Arm, pair: Pair, epochs: int, *, rate: float, decay: float = DECAY, strength: float = 0.0) -> str:
    name = f"{arm.name}-{epochs}-epochs-lr-{rate:g}" + (f"-decay-{decay:g}" if decay != DECAY else "")
    return name + (f"-{pair.strength}-{strength:g}" if arm.method else "")


def _lengthen(root: Path, first: int, longest: int, run: Callable[[int], Planned]) -> tuple[Tried, bool]:
    """Lengths from 1x to `longest` times that, doubled until that gains at most `GAIN`, and whether it ever did."""
    epochs = [first, 2 * first]
    while True:
        found = _results([run(own) for own in epochs])
        gain = found[-1].ap - found[-2].ap
        if gain <= GAIN or 2 * epochs[-1] > longest * first:
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
    found = [finished_of(run) for run in runs]
    missing = [run for run, result in zip(runs, found) if result is None]
    if missing:
        raise Missing(missing)
    return [result for result in found if result is not None]


def _relative(run: Planned, root: Path) -> str:
    return str(run.folder.relative_to(root))
