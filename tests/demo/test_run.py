"""The demo in seconds: what it makes, how it is gone on with, and what its table says."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import pytest

from mgdet.config import MGDConfig
from mgdet.demo import run as demo
from mgdet.errors import UserError
from mgdet.interop.weights import read_checkpoint
from mgdet.recipes.demo import PAIRS, Length
from mgdet.report.numbers import STATS, percent
from tiny import ALONE


def row(run, ap):
    return demo.Row(run, dict.fromkeys(STATS, ap), 1000)


class TestGapClosed:
    def test_share_of_the_distance_to_the_teacher(self):
        rows = [row("teacher", 0.4), row("student", 0.2), row("inherits", 0.25), row("distilled", 0.3)]
        assert demo.gap_closed(rows, "inherits") == pytest.approx(0.25)
        assert demo.gap_closed(rows, "distilled") == pytest.approx(0.5)

    def test_a_student_may_pass_its_teacher_or_fall_behind(self):
        rows = [row("teacher", 0.3), row("student", 0.2), row("inherits", 0.1), row("distilled", 0.35)]
        assert demo.gap_closed(rows, "distilled") == pytest.approx(1.5)
        assert demo.gap_closed(rows, "inherits") == pytest.approx(-1)

    def test_no_distance_no_share(self):
        rows = [row("teacher", 0.2), row("student", 0.2), row("distilled", 0.3)]
        assert demo.gap_closed(rows, "distilled") is None


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_student_alone_differs_by_mgd_only(pair, quick, tmp_path):
    runs = demo.configs(tmp_path, pair=pair, quick=quick, seed=3)
    assert list(runs) == list(demo.TITLES)
    assert replace(runs["distilled"], teacher=None, mgd=MGDConfig(), inherit=False) == runs["student"]
    assert replace(runs["distilled"], mgd=MGDConfig()) == runs["inherits"]
    assert replace(runs["distilled"].teacher, weights="random") == runs["teacher"].student
    assert {config.train.seed for config in runs.values()} == {3}
    assert runs["teacher"].schedule.epochs >= runs["student"].schedule.epochs


@pytest.mark.parametrize("pair", ["retinanet", "mask_rcnn"])
def test_a_demo_from_start_to_end_and_again(pair, tmp_path, monkeypatch):
    short = Length(num_train=16, num_val=4, num_test=5, teacher_epochs=2, student_epochs=1, warmup_steps=1)
    monkeypatch.setitem(PAIRS, pair, replace(PAIRS[pair], quick=short))
    out, said = tmp_path / "demo", []
    assert demo.demo(out, pair=pair, quick=True, seed=0, say=said.append) == 0
    text = (out / "table.txt").read_text()
    assert text in said[-2]
    titles = [f"shapes, {demo.METRIC_NAMES[metric]} in percent" for metric in PAIRS[pair].metrics]
    assert [line for line in text.splitlines() if line.startswith("shapes")] == titles
    runs = demo.configs(out, pair=pair, quick=True, seed=0)
    for run, config in runs.items():
        (line, *_) = [line for line in text.splitlines() if line.startswith(f"{demo.TITLES[run]}  ")]
        scores = demo.test_scores(config, out / run, ALONE)[PAIRS[pair].metrics[0]]
        for column, value in zip(STATS, line.removeprefix(demo.TITLES[run]).split()):
            assert value == percent(scores[column])
    assert len(json.loads((out / "shapes/annotations/test.json").read_text())["images"]) == 5
    assert not any("teacher" in name for name in read_checkpoint(out / "distilled/student_last.pth").state_dict)
    for name in ("detections.png", "curves.png"):
        assert cv2.imread(str(out / name)).std() > 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pth")}
    assert demo.demo(out, pair=pair, quick=True, seed=0, say=said.append) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.pth")}


def test_what_a_demo_refuses(tmp_path):
    def refused(**options):
        said = []
        with pytest.raises(UserError) as caught:
            demo.demo(
                tmp_path / "demo", **{"pair": "retinanet", "quick": True, "seed": 0, "say": said.append} | options
            )
        assert not said
        assert not (tmp_path / "demo").exists()
        return str(caught.value)

    assert refused(pair="retinanett") == "there is no pair 'retinanett'; did you mean 'retinanet'?"
    for seed in (-1, 2**64):
        assert refused(seed=seed) == f"--seed is {seed}; give 0 or more, below 2**64"
