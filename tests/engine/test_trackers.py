"""TensorBoard, Weights & Biases and MLflow: every number, the config, a resume, and what is missing."""

import json
import sqlite3
import sys
from types import SimpleNamespace

import pytest

import mgdet.engine.loop as loop
from mgdet.config import TrainConfig
from mgdet.engine.checkpoint import flatten
from mgdet.engine.trackers import open_trackers
from mgdet.errors import UserError
from tiny import ALONE, alone

CONFIG = alone().to_dict()
PARAMS = {name: str(value) for name, value in flatten(CONFIG).items()}


def opened(folder, start_step=0, config=CONFIG, **settings):
    return open_trackers(TrainConfig(**settings), folder, start_step, config)


def test_none_is_the_default(tmp_path):
    assert opened(tmp_path) == []


def test_tensorboard_gets_every_number_the_config_and_a_resume_its_own_steps(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start_step, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        (tracker,) = opened(tmp_path, start_step, tensorboard=True)
        for step in steps:
            tracker.log(step, {"train/loss": step / 10, "eval/bbox/AP": 0.5})
        tracker.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("train/loss")] == [
        (2, 0.2),
        (4, 0.4),
        (6, 0.6),
        (8, 0.8),
    ]
    assert len(events.Scalars("eval/bbox/AP")) == 4
    text = events.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert json.loads(text) == CONFIG


class FakeWandB:
    """What `wandb` has that is used."""

    def __init__(self):
        self.calls, self.config = [], {}
        self.Settings = lambda **options: options

    def init(self, **options):
        self.calls.append(options)
        return SimpleNamespace(
            log=lambda values, step: self.calls.append((step, values)),
            finish=lambda: self.calls.append("finish"),
            config=SimpleNamespace(update=self.update),
        )

    def update(self, values, allow_val_change):
        assert allow_val_change
        self.config |= values


def test_wandb_gets_every_number_and_the_config(tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start_step, resume in ((0, None), (3, "auto")):
        (tracker,) = opened(tmp_path, start_step, wandb="shapes")
        start = fake.calls.pop()
        assert (start["project"], start["name"], start["resume"]) == ("shapes", tmp_path.name, resume)
        assert fake.config == CONFIG
    tracker.log(4, {"train/loss": 1.25})
    tracker.close()
    assert fake.calls == [(4, {"train/loss": 1.25}), "finish"]


class FakeMLflow:
    """A server of MLflow in memory, as far as it is used."""

    def __init__(self):
        self.runs, self.experiments = {}, {}
        self.entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: (key, value, step), Param=lambda key, value: (key, value)
        )
        self.modules = {"mlflow": self, "mlflow.entities": self.entities}

    def MlflowClient(self):
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = f"id of {name}"
        return self.experiments[name]

    def create_run(self, experiment_id, run_name):
        run = f"run {len(self.runs)}"
        self.runs[run] = SimpleNamespace(name=run_name, place=experiment_id, params={}, metrics=[], status="RUNNING")
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def update_run(self, run_id, status):
        self.runs[run_id].status = status

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100 and all(len(value) <= 500 for _, value in params)
        assert not self.runs[run_id].params.keys() & dict(params).keys()
        self.runs[run_id].params |= dict(params)
        self.runs[run_id].metrics += metrics

    def log_dict(self, run_id, dictionary, artifact_file):
        self.runs[run_id].config = (artifact_file, dictionary)

    def set_terminated(self, run_id):
        self.runs[run_id].status = "FINISHED"


@pytest.fixture
def mlflow(monkeypatch):
    fake = FakeMLflow()
    for name, module in fake.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return fake


def test_mlflow_gets_every_number_and_the_config(tmp_path, mlflow):
    (tracker,) = opened(tmp_path, mlflow="shapes")
    tracker.log(2, {"train/loss": 1.25, "train/lr": 0.1})
    tracker.close()
    (run,) = mlflow.runs.values()
    assert (run.name, run.place, run.status) == (tmp_path.name, "id of shapes", "FINISHED")
    assert run.params == PARAMS and len(PARAMS) > 60
    assert run.config == ("config.json", CONFIG)
    assert run.metrics == [("train/loss", 1.25, 2), ("train/lr", 0.1, 2)]


def test_a_resumed_run_goes_on_in_the_same_run_of_mlflow(tmp_path, mlflow):
    changed = {**CONFIG, "data": {**CONFIG["data"], "workers": 7}}
    for start_step, config in ((0, CONFIG), (5, changed)):
        (tracker,) = opened(tmp_path, start_step, config, mlflow="shapes")
        (run,) = mlflow.runs.values()
        assert run.status == "RUNNING"
        tracker.log(start_step + 1, {"train/loss": 1.0})
        tracker.close()
    assert [step for _, _, step in run.metrics] == [1, 6]
    assert run.config == ("config.json", changed) and run.params["data.workers"] == "0"  # params cannot change there
    opened(tmp_path, 0, mlflow="shapes")
    assert len(mlflow.runs) == 2  # a fresh run in the folder is another one


def test_a_whole_run_is_tracked(tiny, tmp_path, mlflow):
    config = tiny.config()
    config.train.mlflow = "shapes"
    config.train.stop_after = 6
    assert loop.train(config, tmp_path / "run", resume=False, world=ALONE) == 0
    config.train.stop_after = 0
    assert loop.train(config, tmp_path / "run", resume=True, world=ALONE) == 0
    (run,) = mlflow.runs.values()
    assert [(step, key) for key, _, step in run.metrics if key in ("train/loss", "eval/bbox/AP")] == [
        (4, "train/loss"),
        (6, "eval/bbox/AP"),
        (8, "train/loss"),
        (12, "train/loss"),
        (12, "eval/bbox/AP"),
    ]
    assert run.params["mgd.mask_ratio"] == "0.65"


@pytest.mark.slow
def test_a_real_mlflow(tmp_path, monkeypatch):
    real = pytest.importorskip("mlflow", exc_type=ImportError)
    pytest.importorskip("sqlalchemy")
    real.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    for start_step in (0, 5):
        (tracker,) = opened(tmp_path, start_step, mlflow="shapes")
        tracker.log(start_step + 1, {"train/loss": 1.5, "eval/bbox/AP": float("nan")})
        tracker.close()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select step, value from metrics where key = 'train/loss'").fetchall() == [
            (1, 1.5),
            (6, 1.5),
        ]
        assert dict(database.execute("select key, value from params").fetchall()) == PARAMS
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    (artifact,) = tmp_path.glob("mlruns/**/config.json")
    assert json.loads(artifact.read_text()) == CONFIG


@pytest.mark.parametrize(
    ("settings", "blocked", "name"),
    [
        ({"tensorboard": True}, "torch.utils.tensorboard", "TensorBoard"),
        ({"wandb": "p"}, "wandb", "Weights & Biases"),
        ({"mlflow": "p"}, "mlflow", "MLflow"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, settings, blocked, name):
    monkeypatch.setitem(sys.modules, blocked, None)
    (extra,) = settings
    with pytest.raises(UserError) as caught:
        opened(tmp_path, **settings)
    assert str(caught.value) == f"train.{extra} needs {name}; install it with: pip install 'mgdet[{extra}]'"


def test_a_server_that_is_away_is_said_in_one_sentence(tmp_path, mlflow, monkeypatch):
    def away(*_):
        raise ConnectionError("API request failed with\na page of traceback")

    monkeypatch.setattr(mlflow, "get_experiment_by_name", away)
    with pytest.raises(UserError, match=r"^train.mlflow: MLflow does not start: API request failed with$"):
        opened(tmp_path, mlflow="shapes")
