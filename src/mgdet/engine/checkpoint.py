"""A run's folder: which run it holds, and everything needed to resume it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mgdet.config import Config
from mgdet.config.file import CONFIG_FILE, load_config
from mgdet.errors import UserError
from mgdet.files import atomic_write

STATE_FILE, LOCK_FILE = "state.pth", ".lock"
LAST_FILE, BEST_FILE = "student_last.pth", "student_best.pth"

SAME_NUMBERS = (
    "data.root",
    "data.workers",
    "train.checkpoint_backbone",
    "train.compile",
    "train.eval_every",
    "train.log_every",
    "train.mlflow",
    "train.save_every",
    "train.tensorboard",
    "train.wandb",
)
"""Settings that do not change what a run computes."""
FREE_TO_CHANGE = (
    *SAME_NUMBERS,
    "teacher.weights",
    "train.accumulate",
    "train.batch",
    "train.patience",
    "train.stop_after",
)
"""What a resumed run may set anew. Images per step, steps per epoch, classes and the teacher's hash are checked apart.

Another split of the images of a step (`train.batch`, `train.accumulate`) draws the same images, but losses are
normalised for each forward pass: the run goes on well, yet not bit-equal.
"""


@dataclass(slots=True)
class State:
    """Everything that a run needs to go on as if it had never stopped.

    Random numbers are not in it: those of a step are a function of the seed, the rank and the step.

    step: steps done.
    images_per_step: over all processes.
    steps_per_epoch: it tells one set of training images from another.
    classes: class names of the data.
    model: state dict of `DistilledStudent`.
    optimizer: state dict of the optimizer.
    scaler: state dict of the gradient scaler.
    teacher_sha256: hash of the teacher's file; empty without a teacher.
    evaluated: has the epoch that ends with `step` been evaluated?
    best: best score so far, -1 before the first.
    stale: evaluations since the best one.
    ema: the average of the student's weights, as `Average.state_dict` gives it; None without `train.ema`.
    sums: sums of what is logged, since the last log line.
    description: how to rebuild a student of another library; None for ours.
    balance: of `Balance`, the weights of methods that were given a share; empty where none was.
    """

    step: int
    images_per_step: int
    steps_per_epoch: int
    classes: list[str]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    teacher_sha256: str
    evaluated: bool = True
    best: float = -1.0
    stale: int = 0
    ema: dict[str, Any] | None = None
    sums: dict[str, float] = field(default_factory=dict)
    description: dict[str, Any] | None = None
    balance: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes `state.pth`, whole or not at all."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        atomic_write(folder / STATE_FILE, lambda file: torch.save(values, file))

    def check(self, folder: Path, *, images_per_step: int, steps_per_epoch: int, classes: Sequence[str]) -> None:
        """Refuses to resume with data that would make another run of it.

        Raises:
            UserError: other classes, or another number of images per step or of steps per epoch.
        """
        if self.classes != list(classes):
            raise UserError(
                f"{folder} holds a run on {len(self.classes)} classes ({', '.join(self.classes[:3])}, ...), "
                f"the data has {len(classes)} ({', '.join(classes[:3])}, ...); give the data that it began with"
            )
        if self.images_per_step != images_per_step:
            raise UserError(
                f"{folder} holds a run with {self.images_per_step} images per step, here are {images_per_step}; "
                "change train.batch or train.accumulate so that they agree"
            )
        if self.steps_per_epoch != steps_per_epoch:
            raise UserError(
                f"{folder} holds a run with {self.steps_per_epoch} steps per epoch, here are {steps_per_epoch}; "
                "give the training images that it began with"
            )

    def check_teacher(self, folder: Path, teacher_sha256: str) -> None:
        """Refuses to resume with another teacher's file.

        Raises:
            UserError: names both hashes.
        """
        if self.teacher_sha256 != teacher_sha256:
            raise UserError(
                f"{folder} holds a run with a teacher file of SHA-256 {self.teacher_sha256}, "
                f"but teacher.weights now has {teacher_sha256}; bring the same file"
            )

    @classmethod
    def load(cls, folder: Path) -> State | None:
        """Reads `state.pth` onto the CPU; None if there is none.

        Raises:
            UserError: the file is damaged, or another version wrote it.
        """
        path = folder / STATE_FILE
        if not path.exists():
            return None
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch reports damage in many ways
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{path} cannot be resumed from: {reason:.200}") from None


def find_run(folder: Path, config: Config, *, resume: bool) -> State | None:
    """Looks for the run that a folder holds; writes nothing.

    Args:
        folder: the run's folder.
        config: the run as it is asked for.
        resume: resume the run there.

    Returns:
        Where the run stands; None if it starts.

    Raises:
        UserError: the folder holds a run that is not to be resumed, or another one.
    """
    old = read_config(folder)
    if old is None and any((folder / name).exists() for name in (STATE_FILE, LAST_FILE, BEST_FILE)):
        raise UserError(f"{folder} holds weights but no {CONFIG_FILE}; choose another --run-dir")
    if old is not None:
        if not resume:
            raise UserError(f"{folder} already holds a run; add --resume to resume it, or choose another --run-dir")
        check_same_run(old, config, folder)
    state = State.load(folder) if resume else None
    students = [name for name in (LAST_FILE, BEST_FILE) if (folder / name).exists()]
    if state is None and students:
        raise UserError(
            f"{folder} holds {students[0]} but no {STATE_FILE}, so it cannot be resumed; bring {STATE_FILE} back, or "
            "choose another --run-dir (--student.weights takes the student as a start)"
        )
    return state


def check_all_see_it(folder: Path, steps: Sequence[int]) -> None:
    """Refuses to resume where processes find another state of the run in `folder`.

    Args:
        folder: the run's folder.
        steps: of each process by rank, the step that it would resume from.

    Raises:
        UserError: they differ.
    """
    if len(set(steps)) > 1:
        other = next(rank for rank, found in enumerate(steps) if found != steps[0])
        raise UserError(
            f"process 0 finds the run in {folder} at step {steps[0]:,} and process {other} at step {steps[other]:,}; "
            "the folder must be on a disk that all machines share"
        )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a run's folder; the lock ends with this process, however it ends.

    Raises:
        UserError: another process trains in the folder.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"another process trains in {folder} right now; wait for it, stop it, or choose another --run-dir"
        ) from None
    except (OSError, NotImplementedError):
        pass  # the file system has no locks
    try:
        yield
    finally:
        lock.release()


def write_config(folder: Path, config: Config) -> None:
    """Stores a config as `config.json`."""
    text = json.dumps(config.to_dict(), indent=2)
    atomic_write(folder / CONFIG_FILE, lambda file: file.write(text.encode()))


def read_config(folder: Path) -> Config | None:
    """The config of the run that a folder holds; None if it holds none.

    Raises:
        UserError: `config.json` is damaged.
    """
    path = folder / CONFIG_FILE
    return load_config(path) if path.exists() else None


def check_same_run(old: Config, new: Config, folder: Path) -> None:
    """Refuses to resume with settings that would make another run of it.

    Raises:
        UserError: names the first setting that differs and may not.
    """
    before, after = flatten(old.to_dict()), flatten(new.to_dict())
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name) and name not in FREE_TO_CHANGE:
            raise UserError(
                f"{folder} holds a run with {name} {before.get(name)!r}, which --resume cannot change to "
                f"{after.get(name)!r}; choose another --run-dir"
            )


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts as one, with dots between the names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat
