"""How far a comparison can be trusted: what it does not know, said in sentences beside its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from mgdet.report.numbers import METRIC_NAMES, Comparison, Kind, count
from mgdet.report.sources import Group


def caveats(comparison: Comparison, groups: Sequence[Group]) -> list[str]:
    """What a reader must know before he believes a difference.

    Args:
        comparison: all numbers.
        groups: the sources that they are of, without the teacher.
    """
    return [
        *_sample(comparison),
        *_seeds([comparison.baseline, *comparison.compared]),
        *_classes(comparison),
        *_chosen(groups),
    ]


def _sample(comparison: Comparison) -> list[str]:
    """How small a difference these images can show."""
    metric = comparison.metrics[0]
    found = [kind.differences[metric]["AP"] for kind in comparison.compared]
    reach = [(own.high - own.low) / 2 for own in found if own is not None]
    if not reach:
        return []
    data = comparison.data
    return [
        f"{count(data.images, 'image')} with {count(data.objects, 'object')}: an interval reaches about "
        f"{100 * max(reach):.1f} {METRIC_NAMES[metric]} to either side, so smaller differences cannot be shown on "
        "them. Four times the images halve it."
    ]


def _seeds(kinds: Sequence[Kind]) -> list[str]:
    """Whose seeds the intervals know."""
    if len(kinds) < 2:
        return []
    single = [kind.name for kind in kinds if len(kind.runs) == 1]
    if not single:
        return ["The intervals cover both other images and other seeds."]
    whose = "each kind" if len(single) == len(kinds) else " and ".join(single)
    return [
        f"One run of {whose}: the intervals say what other images would change, not what another seed would. "
        "Train with another --train.seed and give those runs, too; they are put together by themselves."
    ]


def _classes(comparison: Comparison) -> list[str]:
    """By chance alone, some classes differ."""
    number = len(comparison.data.classes)
    if number < 2 or not comparison.compared:
        return []
    return [
        f"Of {number} classes about {max(1, round(0.05 * number))} leave 0 out of their interval by chance alone."
        if number >= 10
        else f"With {number} classes, one that leaves 0 out of its interval by chance alone is no surprise."
    ]


def _chosen(groups: Sequence[Group]) -> list[str]:
    """Best students were chosen by a look at images like these."""
    best = [source for group in groups for source in group.sources if source.file.name.startswith("student_best")]
    if not best:
        return []
    return [
        f"{count(len(best), 'run')} stand here with the student that did best in an evaluation while training. Where "
        "that was on these images its score is a little too high; give RUN/student_last.pth to compare the last ones."
    ]
