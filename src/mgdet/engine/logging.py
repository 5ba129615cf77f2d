"""What a run says: to the screen, to `log.txt`, to `metrics.jsonl`, and to its trackers."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from mgdet.engine.display import SHARE_PREFIX, Display, Status, clock, split_losses
from mgdet.engine.trackers import Tracker, first_line
from mgdet.files import atomic_write
from mgdet.sections import finite


class RunLog:
    """The log of one run. On a terminal it is a live display, elsewhere plain lines.

    Args:
        folder: the run's folder; it exists. `log.txt` is continued; `metrics.jsonl` is cut back to `start_step`, so
            that after a resume it holds every step once.
        title: one line that names the run.
        total_steps: steps of the whole schedule.
        start_step: steps done before this process; 0 for a fresh run.
        evaluated: has the epoch that ends with `start_step` been evaluated? If not, what was logged of it goes.
        enabled: off on every rank but 0: then nothing is shown or written.
        trackers: makes the places outside the log that get every number, too; called once, and only if enabled.
    """

    def __init__(
        self,
        folder: Path,
        *,
        title: str,
        total_steps: int,
        start_step: int,
        evaluated: bool = True,
        enabled: bool = True,
        trackers: Callable[[], list[Tracker]] = list,
    ):
        self._enabled = enabled
        if not enabled:
            return
        self._trackers = trackers()
        cut_metrics(folder / "metrics.jsonl", start_step, evaluated)
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._text = (folder / "log.txt").open("a", encoding="utf-8", errors="backslashreplace")
        self._status = Status(title, total_steps, start_step)
        live = sys.stdout.isatty()
        self._console = Console(
            file=sys.stdout, force_terminal=live, markup=False, highlight=False, emoji=False, soft_wrap=True
        )
        self._display: Display | None = None
        if live and not self._console.is_dumb_terminal:
            self._display = Display(self._console, self._status)
        self._say(title, plain=True)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def tick(self, step: int) -> None:
        """Says that `step` steps are done. Cheap: call it after every step."""
        if self._enabled:
            self._status.step = step
            self._status.activity = ""
            if self._display is not None:
                self._display.refresh()

    def activity(self, text: str, done: int, total: int) -> None:
        """Shows what goes on between two steps, e.g. "evaluating 12 / 96"; only on a terminal."""
        if self._enabled and self._display is not None:
            self._status.activity = f"{text} {done:,} / {total:,}"
            self._display.refresh()

    def step(
        self,
        step: int,
        *,
        epoch: float,
        losses: dict[str, float],
        lr: float,
        grad_norm: float,
        images_per_second: float,
        data_seconds: float,
        memory_gib: float,
        shares: dict[str, float] | None = None,
    ) -> None:
        """Logs a point of the training.

        Args:
            step: steps done.
            epoch: epochs done, with a fraction.
            losses: the total first, then each loss; a method's are named loss_<method>_*, one per level.
            lr: learning rate of this step.
            grad_norm: L2 norm before clipping.
            images_per_second: over all processes.
            data_seconds: how long a step waited for its images.
            memory_gib: most memory in use on the device, in GiB.
            shares: how strong the methods pull on the student's maps, named share_<method> and
                share_<method>_fpn_<level>; see `mgdet.methods.balance.Balance.found`.
        """
        if not self._enabled:
            return
        shares = shares or {}
        self._status.step, self._status.epoch, self._status.losses = step, epoch, losses
        self._status.shares = {name.removeprefix(SHARE_PREFIX): f"{value:.2g}" for name, value in shares.items()}
        self._status.speed = {
            "images/s": f"{images_per_second:.1f}" if images_per_second >= 1 else f"{images_per_second:.2g}",
            "data wait": f"{data_seconds * 1000:.0f} ms",
            "memory": f"{memory_gib:.1f} GiB",
            "lr": f"{lr:.3g}",
            "grad norm": f"{grad_norm:.2f}",
        }
        training = {"lr": lr, "grad_norm": grad_norm, "images_per_second": images_per_second}
        timing = {"data_seconds": data_seconds, "memory_gib": memory_gib}
        self._record(
            {"step": step, "kind": "train", "epoch": epoch, **losses, **training}
            | {"seconds": round(self._status.seconds, 3), **timing, **shares}
        )
        self._track(step, "train", {**losses, **training, **timing, **shares})
        self._say(self._step_line(), plain=True)

    def evaluation(self, step: int, metric: str, stats: dict[str, float]) -> None:
        """Logs the result of an evaluation after `step` steps; the screen shows the average precisions alone.

        Args:
            step: steps done.
            metric: "bbox" or "segm".
            stats: COCO's twelve numbers.
        """
        if not self._enabled:
            return
        self._record({"step": step, "kind": "eval", "metric": metric, **stats})
        self._track(step, f"eval/{metric}", stats)
        shown = {name: "-" if value < 0 else f"{value:.3f}" for name, value in stats.items() if name.startswith("AP")}
        self._status.evaluations[metric] = (step, shown)
        self._status.activity = ""
        self._say(f"step {step:,}  {metric}  " + " ".join(f"{name} {value}" for name, value in shown.items()))

    def message(self, text: str) -> None:
        """Says a line, on the screen and in `log.txt`."""
        if self._enabled:
            self._say(text)

    def close(self) -> None:
        """Ends the display and closes the files; a second call does nothing."""
        if not self._enabled:
            return
        self._enabled = False
        if self._display is not None:
            self._display.refresh(now=True)
            self._display.close()
        self._metrics.close()
        self._text.close()
        for tracker in self._trackers:
            with contextlib.suppress(Exception):  # the run is done, whatever its server says
                tracker.close()

    def _say(self, text: str, plain: bool = False) -> None:
        """A line for the screen and the file; `plain`: on a terminal the live display shows it in its own way."""
        self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        self._text.flush()
        if not plain or self._display is None:
            self._console.print(text)
            self._console.file.flush()
        if self._display is not None:
            self._display.refresh(now=True)

    def _record(self, record: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`; what is not finite is null there."""
        self._metrics.write(json.dumps(finite(record)) + "\n")
        self._metrics.flush()

    def _track(self, step: int, group: str, values: dict[str, float]) -> None:
        """Tells the trackers. One that fails ends no run: it is said once, and hears no more."""
        for tracker in list(self._trackers):
            try:
                tracker.log(step, {f"{group}/{name}": value for name, value in values.items()})
            except Exception as error:  # whatever a library raises whose server is away
                self._trackers.remove(tracker)
                self._say(f"{tracker.name} takes no more numbers, and the run goes on without it: {first_line(error)}")

    def _step_line(self) -> str:
        status = self._status
        (total, loss), *_ = status.losses.items()
        own, methods = split_losses(status.losses)
        parts = [f"step {status.step:,}/{status.total_steps:,}", f"epoch {status.epoch:.2f}", f"{total} {loss:.4f}"]
        parts += [_values(own)] if own else []
        parts += [f"{method.upper()}: {_values(losses)}" for method, losses in methods.items()]
        shares = " ".join(f"{name[max(0, name.find('fpn_')) :]} {value}" for name, value in status.shares.items())
        parts += [f"gradient share: {shares}"] if shares else []
        parts += [f"{name} {value}" for name, value in status.speed.items()]
        return "  |  ".join([*parts, f"{clock(status.seconds_left)} left"])


def _values(losses: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in losses.items())


def cut_metrics(path: Path, step: int, evaluated: bool) -> None:
    """Drops what a metrics file holds of later steps than `step`, and lines that a kill left half-written.

    Of `step` itself an evaluation stays only if it was `evaluated` to the end. At step 0 nothing stays. The file is
    replaced as a whole; without a file nothing happens.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        last = step if evaluated or record["kind"] == "train" else step - 1
        if 0 < record["step"] <= last:
            kept.append(line + b"\n")
    atomic_write(path, lambda file: file.writelines(kept))
