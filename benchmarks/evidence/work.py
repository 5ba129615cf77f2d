"""Doing the runs that are left, one after the other, until all are done or the time is up."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from evidence.runs import Planned, claim, finished_of, note_session, read_finished, write_finished
from mgdet.distributed import World
from mgdet.engine.loop import train
from mgdet.errors import NotFinite

WAIT_SECONDS = 10.0
"""Between two looks at runs that other processes work on."""

Say = Callable[[str], None]


class Asked(Exception):
    """This process was asked to stop; everything is saved.

    number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Clock:
    """How long this process may work.

    expired: the time is up.

    Args:
        hours: from now on; 0 without an end.
    """

    def __init__(self, hours: float):
        self.expired = False
        self._end = time.monotonic() + 3600 * hours if hours else None

    @property
    def left(self) -> float:
        """Seconds; infinite without an end."""
        return float("inf") if self._end is None else self._end - time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it the end of the time is a SIGTERM to this process, which a run answers by saving.

        Raises:
            Asked: the time is up.
        """
        self.check()
        timer = threading.Timer(min(self.left, threading.TIMEOUT_MAX), self._end_now)
        timer.daemon = True
        if self._end is not None:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def check(self) -> None:
        """Raises `Asked` where the time is up."""
        if self.left <= 0:
            self.expired = True
            raise Asked(signal.SIGTERM)

    def _end_now(self) -> None:
        self.expired = True
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM and Ctrl-C raise `Asked`, where no run is at work that notes the signal itself."""

    def ask(number: int, frame: FrameType | None) -> None:
        raise Asked(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(planned: Sequence[Planned], clock: Clock, say: Say) -> int:
    """Does every run that is not finished, in order, but those that other processes work on.

    Args:
        planned: the runs.
        clock: how long.
        say: is told what is being done.

    Returns:
        How many are left, which other processes work on.

    Raises:
        Asked: the time is up, or a signal came. Nothing is lost.
        UserError: a run's folder holds another run, or its input is not there.
    """
    while True:
        done = [attempt(run, clock, say) for run in planned if finished_of(run) is None]
        if not any(done):
            return len(done)


def work_on_one(planned: Sequence[Planned], clock: Clock, say: Say) -> None:
    """Does the first run that no other process works on, or waits a little where they work on all.

    What is to be done next may be another question by then. Arguments and errors are those of `work`.
    """
    if not any(attempt(run, clock, say) for run in planned):
        clock.check()
        time.sleep(min(WAIT_SECONDS, max(clock.left, 0)))


def attempt(run: Planned, clock: Clock, say: Say) -> bool:
    """Takes a run to its end, or to where it breaks off; False where another process works on it."""
    with claim(run.folder) as mine:
        if not mine:
            return False
        if read_finished(run.folder) is None:  # another process may just have ended it
            say(f"==> {run.folder}")
            with clock.running():
                note_session(run.folder)
                world = World.alone()
                try:
                    code = train(run.config, run.folder, resume=True, world=world)
                except NotFinite as error:  # that a rate is too high is a result
                    write_finished(run.folder, str(error))
                    return True
            if code:
                raise Asked(code - 128)
            write_finished(run.folder)
    return True
