"""The benchmarks run, on a data set so small that their figures mean nothing."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(tmp_path, monkeypatch):
    def run(script: str, *arguments: object, option: str):
        out = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments), option, str(out)])
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        return json.loads(out.read_text())

    return run


@pytest.mark.parametrize("recipe", ["tiny:distilled", "tiny:alone"])
def test_step(bench, tiny, recipe):
    arguments = ("--data.root", tiny.root, "--batch", 1, 2, "--steps", 2, "--warmup", 1, "--workers", 0)
    text = json.dumps(bench("step.py", recipe, *arguments, option="--out"))
    assert "images_per_second" in text and "student forward" in text


def test_data(bench, tiny):
    where = ("--annotations", "annotations/train.json", "--images", "train", "--size", 96, 64)
    assert bench("data.py", tiny.root, *where, "--workers", 0, 1, "--num-images", 6, "--masks", option="--json")


@pytest.mark.long
def test_reading(bench):
    results = bench("reading.py", "--images", 20, "--objects", 150, option="--out")
    assert [result["objects"] for result in results.values()] == [150, 150, 150]


@pytest.mark.parametrize("metric", ["bbox", "segm"])
def test_evaluate(bench, tiny, metric):
    annotations = tiny.root / "annotations/val.json"
    assert bench("evaluate.py", annotations, "--detections", 3, "--metric", metric, option="--out")


@pytest.mark.slow
def test_against_compares_two_checkouts(bench):
    here = BENCHMARKS.parent
    found = bench("against.py", here, here, "--rows", "data boxes", "--rounds", 3, option="--json")
    (row,) = found["results"]
    assert row["row"] == "data boxes"
    assert 0 < row["new / old"] < 100
    assert row["to the original"] == pytest.approx(0.53 * row["new / old"])
