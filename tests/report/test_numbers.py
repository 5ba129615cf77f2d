"""How a comparison speaks: its headline, its numbers, and what it is as JSON."""

import json

import pytest

from mgdet.evaluate.coco import CocoScores
from mgdet.report.numbers import (
    MINUS,
    STATS,
    Comparison,
    Interval,
    Kind,
    Measured,
    Run,
    alike,
    bounds,
    percent,
    share,
    signed,
)
from mgdet.report.terminal import tables

NAMES = [*STATS, "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def run(ap, name="r", seed=0):
    scores = CocoScores(dict.fromkeys(NAMES, ap), {"cat": dict.fromkeys(STATS, ap)})
    return Run(name, f"{name}.pth", "ab" * 32, seed, {"bbox": scores})


def kind(name, role, *aps, difference=None):
    differences = {"bbox": dict.fromkeys(STATS, difference)} if role != "baseline" else {}
    classes = {"bbox": {"cat": difference}} if role != "baseline" else {}
    errors = {"bbox": dict.fromkeys(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), 0.01)}
    return Kind(name, role, [run(ap, f"{name}{i}", i) for i, ap in enumerate(aps)], differences, classes, errors=errors)


def comparison(*others, base=(0.3,)):
    data = Measured("val.json", 300, 900, ("cat",))
    return Comparison(data, ("bbox",), [kind("alone", "baseline", *base), *others])


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (Interval(0.021, 0.004, 0.039), "MGD +2.1 AP over alone, 95 % interval [0.4, 3.9], n = 300 images"),
        (
            Interval(-0.021, -0.039, -0.004),
            f"MGD {MINUS}2.1 AP vs. alone, 95 % interval [{MINUS}3.9, {MINUS}0.4], n = 300 images",
        ),
        (
            Interval(0.008, -0.009, 0.024),
            f"No difference shown between MGD and alone: +0.8 AP, 95 % interval [{MINUS}0.9, 2.4], n = 300 images",
        ),
        (None, "MGD +2.1 AP vs. alone, too few images for an interval, n = 300 images"),
    ],
)
def test_the_headline_is_one_sentence(difference, sentence):
    assert comparison(kind("MGD", "compared", 0.321, difference=difference)).headlines == [sentence]


def test_the_headline_counts_runs():
    own = kind("MGD", "compared", 0.31, 0.33, difference=Interval(0.02, 0.01, 0.03, True))
    assert comparison(own, base=(0.3, 0.3, 0.3)).headlines == [
        "MGD +2.0 AP over alone, 95 % interval [1.0, 3.0], n = 300 images, 2 and 3 runs"
    ]
    assert comparison().headlines == ["alone: 30.0 AP, n = 300 images"]


def test_means_and_deviations_are_over_runs():
    own = kind("MGD", "compared", 0.30, 0.32, 0.37)
    assert own.mean("bbox", "AP") == pytest.approx(0.33)
    assert own.deviation("bbox", "AP") == pytest.approx(0.036056, abs=1e-6)
    assert own.class_mean("bbox", "cat") == pytest.approx(0.33)
    assert kind("MGD", "compared", 0.3).deviation("bbox", "AP") is None
    assert kind("MGD", "compared", -1.0, -1.0).mean("bbox", "APl") == -1


def test_an_interval_that_ends_at_zero_shows_nothing():
    assert not Interval(0.01, 0.0, 0.02).shown
    assert not Interval(-0.01, -0.02, 0.0).shown
    assert Interval(-0.01, -0.02, -0.001).shown


def test_it_is_json_with_all_that_is_shown():
    own = comparison(
        kind("MGD", "compared", 0.31, 0.33, difference=Interval(0.02, 0.01, 0.03)),
        kind("teacher", "teacher", 0.4, difference=Interval(0.1, 0.05, 0.15)),
    )
    values = json.loads(json.dumps(own.to_dict()))
    assert values["headlines"] == own.headlines
    assert values["kinds"][1]["mean"]["bbox"]["AP"] == pytest.approx(0.32)
    assert values["kinds"][1]["deviation"]["bbox"]["AP"] == pytest.approx(0.014142, abs=1e-6)
    assert values["kinds"][1]["differences"]["bbox"]["AP"] == {"value": 0.02, "low": 0.01, "high": 0.03, "seeds": False}
    assert values["kinds"][1]["runs"][1]["scores"]["bbox"]["per_class"]["cat"]["AP"] == 0.33
    assert [each["role"] for each in values["kinds"]] == ["baseline", "compared", "teacher"]


def test_numbers_have_the_signs_and_decimals_of_print():
    assert [signed(value) for value in (0.0214, -0.003, 0.0001, -0.0001)] == ["+2.1", f"{MINUS}0.3", "0.0", "0.0"]
    assert bounds(Interval(0, -0.0001, 0.0999)) == "[0.0, 10.0]"
    assert [percent(value) for value in (0.4567, 0, -1)] == ["45.7", "0.0", "-"]
    assert [share(value) for value in (1.42, -0.55, -0.001)] == ["142 %", f"{MINUS}55 %", "0 %"]
    assert [alike(value, (0.497, 1.82)) for value in (0.497, 1.82)] == ["0.50", "1.82"]
    assert [alike(value, (12.34, 1234.5)) for value in (12.34, 1234.5)] == ["12.3", "1,234.5"]
    assert alike(205.6, (205.6, 300.0)) == "206"


def test_names_stand_in_the_tables_as_they_are():
    name, own = (
        "car [/old] :bus:",
        comparison(kind("[bold]MGD", "compared", 0.3, difference=Interval(0.02, 0.01, 0.03))),
    )
    own.data = Measured("val.json", 300, 900, (name,))
    for each in own.kinds:
        for run in each.runs:
            run.scores["bbox"].per_class[name] = run.scores["bbox"].per_class["cat"]
        each.class_differences.get("bbox", {})[name] = None
    text = tables(own)
    assert f"\n{name} " in text
    assert text.count("[bold]MGD") == 5
    assert "\\" not in text
