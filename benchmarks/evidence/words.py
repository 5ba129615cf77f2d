"""What the numbers say, in sentences that claim no more than they do."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from evidence.arms import ALONE, INHERITS
from evidence.choose import own_searches
from evidence.differences import Difference, Row
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
    """Whether the teacher is far enough above the student alone, and both were trained to their plateaus."""
    sentences = []
    alone = next((row.mean(metric) for row in rows if row.arm == ALONE), None)
    if teacher is not None and teacher.scores and alone is not None:
        sentences.append(of_lead(teacher.scores[metric]["AP"] - alone, METRIC_NAMES[metric]))
    for who, own in (("teacher", choices["teacher"]), ("student alone", choices["length"])):
        if not own["plateau"]:
            before, last = own["tried"][-2:]
            sentences.append(
                f"The {who} had not reached its plateau: {last['epochs']} epochs in place of {before['epochs']} still "
                f"gained {100 * (last['AP'] - before['AP']):.1f} AP on the validation images; no longer schedule was "
                "tried."
            )
    edges = [name for name, own in choices["arms"].items() if any(one["at_edge"] for one in own_searches(own))]
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
    name, number = METRIC_NAMES[metric], len(found.seeds)
    rest = f"{signed(found.mean)} {name} on average, 95 % interval {interval(found)}"
    rest += f", single seeds {', '.join(map(signed, found.seeds.values()))}"
    if found.shown:
        verb = "is above" if found.mean > 0 else "is below"
        same = found.above if found.mean > 0 else number - found.above
        return f"**{row.arm.title}** {verb} **{found.other.title}**: {rest}; so with {same} of {number} seeds."
    if number == 1:
        return f"One seed, which shows nothing yet, of {row.arm.title} against {found.other.title}: {rest}."
    lost = " Runs that broke off are missing." if found.lost else ""
    return f"No difference is shown between {row.arm.title} and {found.other.title}: {rest}.{lost}"


def of_methods(rows: Sequence[Row], metric: str) -> list[str]:
    """Where the gain comes from, for the arm that inherits and distills and is best on the validation images."""
    with_method = [row for row in rows if row.arm.method and row.arm.inherit and row.whole]
    if not with_method:
        return []
    best = max(with_method, key=lambda row: statistics.fmean(run.finished.ap for run in row.whole))
    to = {found.other: found for found in best.differences[metric]}
    if ALONE not in to or INHERITS not in to:
        return []
    total, own = to[ALONE], to[INHERITS]
    start = (
        f"Of the arms that inherit and distill, {best.arm.title} is best on the validation images. On the test images"
    )
    if not total.shown or total.mean < 0:
        return [f"{start} it is not shown to be above the student alone."]
    if not own.shown or own.mean < 0:
        return [
            f"{start} it is {signed(total.mean)} above the student alone, but not shown to be above inheriting alone."
        ]
    return [
        f"{start} it is {signed(total.mean)} above the student alone, of which {signed(own.mean)} {interval(own)} come "
        "from the method and the rest with inheriting."
    ]


def of_sweeps(rows: Sequence[Row], base: Row | None, sweeps: Sequence[Sweep], values: dict[str, float]) -> list[str]:
    """For each sweep the best and the worst value on the validation images, and how far seeds differ.

    Args:
        rows: the swept arms.
        base: the arm that they change.
        sweeps: what was swept.
        values: what the base arm has for each setting.
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
        found = {value: [run.finished.ap for run in row.whole] for value, row in points.items()}
        means = {value: statistics.fmean(own) for value, own in found.items()}
        best, worst = max(means, key=lambda value: means[value]), min(means, key=lambda value: means[value])
        deviations = [statistics.stdev(own) for own in found.values() if len(own) > 1]
        spread = f" Seeds differ by {percent(statistics.fmean(deviations))} (standard deviation)." if deviations else ""
        sentences.append(
            f"{sweep.setting}: on the validation images best at {best:g} with AP {percent(means[best])}, worst at "
            f"{worst:g} with {percent(means[worst])}.{spread}"
        )
    return sentences
