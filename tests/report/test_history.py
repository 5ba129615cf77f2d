"""Curves from what a run logged."""

import json

import pytest

from mgdet.report.history import read_history


def test_a_run_gives_scores_and_losses_by_epoch(runs):
    history = read_history(runs["mgd-0"])
    lines = [json.loads(line) for line in (runs["mgd-0"] / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    assert [x for x, _ in history.detection] == [line["epoch"] for line in training]
    assert history.methods.keys() == {"mgd"}
    for line, (_, own), (_, mgd) in zip(training, history.detection, history.methods["mgd"]):
        assert own == pytest.approx(line["loss_cls"] + line["loss_bbox"], rel=1e-5)
        assert mgd == pytest.approx(sum(line[f"loss_mgd_fpn_{level}"] for level in range(5)), rel=1e-6)
    (evaluation,) = [line for line in lines if line["kind"] == "eval"]
    assert history.scores == {"bbox": [(2.0, evaluation["AP"])]}
    assert read_history(runs["alone-0"]).methods == {}


def test_what_is_broken_is_passed_over(tmp_path):
    lines = [
        {"step": 5, "kind": "train", "epoch": 0.5, "loss": 2.0, "loss_cls": 1.5, "loss_pkd_fpn_0": 0.5, "lr": 1.0},
        {"step": 10, "kind": "train", "epoch": 1.0, "loss": None, "loss_cls": None, "loss_pkd_fpn_0": 0.25},
        {"step": 10, "kind": "eval", "metric": "segm", "AP": 0.25},
        {"kind": "of a later version"},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 12, "ki'
    (tmp_path / "metrics.jsonl").write_text(text)
    history = read_history(tmp_path)
    assert history.detection == [(0.5, 1.5)]
    assert history.methods == {"pkd": [(0.5, 0.5)]}
    assert history.scores == {"segm": [(1.0, 0.25)]}


def test_without_a_log_there_is_no_curve(tmp_path):
    assert read_history(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text("")
    assert read_history(tmp_path) is None
