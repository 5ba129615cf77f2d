"""What the numbers say, in sentences that claim no more than they do."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from evidence.arms import ALONE, INHERITS
from evidence.differences import CONFIDENCE, Difference, Row
from evidence.measure import Measured
from evidence.pairs import Sweep

METRIC_NAMES = {"bbox": "box AP", "segm": "mask AP"}
MINUS = "\N{MINUS SIGN}"
TEACHER_LEAD = 0.10
"""AP that the teacher must be above the student alone, in shares of 1."""


def percent(value: float | None) -> str:
    """A score in percent."""
    return "-" if value is None or value < 0 else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """A difference in percent."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def interval(found: Difference) -> str:
    """Its interval in percent."""
    return f"[{signed(found.low)}, {signed(found.high)}]"


def of_lead(lead: float, what: str) -> str:
    """Whether the teacher is far enough above the student alone."""
    verdict = "" if lead >= TEACHER_LEAD else f", less than the {100 * TEACHER_LEAD:.0f} that are asked for"
    return f"The teacher is {signed(lead)} {what} from the student alone{verdict}."


def of_teacher(teacher: Measured | None, rows: Sequence[Row], choices: dict[str, Any], metric: str) -> list[str]:
    """Whether the teacher is far enough above the student alone, and trained to its plateau."""
    sentences = []
    alone = next((row.mean(metric) for row in rows if row.arm == ALONE), None)
    if teacher is not None and teacher.scores and alone is not None:
        sentences.append(of_lead(teacher.scores[metric]["AP"] - alone, METRIC_NAMES[metric]))
    if not choices["teacher"]["plateau"]:
        sentences.append("The teacher had not reached its plateau: the longest schedule still gained.")
    if not choices["length"]["plateau"]:
        sentences.append("The student alone had not reached its plateau: the longest schedule still gained.")
    edges = [name for name, own in choices["arms"].items() if own["at_edge"]]
    if edges:
        sentences.append(
            f"The best value lay at the edge of what was searched for: {', '.join(edges)}. A wider search might find a "
            "better one."
        )
    return sentences


def of_arms(rows: Sequence[Row], metric: str) -> list[str]:
    """One sentence for each comparison of two arms."""
    return [_difference(row, found, metric) for row in rows for found in row.differences[metric]]


def _difference(row: Row, found: Difference, metric: str) -> str:
    name = METRIC_NAMES[metric]
    seeds = f"{found.above} of {len(found.seeds)} seeds"
    rest = f"{signed(found.mean)} {name} on average, {100 * CONFIDENCE:.0f} % interval over images {interval(found)}"
    rest += f", single seeds {', '.join(map(signed, found.seeds.values()))}"
    if found.shown:
        verb = "is above" if found.mean > 0 else "is below"
        return f"**{row.arm.title}** {verb} **{found.other.title}**: {rest}, above it in {seeds}."
    if len(found.seeds) == 1:
        return f"One seed, which shows nothing yet, of {row.arm.title} against {found.other.title}: {rest}."
    return f"No difference shown between {row.arm.title} and {found.other.title}: {rest}, above it in {seeds}."


def of_methods(rows: Sequence[Row], metric: str) -> list[str]:
    """Where the gain comes from: how much of the best arm's gain inheriting alone has."""
    means = {row.arm: mean for row in rows if (mean := row.mean(metric)) is not None}
    with_method = {arm: mean for arm, mean in means.items() if arm.method and arm.inherit}
    if not (ALONE in means and INHERITS in means and with_method):
        return []
    best = max(with_method, key=lambda arm: with_method[arm])
    gain, start = with_method[best] - means[ALONE], means[INHERITS] - means[ALONE]
    if gain <= 0:
        return [f"No arm that inherits is above the student alone; the best is {best.title}, {signed(gain)}."]
    return [
        f"The best arm that inherits, {best.title}, gains {signed(gain)} over the student alone; inheriting by itself "
        f"gains {signed(start)}, so {signed(gain - start)} come from the method."
    ]


def of_sweeps(
    rows: Sequence[Row], base: Row | None, sweeps: Sequence[Sweep], values: dict[str, float], metric: str
) -> list[str]:
    """For each sweep the best value, and whether values differ by more than seeds do.

    Args:
        rows: the swept arms.
        base: the arm that they change.
        sweeps: what was swept.
        values: what the base arm has for each setting.
        metric: the metric.
    """
    sentences = []
    for sweep in sweeps:
        points = {
            dict(row.arm.settings)[sweep.setting]: row
            for row in rows
            if sweep.setting in dict(row.arm.settings) and row.whole
        }
        if base is not None and base.whole:
            points[values[sweep.setting]] = base
        if len(points) < 2:
            continue
        means = {value: statistics.fmean(row.values(metric)) for value, row in points.items()}
        best, worst = max(means, key=lambda value: means[value]), min(means, key=lambda value: means[value])
        deviations = [own for row in points.values() if (own := row.deviation(metric)) is not None]
        spread = f" Seeds differ by {percent(statistics.fmean(deviations))} (standard deviation)." if deviations else ""
        sentences.append(
            f"{sweep.setting}: best at {best:g} with {percent(means[best])}, worst at {worst:g} with "
            f"{percent(means[worst])}.{spread}"
        )
    return sentences
