"""The learning rate of every iteration, as recorded from the original."""

from __future__ import annotations

import math

import pytest

import recorded
from mgdet.config import OptimizerConfig, ScheduleConfig
from mgdet.engine.schedule import learning_rate, scaled_lr

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
