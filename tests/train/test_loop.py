"""Whole runs: what they leave, what they never touch, and that stopping them anywhere changes nothing."""

import contextlib
import json
import math
import os
import random
import signal
import time

import pytest
import torch

import mgdet.train.loop as loop
from mgdet.config import Config
from mgdet.data.batch import collate
from mgdet.data.transforms import View
from mgdet.errors import UserError
from mgdet.interop.files import sha256_of
from mgdet.interop.weights import read_checkpoint
from mgdet.train.models import load_detector
from mgdet.train.schedule import learning_rate
from tiny import (
    ALONE,
    CLASSES,
    NUM_VAL,
    STEPS,
    STEPS_PER_EPOCH,
    assert_same_run,
    assert_same_tensors,
    records,
    start,
    state_of,
    tensors_in,
    wait_for,
    write_detector,
)

LEVELS = [f"loss_mgd_fpn_{i}" for i in range(5)]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that nobody disturbed, with the models and the optimizer that it used."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    seen = {}

    class Watched(loop.Run):
        def to_the_end(self, loader):
            seen["run"] = self
            for name in ("student", "teacher"):
                state = getattr(self, name).state_dict()
                seen[f"{name} at the start"] = {key: value.clone() for key, value in state.items()}
            super().to_the_end(loader)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Run", Watched)
        assert train(tiny.config(), folder) == 0
    return folder, seen


def train(config, folder, resume=False):
    return loop.train(config, folder, resume=resume, world=ALONE)


def test_the_folder_holds_the_run_and_nothing_else(whole, tiny):
    folder, _ = whole
    names = {"config.json", "student_last.pth", "student_best.pth", "state.pth", "metrics.jsonl", "log.txt"}
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
    assert_same_tensors(run.teacher.state_dict(), seen["teacher at the start"])
    assert all(p.grad is None and not p.requires_grad for p in run.teacher.parameters())
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in run.student.parameters()}
    assert not held & {id(p) for p in run.teacher.parameters()}
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
    assert "learning rate 0.01 for 2 images a step (0.08 for 16)" in text
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


def test_accumulation_takes_the_same_images(tiny, tmp_path, monkeypatch):
    taken = []
    forward = loop.Run._forward_backward

    def watch(run, batch, *, last):
        taken.append((batch.files, [target.boxes.tolist() for target in batch.targets]))
        return forward(run, batch, last=last)

    monkeypatch.setattr(loop.Run, "_forward_backward", watch)
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
    # The first step of fp16 finds its scale too large and is skipped.
    assert half[1]["grad_norm"] == pytest.approx(full[1]["grad_norm"], rel=0.02)
    state = state_of(tmp_path / amp)
    assert all(value.isfinite().all() for value in state.model.values())
    assert {value.dtype for value in state.model.values()} == {torch.float32, torch.int64}
    assert bool(state.scaler) is (amp == "fp16")


def test_a_student_alone(tiny, tmp_path):
    assert train(tiny.config(distil=False), tmp_path / "run") == 0
    state = state_of(tmp_path / "run")
    assert state.teacher_sha256 == ""
    assert all(name.startswith("student.") for name in state.model)
    assert not set(LEVELS) & records(tmp_path / "run")[0].keys()


@pytest.mark.parametrize("stop_after", [1, 3, 6, 7, 11])
def test_a_run_that_stops_and_resumes_is_an_uninterrupted_one(whole, tiny, tmp_path, stop_after):
    """4 is a log point, 5 a save, 6 the end of an epoch: before, at, and after them."""
    config = tiny.config()
    config.train.stop_after = stop_after
    assert train(config, tmp_path / "run") == 0
    assert state_of(tmp_path / "run").step == stop_after
    assert "--resume goes on" in (tmp_path / "run" / "log.txt").read_text()
    assert train(tiny.config(), tmp_path / "run", resume=True) == 0
    assert_same_run(tmp_path / "run", whole[0])


class Killed(BaseException):
    """Stands in for kill -9: nothing of the package catches it."""


def kill_at_write(patch, count):
    """Every file of a run is renamed into place; the process dies at the `count`-th time."""
    left = [count]
    replace = os.replace

    def dying(source, target):
        left[0] -= 1
        if left[0] <= 0:
            raise Killed
        replace(source, target)

    patch.setattr(os, "replace", dying)
    return left


@pytest.mark.slow
def test_a_run_that_dies_at_any_of_its_writes_resumes_to_the_same_end(whole, tiny, tmp_path):
    count, done = 0, False
    while not done:
        count += 1
        folder = tmp_path / str(count)
        with pytest.MonkeyPatch.context() as patch:
            left = kill_at_write(patch, count)
            with contextlib.suppress(Killed):
                train(tiny.config(), folder)
            done = left[0] > 0
        assert train(tiny.config(), folder, resume=True) == 0
        assert_same_run(folder, whole[0])
    assert count > 10


def test_a_second_kill_during_resume(whole, tiny, tmp_path):
    folder = tmp_path / "run"
    for count in (7, 4, 5):
        with pytest.MonkeyPatch.context() as patch:
            kill_at_write(patch, count)
            with contextlib.suppress(Killed):
                train(tiny.config(), folder, resume=True)
    assert 0 < state_of(folder).step < STEPS
    train(tiny.config(), folder, resume=True)
    assert_same_run(folder, whole[0])


def test_resuming_a_finished_run_changes_nothing(tiny, tmp_path):
    folder = tmp_path / "run"
    train(tiny.config(), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".txt"}
    assert train(tiny.config(), folder, resume=True) == 0
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".txt"}


def test_settings_that_change_no_number_may_change_on_resume(whole, tiny, tmp_path):
    config = tiny.config()
    config.train.stop_after = 5
    train(config, tmp_path / "run")
    other = tiny.config()
    other.data.workers, other.train.save_every = 1, 100
    train(other, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[0])


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    config = tiny.config()
    config.train.stop_after = 3
    train(config, folder)
    return folder


class TestRefusals:
    """Each leaves the folder as it was."""

    def refused(self, config, folder, *, resume=True):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(UserError) as caught:
            train(config, folder, resume=resume)
        assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
        return str(caught.value)

    def test_a_folder_that_holds_a_run(self, stopped, tiny):
        assert "already holds a run; add --resume" in self.refused(tiny.config(), stopped, resume=False)

    def test_another_setting(self, stopped, tiny):
        config = tiny.config()
        config.mgd.mask_ratio = 0.5
        text = self.refused(config, stopped)
        assert "mgd.mask_ratio 0.65" in text and "0.5;" in text and "--run-dir" in text

    def test_another_number_of_images(self, stopped, tiny):
        config = tiny.config()
        config.train.batch = 3
        assert "2 images a step, here are 3" in self.refused(config, stopped)

    def test_another_teacher(self, stopped, tiny, tmp_path):
        other = tmp_path / "other.pth"
        write_detector(other, seed=8)
        config = tiny.config()
        config.teacher.weights = str(other)
        text = self.refused(config, stopped)
        assert sha256_of(tiny.teacher) in text and sha256_of(other) in text

    def test_the_same_teacher_from_elsewhere_is_none(self, stopped, tiny, tmp_path):
        copy = tmp_path / "copy.pth"
        copy.write_bytes(tiny.teacher.read_bytes())
        config = tiny.config()
        config.teacher.weights, config.train.stop_after = str(copy), 3
        assert train(config, stopped, resume=True) == 0

    def test_a_damaged_state(self, tiny, tmp_path):
        config = tiny.config()
        config.train.stop_after = 1
        train(config, tmp_path / "run")
        state = tmp_path / "run" / "state.pth"
        state.write_bytes(state.read_bytes()[:1000])
        assert "state.pth cannot be resumed from" in self.refused(tiny.config(), tmp_path / "run")

    def test_weights_without_a_config(self, tiny, tmp_path):
        (tmp_path / "student_last.pth").write_bytes(b"precious")
        assert "holds weights but no config.json" in self.refused(tiny.config(), tmp_path, resume=False)

    def test_a_damaged_config(self, tiny, tmp_path):
        (tmp_path / "config.json").write_text('{"student": 3}')
        assert "config.json is not a run's config: config" in self.refused(tiny.config(), tmp_path)


def test_a_run_that_never_saved_starts_with_resume(whole, tiny, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        kill_at_write(patch, 2)
        with pytest.raises(Killed):
            train(tiny.config(), tmp_path / "run")
    assert not (tmp_path / "run" / "state.pth").exists()
    assert train(tiny.config(), tmp_path / "run", resume=True) == 0
    assert_same_run(tmp_path / "run", whole[0])


@pytest.mark.parametrize("number, code, name", [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
@pytest.mark.parametrize("moment", ["step 4", "step 6", "evaluation", "last evaluation"])
def test_a_signal_saves_and_leaves(whole, tiny, tmp_path, monkeypatch, capsys, number, code, name, moment):
    evaluations = []

    forward = loop.Run._forward_backward

    def in_the_middle(run, batch, *, last):
        if moment == f"step {run.step + 1}":
            os.kill(os.getpid(), number)
        return forward(run, batch, last=last)

    def activity(self, text, done, total):
        evaluations.append(done)
        if len(evaluations) == {"evaluation": 2, "last evaluation": NUM_VAL + 2}.get(moment):
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "_forward_backward", in_the_middle)
        patch.setattr(loop.RunLog, "activity", activity)
        assert train(tiny.config(), tmp_path / "run") == code
    step = {"step 4": 4, "step 6": 6, "evaluation": 6, "last evaluation": 12}[moment]
    assert f"stopped by {name} after step {step}; all is saved, --resume" in capsys.readouterr().out
    assert state_of(tmp_path / "run").step == step
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train(tiny.config(), tmp_path / "run", resume=True) == 0
    assert_same_run(tmp_path / "run", whole[0])


def test_a_second_ctrl_c_leaves_at_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.RunLog, "tick", lambda *_: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        train(tiny.config(), tmp_path / "run")


def arguments(tiny, folder, *more):
    return [*tiny.arguments("train"), "--data.workers", "2", "--run-dir", str(folder), *more]


@pytest.mark.slow
def test_kill_9_at_arbitrary_moments(whole, tiny, tmp_path):
    folder = tmp_path / "run"
    draw = random.Random(0)
    for resume in ([], ["--resume"]):
        process = start(arguments(tiny, folder, *resume))
        wait_for((folder / "log.txt").exists, process)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.communicate()
        (folder / "log.txt").unlink()
    train(tiny.config(), folder, resume=True)
    assert_same_run(folder, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_process_group(tiny, tmp_path, number, code):
    """As terminals and job schedulers send it: the data workers get it too."""
    folder = tmp_path / "run"
    process = start(arguments(tiny, folder, "--schedule.epochs", "500"))
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(records(folder)) > 2, process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "")
    assert "all is saved, --resume goes on from here" in out.splitlines()[-1]
    assert state_of(folder).step >= 8
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
