"""A comparison as tables for a terminal."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.table import Table

from mgdet.report.bench import TIDE
from mgdet.report.numbers import METRIC_NAMES, STATS, Comparison, Kind, alike, bounds, count, percent, share, signed

WIDTH = 100
MOST_CLASSES = 20
"""More classes than these are in the page alone, but for those that differ most."""


def tables(comparison: Comparison) -> str:
    """Headline, scores, differences, classes, errors and notes, as text of 100 columns."""
    parts: list[Table | str] = ["\n".join(_wrapped(line) for line in comparison.headlines)]
    for metric in comparison.metrics:
        parts.append(_scores(comparison, metric))
        if len(comparison.kinds) > 1:
            parts += [_differences(comparison, metric), _classes(comparison, metric)]
        parts.append(_errors(comparison, metric))
    if comparison.notes:
        parts.append("\n".join(_wrapped(f"- {note}") for note in comparison.notes))
    console = Console(width=WIDTH, color_system=None, soft_wrap=True, markup=False, emoji=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part, highlight=False)
            console.print()
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def mean_and_deviation(kind: Kind, metric: str, stat: str) -> list[str]:
    """The mean of a number over the runs and, where there are several, its standard deviation."""
    deviation = kind.deviation(metric, stat)
    mean = percent(kind.mean(metric, stat))
    return [mean] if deviation is None or mean == "-" else [mean, f"± {100 * deviation:.1f}"]


def _scores(comparison: Comparison, metric: str) -> Table:
    table = _table(f"{METRIC_NAMES[metric]} in percent", "", *STATS, "gap closed", "params", "GFLOPs", "ms")
    gflops = [kind.size.gflops for kind in comparison.kinds if kind.size is not None]
    times = [kind.speed.median for kind in comparison.kinds if kind.speed is not None]
    for kind in comparison.kinds:
        closed = kind.gap_closed.get(metric)
        name = kind.name if len(kind.runs) == 1 else f"{kind.name}\n{count(len(kind.runs), 'run')}"
        table.add_row(
            name,
            *("\n".join(mean_and_deviation(kind, metric, stat)) for stat in STATS),
            "" if closed is None else share(closed),
            "" if kind.size is None else f"{kind.size.parameters / 1e6:.2f} M",
            "" if kind.size is None else alike(kind.size.gflops, gflops),
            "" if kind.speed is None else alike(kind.speed.median, times),
        )
    return table


def _differences(comparison: Comparison, metric: str) -> Table:
    title = f"difference from {comparison.baseline.name} with its 95 % interval; * excludes 0"
    table = _table(title, "", *STATS)
    for kind in comparison.kinds[1:]:
        cells = []
        for stat in STATS:
            found = kind.differences[metric][stat]
            cells.append(
                "-" if found is None else f"{signed(found.value)}{'*' if found.shown else ''}\n{bounds(found)}"
            )
        table.add_row(kind.name, *cells)
    return table


def _classes(comparison: Comparison, metric: str) -> Table:
    shown = [*comparison.compared] or comparison.kinds[1:]
    names = list(comparison.data.classes)
    title = f"{METRIC_NAMES[metric]} of each class, and the difference"
    if len(names) > MOST_CLASSES:
        title = f"{METRIC_NAMES[metric]} of the {MOST_CLASSES} classes that differ most, and the difference"

        def weight(name: str) -> float:
            return -max(abs(found.value) if (found := kind.class_differences[metric][name]) else 0 for kind in shown)

        names = sorted(names, key=weight)[:MOST_CLASSES]
    columns = [column for kind in shown for column in (kind.name, "")]
    table = _table(title, "", comparison.baseline.name, *columns)
    for name in names:
        cells = [percent(comparison.baseline.class_mean(metric, name))]
        for kind in shown:
            found = kind.class_differences[metric][name]
            mark = "*" if found is not None and found.shown else ""
            change = "-" if found is None else f"{signed(found.value)}{mark} {bounds(found)}"
            cells += [percent(kind.class_mean(metric, name)), change]
        table.add_row(name, *cells)
    return table


def _errors(comparison: Comparison, metric: str) -> Table:
    table = _table("AP50 lost to each type of error (TIDE)", "", *TIDE.values())
    for kind in comparison.kinds:
        table.add_row(kind.name, *(f"{100 * kind.errors[metric][name]:.1f}" for name in TIDE))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
