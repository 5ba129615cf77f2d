"""What happens when a loss is not a number: the run stops, and says and keeps what is needed to find out why."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from mgdet.data.batch import Batch
from mgdet.detectors.base import Detector
from mgdet.detectors.face import Face
from mgdet.distributed import World
from mgdet.errors import NotFinite
from mgdet.files import atomic_write
from mgdet.methods.student import DistilledStudent

NAMES_SHOWN = 3


def stop_nonfinite(
    model: DistilledStudent,
    batches: Sequence[Batch],
    losses: Sequence[dict[str, float]],
    *,
    step: int,
    folder: Path,
    world: World,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Saves the step's batches and weights, and stops the run. Every process calls it together.

    `nonfinite_step<step>_rank<rank>.pth` in the run's folder holds the student's and the generators' weights before
    the step, the batches' pixels and targets, their files, and the losses. Processes with a bad loss write it; where
    every loss is finite and only the gradient is not, all do.

    Args:
        model: as it was when it computed the losses, with their gradients.
        batches: this process' micro-batches of the step.
        losses: the losses of each micro-batch.
        step: number of the step, counted from 1.
        folder: the run's folder.
        world: this process among the others.
        autocast: makes the context in which the losses were computed.

    Raises:
        TrainingError: always; it names step, rank, losses, levels and files.
    """
    found = []
    for batch, values in zip(batches, losses):
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            found.append(f"{_describe(model.student, batch, bad, world, autocast)} on {', '.join(batch.files)}")
    reports = world.gather(found)
    if not any(reports):
        found = [f"{_gradients(model)} on {', '.join(file for batch in batches for file in batch.files)}"]
        reports = world.gather(found)
    if found:
        _keep(folder / f"nonfinite_step{step}_rank{world.rank}.pth", model, batches, losses)
    where = " | ".join(f"rank {rank}: {'; '.join(texts)}" for rank, texts in enumerate(reports) if texts)
    raise NotFinite(
        f"step {step} is not finite and stopped the run before it changed any weight: {where}; "
        f"weights and batch are in {folder}/nonfinite_step{step}_rank*.pth"
    )


def _gradients(model: DistilledStudent) -> str:
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    more = f" and {len(bad) - NAMES_SHOWN} more" if len(bad) > NAMES_SHOWN else ""
    return f"the gradient of {', '.join(bad[:NAMES_SHOWN])}{more}, though every loss is finite,"


def _describe(
    detector: Face,
    batch: Batch,
    bad: Sequence[str],
    world: World,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> str:
    """The losses that are not numbers; for those that are sums over levels, which levels are to blame."""
    batch = batch.to(world.device).fitted(detector.multiple, detector.native_size)
    images = batch.images(detector.pixels)
    with torch.no_grad(), autocast():
        if isinstance(detector, Detector):
            maps = detector.pyramid(images).maps
            parts = detector.loss_parts(maps, batch.targets)
        else:  # another library's losses come as sums
            maps, parts = detector.see(images, batch.sizes).maps, {}
    names = []
    for name in bad:
        part = parts.get(name)
        if part is not None and part.ndim:
            levels = [str(i) for i, value in enumerate(part.tolist()) if not math.isfinite(value)]
            names.append(f"{name} (level {', '.join(levels)})" if levels else name)
        else:
            names.append(name)
    broken = [str(i) for i, level in enumerate(maps) if not bool(level.isfinite().all())]
    return ", ".join(names) + (f", pyramid level {', '.join(broken)} already" if broken else "")


def _keep(file: Path, model: DistilledStudent, batches: Sequence[Batch], losses: Sequence[dict[str, float]]) -> None:
    content = {
        "model": model.state_dict(),
        "losses": [dict(values) for values in losses],
        "batches": [
            {
                "pixels": batch.pixels.cpu(),
                "files": batch.files,
                "image_ids": batch.image_ids,
                "targets": [
                    {
                        "boxes": t.boxes.cpu(),
                        "labels": t.labels.cpu(),
                        "masks": None if t.masks is None else t.masks.cpu(),
                        "size": t.size,
                        "padded": t.padded,
                    }
                    for t in batch.targets
                ],
            }
            for batch in batches
        ],
    }
    atomic_write(file, lambda stream: torch.save(content, stream))
