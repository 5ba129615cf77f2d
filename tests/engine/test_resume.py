"""Stopping a run anywhere, in any way, and going on with it changes nothing; and what may not be gone on with."""

import contextlib
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

import mgdet.engine.loop as loop
from mgdet.engine.checkpoint import State
from mgdet.engine.step import Step
from mgdet.errors import Stalled, UserError
from mgdet.files import sha256_of
from tiny import (
    ALONE,
    NUM_VAL,
    STEPS,
    assert_same_run,
    records,
    start,
    state_of,
    wait_for,
    write_detector,
)


def train(config, folder, resume=False):
    return loop.train(config, folder, resume=resume, world=ALONE)


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

    def test_a_folder_in_which_another_process_trains(self, stopped, tiny):
        hold = "import sys, time, pathlib, mgdet.engine.checkpoint as c\n"
        hold += "with c.alone_in(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
        holder = subprocess.Popen([sys.executable, "-c", hold, str(stopped)], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout.readline() == "held\n"
            assert "another process trains in" in self.refused(tiny.config(), stopped)
        finally:
            holder.kill()
            holder.wait()
        config = tiny.config()
        config.train.stop_after = 3
        assert train(config, stopped, resume=True) == 0

    def test_data_with_other_classes(self, stopped, tiny, tmp_path):
        shutil.copytree(tiny.root, tmp_path / "data")
        for split in ("train", "val"):
            path = tmp_path / f"data/annotations/{split}.json"
            content = json.loads(path.read_text())
            content["categories"].append({"id": 77, "name": "round"})
            path.write_text(json.dumps(content))
        config = tiny.config()
        config.data.root = str(tmp_path / "data")
        assert "holds a run on 3 classes" in self.refused(config, stopped)

    def test_data_with_another_number_of_images(self, stopped, tiny, tmp_path):
        shutil.copytree(tiny.root, tmp_path / "data")
        path = tmp_path / "data/annotations/train.json"
        content = json.loads(path.read_text())
        kept = {image["id"] for image in content["images"][:6]}
        content["images"] = content["images"][:6]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        path.write_text(json.dumps(content))
        config = tiny.config()
        config.data.root = str(tmp_path / "data")
        assert "steps per epoch" in self.refused(config, stopped)

    def test_another_setting(self, stopped, tiny):
        config = tiny.config()
        config.mgd.mask_ratio = 0.5
        text = self.refused(config, stopped)
        assert "mgd.mask_ratio 0.65" in text and "0.5;" in text and "--run-dir" in text

    def test_another_number_of_images(self, stopped, tiny):
        config = tiny.config()
        config.train.batch = 3
        assert "2 images per step, here are 3" in self.refused(config, stopped)

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

    @pytest.mark.parametrize("student", ["student_last.pth", "student_best.pth"])
    def test_a_student_without_its_state(self, stopped, tiny, tmp_path, student):
        shutil.copytree(stopped, tmp_path / "run")
        (tmp_path / "run" / "state.pth").unlink()
        (tmp_path / "run" / "student_last.pth").rename(tmp_path / "run" / student)
        text = self.refused(tiny.config(), tmp_path / "run")
        assert f"holds {student} but no state.pth, so it cannot be resumed; bring state.pth back" in text

    def test_weights_without_a_config(self, tiny, tmp_path):
        (tmp_path / "student_last.pth").write_bytes(b"precious")
        assert "holds weights but no config.json" in self.refused(tiny.config(), tmp_path, resume=False)

    def test_a_damaged_config(self, tiny, tmp_path):
        (tmp_path / "config.json").write_text('{"student": 3}')
        assert "config.json is not a run's config: config" in self.refused(tiny.config(), tmp_path)


def test_a_resumed_run_lets_go_of_what_it_loaded(stopped, tiny, tmp_path, monkeypatch):
    """It is as large as the models and the optimizer together."""
    shutil.copytree(stopped, tmp_path / "run")
    kept = []

    def look(run, loader):
        gc.collect()
        kept.extend(thing for thing in gc.get_objects() if type(thing) is State)

    monkeypatch.setattr(loop.Run, "to_the_end", look)
    train(tiny.config(), tmp_path / "run", resume=True)
    assert kept == []


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

    forward = Step._forward_backward

    taken = []

    def in_the_middle(stepper, batch, **options):
        taken.append(batch)
        if moment == f"step {len(taken)}":
            os.kill(os.getpid(), number)
        return forward(stepper, batch, **options)

    def activity(self, text, done, total):
        first = done < min([NUM_VAL, *evaluations[-1:]])
        evaluations.append(done)
        finished = evaluations.count(NUM_VAL)
        if first and finished == {"evaluation": 0, "last evaluation": 1}.get(moment):
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "_forward_backward", in_the_middle)
        patch.setattr(loop.RunLog, "activity", activity)
        assert train(tiny.config(), tmp_path / "run") == code
    step = {"step 4": 4, "step 6": 6, "evaluation": 6, "last evaluation": 12}[moment]
    assert f"stopped by {name} after step {step}; all is saved, --resume" in capsys.readouterr().out
    assert state_of(tmp_path / "run").step == step
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train(tiny.config(), tmp_path / "run", resume=True) == 0
    assert_same_run(tmp_path / "run", whole[0])


def test_an_evaluation_knows_that_the_run_was_asked_to_stop(tiny, tmp_path, monkeypatch):
    seen = []

    def hangs(*_, stopping, **__):
        seen.append(stopping())
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append(stopping())
        raise Stalled("no images came")

    monkeypatch.setattr(loop, "run_detector", hangs)
    assert train(tiny.config(), tmp_path / "run") == 143
    assert seen == [False, True]
    assert not state_of(tmp_path / "run").evaluated  # --resume makes up for it


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


@pytest.mark.slow
def test_a_disk_that_hangs_keeps_no_run_from_leaving(tiny, tmp_path):
    """A picture that is a pipe without a writer: reading it never ends, and the reader ignores SIGTERM."""
    root, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny.root, root)
    process = start([*arguments(tiny, folder, "--schedule.epochs", "500"), "--data.root", str(root)])
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(records(folder)) > 2, process)
    for i in range(12):
        os.mkfifo(root / "pipe")
        (root / "pipe").replace(root / "train" / f"{i}.jpg")  # no reader may find no file
    time.sleep(3)
    step = state_of(folder).step
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "")
    assert "all is saved, --resume" in out.splitlines()[-1]
    assert state_of(folder).step >= step
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
