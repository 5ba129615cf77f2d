"""What a terminal shows while a run trains: one calm block of a few lines that is redrawn in place."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from mgdet.config import METHODS

SHARE_PREFIX = "share_"

_REDRAW_SECONDS = 0.5


@dataclass(slots=True)
class Status:
    """The state of a run that is shown: the last log point, the last evaluation, and where the run is."""

    title: str
    total_steps: int
    step: int
    epoch: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    shares: dict[str, str] = field(default_factory=dict)
    speed: dict[str, str] = field(default_factory=dict)
    evaluations: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    activity: str = ""
    started: float = field(default_factory=time.monotonic)
    start_step: int = field(init=False)

    def __post_init__(self) -> None:
        self.start_step = self.step

    @property
    def seconds(self) -> float:
        """Since this process began the run or went on with it."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """At the mean speed of this process so far, evaluations included; None before the first step."""
        done = self.step - self.start_step
        return self.seconds / done * (self.total_steps - self.step) if done > 0 else None


class Display:
    """A live block on a terminal. It is redrawn by calls alone, at most twice a second: there is no thread that
    a data worker's fork could catch in the middle of a line.

    Args:
        console: the terminal.
        status: what to show; the owner changes it and calls `refresh`.
    """

    def __init__(self, console: Console, status: Status):
        self._status = status
        self._drawn = 0.0
        self._live = Live(get_renderable=lambda: block(status), console=console, auto_refresh=False)
        self._live.start(refresh=True)

    def refresh(self, now: bool = False) -> None:
        """Redraws if the last time is long enough ago, or if it must be `now`."""
        time_now = time.monotonic()
        if now or time_now - self._drawn >= _REDRAW_SECONDS:
            self._live.refresh()
            self._drawn = time.monotonic()

    def close(self) -> None:
        """Leaves the last state on the screen and gives the cursor back."""
        self._live.stop()


def block(status: Status) -> Group:
    """The lines of one redraw."""
    parts: list[RenderableType] = [Rule(Text(status.title, style="bold"), align="left", style="dim"), _progress(status)]
    if status.losses:
        parts += ["", _columns(status)]
    if status.evaluations:
        parts += ["", _evaluations(status)]
    return Group(*parts)


def split_losses(losses: dict[str, float]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The detector's own losses, and those of each method by level.

    Args:
        losses: the total first, which is left out.
    """
    _, *names = losses
    prefixes = {method: f"loss_{method}_" for method in METHODS}
    methods = {
        method: {name.removeprefix(prefix): losses[name] for name in names if name.startswith(prefix)}
        for method, prefix in prefixes.items()
    }
    own = {name: losses[name] for name in names if not name.startswith(tuple(prefixes.values()))}
    return own, {method: values for method, values in methods.items() if values}


def clock(seconds: float | None) -> str:
    """`1:02:03`, or `-:--:--` where it is not known."""
    if seconds is None:
        return "-:--:--"
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def _progress(status: Status) -> Table:
    """The bar with the step beside it; below it the epoch, what goes on, and the times."""
    table = Table.grid(expand=True, padding=(0, 2))
    table.add_column(ratio=1, no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_row(
        ProgressBar(total=status.total_steps, completed=status.step),
        f"step {status.step:,} / {status.total_steps:,}",
    )
    table.add_row(
        Text(f"epoch {status.epoch:.2f}" + (f"   {status.activity}" if status.activity else "")),
        Text(f"{clock(status.seconds)} gone, {clock(status.seconds_left)} left"),
        style="dim",
    )
    return table


def _columns(status: Status) -> Table:
    """Small tables side by side: the detector's losses, each method's by level, shares of the gradient, the speed."""
    total, *_ = status.losses
    own, methods = split_losses(status.losses)
    parts = {"detector": own} | {method.upper(): losses for method, losses in methods.items()}
    groups = [
        _group(title, {name: f"{v:.4f}" for name, v in losses.items()}, f"{sum(losses.values()):.4f}")
        for title, losses in parts.items()
    ]
    if methods:
        groups[0].add_row("")
        groups[0].add_row("all losses", f"{status.losses[total]:.4f}", style="bold")
    if status.shares:
        groups.append(_group("of the gradient", status.shares, "share"))
    groups.append(_group("speed", status.speed, ""))
    row = Table.grid(padding=(0, 4, 0, 0), pad_edge=False)
    row.add_row(*groups)
    return row


def _evaluations(status: Status) -> Table:
    """The last evaluation of each metric, one row each."""
    (_, first), *_ = status.evaluations.values()
    table = _table("evaluation", "step", *first)
    for metric, (step, numbers) in status.evaluations.items():
        table.add_row(Text(metric, style="dim"), f"{step:,}", *numbers.values())
    return table


def _group(title: str, rows: dict[str, str], total: str) -> Table:
    table = _table(title, total)
    for name, value in rows.items():
        table.add_row(Text(name, style="dim"), value)
    return table


def _table(first: str, *others: str) -> Table:
    """A table without lines: names on the left, numbers on the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="cyan")
    table.add_column(first, no_wrap=True)
    for header in others:
        table.add_column(header, justify="right", no_wrap=True)
    return table
