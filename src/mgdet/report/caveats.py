"""How far a comparison can be trusted: what its numbers do not show, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from mgdet.engine.checkpoint import BEST_FILE, LAST_FILE
from mgdet.report.numbers import METRIC_NAMES, Comparison, Kind, count
from mgdet.report.sources import Group


def caveats(comparison: Comparison, groups: Sequence[Group]) -> list[str]:
    """What a reader must know before believing a difference.

    Args:
        comparison: all numbers.
        groups: the sources behind them, without the teacher.
    """
    return [
        *_sample(comparison),
        *_seeds([comparison.baseline, *comparison.compared]),
        *_classes(comparison),
        *_chosen(groups),
    ]


def _sample(comparison: Comparison) -> list[str]:
    """How small a difference these images can show."""
    metric, data = comparison.metrics[0], comparison.data
    found = [own for kind in comparison.compared if (own := kind.differences[metric]["AP"]) is not None]
    if not found:
        return []
    reach = max((own.high - own.low) / 2 for own in found)
    seeds = any(own.seeds for own in found)
    return [
        f"{count(data.images, 'image')} with {count(data.objects, 'object')}: the interval is about "
        f"±{100 * reach:.1f} {METRIC_NAMES[metric]}, so much smaller differences cannot be seen on them."
        + ("" if seeds else " Four times as many images would halve it.")
    ]


def _seeds(kinds: Sequence[Kind]) -> list[str]:
    """Whose seeds the intervals know."""
    if len(kinds) < 2:
        return []
    single = [kind.name for kind in kinds if len(kind.runs) == 1]
    if not single:
        return ["The intervals cover both the choice of images and the seed."]
    whose = "each kind" if len(single) == len(kinds) else " and ".join(single)
    return [
        f"One run of {whose}: the intervals reflect the choice of images there, but not the seed. Add runs with other "
        "seeds; they are grouped automatically."
    ]


def _classes(comparison: Comparison) -> list[str]:
    """Some classes differ by chance alone."""
    number = len(comparison.data.classes)
    if number < 2 or not comparison.compared:
        return []
    some = f"about {round(0.05 * number)} intervals exclude" if number >= 20 else "an interval may well exclude"
    return [f"With {number} classes, {some} 0 by chance alone."]


def _chosen(groups: Sequence[Group]) -> list[str]:
    """The best student was chosen by its score on images like these."""
    best = [source for group in groups for source in group.sources if source.file.name == BEST_FILE]
    if not best:
        return []
    return [
        f"{BEST_FILE} ({count(len(best), 'run')}) was selected by its AP during training. If that was on these images, "
        f"its score is slightly optimistic; give RUN/{LAST_FILE} to compare the final students."
    ]
