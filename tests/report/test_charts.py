"""Line charts: where points come to lie, and what happens to odd ones."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from mgdet.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, line_chart


def drawn(*series):
    return ElementTree.fromstring(str(line_chart(series, x_label="epoch", label="AP & more by epoch")))


def lines(svg, style):
    found = [line for line in svg.iter("polyline") if style in line.get("class")]
    return [[tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in found]


def test_values_lie_where_the_axes_say():
    svg = drawn(Series("kind0", [[(0, 0.0), (10, 40.0)]]))
    (line,) = lines(svg, "kind0")
    assert line == [(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP)]
    labels = [text.text for text in svg.iter("text")]
    assert labels[-1] == "epoch"
    assert {"0", "10", "40"} <= set(labels)
    assert svg.get("aria-label") == "AP & more by epoch"


def test_several_runs_have_a_mean_where_they_share_their_x():
    svg = drawn(Series("kind0", [[(1, 1.0), (2, 3.0)], [(1, 3.0), (2, 5.0)]]))
    runs, (mean,) = lines(svg, "run"), lines(svg, "mean")
    assert len(runs) == 2
    assert mean[0][1] == pytest.approx((runs[0][0][1] + runs[1][0][1]) / 2, abs=0.1)
    apart = drawn(Series("kind0", [[(1, 1.0), (2, 3.0)], [(1, 3.0), (3, 5.0)]]))
    assert (len(lines(apart, "run")), len(lines(apart, "mean"))) == (2, 0)


def test_a_value_that_is_not_finite_leaves_a_gap():
    svg = drawn(Series("kind0", [[(0, 1.0), (1, 2.0), (2, math.nan), (3, 2.0), (4, 1.0)]]))
    assert [len(line) for line in lines(svg, "kind0")] == [2, 2]
    assert "nan" not in ElementTree.tostring(svg).decode()


def test_a_single_point_is_a_dot():
    svg = drawn(Series("kind0", [[(1, 0.0)]]))
    assert not lines(svg, "kind0")
    assert len(list(svg.iter("circle"))) == 1


def test_negative_values_stay_inside():
    svg = drawn(Series("kind0", [[(0, -3.0), (5, 2.0)]]))
    numbers = [float(v) for v in re.findall(r'y1?="(-?[\d.]+)"', ElementTree.tostring(svg).decode())]
    assert all(0 <= y <= HEIGHT for y in numbers)
    assert "-3" in [text.text for text in svg.iter("text")] or "-4" in [text.text for text in svg.iter("text")]
