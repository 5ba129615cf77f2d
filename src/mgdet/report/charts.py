"""Line charts as inline SVG, coloured by the page's style sheet and as wide as their column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 10, 34
"""Room for the labels of the axes, in the chart's own pixels."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """The curves of one kind.

    style: the CSS class that colours them.
    curves: one for each run, (x, y) by ascending x.
    """

    style: str
    curves: list[Points]


def line_chart(series: Sequence[Series], *, x_label: str, label: str) -> Markup:
    """One chart: a strong line for each kind, the mean where its runs have the same x, and a faint one for each run.

    Args:
        series: at least one curve with a point.
        x_label: below the axis.
        label: what a screen reader says of the chart.
    """
    points = [point for one in series for curve in one.curves for point in curve if math.isfinite(point[1])]
    x_ticks = _ticks(min(0.0, *(x for x, _ in points)), max(x for x, _ in points))
    y_ticks = _ticks(min(0.0, *(y for _, y in points)), max(y for _, y in points))
    frame = _Frame(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    parts = [Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, label)]
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y)
        )
        parts.append(_text(LEFT - 6, y + 3.5, "end", f"{tick:g}"))
    for tick in x_ticks:
        parts.append(_text(frame.x(tick), HEIGHT - BOTTOM + 15, "middle", f"{tick:g}"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, "middle", x_label))
    for one in series:
        mean = _mean(one.curves)
        for curve in one.curves:
            parts.append(_line(frame, curve, one.style, "run" if len(one.curves) > 1 else "mean"))
        if len(one.curves) > 1 and mean is not None:
            parts.append(_line(frame, mean, one.style, "mean"))
    return Markup("").join([*parts, Markup("</svg>")])


@dataclass(frozen=True, slots=True)
class _Frame:
    """From values to the chart's pixels."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _ticks(low: float, high: float) -> list[float]:
    """Round values that enclose the range."""
    if high <= low:
        high = low + 1
    return [round(float(tick), 10) for tick in MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _text(x: float, y: float, anchor: str, text: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _line(frame: _Frame, curve: Points, style: str, strength: str) -> Markup:
    """A curve; where a value is not finite it has a gap. A single point is a dot."""
    stretches: list[list[str]] = [[]]
    for x, y in curve:
        if math.isfinite(y):
            stretches[-1].append(f"{frame.x(x):.1f},{frame.y(y):.1f}")
        else:
            stretches.append([])
    drawn = Markup("").join(
        Markup('<polyline class="{} {}" points="{}"/>').format(style, strength, " ".join(points))
        for points in stretches
        if len(points) > 1
    )
    dots = [point for point in curve if math.isfinite(point[1])]
    if strength == "mean" and len(dots) <= 40:
        drawn += Markup("").join(
            Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(style, frame.x(x), frame.y(y))
            for x, y in dots
        )
    return drawn


def _mean(curves: Sequence[Points]) -> Points | None:
    """The mean of curves that have the same x; None where they have not."""
    xs = [tuple(x for x, _ in curve) for curve in curves]
    if len(set(xs)) != 1:
        return None
    return [(x, fmean(curve[i][1] for curve in curves)) for i, x in enumerate(xs[0])]
