"""Batches, read ahead by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from mgdet.data.batch import Batch, collate
from mgdet.data.dataset import DetectionDataset
from mgdet.data.sampler import TrainSampler
from mgdet.data.transforms import View
from mgdet.errors import UserError


def train_loader(
    dataset: DetectionDataset, sampler: TrainSampler, *, workers: int, pin: bool
) -> Generator[Batch, None, None]:
    """The batches of `sampler`, in its order and for ever.

    The workers start with the first batch and stop when the iterator is closed or forgotten.

    Args:
        dataset: the images.
        sampler: which views make a batch.
        workers: processes that read; 0 reads in this process.
        pin: put batches into page-locked memory, for a GPU.

    Raises:
        UserError: by `next`, when an image cannot be read.
    """
    return _batches(dataset, sampler, workers=workers, pin=pin)


def test_loader(
    dataset: DetectionDataset, views: Sequence[View], *, workers: int, pin: bool
) -> Generator[Batch, None, None]:
    """Batches of one image, in the order of `views`; arguments and errors as in `train_loader`."""
    return _batches(dataset, [[view] for view in views], workers=workers, pin=pin)


class _BatchReader:
    """The data set as `DataLoader` asks for it: a whole batch at once, with an error as a value.

    An exception that leaves a worker comes back as a page of traceback; a returned one keeps its sentence.
    """

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, views: list[View]) -> Batch | UserError:
        try:
            return collate([self.dataset[view] for view in views])
        except UserError as error:
            return error


def _batches(
    dataset: DetectionDataset, views: Iterable[list[View]], *, workers: int, pin: bool
) -> Generator[Batch, None, None]:
    loader: DataLoader = DataLoader(
        _BatchReader(dataset),  # type: ignore[arg-type]
        batch_sampler=views,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its own, so that reading draws nothing from the run's
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    # What asks a whole process group to stop is the main process' business: it saves, then stops us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
