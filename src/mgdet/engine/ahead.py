"""The next batch travels to the GPU while the step before it is computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mgdet.data.batch import Batch


def ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on the device, in their order; on a CPU just as they come.

    Each is copied on a stream of its own, out of page-locked memory, so that neither the host nor the kernels of the
    step in hand wait for it. One batch more than was asked for has always been taken from `batches`.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    coming: Batch | None = None
    for batch in batches:
        ready = coming
        if ready is not None:
            _hand_over(ready, stream, device)
        with torch.cuda.stream(stream):
            coming = batch.to(device, non_blocking=True)
        if ready is not None:
            yield ready
    if coming is not None:
        _hand_over(coming, stream, device)
        yield coming


def _hand_over(batch: Batch, stream: torch.cuda.Stream, device: torch.device) -> None:
    """Has the step's kernels wait for the copy, and keeps its memory until they have read it."""
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)
    for tensor in batch.tensors():
        tensor.record_stream(current)
