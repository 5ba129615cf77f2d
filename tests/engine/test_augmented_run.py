"""A run whose images change at random resumes to the same end."""

import pytest

import mgdet.engine.loop as loop
from mgdet.config import AugmentConfig
from tiny import ALONE, assert_same_run, records


def train(config, folder, resume=False):
    return loop.train(config, folder, resume=resume, world=ALONE)


def changed(tiny, stop_after=0):
    config = tiny.config()
    config.augment = AugmentConfig(crop=0.5, color_jitter=1.0, mosaic=0.4)
    config.train.stop_after = stop_after
    return config


@pytest.fixture(scope="module")
def through(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("changed") / "run"
    assert train(changed(tiny), folder) == 0
    return folder


@pytest.mark.parametrize("stop_after", [1, 6, 11])
def test_a_resumed_run_is_an_uninterrupted_one(through, whole, tiny, tmp_path, stop_after):
    assert train(changed(tiny, stop_after), tmp_path / "run") == 0
    assert train(changed(tiny), tmp_path / "run", resume=True) == 0
    assert_same_run(tmp_path / "run", through)
    assert records(through)[0]["loss"] != records(whole[0])[0]["loss"]
