"""A comparison as values: what each kind of run reaches, how the kinds differ, and how far that can be trusted."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mgdet.evaluate.coco import CocoScores

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Those of COCO's twelve numbers that are compared."""
METRIC_NAMES = {"bbox": "AP", "segm": "mask AP"}
MINUS = "\N{MINUS SIGN}"
Role = Literal["baseline", "compared", "teacher"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference and the 95 % confidence interval around it, in shares of 1.

    value: the difference as measured.
    low, high: ends of the interval.
    seeds: does it also cover what another seed would change, besides other images?
    """

    value: float
    low: float
    high: float
    seeds: bool = False

    @property
    def shown(self) -> bool:
        """Is there a difference? Not where the interval covers 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Size:
    """What a detector costs anywhere.

    parameters: numbers that it learned.
    gflops: thousand millions of floating-point operations for one image, a multiply-add counted as two.
    height, width: of that image, padding included, in pixels.
    """

    parameters: int
    gflops: float
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Speed:
    """What a detector takes on this machine, in milliseconds per image: the median, and the middle half."""

    median: float
    low: float
    high: float


@dataclass(slots=True)
class History:
    """What a run logged while it trained; each curve is a list of (epoch, value).

    scores: AP of each metric, in shares of 1.
    detection: the sum of the detector's own losses.
    methods: the sum over levels of each method's loss.
    """

    scores: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    detection: list[tuple[float, float]] = field(default_factory=list)
    methods: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """One run, checkpoint or file of detections, measured.

    source: as it was given.
    file: the weights or the detections that were read; of another library's own detector its name.
    sha256: the hash of that file; empty where there is none.
    seed: of the training; None where it is not known.
    scores: COCO's numbers for each metric.
    history: None where there is none.
    """

    source: str
    file: str
    sha256: str
    seed: int | None
    scores: dict[str, CocoScores]
    history: History | None = None


@dataclass(slots=True)
class Kind:
    """Runs that differ in nothing but their seed, as one row of the comparison. Scores are means over the runs.

    name: as it is shown.
    role: what the others are compared with, what is compared, or the teacher.
    differences: for each metric and each of `STATS`, this kind minus the baseline; None where too few images decide.
    class_differences: the same for each class, AP alone.
    gap_closed: for each metric, the share of the distance from the baseline to the teacher; absent where there is none.
    errors: for each metric, TIDE's error types: how much AP50 would rise without them, in shares of 1.
    size: None for exported graphs and files of detections.
    speed: None for files of detections.
    """

    name: str
    role: Role
    runs: list[Run]
    differences: dict[str, dict[str, Interval | None]] = field(default_factory=dict)
    class_differences: dict[str, dict[str, Interval | None]] = field(default_factory=dict)
    gap_closed: dict[str, float] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    size: Size | None = None
    speed: Speed | None = None

    def values(self, metric: str, stat: str) -> list[float]:
        """One of COCO's numbers, of each run."""
        return [run.scores[metric].stats[stat] for run in self.runs]

    def mean(self, metric: str, stat: str) -> float:
        """The mean over the runs; -1 where nothing counts."""
        return statistics.fmean(self.values(metric, stat))

    def deviation(self, metric: str, stat: str) -> float | None:
        """The standard deviation over the runs; None of a single one."""
        values = self.values(metric, stat)
        return statistics.stdev(values) if len(values) > 1 else None

    def class_mean(self, metric: str, name: str, stat: str = "AP") -> float:
        """The mean over the runs for one class; -1 where it does not occur."""
        return statistics.fmean(run.scores[metric].per_class[name][stat] for run in self.runs)


@dataclass(frozen=True, slots=True)
class Measured:
    """What everything was measured on.

    source: the annotations.
    images, objects: how many, crowds not counted.
    classes: their names.
    """

    source: str
    images: int
    objects: int
    classes: tuple[str, ...]


@dataclass(slots=True)
class Comparison:
    """Everything that a comparison says, as numbers and sentences.

    data: the images.
    metrics: "bbox", "segm" or both; sentences are about the first.
    kinds: the baseline first, the teacher last if there is one.
    machine: where the times were measured; empty where there are none.
    notes: sentences on how far all this can be trusted.
    """

    data: Measured
    metrics: tuple[str, ...]
    kinds: list[Kind]
    machine: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> Kind:
        """What the others are compared with."""
        return self.kinds[0]

    @property
    def compared(self) -> list[Kind]:
        """The kinds between baseline and teacher."""
        return [kind for kind in self.kinds if kind.role == "compared"]

    @property
    def teacher(self) -> Kind | None:
        """The teacher, where it was measured."""
        return next((kind for kind in self.kinds if kind.role == "teacher"), None)

    @property
    def headlines(self) -> list[str]:
        """One sentence for each kind that is compared, or one on the only kind."""
        if not self.compared:
            metric = self.metrics[0]
            score = percent(self.baseline.mean(metric, "AP"))
            return [f"{self.baseline.name}: {score} {METRIC_NAMES[metric]}, n = {count(self.data.images, 'image')}"]
        return [self.headline(kind) for kind in self.compared]

    def headline(self, kind: Kind) -> str:
        """The difference of a kind to the baseline, as in "MGD +2.1 AP over alone, 95 % interval [0.4, 3.9], ..."."""
        metric = self.metrics[0]
        name, images = METRIC_NAMES[metric], f"n = {count(self.data.images, 'image')}"
        if len(kind.runs) > 1 or len(self.baseline.runs) > 1:
            images += f", {len(kind.runs)} and {count(len(self.baseline.runs), 'run')}"
        found = kind.differences[metric]["AP"]
        if found is None:
            change = signed(kind.mean(metric, "AP") - self.baseline.mean(metric, "AP"))
            return f"{kind.name} {change} {name} vs. {self.baseline.name}, too few images for an interval, {images}"
        size, rest = f"{signed(found.value)} {name}", f"95 % interval {bounds(found)}, {images}"
        if not found.shown:
            return f"No difference shown between {kind.name} and {self.baseline.name}: {size}, {rest}"
        return f"{kind.name} {size} {'over' if found.value > 0 else 'vs.'} {self.baseline.name}, {rest}"

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain dicts, lists and scalars, ready for JSON; means and deviations beside the runs."""
        values = dataclasses.asdict(self)
        values["headlines"] = self.headlines
        for kind, written in zip(self.kinds, values["kinds"]):
            written["mean"] = {m: {s: kind.mean(m, s) for s in STATS} for m in self.metrics}
            written["deviation"] = {m: {s: kind.deviation(m, s) for s in STATS} for m in self.metrics}
        return values


def percent(value: float) -> str:
    """A score in [0, 1] in percent; "-" for -1, where there is nothing to score."""
    return "-" if value < 0 else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """A difference in percent, with its sign: +2.1, −0.3, 0.0."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def bounds(interval: Interval) -> str:
    """An interval in percent, as in [0.4, 3.9]."""
    low, high = (f"{100 * end:.1f}".replace("-0.0", "0.0").replace("-", MINUS) for end in (interval.low, interval.high))
    return f"[{low}, {high}]"


def share(value: float) -> str:
    """A share of 1 in whole percent: 142 %, −55 %."""
    return f"{100 * value:.0f} %".replace("-0 ", "0 ").replace("-", MINUS)


def alike(value: float, column: Sequence[float]) -> str:
    """A positive number with the decimals that suit its column: three digits of the smallest, two decimals at most."""
    smallest = min((number for number in column if number > 0), default=1.0)
    return f"{value:,.{min(2, max(0, 2 - math.floor(math.log10(smallest))))}f}"


def count(number: int, noun: str) -> str:
    """As in "1 image" and "300 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"
