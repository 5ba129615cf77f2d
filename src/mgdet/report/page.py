"""A comparison as one HTML file: no script, nothing to load, for wide and narrow windows, light and dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import cv2
import jinja2
import numpy as np
from markupsafe import Markup, escape

from mgdet.report.bench import TIDE
from mgdet.report.charts import Points, Series, line_chart
from mgdet.report.differing import Difference
from mgdet.report.features import Maps
from mgdet.report.intervals import Bootstrap
from mgdet.report.numbers import (
    METRIC_NAMES,
    STATS,
    Comparison,
    History,
    Interval,
    Kind,
    alike,
    bounds,
    count,
    percent,
    share,
    signed,
)
from mgdet.report.terminal import mean_and_deviation
from mgdet.version import __version__

JPEG_QUALITY = 88
COLOURS = 5
"""Colours of kinds in the style sheet, besides those of baseline and teacher."""
SPELLED = {
    "AP": "all objects, IoU 0.50:0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small objects",
    "APm": "medium objects",
    "APl": "large objects",
}
MOST_CLASSES = 24
"""More classes than these are folded away, but for those that differ most."""


@dataclass(frozen=True, slots=True)
class Page:
    """What is on the page.

    comparison: all numbers.
    differing: images in which two kinds differ most.
    maps: of each kind that was distilled.
    bootstrap: how the intervals were made.
    """

    comparison: Comparison
    differing: list[Difference]
    maps: list[Maps]
    bootstrap: Bootstrap


class Track(NamedTuple):
    """Where an interval lies on a track, in percent of its width."""

    zero: float
    low: float
    width: float
    value: float


class Scale:
    """A track from the lowest to the highest end of some intervals, with 0 on it."""

    def __init__(self, intervals: Sequence[Interval | None]):
        ends = [end for found in intervals if found is not None for end in (found.low, found.high, found.value)]
        self.low, self.high = min([0.0, *ends]), max([0.0, *ends])
        room = 0.04 * (self.high - self.low) or 0.01
        self.low, self.high = self.low - room, self.high + room
        self.zero = self._at(0)

    def place(self, found: Interval) -> Track:
        """The marks of one interval."""
        low, high = self._at(found.low), self._at(found.high)
        return Track(self.zero, low, round(high - low, 2), self._at(found.value))

    def _at(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def render(page: Page) -> str:
    """The whole file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mgdet.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "alike": alike,
        "options": _options,
        "percent": percent,
        "share": share,
        "signed": signed,
        "bounds": bounds,
        "jpeg": lambda image: _data(image, ".jpg"),
        "png": lambda image: _data(image, ".png"),
    }
    comparison = page.comparison
    styles = styles_of(comparison)
    return environment.get_template("report.html").render(
        page=page,
        comparison=comparison,
        headlines=[headline.split(", ", 1) for headline in comparison.headlines],
        metrics=[_metric(comparison, metric) for metric in comparison.metrics],
        styles=styles,
        charts=_charts(comparison, styles),
        spelled=SPELLED,
        stats=STATS,
        errors=TIDE,
        count=count,
        gflops=[kind.size.gflops for kind in comparison.kinds if kind.size],
        times=[kind.speed.median for kind in comparison.kinds if kind.speed],
        mean_and_deviation=mean_and_deviation,
        version=__version__,
        css=Markup(environment.loader.get_source(environment, "report.css")[0]),  # type: ignore[union-attr]
    )


def styles_of(comparison: Comparison) -> dict[str, str]:
    """The CSS class of each kind, by its name."""
    styles = {comparison.baseline.name: "baseline"}
    for number, kind in enumerate(comparison.compared):
        styles[kind.name] = f"kind{number % COLOURS}"
    if comparison.teacher is not None:
        styles[comparison.teacher.name] = "teacher"
    return styles


def _metric(comparison: Comparison, metric: str) -> dict[str, Any]:
    """Everything about one metric that is more than a look-up."""
    others = comparison.compared
    scale = Scale([kind.differences[metric][stat] for kind in others for stat in STATS])
    rows = [
        (stat, kind, found, scale.place(found) if found is not None else None)
        for stat in STATS
        for kind in others
        for found in [kind.differences[metric][stat]]
    ]
    most = max((kind.errors[metric][name] for kind in comparison.kinds for name in TIDE), default=0) or 1
    class_scale = Scale([found for kind in others for found in kind.class_differences[metric].values()])
    classes = _classes(comparison, metric, class_scale)
    return {
        "key": metric,
        "name": METRIC_NAMES[metric],
        "rows": rows,
        "zero": scale.zero,
        "class_zero": class_scale.zero,
        "classes": classes[:MOST_CLASSES],
        "more_classes": classes[MOST_CLASSES:],
        "runs": _runs(comparison, metric),
        "most_error": most,
    }


def _classes(comparison: Comparison, metric: str, scale: Scale) -> list[dict[str, Any]]:
    """Rows of the classes, best gain of the first compared kind first; without one, by label."""
    others = comparison.compared
    rows: list[dict[str, Any]] = []
    for name in comparison.data.classes:
        found = [kind.class_differences[metric][name] for kind in others]
        rows.append(
            {
                "name": name,
                "scores": [kind.class_mean(metric, name) for kind in comparison.kinds],
                "differences": [
                    (kind, own, scale.place(own) if own is not None else None) for kind, own in zip(others, found)
                ],
                "gain": found[0].value if found and found[0] is not None else None,
            }
        )
    if others:
        rows.sort(key=lambda row: (row["gain"] is None, -(row["gain"] or 0)))
        if len(rows) > MOST_CLASSES:  # both ends first
            half = MOST_CLASSES // 2
            known = [row for row in rows if row["gain"] is not None]
            if len(known) > MOST_CLASSES:
                ends = [*known[:half], *known[-half:]]
                rows = [*ends, *(row for row in rows if row not in ends)]
    return rows


def _runs(comparison: Comparison, metric: str) -> list[tuple[Kind, list[tuple[float, float]], float]]:
    """For each kind its runs, as places on a track and scores, and the place of their mean; empty without seeds."""
    if all(len(kind.runs) == 1 for kind in comparison.kinds):
        return []
    values = [value for kind in comparison.kinds for value in kind.values(metric, "AP")]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.01

    def place(value: float) -> float:
        return round(100 * (value - low + room) / (high - low + 2 * room), 2)

    return [
        (kind, [(place(value), value) for value in kind.values(metric, "AP")], place(kind.mean(metric, "AP")))
        for kind in comparison.kinds
    ]


def _charts(comparison: Comparison, styles: dict[str, str]) -> list[tuple[str, Markup]]:
    """Title and chart of everything that some run logged."""
    histories = {kind.name: [run.history for run in kind.runs if run.history] for kind in comparison.kinds}
    wanted: list[tuple[str, Callable[[History], Points]]] = []
    for metric in comparison.metrics:
        wanted.append((f"{METRIC_NAMES[metric]} in percent", partial(_scores, metric=metric)))
    wanted.append(("losses of the detector", lambda history: history.detection))
    for method in dict.fromkeys(method for own in histories.values() for history in own for method in history.methods):
        wanted.append((f"loss of {method.upper()}", partial(_losses, method=method)))
    charts = []
    for title, curve in wanted:
        curves = {name: [points for history in own if (points := curve(history))] for name, own in histories.items()}
        series = [Series(styles[name], own) for name, own in curves.items() if own]
        if series:
            charts.append((title, line_chart(series, x_label="epoch", label=f"{title} by epoch")))
    return charts


def _scores(history: History, metric: str) -> Points:
    return [(x, 100 * y) for x, y in history.scores.get(metric, [])]


def _losses(history: History, method: str) -> Points:
    return history.methods.get(method, [])


def _options(note: str) -> Markup:
    """A sentence in which options of the command line are set as code, and never broken at their hyphens."""
    return Markup(re.sub(r"(--[a-z][\w.-]*\w)", r"<code>\1</code>", str(escape(note))))


def _data(image: np.ndarray, kind: str) -> str:
    """A picture as a data URL."""
    _, encoded = cv2.imencode(kind, image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == ".jpg" else [])
    return f"data:image/{'jpeg' if kind == '.jpg' else 'png'};base64,{base64.b64encode(encoded.tobytes()).decode()}"
