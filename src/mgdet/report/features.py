"""What distillation does to maps: the teacher's, the student's with and without it, and what the generator makes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from mgdet.config import Config
from mgdet.data.batch import Batch, collate
from mgdet.data.dataset import DetectionDataset
from mgdet.detectors.face import Face
from mgdet.engine.checkpoint import State
from mgdet.engine.step import show
from mgdet.errors import UserError
from mgdet.interop.loading import load_checkpoint
from mgdet.interop.weights import read_checkpoint
from mgdet.methods.mgd import MGD
from mgdet.models import Models, build_models
from mgdet.report.sources import Sizes, Source
from mgdet.report.timing import view_of
from mgdet.structures import Seen

DRAWN, LEVELS = 2, 3
"""Images whose maps are drawn, and levels of each, from the finest on."""
MEASURED = 16
"""Images on which it is measured how much of the teacher's maps the generators give back."""
FEWEST_CELLS = 4
"""A level with a shorter edge, in cells, shows nothing."""
LONG_EDGE = 320
"""Of a picture on the page, in pixels."""
MASKED = (70, 66, 62)
"""BGR of a cell that is masked."""


class Alone(NamedTuple):
    """A student that learned without a teacher: the name of its kind, the detector, and the sizes of its images."""

    name: str
    detector: Face
    sizes: Sizes


@dataclass(slots=True)
class Level:
    """The maps of one level and one image.

    stride: pixels per cell.
    pictures: title and (H, W, 3) uint8 BGR.
    """

    stride: float
    pictures: list[tuple[str, np.ndarray]]


@dataclass(slots=True)
class Maps:
    """The maps of one kind of run.

    name: of the kind.
    images: for each drawn image its file, itself, and its levels.
    regenerated: by stride, the share of the variance of the teacher's map that the generator gives back, over all cells
        and over the masked ones. Empty without generators.
    measured: the images that this is of.
    notes: what there is not, and why.
    """

    name: str
    images: list[tuple[str, np.ndarray, list[Level]]] = field(default_factory=list)
    regenerated: dict[float, tuple[float, float]] = field(default_factory=dict)
    measured: int = 0
    notes: list[str] = field(default_factory=list)


class _Shown(NamedTuple):
    """What one method compares in one image, without the cells of the padding.

    stride: pixels per cell.
    level: position of the student's map among its taps or maps.
    reads: which of the two it is.
    student, teacher: (C, h, w).
    kept: (h, w) bool, False where a cell is masked; None without a generator.
    generated: (C, h, w), what the generator makes of the rest; None without one.
    """

    stride: float
    level: int
    reads: str
    student: Tensor
    teacher: Tensor
    kept: Tensor | None
    generated: Tensor | None


def draw_maps(
    source: Source,
    name: str,
    alone: Alone | None,
    dataset: DetectionDataset,
    device: torch.device,
    *,
    teacher_weights: str = "",
) -> Maps:
    """Runs teacher and student of a distilled run over some images, rebuilt as a resumed run rebuilds them.

    Args:
        source: the run; its config has a teacher and a method.
        name: of its kind.
        alone: a student without distillation, on `device`; None without one.
        dataset: opened for testing.
        device: where to run.
        teacher_weights: where the teacher's file is, if it is not where the config says.
    """
    maps = Maps(name)
    try:
        models, config, trained = _rebuild(source, dataset, teacher_weights)
    except UserError as error:
        maps.notes.append(f"no feature maps of {name}: {error}")
        return maps
    if models.teacher is None or source.sizes is None:
        return maps
    if not trained:
        maps.notes.append(
            f"{source.given} has no state.pth, which holds the generators, so what they generate is not shown"
        )
    models.student.to(device).eval()
    models.teacher.to(device)
    sums: dict[float, np.ndarray] = {}
    chosen = _choose(dataset)
    maps.measured = len(chosen)
    for number, index in enumerate(chosen):
        batch = collate([dataset[view_of(source.sizes, index)]]).to(device)
        levels: list[Level] = []
        for each in _see(models, config, batch, seed=number, generate=trained):
            if each.generated is not None and each.kept is not None:
                sums[each.stride] = sums.get(each.stride, np.zeros((2, 2))) + _errors(each)
            if number < DRAWN and min(each.student.shape[1:]) >= FEWEST_CELLS and len(levels) < LEVELS:
                other = None if alone is None else _of_alone(alone, dataset, index, each, device)
                levels.append(Level(each.stride, _pictures(each, name, alone and alone.name, other, batch.sizes[0])))
        if number < DRAWN:
            maps.images.append((dataset.images[index].file_name, _image(batch), levels))
    for stride, (wrong, variance) in sums.items():
        if variance.all():
            everywhere, masked = (1 - wrong / variance).tolist()
            maps.regenerated[stride] = (everywhere, masked)
    return maps


def _rebuild(source: Source, dataset: DetectionDataset, weights: str) -> tuple[Models, Config, bool]:
    """Student, methods and teacher of a run, its config, and whether the methods have what they learned."""
    config = source.config
    assert config is not None and config.teacher is not None
    lost = not config.teacher.source and not Path(config.teacher.weights).exists()
    if weights and lost:
        config = replace(config, teacher=replace(config.teacher, weights=weights))
    state = State.load(source.folder) if source.folder is not None else None
    checkpoint = read_checkpoint(source.file) if state is None else None
    described = checkpoint if checkpoint is not None else state
    description = described.description if described is not None else None
    models = build_models(config, dataset.classes, fresh=False, say=lambda line: None, description=description)
    if checkpoint is not None:
        load_checkpoint(models.student.student, checkpoint)
    elif state is not None:
        if state.teacher_sha256 != models.teacher_sha256:
            raise UserError(f"'{config.teacher and config.teacher.weights}' is not the file that taught it")
        models.student.load_state_dict(state.model)
    return models, config, state is not None


def _choose(dataset: DetectionDataset) -> list[int]:
    """Images with objects, evenly spread over the data set; all of it where none has any."""
    occupied = np.flatnonzero(np.diff(dataset.records.starts))
    if not len(occupied):
        occupied = np.arange(len(dataset))
    places = (np.arange(MEASURED) + 0.5) * len(occupied) / MEASURED
    return np.unique(occupied[places.astype(int)]).tolist()


@torch.inference_mode()
def _see(models: Models, config: Config, batch: Batch, *, seed: int, generate: bool) -> list[_Shown]:
    """What is compared in a batch of one image, level by level; of several methods the one with a generator."""
    assert models.teacher is not None and config.teacher is not None
    student = models.student.student
    batch = batch.fitted(student.multiple, student.native_size)
    images = batch.images(student.pixels)
    theirs = show(models.teacher, config.teacher.canvas, batch, images, student.pixels)
    found: dict[int, _Shown] = {}
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        for name, compared in models.student.compared(student.see(images, batch.sizes), theirs).items():
            method: Any = models.student.distill_losses[name]
            kept, generated = None, None
            if isinstance(method, MGD):
                kept, generated = method.regenerate(compared.student) if generate else (None, None)
            elif compared.level in found:
                continue
            found[compared.level] = _Shown(
                student.levels[compared.level].stride,
                compared.level,
                method.reads,
                _crop(compared.student, batch),
                _crop(compared.teacher, batch),
                None if kept is None else _crop(kept, batch)[0],
                None if generated is None else _crop(generated, batch),
            )
    return [found[level] for level in sorted(found)]


@torch.inference_mode()
def _of_alone(alone: Alone, dataset: DetectionDataset, index: int, like: _Shown, device: torch.device) -> Tensor | None:
    """The same map of the student that learned alone; None where it has no such level."""
    batch = collate([dataset[view_of(alone.sizes, index)]]).to(device)
    batch = batch.fitted(alone.detector.multiple, alone.detector.native_size)
    seen: Seen = alone.detector.see(batch.images(alone.detector.pixels), batch.sizes)
    maps = getattr(seen, like.reads)
    return _crop(maps[like.level], batch) if like.level < len(maps) else None


def _crop(maps: Tensor, batch: Batch) -> Tensor:
    """The cells (C, h, w) of the first image of a map (B, C, H, W), without those of the padding alone."""
    (height, width), (rows, columns) = batch.sizes[0], batch.pixels.shape[1:3]
    return maps[0, :, : math.ceil(height * maps.shape[2] / rows), : math.ceil(width * maps.shape[3] / columns)]


def _errors(shown: _Shown) -> np.ndarray:
    """(2, 2): the squared error of what was generated, over all cells and over the masked ones, and the same of the
    teacher's map around the mean of each channel."""
    assert shown.generated is not None and shown.kept is not None
    teacher = shown.teacher.float()
    error = ((shown.generated.float() - teacher) ** 2).sum(dim=0)
    variance = ((teacher - teacher.mean(dim=(1, 2), keepdim=True)) ** 2).sum(dim=0)
    masked = ~shown.kept
    return np.array([[float(own.sum()), float(own[masked].sum())] for own in (error, variance)])


def _pictures(
    shown: _Shown, name: str, alone: str | None, other: Tensor | None, size: tuple[int, int]
) -> list[tuple[str, np.ndarray]]:
    """Strengths as colours: each network by its own range, what is generated by the teacher's."""
    teacher, student = _strength(shown.teacher), _strength(shown.student)
    pictures = [("teacher", _colour(teacher, teacher, size))]
    if other is not None:
        strength = _strength(other)
        pictures.append((f"{alone}", _colour(strength, strength, size)))
    pictures.append((name, _colour(student, student, size)))
    if shown.kept is not None and shown.generated is not None:
        kept = shown.kept.cpu().numpy()
        pictures.append((f"{name}, masked", _colour(student, student, size, kept)))
        pictures.append(("generated", _colour(_strength(shown.generated), teacher, size)))
    return pictures


def _strength(maps: Tensor) -> np.ndarray:
    """(h, w): the root of the mean square over the channels of (C, h, w)."""
    strength: np.ndarray = maps.float().square().mean(dim=0).sqrt().cpu().numpy()
    return strength


def _colour(
    strength: np.ndarray, scale: np.ndarray, size: tuple[int, int], kept: np.ndarray | None = None
) -> np.ndarray:
    """A map (h, w) as a picture of the image's shape, every cell visible, from weakest to strongest of `scale`."""
    low, high = np.percentile(scale, (1, 99))
    share = np.clip((strength - low) / max(high - low, 1e-12), 0, 1)
    colours = cv2.applyColorMap((255 * share).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    if kept is not None:
        colours[~kept] = MASKED
    return cv2.resize(colours, _shape(size), interpolation=cv2.INTER_NEAREST)


def _image(batch: Batch) -> np.ndarray:
    """The image itself, as large as its maps."""
    height, width = batch.sizes[0]
    pixels = cv2.cvtColor(batch.pixels[0, :height, :width].cpu().numpy(), cv2.COLOR_RGB2BGR)
    return cv2.resize(pixels, _shape((height, width)), interpolation=cv2.INTER_AREA)


def _shape(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a picture of an image of (h, w)."""
    scale = LONG_EDGE / max(size)
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))
