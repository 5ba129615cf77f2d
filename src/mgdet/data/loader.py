"""Batches, read ahead by worker processes."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, get_worker_info

from mgdet.data.batch import Batch, collate
from mgdet.data.dataset import DetectionDataset
from mgdet.data.sampler import TrainSampler
from mgdet.data.transforms import View
from mgdet.errors import Stalled, TrainingError, UserError, shortage

PATIENCE, GRACE, POLL = 600.0, 5.0, 1.0
"""Seconds that a batch may take; that it may take once the run was asked to stop; between two looks at the clock."""


def _never() -> bool:
    return False


def train_loader(
    dataset: DetectionDataset,
    sampler: TrainSampler,
    *,
    workers: int,
    pin: bool,
    stopping: Callable[[], bool] = _never,
) -> Generator[Batch, None, None]:
    """The batches of `sampler`, in its order and without end.

    The workers start with the first batch and stop when the iterator is closed or forgotten.

    Args:
        dataset: the images.
        sampler: which views make a batch.
        workers: processes that read; 0 reads in this process.
        pin: put batches into page-locked memory, for a GPU.
        stopping: was the run asked to stop? Then a worker that hangs is given up soon.

    Raises:
        UserError: by `next`, when an image cannot be read.
        TrainingError: by `next`, when there is no shared memory left.
        Stalled: by `next`, when a worker hangs.
    """
    return _batches(dataset, sampler, workers=workers, pin=pin, stopping=stopping)


def test_loader(
    dataset: DetectionDataset,
    groups: Sequence[list[View]],
    *,
    workers: int,
    pin: bool,
    stopping: Callable[[], bool] = _never,
) -> Generator[Batch, None, None]:
    """A batch for each group of views, in their order; arguments and errors as in `train_loader`."""
    return _batches(dataset, groups, workers=workers, pin=pin, stopping=stopping)


class _BatchReader:
    """The data set as `DataLoader` asks for it: a whole batch at once, with an error as a value.

    An exception that leaves a worker comes back as a page of traceback; a returned one keeps its sentence.
    """

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, views: list[View]) -> Batch | Exception:
        try:
            batch = collate([self.dataset[view] for view in views])
            if get_worker_info() is not None:
                batch = batch.packed()
                _share(batch)
            return batch
        except UserError as error:
            return error
        except (RuntimeError, MemoryError) as error:
            if text := shortage(error):
                return TrainingError(text)
            raise


def _share(batch: Batch) -> None:
    """Moves pixels and masks to shared memory here: left to the queue's thread, a failure would be lost there."""
    for tensor in (batch.pixels, *batch.packed_masks):
        tensor.share_memory_()


def _batches(
    dataset: DetectionDataset,
    views: Iterable[list[View]],
    *,
    workers: int,
    pin: bool,
    stopping: Callable[[], bool],
) -> Generator[Batch, None, None]:
    loader: DataLoader = DataLoader(
        _BatchReader(dataset),  # type: ignore[arg-type]
        batch_sampler=views,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        timeout=POLL if workers else 0,
        generator=torch.Generator(),  # its own, so that reading draws nothing from the run's
    )
    others = multiprocessing.active_children()
    batches: Any = iter(loader)
    processes = [process for process in multiprocessing.active_children() if process not in others]
    try:
        while (batch := _next(batches, stopping)) is not None:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        if processes:
            for process in processes:
                process.terminate = process.kill  # type: ignore[method-assign]  # SIGTERM does not end them
            batches._shutdown_workers()


def _next(batches: Iterator[Any], stopping: Callable[[], bool]) -> Any:
    """The next batch, or None at the end; a worker that hangs is not waited for forever."""
    started = time.monotonic()
    while True:
        try:
            return next(batches, None)
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error):
                raise
        except (ConnectionError, EOFError, FileNotFoundError) as error:  # it ended while it handed over a batch
            raise RuntimeError("DataLoader worker exited unexpectedly") from error
        waited = time.monotonic() - started
        if waited > (GRACE if stopping() else PATIENCE):
            raise Stalled(
                f"no images came for {waited:.0f} seconds: a process that reads them hangs, as it does on a disk or a "
                "network drive that no longer answers"
            ) from None


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    # What asks a whole process group to stop is the main process' business: it saves, then stops us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
