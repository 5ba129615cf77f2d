"""A run ends by itself once evaluations bring nothing better."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.distributed
import torch.multiprocessing

import mgdet.engine.loop as loop
from mgdet.distributed import World
from mgdet.errors import UserError
from mgdet.evaluate.coco import CocoScores
from refusals import refusal
from tiny import ALONE, STEPS_PER_EPOCH, assert_same_state, records, state_of


def train(config, folder, resume=False, world=ALONE):
    return loop.train(config, folder, resume=resume, world=world)


def patient(tiny, patience, **changes):
    config = tiny.config(distil=False)
    config.schedule.epochs = 8
    config.train = replace(config.train, patience=patience, **changes)
    return config


def say_scores(patch, values):
    """What each evaluation comes to."""
    left = iter(values)
    patch.setattr(loop, "evaluate", lambda *_: {"bbox": CocoScores({"AP": next(left)}, {})})


@pytest.fixture
def scores(monkeypatch):
    return lambda values: say_scores(monkeypatch, values)


VALUES = [0.1, 0.3, 0.2, 0.3, 0.9]


def test_it_ends_where_nothing_gets_better(tiny, tmp_path, scores, capsys):
    scores(VALUES)
    assert train(patient(tiny, 2), tmp_path / "run") == 0
    state = state_of(tmp_path / "run")
    assert (state.step, state.best, state.stale) == (4 * STEPS_PER_EPOCH, 0.3, 2)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("stopped after step 24, 24 are left: bbox AP has not risen in the last 2 evaluations; the")
    assert "with 0.300, is " in last and "student_best.pth; --resume with --train.patience 4 goes on" in last
    assert last in (tmp_path / "run" / "log.txt").read_text()


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that ended by itself after 24 steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        say_scores(patch, VALUES)
        assert train(patient(tiny, 2), folder) == 0
    return folder


@pytest.mark.parametrize("stop_after", [3, 6, 14, 18, 20, 24])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(whole, tiny, tmp_path, scores, stop_after):
    scores(VALUES)
    assert train(patient(tiny, 2, stop_after=stop_after), tmp_path / "run") == 0
    assert train(patient(tiny, 2), tmp_path / "run", resume=True) == 0
    assert_same_state(tmp_path / "run", whole)
    assert records(tmp_path / "run") == records(whole)


def test_more_patience_goes_on_from_there(tiny, tmp_path, scores, capsys):
    scores([0.1, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1, 0.1])
    assert train(patient(tiny, 2), tmp_path / "run") == 0
    assert state_of(tmp_path / "run").step == 18
    assert train(patient(tiny, 2), tmp_path / "run", resume=True) == 0
    assert state_of(tmp_path / "run").step == 18
    assert train(patient(tiny, 4), tmp_path / "run", resume=True) == 0
    assert (state_of(tmp_path / "run").step, state_of(tmp_path / "run").stale) == (48, 4)
    assert capsys.readouterr().out.splitlines()[-1].startswith("done; ")  # the end of the schedule says that alone


def test_without_patience_it_runs_to_the_end(tiny, tmp_path, scores):
    scores([0.5] * 8)
    assert train(patient(tiny, 0), tmp_path / "run") == 0
    assert (state_of(tmp_path / "run").step, state_of(tmp_path / "run").stale) == (48, 7)


def empty_validation(tiny, folder, *, crowds):
    """The data set with no object in its validation split that counts."""
    shutil.copytree(tiny.root, folder)
    file = folder / "annotations" / "val.json"
    content = json.loads(file.read_text())
    content["annotations"] = [each | {"iscrowd": 1} for each in content["annotations"]] if crowds else []
    file.write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("crowds", [False, True])
def test_patience_needs_an_object_that_counts(tiny, tmp_path, crowds):
    config = patient(tiny, 2)
    config.data.root = empty_validation(tiny, tmp_path / "data", crowds=crowds)
    text = refusal(train, config, tmp_path / "run")
    assert text.startswith("train.patience is 2, but no object in '") and "val.json' counts in an evaluation" in text
    assert not (tmp_path / "run").exists()
    config.train = replace(config.train, patience=0, stop_after=STEPS_PER_EPOCH)
    assert train(config, tmp_path / "run") == 0


def test_a_run_that_began_without_such_objects_goes_on_to_its_end(tiny, tmp_path, scores, monkeypatch):
    """As a version before would have begun it."""
    monkeypatch.setattr("mgdet.engine.prepare.check_patience", lambda *_: None)
    scores([-1.0] * 8)
    assert train(patient(tiny, 2, stop_after=3 * STEPS_PER_EPOCH), tmp_path / "run") == 0
    state = state_of(tmp_path / "run")
    assert (state.step, state.best, state.stale) == (3 * STEPS_PER_EPOCH, -1.0, 0)
    state.stale = 3
    state.save(tmp_path / "run")
    assert train(patient(tiny, 2), tmp_path / "run", resume=True) == 0
    assert state_of(tmp_path / "run").step == 8 * STEPS_PER_EPOCH


def test_an_evaluation_without_a_value_is_not_counted(tiny, tmp_path, scores):
    scores([-1.0, -1.0, 0.2, -1.0, 0.1, 0.1, 0.9])
    assert train(patient(tiny, 2), tmp_path / "run") == 0
    assert (state_of(tmp_path / "run").step, state_of(tmp_path / "run").best) == (6 * STEPS_PER_EPOCH, 0.2)


def test_patience_needs_evaluations(tiny, tmp_path):
    with pytest.raises(UserError, match=r"train.patience is 2, but train.eval_every is 0, so nothing is evaluated"):
        patient(tiny, 2, eval_every=0)


@pytest.mark.slow
def test_two_processes_end_together(tiny, tmp_path):
    torch.multiprocessing.spawn(_one_of_two, (tmp_path, tiny), nprocs=2)
    assert [int((tmp_path / f"{rank}.txt").read_text()) for rank in (0, 1)] == [12, 12]


def _one_of_two(rank, folder, tiny):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cpu"))

    class Watched(loop.Run):
        def to_the_end(self, loader):
            super().to_the_end(loader)
            (folder / f"{rank}.txt").write_text(str(self.step))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Run", Watched)
        patch.setattr(loop, "evaluate", lambda *_: {"bbox": CocoScores({"AP": 0.5}, {})})
        assert train(patient(tiny, 1, batch=1), folder / "run", world=world) == 0
    torch.distributed.destroy_process_group()
