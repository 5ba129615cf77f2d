"""One run as one folder: what it is to be, whether it is finished, what came out, and where it ran.

Beside what mgdet writes, a folder holds `finished.json` once the run is at its end, `sessions.jsonl` with a line for
each time it was started or resumed, and the detections on the test images once `table` has looked.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import mgdet
from mgdet.config import Config
from mgdet.engine.checkpoint import LAST_FILE, flatten, read_config
from mgdet.errors import UserError
from mgdet.files import atomic_write, make_folder, sha256_of

HERE = Path(__file__).resolve().parent
FINISHED_FILE, SESSIONS_FILE, CLAIM_FILE = "finished.json", "sessions.jsonl", ".claim"


@dataclass(frozen=True, slots=True)
class Planned:
    """A run that is wanted.

    folder: where it is.
    config: what it is.
    """

    folder: Path
    config: Config


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run ended with.

    val: COCO's numbers of the last evaluation, for each metric; empty where the run broke off.
    sha256: of the last student's file.
    seconds: of training, all sessions together, without evaluations.
    images_per_second: in training.
    error: why the run broke off, e.g. a loss that is not finite; empty where it did not.
    """

    val: dict[str, dict[str, float]]
    sha256: str = ""
    seconds: float = 0.0
    images_per_second: float = 0.0
    error: str = ""

    @property
    def ap(self) -> float:
        """AP on the validation images, of the metric that choices go by; below everything where the run broke off."""
        return next(iter(self.val.values()))["AP"] if self.val else -1.0


def read_finished(folder: Path) -> Finished | None:
    """What a run ended with; None while it has not."""
    try:
        return Finished(**json.loads((folder / FINISHED_FILE).read_text()))
    except FileNotFoundError:
        return None


def finished_of(run: Planned) -> Finished | None:
    """What a run ended with; None while it has not.

    Raises:
        UserError: the folder holds another run than the one that is wanted.
    """
    finished, config = read_finished(run.folder), read_config(run.folder)
    if finished is None or config is None:
        return finished
    before, now = flatten(config.to_dict()), flatten(run.config.to_dict())
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{run.folder} holds a run with {name} {before.get(name)!r}, not {now.get(name)!r}; move it away"
            )
    return finished


def write_finished(folder: Path, error: str = "") -> None:
    """Notes that a run is at its end, with what its files say."""
    finished = Finished({}, error=error) if error else _finished(folder)
    text = json.dumps(dataclasses.asdict(finished), indent=1)
    atomic_write(folder / FINISHED_FILE, lambda file: file.write(text.encode()))


def _finished(folder: Path) -> Finished:
    config = read_config(folder)
    assert config is not None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = max(line["step"] for line in lines)
    found = {line["metric"]: line for line in lines if line["kind"] == "eval" and line["step"] == last}
    val: dict[str, dict[str, float]] = {
        metric: {name: value for name, value in found[metric].items() if name not in ("step", "kind", "metric")}
        for metric in config.train.metrics
    }
    per_step, step, seconds = config.train.batch * config.train.accumulate, 0, 0.0
    for line in lines:
        if line["kind"] == "train":
            seconds += (line["step"] - step) * per_step / line["images_per_second"]
            step = line["step"]
    return Finished(val, sha256_of(folder / LAST_FILE), round(seconds, 1), round(last * per_step / seconds, 2))


def gradient_share(folder: Path, method: str) -> float | None:
    """The gradient of a method on the student's maps, in lengths of that of the detector's own losses there: the mean
    over what the run's log has. None where it has none."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [line[f"share_{method}"] for line in lines if f"share_{method}" in line]
    return statistics.fmean(found) if found else None


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Says whether this process may work on a run; the claim ends with the process, however it ends."""
    make_folder(folder)
    lock = FileLock(folder / CLAIM_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Within it this process alone writes what all runs of a pair share; others wait."""
    make_folder(folder)
    with FileLock(folder / CLAIM_FILE):
        yield


def note_session(folder: Path) -> None:
    """Adds a line on this process and its machine to a run's folder."""
    session = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "mgdet": mgdet.__version__,
        "commit": commit(),
        "command": command(),
    }
    with (folder / SESSIONS_FILE).open("a") as file:
        file.write(json.dumps(session) + "\n")


def sessions(folder: Path) -> list[dict[str, Any]]:
    """The lines of `note_session`."""
    return read_lines(folder / SESSIONS_FILE)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON file that grows, without one that a kill left half-written; none where it is not there."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def processor() -> str:
    """What the machine computes with."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def commit() -> str:
    """The revision of the code, with a plus where files differ from it; "unknown" outside a repository."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--dirty=+"],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command() -> str:
    """What was typed, with names in place of this machine's folders."""
    typed, named = list(sys.argv[1:]), {"--root": "ROOT", "--bccd": "BCCD", "--out": "OUT"}
    for place, option in enumerate(typed):
        if option in named and place + 1 < len(typed):
            typed[place + 1] = named[option]
        elif option.partition("=")[0] in named:
            typed[place] = f"{option.partition('=')[0]}={named[option.partition('=')[0]]}"
    return shlex.join(["python", "benchmarks/evidence", *typed])
