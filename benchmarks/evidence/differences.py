"""What the runs of a pair say, as numbers: means, spreads, and differences with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from evidence.arms import ALONE, INHERITS, LABELS, START, SWEPT, TWICE, Arm
from evidence.measure import Measured
from mgdet.data.records import Records
from mgdet.evaluate.truth import Truth
from mgdet.report.intervals import Bootstrap, image_errors, matched_sides, reach_of

RESAMPLING = Bootstrap(resamples=1000)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one arm is above another, over the seeds that both have, in shares of 1.

    other: the arm that it is compared with.
    seeds: the difference with each seed.
    low, high: the 95 % interval around their mean. It holds the choice of test images, of which parts are drawn for
        both arms alike, and the seeds, whose differences are paired.
    lost: a run of one of the two arms broke off.
    """

    other: Arm
    seeds: dict[int, float]
    low: float
    high: float
    lost: bool

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.seeds.values())

    @property
    def above(self) -> int:
        """With how many seeds it is above."""
        return sum(value > 0 for value in self.seeds.values())

    @property
    def shown(self) -> bool:
        """Is there a difference? Not where the interval covers 0, of one seed, or where runs are missing."""
        return (self.low > 0 or self.high < 0) and len(self.seeds) > 1 and not self.lost


@dataclass(slots=True)
class Row:
    """One arm.

    arm: which one.
    runs: those that are finished, by seed.
    differences: to the arms that it is compared with, for each metric.
    gap: the share of the distance from the student alone to the teacher, for each metric.
    """

    arm: Arm
    runs: list[Measured]
    differences: dict[str, list[Difference]] = field(default_factory=dict)
    gap: dict[str, float] = field(default_factory=dict)

    @property
    def whole(self) -> list[Measured]:
        """The runs that did not break off."""
        return [run for run in self.runs if run.scores]

    def values(self, metric: str, stat: str = "AP") -> list[float]:
        """One number of each run."""
        return [run.scores[metric][stat] for run in self.whole]

    def mean(self, metric: str, stat: str = "AP") -> float | None:
        """Over the runs; None without any."""
        values = self.values(metric, stat)
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str, stat: str = "AP") -> float | None:
        """The standard deviation over the runs; None of fewer than two."""
        values = self.values(metric, stat)
        return statistics.stdev(values) if len(values) > 1 else None


def compared_with(arm: Arm) -> list[Arm]:
    """The arms that an arm is compared with: the student alone, also for twice as long and with the labels that the
    teacher had, and inheriting alone; those of a sweep with the arm that they change."""
    if arm.settings:
        return [SWEPT]
    if arm.searched_as == ALONE.name:
        return [own for own in (ALONE,) if own != arm]
    if arm.teacher_images:
        return [LABELS, *([START] if arm != START else [])]
    return [ALONE, TWICE, LABELS, *([INHERITS] if arm.inherit and arm != INHERITS else [])]


def fill(
    rows: Sequence[Row],
    teacher: Measured | None,
    records: Records,
    metrics: Sequence[str],
    others: Sequence[Row] = (),
) -> None:
    """Works out differences and gaps.

    Args:
        rows: of these.
        teacher: what the gaps reach up to; None for no gaps.
        records: the test images.
        metrics: which ones.
        others: further arms that they are compared with.
    """
    by_arm = {row.arm: row for row in (*rows, *others)}
    for row in rows:
        for metric in metrics:
            known = [by_arm[arm] for arm in compared_with(row.arm) if arm in by_arm]
            found = (difference(row, other, records, metric) for other in known)
            row.differences[metric] = [one for one in found if one is not None]
            to_alone = next((one for one in row.differences[metric] if one.other == ALONE), None)
            if teacher is not None and teacher.scores and to_alone is not None:
                alone = statistics.fmean(
                    run.scores[metric]["AP"] for run in by_arm[ALONE].whole if run.seed in to_alone.seeds
                )
                distance = teacher.scores[metric]["AP"] - alone
                if distance > 0:
                    row.gap[metric] = to_alone.mean / distance


def difference(row: Row, other: Row, records: Records, metric: str) -> Difference | None:
    """The difference of two arms; None where they share no seed."""
    mine = {run.seed: run for run in row.whole}
    theirs = {run.seed: run for run in other.whole}
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    each = {seed: mine[seed].scores[metric]["AP"] - theirs[seed].scores[metric]["AP"] for seed in seeds}
    truth = Truth(records)
    sides = ([truth.results(own[seed].results) for seed in seeds] for own in (theirs, mine))
    before, after = matched_sides(records, metric, *sides)
    error = image_errors(before, after, RESAMPLING, len(records))["AP"]
    values, number = list(each.values()), len(each)
    of_seeds = [(statistics.variance(values) / number, number - 1)] if number > 1 else []
    mean, reach = statistics.fmean(values), reach_of(error, of_seeds)
    lost = any(len(own.whole) < len(own.runs) for own in (row, other))
    return Difference(other.arm, each, mean - reach, mean + reach, lost)
