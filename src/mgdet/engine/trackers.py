"""Places outside the log that draw curves: TensorBoard, Weights & Biases and MLflow. Each also gets the config."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mgdet.config import TrainConfig
from mgdet.engine.checkpoint import flatten
from mgdet.errors import UserError
from mgdet.files import atomic_write

MLFLOW_RUN_FILE = "mlflow_run.txt"
"""Where a run's folder keeps MLflow's id of the run, so that a resumed one goes on there."""
MLFLOW_PARAMS, MLFLOW_VALUE = 100, 500
"""How many params MLflow takes at once, and how many letters in each."""


class Tracker(Protocol):
    """A place that draws curves."""

    name: str

    def log(self, step: int, values: dict[str, float]) -> None:
        """Takes values by name, with slashes between groups."""

    def close(self) -> None:
        """Writes out what is pending."""


def open_trackers(train: TrainConfig, folder: Path, start_step: int, config: dict[str, Any]) -> list[Tracker]:
    """The trackers that the settings ask for.

    Args:
        train: the settings.
        folder: the run's folder; it exists.
        start_step: steps done before this process; 0 for a fresh run.
        config: the whole run's, as `Config.to_dict` gives it.

    Raises:
        UserError: a tracker is not installed, or does not start.
    """
    wanted: list[tuple[str, str, Callable[[], Tracker]]] = []
    if train.tensorboard:
        wanted.append(("tensorboard", "TensorBoard", lambda: TensorBoard(folder / "tensorboard", start_step, config)))
    if train.wandb:
        wanted.append(("wandb", "Weights & Biases", lambda: WandB(folder, train.wandb, start_step, config)))
    if train.mlflow:
        wanted.append(("mlflow", "MLflow", lambda: MLflow(folder, train.mlflow, start_step, config)))
    return [_opened(*each) for each in wanted]


def _opened(setting: str, name: str, make: Callable[[], Tracker]) -> Tracker:
    try:
        return make()
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"train.{setting} needs {name}; install it with: pip install 'mgdet[{setting}]'") from error
    except Exception as error:  # whatever a library raises that cannot reach its server, or knows no user
        raise UserError(f"train.{setting}: {name} does not start: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return f"{lines[0]:.200}" if lines else type(error).__name__


class TensorBoard:
    """Event files in the run's folder; the config is a text."""

    name = "TensorBoard"

    def __init__(self, folder: Path, start_step: int, config: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)
        indented = json.dumps(config, indent=2).replace("\n", "\n    ")
        self._writer.add_text("config", f"    {indented}", start_step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases; a resumed run goes on in it."""

    name = "Weights & Biases"

    def __init__(self, folder: Path, project: str, start_step: int, config: dict[str, Any]):
        import wandb

        self._run = wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            resume="auto" if start_step else None,
            settings=wandb.Settings(console="off"),
        )
        self._run.config.update(config, allow_val_change=True)  # a resumed run may have more workers

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run in an experiment of MLflow, where MLFLOW_TRACKING_URI says; the config is its params and an artifact."""

    name = "MLflow"

    def __init__(self, folder: Path, experiment: str, start_step: int, config: dict[str, Any]):
        import mlflow
        from mlflow.entities import Metric, Param

        self._client, self._metric = mlflow.MlflowClient(), Metric
        file = folder / MLFLOW_RUN_FILE
        run = file.read_text().strip() if start_step and file.exists() else ""
        if run:
            self._client.update_run(run, status="RUNNING")
        else:
            found = self._client.get_experiment_by_name(experiment)
            place = found.experiment_id if found else self._client.create_experiment(experiment)
            run = self._client.create_run(place, run_name=folder.name).info.run_id
            atomic_write(file, lambda stream: stream.write(run.encode()))
            params = [Param(name, str(value)[:MLFLOW_VALUE]) for name, value in flatten(config).items()]
            for first in range(0, len(params), MLFLOW_PARAMS):
                self._client.log_batch(run, params=params[first : first + MLFLOW_PARAMS])
        self._run = run
        self._client.log_dict(self._run, config, "config.json")

    def log(self, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)
