"""`--train.batch auto`: the search, the images that it tries, and what a run makes of the number."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mgdet.engine.fit as fit
import mgdet.engine.loop as loop
from mgdet.cli import main
from mgdet.cli.parsing import take_auto
from mgdet.config import AugmentConfig, ModelConfig
from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.data.transforms import View
from mgdet.engine.step import Step
from mgdet.errors import UserError
from refusals import refusal
from tiny import ALONE, assert_same_run, state_of

GIB = 2**30


@pytest.mark.parametrize(("least", "most"), [(1, 1), (1, 2), (1, 7), (1, 100), (2, 2), (2, 3), (2, 50)])
def test_the_search_finds_every_limit(least, most):
    for limit in range(most + 3):
        asked = []
        found = fit.largest(lambda n, limit=limit, asked=asked: asked.append(n) or n <= limit, most, least)
        assert found == (min(limit, most) if limit >= least else 0)
        assert len(asked) == len(set(asked)) <= 2 * math.log2(most + 1) + 2
        assert all(least <= number <= most for number in asked)


class FakeMemory:
    """So many bytes for each image of the batch that the step is given; `limit` images fit."""

    def __init__(self, monkeypatch, limit, raises=None):
        self.batches, self.raises, self.limit = [], raises, limit
        self.free = int(limit / fit.SHARE) + 1
        take = Step.take

        def watched(step, batches, *, number, lr, **rest):
            self.batches.append([len(batch.targets) for batch in batches])
            if self.raises and self.batches[-1][0] > limit:
                raise self.raises
            self.outcome = take(step, batches, number=number, lr=lr, **rest)
            return self.outcome

        monkeypatch.setattr(Step, "take", watched)

    def forget(self):
        self.batches.clear()

    def peak(self):
        assert len(self.batches) == fit.STEPS
        return self.batches[-1][0]


@pytest.fixture
def data(tiny):
    records = read_coco(tiny.root / "annotations" / "train.json", tiny.root / "train")
    return DetectionDataset(records, training=True)


@pytest.mark.parametrize("limit", [1, 2, 5, 11])
@pytest.mark.parametrize("raises", [None, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB")])
def test_real_steps_are_taken_until_the_memory_is_full(tiny, data, monkeypatch, limit, raises):
    """Whether the allocator refuses, or only takes more than it should."""
    memory = FakeMemory(monkeypatch, limit, raises)
    number, why = fit.find_batch(tiny.config(), data, ALONE, memory)
    assert (number, why) == (limit, "the most that fit into 0.0 GiB")
    assert math.isfinite(memory.outcome.losses["loss"]) and "loss_mgd_fpn_0" in memory.outcome.losses


class TestAStudentThatNeedsTwoImages:
    """As one whose norms see one value per channel."""

    @pytest.fixture
    def config(self, monkeypatch, tiny):
        config = tiny.config(distil=False)
        config.student = ModelConfig(detector="torchvision:ssdlite320_mobilenet_v3_large", weights="random")
        config.data.square, config.train.batch = 320, 1
        return config

    @pytest.mark.parametrize("limit", [2, 3])
    def test_the_search_begins_with_two(self, config, data, monkeypatch, limit):
        memory = FakeMemory(monkeypatch, limit)
        assert fit.find_batch(config, data, ALONE, memory) == (limit, "the most that fit into 0.0 GiB")

    def test_two_that_do_not_fit_are_said(self, config, data, monkeypatch):
        text = refusal(fit.find_batch, config, data, ALONE, FakeMemory(monkeypatch, 1))
        assert "not even 2 images of 320 x 320 pixels fit into 0.0 GiB; add --train.amp bf16" in text

    def test_it_has_two_where_an_epoch_has_fewer(self, config, data, monkeypatch):
        config.train.accumulate = 12
        assert fit.find_batch(config, data, ALONE, FakeMemory(monkeypatch, 5)) == (2, "as many as an epoch has")


def test_no_more_images_than_a_step_can_have(tiny, data, monkeypatch):
    config = tiny.config()
    config.train.accumulate = 3
    memory = FakeMemory(monkeypatch, 100)
    assert fit.find_batch(config, data, ALONE, memory) == (4, "as many as an epoch has")


def test_all_that_a_run_keeps_is_there(tiny, data, monkeypatch):
    """Two passes where gradients add up, the average, and the backbone's second pass."""
    config, kept = tiny.config(), []
    config.train = replace(config.train, accumulate=4, ema=0.9, checkpoint_backbone=True)
    average, twice = fit.Average, fit.recompute_backbone
    monkeypatch.setattr(fit, "Average", lambda *a: kept.append("average") or average(*a))
    monkeypatch.setattr(fit, "recompute_backbone", lambda *a: kept.append("twice") or twice(*a))
    memory = FakeMemory(monkeypatch, 100)
    trial = fit.Trial(config, data.classes, fit.hardest_examples(config, data), ALONE, memory)
    trial.peak(3)
    assert memory.batches == [[3, 3], [3, 3]] and kept == ["twice", "average"]


def test_nothing_fits(tiny, data, monkeypatch):
    memory = FakeMemory(monkeypatch, 0)
    with pytest.raises(
        UserError, match=r"not even one image of 96 x 64 pixels fits into 0.0 GiB; add --train.amp bf16"
    ):
        fit.find_batch(tiny.config(), data, ALONE, memory)


def test_other_errors_are_not_taken_for_full_memory(tiny, data, monkeypatch):
    memory = FakeMemory(monkeypatch, 1, RuntimeError("a fault of ours"))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        fit.find_batch(tiny.config(), data, ALONE, memory)


def test_the_images_are_the_hardest_of_one_orientation(tiny):
    """The widest, the highest, and the one of most objects."""
    sizes = [(64, 96), (60, 100), (96, 40), (64, 64), (64, 96)]
    config = tiny.config()
    config.data = replace(config.data, long_edge=1000, short_edge=(64, 64))
    views = []

    class Data(list):
        def __getitem__(self, view):
            views.append(view)
            return view.index

    data = Data(sizes)
    data.images = [SimpleNamespace(height=h, width=w) for h, w in sizes]
    data.portrait, data.num_objects = [w <= h for h, w in sizes], np.array([1, 2, 3, 4, 9])
    # As they are seen: 64 x 96, 64 x 107, 154 x 64, 64 x 64 and 64 x 96, each padded to multiples of 32.
    assert fit.hardest_examples(config, data) == [2, 3]
    assert all(view.seed is None and not view.flip for view in views)


@pytest.mark.parametrize(
    ("rule", "size"),
    [
        ("relative_range", (0.3, 0.5)),
        ("relative", (0.4, 0.9)),
        ("absolute_range", (20.0, 80.0)),
        ("absolute", (30.0, 90.0)),
        ("absolute", (500.0, 500.0)),
    ],
)
def test_no_batch_of_crops_has_a_larger_canvas_than_the_tried_one(tiny, data, rule, size):
    """And one of highest and widest crops has it, where images are seen much larger than they are."""
    config = tiny.config()
    config.data = replace(config.data, long_edge=400, short_edge=(100, 200))
    config.augment = AugmentConfig(crop=0.9, crop_rule=rule, crop_size=size)
    examples = fit.hardest_examples(config, data)
    tried = tuple(max(example.target.padded[axis] for example in examples) for axis in (0, 1))
    assert all(len(example.target.labels) for example in examples)
    cropped = DetectionDataset(data.records, training=True, augment=config.augment)
    views = [View(i, 400, 200, False, seed=seed) for i in range(len(data)) for seed in range(100)]
    seen: dict[bool, list] = {True: [], False: []}
    for view in views:
        seen[data.portrait[view.index]].append(cropped[view].target.padded)
    canvases = [np.max(padded, axis=0) for padded in seen.values()]
    largest = max(canvases, key=lambda canvas: canvas.prod())
    assert np.prod(tried) >= largest.prod()
    assert (np.array(tried) - 32 <= np.max(canvases, axis=0)).all()


def test_a_machine_without_a_gpu_says_so(tiny, tmp_path, capsys):
    for form in (["--train.batch", "auto"], ["--train.batch=auto"]):
        assert main([*tiny.arguments("train"), "--run-dir", str(tmp_path / "run"), *form]) == 2
        assert "train.batch auto fills the memory of a GPU, and torch can use none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_holds_the_number_and_resumes_with_it(tiny, tmp_path, monkeypatch):
    found = [3]
    monkeypatch.setattr(fit, "find_batch", lambda *_: (found.pop(), "the most that fit into 1.0 GiB"))
    folder, plain = tmp_path / "run", tmp_path / "plain"
    arguments = [*tiny.arguments("train"), "--run-dir", str(folder), "--train.batch", "auto"]
    assert main([*arguments, "--train.stop-after", "2"]) == 0
    assert json.loads((folder / "config.json").read_text())["train"]["batch"] == 3
    assert state_of(folder).images_per_step == 3
    assert "train.batch auto: 3 images per forward pass, the most that" in (folder / "log.txt").read_text()
    assert main([*arguments, "--resume"]) == 0  # without a second search
    assert "3 images per forward pass, with which this run began" in (folder / "log.txt").read_text()
    assert main([*tiny.arguments("train"), "--run-dir", str(plain), "--train.batch", "3"]) == 0
    assert_same_run(folder, plain)


def test_trying_leaves_no_trace_in_the_run(tiny, tmp_path, monkeypatch):
    """Its models are built anew, and every draw is the run's own."""
    memory = FakeMemory(monkeypatch, 3)
    find = fit.find_batch
    monkeypatch.setattr(fit, "find_batch", lambda *a: find(*a, memory))
    assert loop.train(tiny.config(), tmp_path / "auto", resume=False, world=ALONE, fit_batch=True) == 0
    config = tiny.config()
    config.train.batch = 3
    assert loop.train(config, tmp_path / "plain", resume=False, world=ALONE) == 0
    assert_same_run(tmp_path / "auto", tmp_path / "plain")


def test_auto_is_taken_out_of_the_arguments():
    for form in (["--train.batch", "auto"], ["--train.batch=auto"]):
        assert take_auto(["a", *form, "--b", "1"], "--train.batch") == (["a", "--b", "1"], True)
    assert take_auto(["--train.batch", "3", "auto"], "--train.batch") == (["--train.batch", "3", "auto"], False)


@pytest.mark.gpu
def test_on_a_gpu(tiny, data):
    world = replace(ALONE, device=torch.device("cuda"))
    number, _ = fit.find_batch(tiny.config(), data, world)
    assert number == len(data)
    small = fit.GpuMemory(world.device)
    assert 0 < small.peak() < small.free
    assert small.free > GIB
