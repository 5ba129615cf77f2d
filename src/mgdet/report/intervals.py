"""How sure a difference is: a paired bootstrap over the images, and the spread over seeds where there are several runs.

The bootstrap resamples the images with replacement, the same ones for both sides: how much does the difference vary?
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import hotcoco
import numpy as np

from mgdet.data.records import Records
from mgdet.errors import UserError
from mgdet.evaluate.coco import CocoScores, evaluator
from mgdet.evaluate.truth import Truth, class_rows
from mgdet.report.dataset import BAND_EDGES
from mgdet.report.numbers import STATS, Interval

CONFIDENCE = 0.95
FEWEST_IMAGES = 10
"""Where fewer images hold such an object, a resample may hold none at all, and an interval would mean nothing."""

Results = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How the images are resampled.

    resamples: how many.
    seed: of the resampling.
    """

    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise UserError(f"the bootstrap has {self.resamples} resamples; give 100 or more")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"the bootstrap's seed is {self.seed}; give 0 or more, below 2,147,483,648")

    @property
    def first(self) -> int:
        """hotcoco's seed. Each resample has the next one, so two seeds that lie close together share resamples."""
        return self.seed * self.resamples


BOOTSTRAP = Bootstrap()


class Side(NamedTuple):
    """One side of a difference.

    results: the detections of each run, with the ids of `Truth`.
    scores: of each run.
    """

    results: Sequence[Results]
    scores: Sequence[CocoScores]


def differences(
    records: Records,
    metric: str,
    baseline: Side,
    other: Side,
    how: Bootstrap,
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Interval | None], dict[str, Interval | None]]:
    """How far `other` is above `baseline`, for each of `STATS`, and for the AP of each class.

    Args:
        records: the data set.
        metric: "bbox" or "segm".
        baseline, other: both sides.
        how: the bootstrap.
        tick: called after each number of a class.

    Returns:
        Intervals by number and by class; None where fewer than `FEWEST_IMAGES` images hold such an object.
    """
    copies = math.lcm(len(baseline.results), len(other.results))
    truth = Truth(records).coco(masks=metric == "segm", copies=copies)
    number = len(records.classes)
    before, after = (evaluator(truth, _side_by_side(side, copies, number), metric) for side in (baseline, other))
    drawn = hotcoco.compare(before, after, how.resamples, how.first, CONFIDENCE)
    enough = images_with(records)
    stats: dict[str, Interval | None] = {}
    for name in STATS:
        own = [[scores.stats[name] for scores in side.scores] for side in (baseline, other)]
        stats[name] = _interval(drawn, name, own) if enough[name] >= FEWEST_IMAGES else None
    classes: dict[str, Interval | None] = {}
    for label, name in enumerate(class_rows(records)):
        classes[name] = None
        if enough[label] >= FEWEST_IMAGES:
            for matched in (before, after):
                matched.params.cat_ids = [label + 1 + copy * number for copy in range(copies)]
                matched.evaluate()
                matched.accumulate()
            drawn = hotcoco.compare(before, after, how.resamples, how.first, CONFIDENCE)
            own = [[scores.per_class[name]["AP"] for scores in side.scores] for side in (baseline, other)]
            classes[name] = _interval(drawn, "AP", own)
        tick()
    return stats, classes


def images_with(records: Records) -> dict[str | int, int]:
    """How many images hold an object that counts: of any size by "AP", "AP50" and "AP75", of one by "APs", "APm" and
    "APl", and of each class by its label."""
    areas = np.where(np.isnan(records.areas), records.boxes[:, 2] * records.boxes[:, 3], records.areas)
    owners = np.repeat(np.arange(len(records)), np.diff(records.starts))
    counts = ~records.crowd & ~records.ignored
    bands = np.digitize(areas, BAND_EDGES)
    found: dict[str | int, int] = dict.fromkeys(STATS, len(np.unique(owners[counts])))
    for band, name in enumerate(("APs", "APm", "APl")):
        found[name] = len(np.unique(owners[counts & (bands == band)]))
    for label in range(len(records.classes)):
        found[label] = len(np.unique(owners[counts & (records.labels == label)]))
    return found


def _side_by_side(side: Side, copies: int, number: int) -> Results:
    """The runs as one: each with classes of its own, `number` for each, so that the mean over all is that over runs."""
    if copies == 1:
        return side.results[0]
    return [
        result | {"category_id": result["category_id"] + copy * number}
        for copy in range(copies)
        for result in side.results[copy % len(side.results)]
    ]


def _interval(drawn: dict[str, Any], stat: str, runs: Sequence[Sequence[float]]) -> Interval:
    """The interval of one number: of the images alone for single runs, of images and seeds for several.

    Both sources of chance are independent: their variances add up, and Student's t has the degrees of freedom that
    Welch and Satterthwaite give, with no end to those of the bootstrap.

    Args:
        drawn: what `hotcoco.compare` says.
        stat: the number.
        runs: for each side, the number in each run.
    """
    value, found = drawn["deltas"][stat], drawn["ci"][stat]
    several = [own for own in runs if len(own) > 1]
    variances = [statistics.variance(own) / len(own) for own in several]
    seeds = sum(variances)
    if seeds == 0:
        return Interval(value, found["lower"], found["upper"], bool(several))
    total = found["std_err"] ** 2 + seeds
    freedom = total**2 / sum(variance**2 / (len(own) - 1) for variance, own in zip(variances, several))
    reach = student_t((1 + CONFIDENCE) / 2, freedom) * math.sqrt(total)
    return Interval(value, value - reach, value + reach, True)


def student_t(share: float, freedom: float) -> float:
    """The quantile of Student's t distribution.

    With t = sqrt(freedom) * tan(angle) its density is that of cos(angle) ** (freedom - 1), which is added up here.

    Args:
        share: from 0.5 to below 1.
        freedom: degrees of freedom, 1 or more, not necessarily whole.
    """
    if freedom > 1000:
        return statistics.NormalDist().inv_cdf(share)
    angles = np.linspace(0, math.pi / 2, 100_001)
    heights = np.cos(angles) ** (freedom - 1)
    areas = np.concatenate([[0], np.cumsum(heights[1:] + heights[:-1])])
    angle = float(np.interp(2 * share - 1, areas / areas[-1], angles))
    return math.sqrt(freedom) * math.tan(angle)
