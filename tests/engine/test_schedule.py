"""The learning rate of every iteration, as recorded from the original."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import mgdet.engine.loop as loop
import recorded
from mgdet.config import OptimizerConfig, ScheduleConfig
from mgdet.engine.prepare import prepare
from mgdet.engine.schedule import check_drops, learning_rate, scaled_lr, schedule_notes
from mgdet.recipes import RECIPES, load_recipe
from refusals import refusal
from tiny import ALONE

STORED = recorded.record("lr_schedule")


@pytest.mark.parametrize("name", list(STORED))
def test_every_iteration(name):
    stored = STORED[name]
    epochs, policy = stored["max_epochs"], stored["lr_config"]
    config = ScheduleConfig(
        epochs=epochs,
        drops=tuple(policy["step"]),
        warmup_steps=policy["warmup_iters"],
        warmup_ratio=policy["warmup_ratio"],
    )
    changes, expected = dict(stored["changes"]), None
    for step in range(stored["n_iters"]):
        expected = changes.get(step, expected)
        found = learning_rate(
            step, lr=stored["optimizer"]["lr"], steps_per_epoch=stored["n_iters"] // epochs, config=config
        )
        assert found == pytest.approx(expected, rel=1e-9), step


def test_no_warm_up():
    config = ScheduleConfig(epochs=2, drops=(), warmup_steps=0)
    assert learning_rate(0, lr=0.5, steps_per_epoch=10, config=config) == 0.5


@pytest.mark.parametrize(("images", "rate"), [(16, 0.01), (2, 0.00125), (64, 0.04)])
def test_the_rate_follows_the_batch(images, rate):
    assert scaled_lr(OptimizerConfig(lr=0.01), images) == pytest.approx(rate)


@pytest.mark.parametrize("floor", [0.0, 0.01, 1.0])
def test_a_cosine_falls_from_the_rate_to_its_floor(floor):
    """Over all steps of the run, by the formula, after a linear warm-up; drops do not count."""
    epochs, per_epoch, warmup = 3, 50, 10
    config = ScheduleConfig(
        epochs=epochs, drops=(1,), shape="cosine", cosine_floor=floor, warmup_steps=warmup, warmup_ratio=0.1
    )
    rates = [learning_rate(step, lr=0.2, steps_per_epoch=per_epoch, config=config) for step in range(150)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[75] == pytest.approx(0.2 * (floor + (1 - floor) * 0.5))
    assert rates[149] == pytest.approx(0.2 * floor, abs=2e-4)
    for step, rate in enumerate(rates):
        share = (1 + math.cos(math.pi * step / 150)) / 2
        ramp = 0.1 + 0.9 * step / warmup if step < warmup else 1
        assert rate == pytest.approx(0.2 * (floor + (1 - floor) * share) * ramp)
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :]))


@pytest.mark.parametrize(
    ("epochs", "drops", "advice"),
    [
        (12, (16, 22), "would not fall after 16 and 22; give drops below 12, e.g. --schedule.drops 8 11, or --sch"),
        (
            20,
            (16, 22),
            "would not fall after 22; give drops below 20, e.g. --schedule.drops 13 18, or --schedule.shape",
        ),
        (2, (2,), "would not fall after 2; give drops below 2, e.g. --schedule.drops 1, or --schedule.shape cosine"),
        (1, (8, 11), "would not fall after 8 and 11; give --schedule.shape cosine"),
    ],
)
def test_drops_after_the_end_of_the_run_are_refused(epochs, drops, advice):
    text = refusal(check_drops, ScheduleConfig(epochs=epochs, drops=drops))
    assert text.startswith(f"schedule.drops is {' '.join(map(str, drops))}, but schedule.epochs is {epochs}, so")
    assert advice in text
    check_drops(ScheduleConfig(epochs=epochs, drops=drops, shape="cosine"))


@pytest.mark.parametrize("name", list(RECIPES))
def test_no_recipe_has_a_drop_after_its_end(name):
    check_drops(load_recipe(name).schedule)


def test_a_run_does_not_start_with_such_drops_but_one_that_has_them_goes_on(tiny, tmp_path, monkeypatch):
    """As a version before would have written it."""
    config = tiny.config(distil=False)
    config.schedule = replace(config.schedule, epochs=1, warmup_steps=100)
    assert "schedule.drops is 1, but" in refusal(prepare, config, None, resume=False, world=ALONE)
    with monkeypatch.context() as before:
        before.setattr("mgdet.engine.prepare.check_drops", lambda schedule: None)
        config.train.stop_after = 2
        assert loop.train(config, tmp_path, resume=False, world=ALONE) == 0
    config.train.stop_after = 0
    assert loop.train(config, tmp_path, resume=True, world=ALONE) == 0
    assert "but the run has 6 steps, so the rate comes to 5% of what is" in (tmp_path / "log.txt").read_text()


def test_a_warm_up_that_is_longer_than_the_run_is_said():
    config = ScheduleConfig(epochs=12, drops=(8, 11))
    (note,) = schedule_notes(config, 6)
    assert note.startswith("schedule.warmup_steps is 500, but the run has 72 steps, so the rate comes to 9% of what")
    assert note.endswith("give e.g. --schedule.warmup-steps 9")
    assert not schedule_notes(replace(config, warmup_steps=72), 6)
