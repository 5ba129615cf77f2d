"""What the numbers say, in sentences that claim no more than they do."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from evidence.arms import ALONE, INHERITS, TITLES, TWICE
from evidence.choose import GAIN, own_searches
from evidence.differences import Difference, Row, compared_with
from evidence.measure import Measured
from evidence.pairs import Sweep

METRIC_NAMES = {"bbox": "box AP", "segm": "mask AP"}
MINUS = "\N{MINUS SIGN}"
TEACHER_LEAD = 0.10
"""AP that the teacher must be above the student alone, in shares of 1."""


def percent(value: float | None) -> str:
    """A score in percent."""
    return "-" if value is None or value < 0 else f"{100 * value:.1f}"


def signed(value: float, digits: int = 1) -> str:
    """A difference in percent."""
    text = f"{100 * value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def interval(found: Difference) -> str:
    """Its interval in percent, with as many digits as tell a bound from 0."""
    bounds = [bound for bound in (found.low, found.high) if bound]
    digits = next((most for most in range(1, 5) if all(float(f"{100 * bound:.{most}f}") for bound in bounds)), 5)
    return f"[{signed(found.low, digits)}, {signed(found.high, digits)}]"


def of_lead(lead: float, what: str) -> str:
    """Whether the teacher is far enough above the student alone."""
    where = "above" if lead >= 0 else "below"
    verdict = "" if lead >= TEACHER_LEAD else f", short of the {100 * TEACHER_LEAD:.0f} that are required"
    return f"In {what} the teacher is {100 * abs(lead):.1f} {where} the student alone{verdict}."


def of_teacher(teacher: Measured | None, rows: Sequence[Row], choices: dict[str, Any], metric: str) -> list[str]:
    """Whether the teacher is far enough above the student alone, and both were trained to their plateaus."""
    sentences = []
    whose = choices["pair"].get("choices_of", "")
    other = f" of {whose}" if whose else ""
    alone = next((row.mean(metric) for row in rows if row.arm == ALONE), None)
    if teacher is not None and teacher.scores and alone is not None:
        sentences.append(of_lead(teacher.scores[metric]["AP"] - alone, METRIC_NAMES[metric]))
    for who, own in (("teacher", choices["teacher"]), (f"student alone{other}", choices["length"])):
        if own["plateau"]:
            continue
        before, last = own["tried"][-2:]
        if min(before["AP"], last["AP"]) < 0:
            sentences.append(f"Whether the {who} had reached its plateau is not known: a longer run broke off.")
            continue
        sentences.append(
            f"The {who} had not reached its plateau: {last['epochs']} epochs instead of {before['epochs']} still "
            f"gained {100 * (last['AP'] - before['AP']):.1f} AP on the validation images; no longer schedule was "
            "tried."
        )
    sentences += of_length(rows, metric)
    if edges := of_edges(choices):
        sentences.append(
            f"The best value lay at the edge of its search{other}: {', '.join(edges)}. A wider search might find a "
            "better one, also where no difference is shown."
        )
    return sentences


def of_length(rows: Sequence[Row], metric: str) -> list[str]:
    """What twice the length is worth to the student alone with the reported seeds: whether it is at its plateau."""
    by_arm = {row.arm: row for row in rows}
    if ALONE not in by_arm or TWICE not in by_arm or not by_arm[TWICE].differences.get(metric):
        return []
    (found,) = by_arm[TWICE].differences[metric]
    once, twice = ({run.seed: run.finished.ap for run in by_arm[arm].whole} for arm in (ALONE, TWICE))
    gain = statistics.fmean(twice[seed] - once[seed] for seed in found.seeds)
    least = f"{100 * GAIN:g} AP"
    if found.shown and found.mean > 0:
        verdict = "was not at its plateau with these seeds"
    elif found.high <= GAIN and len(found.seeds) > 1 and not found.lost:
        verdict = f"was at its plateau with these seeds, if {least} are the limit"
    else:
        verdict = f"may have been at its plateau; that it gains less than {least} is not shown"
    return [
        f"The student alone {verdict}: twice as long is worth {signed(found.mean)} {METRIC_NAMES[metric]} "
        f"{interval(found)} on the test images, {signed(gain)} on the validation images."
    ]


def of_edges(choices: dict[str, Any]) -> list[str]:
    """The searches of each arm whose best value has none beyond it."""
    found = []
    for name, own in choices["arms"].items():
        for search in own_searches(own):
            if search["at_edge"]:
                end = "largest" if search["value"] == max(one["value"] for one in search["tried"]) else "smallest"
                found.append(f"{setting_of(search, choices['pair']['strength'])} of {name} ({end} tried)")
    return found


def setting_of(search: dict[str, Any], strength: str) -> str:
    """What a search is about; `strength` is what the pair's methods call theirs."""
    return strength if search["what"] == "strength" else str(search["what"])


def of_arms(rows: Sequence[Row], metric: str) -> list[str]:
    """One sentence for each arm: how it differs from those that it is compared with."""
    return [
        f"**{row.arm.title}**: {'; '.join(map(_difference, row.differences[metric]))}."
        for row in rows
        if row.differences[metric]
    ]


def of_many(rows: Sequence[Row], metric: str) -> str:
    """How the sentences of `of_arms` are to be read together."""
    number = sum(len(row.differences.get(metric, [])) for row in rows)
    alone = (
        f" Each interval stands alone: if no two arms differed, about one in twenty of these {number} would still "
        "exclude 0."
        if number
        else ""
    )
    return f"Differences are in {METRIC_NAMES[metric]} on the test images, with 95 % intervals.{alone}"


def _difference(found: Difference) -> str:
    name, number = f"**{found.other.title}**", len(found.seeds)
    size = f"{signed(found.mean)} {interval(found)}"
    if found.shown:
        same = sum(value * found.mean > 0 for value in found.seeds.values())
        return f"{'above' if found.mean > 0 else 'below'} {name}, {size}, with {same} of {number} seeds"
    if number == 1:
        return f"one seed, which shows nothing yet, against {name}, {size}"
    lost = ", runs that broke off are missing" if found.lost else ""
    return f"no difference from {name} is shown, {size}{lost}"


def of_methods(rows: Sequence[Row], metric: str) -> list[str]:
    """Where the gain comes from, for the arm that inherits and distills and is best on the validation images, over the
    seeds that all such arms have."""
    with_method = [row for row in rows if row.arm.method and INHERITS in compared_with(row.arm) and row.whole]
    seeds = set.intersection(*({run.seed for run in row.whole} for row in with_method)) if with_method else set()
    if not seeds:
        return []
    best = max(with_method, key=lambda row: statistics.fmean(run.finished.ap for run in row.whole if run.seed in seeds))
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
            f"{start} it is {signed(total.mean)} above the student alone, but not shown to be above inheriting only."
        ]
    bare = next((row for row in rows if row.arm.method == best.arm.method and not row.arm.inherit), None)
    found = bare.differences[metric] if bare is not None else []
    rest = "".join(
        f" Without inheriting, {TITLES[best.arm.method]} gives {signed(one.mean)} {interval(one)}."
        for one in found
        if one.other == ALONE
    )
    return [
        f"{start} it is {signed(total.mean)} above the student alone and {signed(own.mean)} {interval(own)} above "
        f"inheriting only.{rest}"
    ]


def of_sweeps(
    rows: Sequence[Row], base: Row | None, sweeps: Sequence[Sweep], values: dict[str, float], metric: str
) -> list[str]:
    """For each sweep the best and the worst value on the validation images, how far seeds differ, and which values are
    shown to differ from the chosen one on the test images.

    Values are compared over the seeds that all of them have.

    Args:
        rows: the swept arms.
        base: the arm that they change.
        sweeps: what was swept.
        values: what the base arm has for each setting; without one it is no point of a sweep.
        metric: of the test images.
    """
    sentences = []
    for sweep in sweeps:
        points = {row.arm.settings[0][1]: row for row in rows if row.arm.settings[0][0] == sweep.setting and row.whole}
        if base is not None and base.whole and sweep.setting in values:
            points[values[sweep.setting]] = base
        if len(points) < 2:
            continue
        seeds = set.intersection(*({run.seed for run in row.whole} for row in points.values()))
        if not seeds:
            continue
        found = {value: [run.finished.ap for run in row.whole if run.seed in seeds] for value, row in points.items()}
        means = {value: statistics.fmean(own) for value, own in found.items()}
        best, worst = max(means, key=lambda value: means[value]), min(means, key=lambda value: means[value])
        all_runs = [[run.finished.ap for run in row.whole] for row in points.values()]
        deviations = [statistics.stdev(own) for own in all_runs if len(own) > 1]
        spread = f" Seeds differ by {percent(statistics.fmean(deviations))} (standard deviation)." if deviations else ""
        sentences.append(
            f"{sweep.setting}: on the validation images best at {best:g} with AP {percent(means[best])}, worst at "
            f"{worst:g} with {percent(means[worst])}.{spread}{_beside_chosen(points, base, metric)}"
        )
    return sentences


def _beside_chosen(points: dict[float, Row], base: Row | None, metric: str) -> str:
    """Which values of a sweep differ from the arm that it changes, on the test images."""
    compared = {
        value: found
        for value, row in sorted(points.items())
        if row is not base
        for found in row.differences.get(metric, [])
    }
    if base is None or not compared:
        return ""
    if all(len(one.seeds) == 1 for one in compared.values()):
        return f" On the test images no value is compared with **{base.arm.title}**: one seed each shows nothing yet."
    shown = [f"{value:g} ({signed(one.mean)} {interval(one)})" for value, one in compared.items() if one.shown]
    verb = "differ" if len(shown) > 1 else "differs" if shown else "is shown to differ"
    return f" On the test images {' and '.join(shown) or 'no value'} {verb} from **{base.arm.title}**."
