"""How sure a difference is: by resampled images, and by the spread over seeds where there are several runs.

The same images are drawn for both sides: how much does the difference vary?
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
    enough = images_with(records)
    if enough["AP"] < FEWEST_IMAGES:
        return dict.fromkeys(STATS), dict.fromkeys(class_rows(records))
    before, after = matched_sides(records, metric, baseline.results, other.results)
    categories = list(before.params.cat_ids)
    errors = image_errors(before, after, how, len(records))
    stats: dict[str, Interval | None] = {}
    for name in STATS:
        own = [[scores.stats[name] for scores in side.scores] for side in (baseline, other)]
        stats[name] = _interval(errors[name], own) if enough[name] >= FEWEST_IMAGES else None
    classes: dict[str, Interval | None] = {}
    for label, name in enumerate(class_rows(records)):
        classes[name] = None
        if enough[label] >= FEWEST_IMAGES:
            for matched in (before, after):
                matched.params.cat_ids = categories[label :: len(records.classes)]
                matched.evaluate()
                matched.accumulate()
            errors = image_errors(before, after, how, len(records))
            own = [[scores.per_class[name]["AP"] for scores in side.scores] for side in (baseline, other)]
            classes[name] = _interval(errors["AP"], own)
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


def matched_sides(records: Records, metric: str, *sides: Sequence[Results]) -> list[hotcoco.COCOeval]:
    """Each side's runs on the same images as one evaluation, whose AP is the mean of theirs.

    Each copy has objects and classes of its own, so that AP, a mean over classes, is one over runs, too, and a draw of
    images is the same for all of them.

    Args:
        records: the data set.
        metric: "bbox" or "segm".
        sides: of each the detections of its runs, with the ids of `Truth`.

    Returns:
        An evaluator for each side. Class c of K stands in copy i as i * K + c.
    """
    copies = math.lcm(*map(len, sides))
    truth, number = Truth(records).coco(masks=metric == "segm", copies=copies), len(records.classes)

    def together(runs: Sequence[Results]) -> Results:
        return [
            result | {"category_id": result["category_id"] + copy * number}
            for copy in range(copies)
            for result in runs[copy % len(runs)]
        ]

    return [evaluator(truth, together(runs), metric) for runs in sides]


def image_errors(
    before: hotcoco.COCOeval, after: hotcoco.COCOeval, how: Bootstrap, num_images: int
) -> dict[str, float]:
    """The standard error of the difference of each of COCO's numbers that comes from the choice of images.

    hotcoco draws the images with replacement, but an image that is drawn twice counts once: a resample is a part of the
    images, each of them once, `kept` on average. That is a delete-d jackknife, and what its numbers vary by is to be
    multiplied by sqrt(kept / (1 - kept)), about 1.31 (Shao and Wu 1989, "A general theory for jackknife variance
    estimation").

    Args:
        before, after: evaluators of the same images that have matched detections.
        how: the resampling.
        num_images: how many images there are, 2 or more.
    """
    drawn: dict[str, Any] = hotcoco.compare(before, after, how.resamples, how.first, CONFIDENCE)["ci"]
    kept = 1 - (1 - 1 / num_images) ** num_images
    return {name: found["std_err"] * math.sqrt(kept / (1 - kept)) for name, found in drawn.items()}


def _interval(image_error: float, runs: Sequence[Sequence[float]]) -> Interval:
    """The interval of one number: of the images alone for single runs, of images and seeds for several.

    Args:
        image_error: see `image_errors`.
        runs: for each side, the number in each run.
    """
    value = statistics.fmean(runs[1]) - statistics.fmean(runs[0])
    several = [own for own in runs if len(own) > 1]
    reach = reach_of(image_error, [(statistics.variance(own) / len(own), len(own) - 1) for own in several])
    return Interval(value, value - reach, value + reach, bool(several))


def reach_of(image_error: float, others: Sequence[tuple[float, int]]) -> float:
    """Half the width of the interval around a difference that several independent sources of chance move.

    Their variances add up, and Student's t has the degrees of freedom that Welch and Satterthwaite give, with no end to
    those of the images.

    Args:
        image_error: see `image_errors`.
        others: variance and degrees of freedom of each other source.
    """
    total = image_error**2 + sum(variance for variance, _ in others)
    known = sum(variance**2 / freedom for variance, freedom in others)
    freedom = total**2 / known if known else math.inf
    return student_t((1 + CONFIDENCE) / 2, freedom) * math.sqrt(total)


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
