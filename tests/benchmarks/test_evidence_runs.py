"""The evidence from the first choice to the page, on a pair that trains in a second; stops and locks on the way."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from evidence import backbones, choose, commands, pairs, work
from evidence import measure as measuring
from evidence.arms import student_config
from evidence.runs import Planned, claim, read_finished, sessions
from mgdet.demo.scene import CLASSES
from mgdet.engine.checkpoint import LAST_FILE, STATE_FILE, read_config
from mgdet.errors import NotFinite, TrainingError, UserError
from mgdet.models import detector_from
from mgdet.models.start import start
from tiny import assert_same_tensors, wait_for

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def planned(evidence, pair, *names: str, epochs: int = 1, seed: int = 0) -> list[Planned]:
    config = student_config(pair, evidence.root, epochs=epochs, rate=0.002, seed=seed)
    return [Planned(evidence.root / "tiny" / name, config) for name in names]


def quiet(text: str) -> None:
    """Says nothing."""


@pytest.mark.slow
@pytest.mark.parametrize(("of", "lr", "number"), [("student", 0.003, "6"), ("teacher", 0.004, "8")])
def test_a_trial_is_one_detector_alone_on_the_validation_images(evidence, capsys, of, lr, number):
    options = ["--of", of, "--epochs", "1", "--rate", str(lr), "--decay", "0.1"]
    if of == "student":
        options += ["--num-train", number, "--smallest", "300"]
    assert evidence("trial", *options) == 0
    (folder,) = (evidence.root / "trials").iterdir()
    images = "shapes-64x64-6-300" if of == "student" else "shapes-64x64-8"
    assert folder.name == f"tiny-{of}-{images}-1-epochs-lr-{lr}-decay-0.1"
    config = read_config(folder)
    assert config is not None
    assert config.teacher is None
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (lr, 0.1)
    said = capsys.readouterr().out
    assert f"train {number} images" in said
    assert f"trials/{folder.name}: bbox AP " in said
    assert said.rstrip().endswith("on the validation images")
    assert not list(evidence.root.rglob("test-*.json")), "nobody looked at test images"
    assert evidence("trial", *options) == 0
    assert "==>" not in capsys.readouterr().out, "it is finished"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--num-train", "0"], "--num-train is 0; give 1 or more"),
        (["--only", "tiny/alone"], "a trial is of one detector; give --only PAIR"),
        (["--only", "bccd_retinanet_few", "--smallest", "9"], "--smallest is for pairs on shapes"),
        (["--epochs", "0"], "schedule.epochs is 0"),
    ],
)
def test_a_trial_that_cannot_be_is_one_sentence(evidence, capsys, options, sentence):
    given = ["--of", "student", "--epochs", "1", "--rate", "0.003", "--decay", "0.1"]
    assert evidence("trial", *given, *options) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_from_the_first_choice_to_the_page(evidence, tmp_path, capsys):
    assert evidence("tune") == 0
    choices = json.loads((evidence.root / "tiny/choices.json").read_text())
    assert evidence("run", "--seeds", "0") == 2
    assert "There is little to learn from it; --anyway trains" in capsys.readouterr().err
    assert evidence("run", "--seeds", "0", "--anyway") == 0
    page = tmp_path / "evidence-tiny-2030-01.md"
    assert evidence("table", "--out", str(tmp_path), "--date", "2030-01") == 2
    assert "tiny: 8 runs are not finished, the first in tiny/alone/seed-1" in capsys.readouterr().err
    assert not list(evidence.root.rglob("test-*.json")), "nobody looked"
    assert evidence("table", "--out", str(tmp_path), "--date", "2030-01", "--partial") == 0
    early = (tmp_path / "evidence-tiny-2030-01-partial.md").read_text()
    assert not page.exists()
    assert "8 of the reported runs are not finished" in early
    assert "one seed, which shows nothing yet" in early

    with claim(evidence.root / "tiny/alone/seed-1"):
        assert evidence("run", "--anyway", "--only", "tiny/alone") == commands.ELSEWHERE
    assert capsys.readouterr().out.endswith("finished: 1 of 2 runs; other processes work on 1\n")
    assert evidence("run", "--anyway") == 0
    assert capsys.readouterr().out.endswith("finished: 16 of 16 runs\n")
    found = {arm: list((evidence.root / "tiny" / arm).glob("seed-*")) for arm in choices["arms"]}
    assert {arm: len(folders) for arm, folders in found.items()} == dict.fromkeys(choices["arms"], 2)
    before = {path: path.stat().st_mtime_ns for path in evidence.root.rglob("test-*.json")}
    assert len(before) == 9, "the teacher and a run of each of eight arms were measured"
    capsys.readouterr()
    assert evidence("table", "--out", str(tmp_path), "--date", "2030-01") == 0
    assert capsys.readouterr().out.count("testing") == 8, "only what is new"
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())

    text = page.read_text()
    assert "not finished" not in text
    assert str(evidence.root) not in text
    assert "tune --root ROOT --only tiny" in text
    assert "The teacher was trained on 9 images, the students' 8 and others" in text
    assert "\n\nSettings mean nothing here.\n\n" in text
    assert "| alone: rate, at a decay of 0.01 | 0.002 |" in text
    assert "| mgd: weight, at a rate of 0.002, at a decay of 0.001 | 0.001 |" in text
    for title in (
        "teacher",
        "alone",
        "alone, twice as long",
        "alone, teacher's images",
        "inherits only",
        "inherits only, teacher's images",
        "MGD",
        "MGD, inherits",
        "MGD, inherits, teacher's images",
    ):
        assert f"\n| {title} |" in text
    for folders in found.values():
        for folder in folders:
            finished = read_finished(folder)
            assert finished is not None
            assert finished.sha256[:12] in text
            assert finished.seconds > 0
            assert finished.images_per_second > 0
    looks = (evidence.root / "tiny" / measuring.LOOKS_FILE).read_text().splitlines()
    assert len(looks) == 2, "two tables measured something"
    assert evidence("plan") == 0
    assert "16 of 16 runs are finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(evidence, tiny_pair, tmp_path, monkeypatch):
    epochs = 4
    process = evidence.start("tune", epochs=epochs)
    student = evidence.root / f"tiny/search/alone-{epochs}-epochs-lr-0.002"
    wait_for((student / LAST_FILE).exists, process)
    process.kill()
    process.communicate()
    assert read_finished(student) is None, "it was killed on its way"

    monkeypatch.chdir(evidence.root)  # as the command does: names in a run's config are inside the root
    config = student_config(tiny_pair, Path(), epochs=epochs, rate=0.002, seed=choose.SEED)
    again = Planned(student, config)
    with claim(student) as mine:
        assert mine, "the claim ended with the process"
    work.work([again], work.Clock(0), quiet)
    whole = Planned(tmp_path / "whole", config)
    work.work([whole], work.Clock(0), quiet)
    assert_same_tensors(*(torch.load(one.folder / LAST_FILE, weights_only=True) for one in (again, whole)))
    first, second = read_finished(student), read_finished(whole.folder)
    assert first is not None
    assert second is not None
    assert first.val == second.val
    assert [len(sessions(one.folder)) for one in (again, whole)] == [2, 1]


class WhenItHasBegun:
    """A timer that does not look at a clock: it acts once a run has saved a student."""

    folder: Path

    def __init__(self, seconds, function):
        self.function, self.thread = function, threading.Thread(target=self.wait, daemon=True)
        self.over, self.before = threading.Event(), self.saved()

    def saved(self) -> int:
        file = self.folder / LAST_FILE
        return file.stat().st_mtime_ns if file.exists() else 0

    def wait(self):
        while not self.over.wait(0.01):
            if self.saved() != self.before:
                self.function()
                return

    def start(self):
        self.thread.start()

    def cancel(self):
        self.over.set()


@pytest.mark.slow
def test_when_the_time_is_up_a_run_is_saved_and_the_next_session_goes_on(evidence, tiny_pair, monkeypatch, capsys):
    from evidence import pairs

    pairs.PAIRS["tiny"] = pairs.replace(tiny_pair, teacher_epochs=50)
    monkeypatch.setattr(work.threading, "Timer", WhenItHasBegun)
    folder = WhenItHasBegun.folder = evidence.root / "tiny/teacher/50-epochs"
    assert evidence("tune", "--hours", "1") == 75
    assert "the time is up" in capsys.readouterr().out
    assert read_finished(folder) is None
    before = torch.load(folder / STATE_FILE, weights_only=True)["step"]
    assert 0 < before < 200
    assert evidence("tune", "--hours", "1") == 75
    assert torch.load(folder / STATE_FILE, weights_only=True)["step"] > before


@pytest.mark.slow
def test_it_runs_as_it_is_typed_in_any_folder(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "evidence"), "plan", "--only", "solo"]
    process = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    pair = pairs.PAIRS["solo"]
    needed = [f"search/alone-{pair.epochs}-epochs-lr-{rate:g}" for rate in pair.rates]
    needed += [f"teacher/{times * pair.teacher_epochs}-epochs" for times in (1, 2)]
    folders = ", ".join(f"solo/{folder}" for folder in needed)
    assert process.stdout == f"solo: no choices yet; the next needs {folders}\n"
    assert not list(tmp_path.iterdir()), "looking makes nothing"


def test_nothing_is_begun_when_the_time_is_up(evidence, monkeypatch):
    monkeypatch.setattr(work.Clock, "left", property(lambda clock: -1.0))
    assert evidence("tune", "--hours", "1") == 75
    assert not list(evidence.root.rglob("config.json"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_outside_of_a_run_ends_it_too(evidence, monkeypatch, number):
    monkeypatch.setattr(work, "train", lambda *arguments, **options: signal.raise_signal(number))
    assert evidence("tune") == 128 + number


def test_two_processes_share_the_work(evidence, tiny_pair, monkeypatch):
    runs = planned(evidence, tiny_pair, "a", "b")
    done = []
    monkeypatch.setattr(work, "train", lambda config, folder, **options: done.append(folder) or 0)
    monkeypatch.setattr(work, "write_finished", lambda folder: (folder / "finished.json").write_text('{"val": {}}'))
    said = []
    with claim(runs[0].folder) as mine:
        assert mine
        assert work.work(runs, work.Clock(0), said.append) == 1
        assert done == [runs[1].folder]

        slept = []
        monkeypatch.setattr(work.time, "sleep", slept.append)
        work.work_on_one(runs[:1], work.Clock(0), quiet)
        assert slept and done == [runs[1].folder]


def test_one_run_at_a_time_is_done_where_what_comes_next_may_change(evidence, tiny_pair, monkeypatch):
    runs = planned(evidence, tiny_pair, "a", "b", "c")
    done = []
    monkeypatch.setattr(work, "train", lambda config, folder, **options: done.append(folder) or 0)
    monkeypatch.setattr(work, "write_finished", lambda folder: (folder / "finished.json").write_text('{"val": {}}'))
    with claim(runs[0].folder):
        work.work_on_one(runs, work.Clock(0), quiet)
    assert done == [runs[1].folder]


def test_a_run_whose_loss_is_not_finite_is_a_result_and_one_without_images_is_not(evidence, tiny_pair, monkeypatch):
    (run,) = planned(evidence, tiny_pair, "a")

    def raising(error):
        def train(*arguments, **options):
            raise error

        return train

    monkeypatch.setattr(work, "train", raising(TrainingError("no memory is left")))
    with pytest.raises(TrainingError, match="no memory"):
        work.work([run], work.Clock(0), quiet)
    assert read_finished(run.folder) is None
    monkeypatch.setattr(work, "train", raising(NotFinite("loss_cls is nan")))
    work.work([run], work.Clock(0), quiet)
    finished = read_finished(run.folder)
    assert finished is not None
    assert finished.error == "loss_cls is nan"
    assert finished.ap < 0


def test_another_run_in_a_folder_is_refused(evidence, tiny_pair):
    evidence("data")
    (run,) = planned(evidence, tiny_pair, "a")
    work.work([run], work.Clock(0), quiet)
    (run.folder / "finished.json").unlink()
    run.config.optimizer.lr = 0.001
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        work.work([run], work.Clock(0), quiet)


def test_a_torn_line_of_sessions_is_passed_over(tmp_path):
    (tmp_path / "sessions.jsonl").write_text('{"machine": "one"}\n{"mach')
    assert sessions(tmp_path) == [{"machine": "one"}]


def test_backbones_are_made_once_and_every_detector_starts_from_them(evidence, capsys):
    pair = pairs.PAIRS["tiny"]
    assert evidence("data") == 0
    assert "test_resnet: " in capsys.readouterr().out
    path = backbones.path_of(evidence.root, pair, pair.student_backbone)
    written = path.read_bytes()
    note = backbones.read_note(evidence.root, pair, pair.student_backbone)
    assert 0 <= note["accuracy"] <= 1
    assert note["trained"]["steps"] == 2
    assert evidence("data") == 0
    assert path.read_bytes() == written
    config = student_config(pair, evidence.root, epochs=1, rate=0.002, seed=0)
    student = detector_from(config.student, 6)
    start(student, config.student, CLASSES, lambda line: None)
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(student.backbone.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])


@pytest.mark.slow
def test_a_root_that_was_moved_goes_on_and_another_run_in_it_is_refused(
    evidence, tiny_pair, tmp_path, capsys, monkeypatch
):
    assert evidence("tune") == 0
    evidence.root = evidence.root.rename(tmp_path / "elsewhere")
    (evidence.root / "tiny/choices.json").unlink()
    capsys.readouterr()
    assert evidence("tune") == 0
    assert "==>" not in capsys.readouterr().out, "every run is known"
    (evidence.root / "tiny/choices.json").unlink()
    monkeypatch.setitem(pairs.PAIRS, "tiny", dataclasses.replace(tiny_pair, batch=4))
    assert evidence("tune") == 2
    assert "alone-1-epochs-lr-0.002 holds a run with train.batch 2, not 4; move it away" in capsys.readouterr().err
