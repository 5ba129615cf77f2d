"""Settings: what is refused wherever it is set, and what earlier versions wrote."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch

from mgdet.config import Config
from mgdet.errors import UserError
from mgdet.recipes import load_recipe
from mgdet.sections import Section
from refusals import refusal
from tiny import alone, distilled, model


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("data", "short_edge", (800, 640), "data.short_edge is 800 640; give a lowest and a highest edge"),
        ("data", "short_edge", 640, "data.short_edge is 640, not tuple"),
        ("data", "short_egde", (640, 800), "data has no setting 'short_egde'; did you mean 'short_edge'?"),
        ("data", "flip", "often", "data.flip is 'often', not float"),
        ("data", "flip", 1.5, "data.flip is 1.5; give a probability from 0 to 1"),
        ("data", "workers", True, "data.workers is True, not int"),
        ("student", "channels", 100, "channels is 100; give a multiple of 32"),
        ("student", "grids", (40, 36, 24), "grids is 40 36 24; give 5 numbers of 1 or more, one per level"),
        ("student", "grids", (40, 36, 24, 16, 0), "grids is 40 36 24 16 0; give 5 numbers of 1 or more"),
        ("optimizer", "name", "adam", "optimizer.name is 'adam'; did you mean 'adamw'?"),
        ("optimizer", "lr", float("nan"), "optimizer.lr is nan; give a positive rate"),
        ("train", "amp", "half", "train.amp is 'half'; the choices are bf16, fp16, off"),
        ("train", "metrics", (), "train.metrics is empty"),
        ("schedule", "drops", (0,), "schedule.drops is"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_set(section, name, value, words):
    config = alone()
    part = getattr(config, section)
    before = config.to_dict()
    with pytest.raises(UserError, match=words):
        setattr(part, name, value)
    assert config.to_dict() == before
    if name in before[section]:
        with pytest.raises(UserError, match=words):
            replace(part, **{name: value})


def test_a_section_is_no_place_for_something_else():
    config = alone()
    with pytest.raises(UserError, match=r"config\.data is 'coco', not a section"):
        config.data = "coco"
    with pytest.raises(UserError, match="config has no setting 'dat'; did you mean 'data'"):
        config.dat = config.data


def test_what_must_fit_together_may_be_set_one_after_the_other():
    config = alone()
    config.data.long_edge = 50
    with pytest.raises(UserError, match=r"data\.long_edge is 50; give at least short_edge, 64"):
        config.check_together()
    config.data.short_edge = [40, 50]
    config.check_together()
    assert config.data.short_edge == (40, 50)
    config.mgd.weight = 1
    with pytest.raises(UserError, match=r"mgd\.weight is 1, but there is no teacher"):
        config.check_together()
    config.mgd.weight, config.teacher = 0, model()
    with pytest.raises(UserError, match="there is a teacher, but nothing is learned from it"):
        config.check_together()


def test_a_seed_is_one_that_torch_knows():
    config = distilled()
    config.train.seed = 2**64 - 1
    torch.Generator().manual_seed(config.train.seed)
    for seed in (-1, 2**64):
        assert refusal(setattr, config.train, "seed", seed) == f"train.seed is {seed}; give 0 or more, below 2**64"


def test_adamw_does_not_take_over_the_rate_of_sgd():
    config = load_recipe("retinanet_r50")
    config.optimizer.name = "adamw"
    with pytest.raises(
        UserError, match=r"optimizer\.lr is 0\.01, a rate for sgd, .* give optimizer\.lr too, e\.g\. 0\.0001"
    ):
        config.check_together()
    config.optimizer.base_batch = 64  # a quarter of it for 16 images
    config.check_together()
    config.optimizer.base_batch, config.optimizer.lr = 16, 1e-4
    config.check_together()


def test_copies_are_equal_and_apart():
    config = distilled()
    for other in (
        copy.deepcopy(config),
        Config.from_dict(config.to_dict()),
        replace(config, data=replace(config.data)),
    ):
        assert other == config
        other.data.flip = 0.25
        assert config.data.flip == 0.5


class TestReading:
    def test_a_missing_field_takes_its_default(self):
        values = distilled().to_dict()
        del values["data"]["workers"], values["student"]["rois_per_image"]
        config = Config.from_dict(values)
        assert (config.data.workers, config.student.rois_per_image) == (2, 512)
        values = alone().to_dict()
        del values["teacher"], values["mgd"]
        assert Config.from_dict(values) == alone()

    @pytest.mark.parametrize(
        ("section", "name"), [("student", "detector"), ("optimizer", "lr"), ("schedule", "epochs")]
    )
    def test_a_field_without_a_default_is_needed(self, section, name):
        values = alone().to_dict()
        del values[section][name]
        with pytest.raises(UserError, match=rf"config\.{section} lacks the field '{name}'"):
            Config.from_dict(values)

    def test_an_unknown_field_is_refused(self):
        values = alone().to_dict()
        values["data"]["short_egde"] = [1, 2]
        with pytest.raises(UserError, match=r"config\.data has no field 'short_egde'; did you mean 'short_edge'"):
            Config.from_dict(values)

    @pytest.mark.parametrize("value", [3, "three", [1, 2], None])
    def test_every_arm_of_a_union_is_tried(self, value):
        union = Union(value=value)
        assert union.value == (tuple(value) if isinstance(value, list) else value)

    def test_what_fits_no_arm_is_refused(self):
        with pytest.raises(UserError, match=r"union\.value is 1\.5, not int or: union\.value is 1\.5, not str"):
            Union(value=1.5)


@dataclass(kw_only=True, slots=True)
class Union(Section):
    value: int | str | tuple[int, ...] | None


def test_a_run_from_before_inherit_was_the_runs_is_read_as_it_was_meant():
    config = distilled()
    old = config.to_dict()
    for section in ("pkd", "fgd", "pairing", "inherit"):
        del old[section]
    old["mgd"] |= {"inherit": True}
    assert Config.from_dict(old) == config
    old["mgd"]["inherit"] = False
    assert Config.from_dict(old).inherit is False
    before = alone().to_dict()
    before["mgd"] = None
    assert Config.from_dict(before) == alone()


@pytest.mark.parametrize(("name", "value"), [("canvas", (64, 64)), ("precision", "bf16")])
def test_what_only_a_teacher_has_is_refused_on_a_student(name, value):
    config = alone()
    setattr(config.student, name, value)
    with pytest.raises(UserError, match=rf"student\.{name} is "):
        config.check_together()
