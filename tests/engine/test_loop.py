"""Whole runs: what they leave, what they never touch, and what they compute."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import mgdet.engine.loop as loop
from mgdet.config import Config
from mgdet.data.batch import collate
from mgdet.data.transforms import View
from mgdet.distributed import World
from mgdet.engine.schedule import learning_rate
from mgdet.engine.step import Step
from mgdet.files import sha256_of
from mgdet.interop.weights import read_checkpoint
from mgdet.models import load_detector
from tiny import (
    ALONE,
    CLASSES,
    STEPS,
    STEPS_PER_EPOCH,
    assert_same_run,
    assert_same_tensors,
    records,
    state_of,
    tensors_in,
)

LEVELS = [f"loss_mgd_fpn_{i}" for i in range(5)]


def train(config, folder, resume=False):
    return loop.train(config, folder, resume=resume, world=ALONE)


def test_the_folder_holds_the_run_and_nothing_else(whole, tiny):
    folder, _ = whole
    names = {"config.json", "student_last.pth", "student_best.pth", "state.pth", "metrics.jsonl", "log.txt", ".lock"}
    assert {path.name for path in folder.iterdir()} == names
    assert Config.from_dict(json.loads((folder / "config.json").read_text())) == tiny.config()


@pytest.mark.parametrize("name", ["student_last.pth", "student_best.pth"])
def test_a_students_file_is_a_detector_and_no_more(whole, tiny, name):
    folder, seen = whole
    checkpoint = read_checkpoint(folder / name)
    assert (checkpoint.kind, checkpoint.classes) == ("mgdet", CLASSES)
    detector, line = load_detector(tiny.config().student, checkpoint, CLASSES)
    assert checkpoint.state_dict.keys() == detector.state_dict().keys()
    assert "0 missing, 0 unexpected, 0 of another shape" in line
    if name == "student_last.pth":
        assert_same_tensors(checkpoint.state_dict, seen["run"].student.student.state_dict())


def test_the_state_holds_no_teacher(whole, tiny):
    folder, _ = whole
    state = state_of(folder)
    assert all(name.startswith(("student.", "distill_losses.")) for name in state.model)
    assert {name.split(".")[1] for name in state.model if name.startswith("distill_losses.")} == set(LEVELS)
    assert (state.step, state.evaluated, state.teacher_sha256) == (STEPS, True, sha256_of(tiny.teacher))
    content = torch.load(folder / "state.pth", weights_only=True)
    kept = {value.numpy().tobytes() for _, value in tensors_in(content)}
    teacher = [value for value in read_checkpoint(tiny.teacher).state_dict.values() if value.ndim > 1]
    assert not [value for value in teacher if value.numpy().tobytes() in kept]


def test_the_teacher_never_changes_and_everything_else_trains(whole):
    _, seen = whole
    run = seen["run"]
    assert_same_tensors(run.stepper.teacher.state_dict(), seen["teacher at the start"])
    assert all(p.grad is None and not p.requires_grad for p in run.stepper.teacher.parameters())
    held = {id(p) for group in run.stepper.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in run.student.parameters()}
    assert not held & {id(p) for p in run.stepper.teacher.parameters()}
    end = run.student.state_dict()
    still = [name for name, value in seen["student at the start"].items() if torch.equal(value, end[name])]
    assert not still


def test_the_student_starts_with_the_teachers_neck_and_head(whole):
    _, seen = whole
    inherited = {name.removeprefix("student."): value for name, value in seen["student at the start"].items()}
    for name, value in seen["teacher at the start"].items():
        key = name.removeprefix("detector.")
        if value.ndim > 1:
            assert torch.equal(inherited[key], value) is not key.startswith("backbone."), key


def test_the_log_has_every_level_apart_and_the_scaled_rate(whole, tiny):
    folder, _ = whole
    lines = records(folder)
    training = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in training] == [4, 8, 12]
    assert [(line["step"], line["metric"]) for line in lines if line["kind"] == "eval"] == [(6, "bbox"), (12, "bbox")]
    for line in training:
        parts = [line[name] for name in ("loss_cls", "loss_bbox", *LEVELS)]
        assert all(value > 0 for value in parts)
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-6)
        rate = learning_rate(line["step"] - 1, lr=0.01, steps_per_epoch=STEPS_PER_EPOCH, config=tiny.config().schedule)
        assert line["lr"] == rate
    text = (folder / "log.txt").read_text()
    assert "learning rate 0.01 for 2 images per step (0.08 for 16)" in text
    assert f"SHA-256 {sha256_of(tiny.teacher)}" in text


def test_the_same_run_again_is_the_same_to_the_bit_also_with_workers(whole, tiny, tmp_path):
    config = tiny.config()
    config.data.workers = 2
    assert train(config, tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", whole[0])


def test_another_seed_is_another_run(whole, tiny, tmp_path):
    config = tiny.config()
    config.train.seed, config.train.stop_after = 1, 4
    train(config, tmp_path / "run")
    assert records(tmp_path / "run")[0]["loss"] != records(whole[0])[0]["loss"]


def test_every_step_of_every_process_draws_its_own_numbers(tiny):
    seeds = set()
    for step in (0, 1, 2):
        for rank in (0, 1):
            stepper = SimpleNamespace(config=tiny.config(), world=World(rank=rank, size=2, device=ALONE.device))
            Step._seed(stepper, step)
            seeds.add(torch.initial_seed())
    assert len(seeds) == 6


def test_accumulation_takes_the_same_images(tiny, tmp_path, monkeypatch):
    taken = []
    forward = Step._forward_backward

    def watch(stepper, batch, **options):
        taken.append((batch.files, [target.boxes.tolist() for target in batch.targets]))
        return forward(stepper, batch, **options)

    monkeypatch.setattr(Step, "_forward_backward", watch)
    for batch, accumulate in ((2, 1), (1, 2)):
        config = tiny.config()
        config.train.batch, config.train.accumulate, config.train.eval_every = batch, accumulate, 0
        train(config, tmp_path / str(batch))
    whole, halves = taken[:STEPS], taken[STEPS:]
    assert len(halves) == 2 * len(whole)
    for i, (files, boxes) in enumerate(whole):
        assert [files, boxes] == [a + b for a, b in zip(halves[2 * i], halves[2 * i + 1])]
    files = [file for names, _ in whole for file in names]
    assert sorted(files[:12]) == sorted(files[12:]) == sorted(str(path) for path in (tiny.root / "train").iterdir())


def test_an_accumulated_gradient_is_the_mean_of_its_parts(tiny, tmp_path, monkeypatch):
    """Without drawing masks and moving statistics, a step over twice the same batch is the step over one of it."""
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.full(size, 0.2))

    def same_batch(dataset, sampler, **options):
        batch = collate([dataset[View(i, 96, 64, False)] for i in (0, 1)])
        while True:
            yield batch

    monkeypatch.setattr(loop, "train_loader", same_batch)
    norms = []
    for accumulate in (1, 2):
        config = tiny.config()
        config.student.norm_eval = True
        config.optimizer.lr = 0.08 / accumulate  # it grows with the number of images
        config.train.accumulate, config.train.stop_after, config.train.log_every = accumulate, 2, 1
        train(config, tmp_path / str(accumulate))
        norms.append([line["grad_norm"] for line in records(tmp_path / str(accumulate))])
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_stays_finite_and_near(tiny, tmp_path, amp):
    """On pictures so large that every level has two cells: oneDNN's bfloat16 gradients of single ones are wrong."""
    for kind in ("off", amp):
        config = tiny.config()
        config.data.long_edge, config.data.short_edge = 256, (192, 192)
        config.train.amp, config.train.stop_after, config.train.log_every = kind, 5, 1
        assert train(config, tmp_path / kind) == 0
    full, half = records(tmp_path / "off"), records(tmp_path / amp)
    for name in ("loss", "loss_cls", "loss_bbox", *LEVELS):
        assert half[0][name] == pytest.approx(full[0][name], rel=0.02)
        assert half[0][name] != full[0][name]
        assert all(math.isfinite(line[name]) for line in half)
    # The first two steps of fp16 find its scale too large and are left out.
    if amp == "bf16":
        assert half[1]["grad_norm"] == pytest.approx(full[1]["grad_norm"], rel=0.02)
    else:
        assert [line["grad_norm"] is None for line in half] == [True, True, False, False, False]
    state = state_of(tmp_path / amp)
    assert all(value.isfinite().all() for value in state.model.values())
    assert {value.dtype for value in state.model.values()} == {torch.float32, torch.int64}
    assert state.scaler.get("scale") == (65536 / 4 if amp == "fp16" else None)


def test_a_student_alone(tiny, tmp_path):
    assert train(tiny.config(distil=False), tmp_path / "run") == 0
    state = state_of(tmp_path / "run")
    assert state.teacher_sha256 == ""
    assert all(name.startswith("student.") for name in state.model)
    assert not set(LEVELS) & records(tmp_path / "run")[0].keys()
