"""What a look at a run says of its precision on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

import mgdet.planning.check as checking
import mgdet.precision as precision
from mgdet.engine.prepare import prepare
from mgdet.planning.check import examine
from tiny import ALONE


@pytest.fixture(autouse=True)
def x86(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def precisions(config, folder):
    prepared = prepare(config, None, resume=False, world=ALONE)
    report = examine(prepared, folder, say=lambda line: None, seconds=60.0)
    return [row for row in report.rows if row.what == "precision"]


def test_a_bfloat16_step_on_maps_of_one_cell_is_warned_of(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    config = tiny.config()
    config.train.amp = "bf16"
    (row,) = precisions(config, tmp_path / "run")
    assert row.status == "warning" and "one cell wide" in row.detail


def test_a_type_without_instructions_is_warned_of(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    config = tiny.config()
    config.teacher.precision = "bf16"
    (row,) = precisions(config, tmp_path / "run")
    assert row.status == "warning" and row.detail == (
        "teacher.precision is bf16, but this CPU has no instructions for it and float32 is faster; give "
        "--teacher.precision fp32"
    )


def test_bfloat16_is_proposed_where_it_is_faster(tiny, tmp_path, monkeypatch):
    config = tiny.config()
    config.data.long_edge, config.data.short_edge = 256, (192, 192)
    config.schedule.epochs = 1000
    steps = []
    take = checking.try_step

    def timed(prepared, batch, reading, *, bf16=False, seconds=0.0):
        trial = take(prepared, batch, reading, bf16=bf16, seconds=seconds)
        steps.append(bf16)
        return replace(trial, seconds=0.4 if bf16 else 1.0)

    monkeypatch.setattr(checking, "try_step", timed)
    for able, expected in ((True, [False, True]), (False, [False])):
        monkeypatch.setattr(checking, "cpu_has_bfloat16", lambda able=able: able)
        steps.clear()
        found = precisions(config, tmp_path / "run")
        assert steps == expected
        assert [row.detail for row in found] == (
            ["with --train.amp bf16 a step takes 40% of the time on this CPU"] if able else []
        )
