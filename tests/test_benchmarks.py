"""The benchmarks run, on a data set so small that their figures mean nothing."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)  # as Python does for a script

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


@pytest.mark.slow
def test_scale(bench, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(BENCHMARKS.parent / "src"), str(Path(__file__).parent)]))
    sizes = ("--size", 64, 96, "--full-size", 64, 96, "--images", 20, "--objects", 60)
    arguments = ("tiny:distilled", "--processes", 1, 2, "--steps", 2, "--gpu-batch", 2, *sizes)
    results = bench("scale.py", *arguments, option="--out")
    one, two = results["processes"]["1"], results["processes"]["2"]
    assert min(one["step (s)"], two["step (s)"], two["start-up (s)"], two["memory (GiB)"]) > 0
    counted, gpus = results["counted"], results["gpus"]
    assert counted["TFLOP per image"] > counted["of them the teacher"] > 0
    assert counted["waits"] == 1, "RetinaNet's losses do not wait, and the step waits once"
    assert gpus["1"]["exchange (ms)"] == 0 < gpus["8"]["exchange (ms)"] < gpus["64"]["exchange (ms)"]
    assert gpus["1"]["images/s"] < gpus["8"]["images/s"] <= 8 * gpus["1"]["images/s"]
