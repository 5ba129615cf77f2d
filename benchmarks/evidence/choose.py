"""Every choice, by AP of the last student on the validation images, with a seed that is not reported.

1. A learning rate for the student alone at length 1x, then weight decay at that rate, and with both the student's
   length: the shortest of 1x, 2x, 4x, ... from which twice as long gains no more than `GAIN`.
2. The teacher's length: doubled while that gains more than `GAIN`; the better of the last two is the teacher.
3. Rate and decay of the arm that inherits only, in the same way.
4. The strength of each method at length 1x. Everything else it takes from the arm that starts as it does, so that the
   two differ in the method alone.

Every search tries as many values as the others. A method has a third search, where the arm that it is compared with has
two; the student alone has that for its length. The run at length 1x is the best of those with other rates and decays,
and so luckier than the one that is twice as long: that this gains nothing is no proof of a plateau. The page therefore
says what twice the length gains with the reported seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evidence.arms import ALONE, Arm, arm_config, arms_of, teacher_config
from evidence.pairs import DECAY, PAIRS, Pair
from evidence.runs import Finished, Planned, finished_of
from mgdet.errors import UserError
from mgdet.files import atomic_write

SEED = 1000
"""Of all runs that choices are made with; the reported ones count from 0."""
GAIN = 0.005
"""AP, in shares of 1, that twice the length must gain to be worth it."""
CHOICES_FILE = "choices.json"
PROTOCOL = 2
"""Of the rules above. By the first, a method had a decay of its own, `DECAY`, and lengths were tried with it."""
NEWER = {"teacher_decay": DECAY, "choices_of": "", "grids": []}
"""What settings were before pairs had them."""
LATER = ("note", "seeds", "sweep_seeds", "on_teacher_images")
"""Settings of a pair that no choice depends on."""

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
        UserError: they were made for other settings than `PAIRS` has now, or the file is damaged.
    """
    path = root / name / CHOICES_FILE
    if not path.exists():
        return None
    try:
        choices: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path} is damaged; remove it, and tune makes it again from the runs that are there") from None
    if choices.get("protocol", 1) != PROTOCOL:
        raise UserError(f"{path} was made by other rules than those of now; move {root / name} away")
    before, now = {**NEWER, **choices.get("pair", {})}, json.loads(json.dumps(asdict(PAIRS[name])))
    changed = [setting for setting in now if setting not in LATER and before.get(setting) != now[setting]]
    if changed:
        raise UserError(f"{path} was made with another {changed[0]} than {name} has now; move {root / name} away")
    return choices


def write_choices(root: Path, name: str, choices: dict[str, Any]) -> None:
    """Writes the choices of a pair."""
    text = json.dumps(choices, indent=1)
    (root / name).mkdir(exist_ok=True)
    atomic_write(root / name / CHOICES_FILE, lambda file: file.write(text.encode()))


def choose(pair: Pair, root: Path, name: str) -> dict[str, Any]:
    """The choices of a pair, its own or another's, each with the runs that made it: folder, what was tried, and AP.

    Raises:
        Missing: runs are to be done first.
    """
    if pair.choices_of:
        return {**choose(PAIRS[pair.choices_of], root, pair.choices_of), "pair": asdict(pair)}
    folder = root / name
    # The student's runs come first: they are short, and say how long all that follows will take.
    (alone, length), teacher = _together(
        lambda: _student(_Search(pair, root, folder)),
        lambda: _teacher(pair, root, name),
    )
    search = _Search(pair, root, folder, root / teacher["folder"])
    arms = [arm for arm in arms_of(pair) if arm.searched_as == arm.name]

    def searches(arm: Arm) -> list[dict[str, Any]]:
        start = alone if arm.base == ALONE else search.start(arm.base)
        return [*start, search.strength(arm, start)] if arm.method else start

    found = _together(*(partial(searches, arm) for arm in arms))
    return {
        "protocol": PROTOCOL,
        "pair": asdict(pair),
        "seed": SEED,
        "teacher": teacher,
        "length": length,
        "arms": {arm.name: {"strength": 0.0, **_values(own), "searches": own} for arm, own in zip(arms, found)},
    }


@dataclass(frozen=True, slots=True)
class _Search:
    """Searches of a pair at length 1x; teacher: its run's folder, for arms that need it."""

    pair: Pair
    root: Path
    folder: Path
    teacher: Path | None = None

    def start(self, arm: Arm) -> list[dict[str, Any]]:
        """Rate and decay of an arm without a method."""
        rate = self._try(arm, "rate", self.pair.rates)
        return [rate, self._try(arm, "decay", self.pair.decays, rate=rate["value"])]

    def strength(self, arm: Arm, start: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """That of a method, with rate and decay as found by `start`."""
        return self._try(arm, "strength", self.pair.strengths[arm.method], **_values(start))

    def run(self, arm: Arm, epochs: int, *, rate: float, decay: float = DECAY, strength: float = 0.0) -> Planned:
        """One run of a search."""
        own = {"rate": rate, "decay": decay, "strength": strength}
        config = arm_config(self.pair, self.root, arm, teacher=self.teacher, epochs=epochs, seed=SEED, **own)
        return Planned(self.folder / "search" / _name(arm, self.pair, epochs, **own), config)

    def _try(self, arm: Arm, what: str, values: Sequence[float], **fixed: float) -> dict[str, Any]:
        """The best value of a setting, the others fixed."""
        runs = [(value, self.run(arm, self.pair.epochs, **fixed, **{what: value})) for value in values]
        return {"what": what, **_best(self.root, runs)}


def own_searches(chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """The searches of an arm itself; those before a method's are of the arm that starts as it does.

    Args:
        chosen: the arm's part of the choices.
    """
    searches: list[dict[str, Any]] = chosen["searches"]
    return searches[-1:] if searches[-1]["what"] == "strength" else searches


def _values(searches: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What each search found, by name."""
    return {search["what"]: search["value"] for search in searches}


def _together(*questions: Callable[[], Any]) -> list[Any]:
    """The answers to questions that do not depend on each other; what they miss is asked for at once."""
    answers, missing = [], dict[Path, Planned]()
    for question in questions:
        try:
            answers.append(question())
        except Missing as own:
            missing |= {run.folder: run for run in own.runs}
    if missing:
        raise Missing(list(missing.values()))
    return answers


def _teacher(pair: Pair, root: Path, name: str) -> dict[str, Any]:
    def run(epochs: int) -> Planned:
        config = teacher_config(pair, root, epochs=epochs, seed=SEED)
        return Planned(root / name / "teacher" / f"{epochs}-epochs", config)

    tried, plateau = _lengthen(root, pair.teacher_epochs, pair.teacher_longest, run)
    best = max(tried[-2:], key=lambda one: one["AP"])
    return {"folder": best["folder"], "epochs": best["epochs"], "AP": best["AP"], "plateau": plateau, "tried": tried}


def _student(search: _Search) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rate and decay of the student alone, and the length that it needs with them."""
    pair, searches = search.pair, search.start(ALONE)
    own = _values(searches)
    tried, plateau = _lengthen(search.root, pair.epochs, pair.longest, lambda epochs: search.run(ALONE, epochs, **own))
    chosen = tried[-2 if plateau or tried[-1]["AP"] < 0 else -1]
    return searches, {"epochs": chosen["epochs"], "AP": chosen["AP"], "plateau": plateau, "tried": tried}


def _name(arm: Arm, pair: Pair, epochs: int, *, rate: float, decay: float = DECAY, strength: float = 0.0) -> str:
    name = f"{arm.name}-{epochs}-epochs-lr-{rate:g}" + (f"-decay-{decay:g}" if decay != DECAY else "")
    return name + (f"-{pair.strength}-{strength:g}" if arm.method else "")


def _lengthen(root: Path, first: int, longest: int, run: Callable[[int], Planned]) -> tuple[Tried, bool]:
    """Lengths from 1x to `longest` times that, doubled until that gains at most `GAIN`, and whether it ever did.

    A run that broke off ends the search, too, and shows no plateau.
    """
    epochs = [first, 2 * first]
    while True:
        found = _results([run(own) for own in epochs])
        gain = found[-1].ap - found[-2].ap
        if gain <= GAIN or 2 * epochs[-1] > longest * first:
            tried = [
                {"epochs": own, "AP": result.ap, "folder": _relative(run(own), root)}
                for own, result in zip(epochs, found)
            ]
            return tried, gain <= GAIN and found[-1].ap >= 0
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
