"""Which images a step sees, and how: a pure function of the seed, the epoch and the step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from mgdet.data.transforms import View

T = TypeVar("T")


class TrainSampler:
    """Yields views without end, one micro-batch of this rank at a time.

    One step takes `batch * accumulate * world_size` images of one orientation. An epoch shuffles each orientation,
    fills it up with its own images to whole steps, and shuffles the steps. All ranks together draw the same views
    however that product is split. Given to a `DataLoader` as its `batch_sampler`.
    """

    steps_per_epoch: int

    def __init__(
        self,
        portrait: Sequence[bool],
        *,
        batch: int,
        accumulate: int,
        rank: int,
        world_size: int,
        seed: int,
        long_edge: int,
        short_edge: tuple[int, int],
        short_edge_step: int,
        flip: float,
        square: int = 0,
        seeds: bool = False,
        start_step: int = 0,
    ) -> None:
        """Args:
        portrait: one flag per image of the data set, at least one image.
        batch: images per micro-batch.
        accumulate: micro-batches per step.
        rank: this process, 0 .. world_size - 1.
        world_size: number of processes.
        seed: 0 or more.
        long_edge: of every view, in pixels.
        short_edge: lowest and highest; one of lowest, lowest + short_edge_step, ... highest is drawn for each view.
        short_edge_step: in pixels.
        flip: probability of a mirrored view.
        square: edge in pixels to which every view is squashed; 0: the ratio is kept.
        seeds: give each view a seed of its own, for random changes of its image.
        start_step: the first step to yield, counted from the start of the run.
        """
        flags = np.asarray(portrait, dtype=bool)
        assert len(flags) > 0
        self._groups = [group for group in (np.flatnonzero(~flags), np.flatnonzero(flags)) if len(group)]
        self._batch, self._accumulate = batch, accumulate
        self._rank, self._world_size = rank, world_size
        self._seed, self._start_step = seed, start_step
        self._long_edge, self._flip, self._square, self._seeds = long_edge, flip, square, seeds
        self._short_edges = np.arange(short_edge[0], short_edge[1] + 1, short_edge_step)
        self._step_images = batch * accumulate * world_size
        self.steps_per_epoch = steps_in_epoch(portrait, self._step_images)

    def __iter__(self) -> Iterator[list[View]]:
        epoch, step = divmod(self._start_step, self.steps_per_epoch)
        while True:
            indices, short_edges, flips = self._epoch(epoch)
            seeds = self._seeds_of(epoch, indices.shape) if self._seeds else None
            for step in range(step, self.steps_per_epoch):  # noqa: B020
                for micro in range(self._accumulate):
                    first = (micro * self._world_size + self._rank) * self._batch
                    yield [
                        View(
                            int(indices[step, i]),
                            self._long_edge,
                            int(short_edges[step, i]),
                            bool(flips[step, i]),
                            self._square,
                            None if seeds is None else int(seeds[step, i]),
                        )
                        for i in range(first, first + self._batch)
                    ]
            epoch, step = epoch + 1, 0

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image indices, short edges and flips of one epoch, each (steps, images per step)."""
        rng = np.random.default_rng((self._seed, epoch))
        steps = []
        for group in self._groups:
            whole = -(-len(group) // self._step_images) * self._step_images
            steps.append(np.resize(rng.permutation(group), (whole // self._step_images, self._step_images)))
        indices = rng.permutation(np.concatenate(steps))
        short_edges = self._short_edges[rng.integers(len(self._short_edges), size=indices.shape)]
        return indices, short_edges, rng.random(indices.shape) < self._flip

    def _seeds_of(self, epoch: int, shape: tuple[int, ...]) -> np.ndarray:
        """Seeds of one epoch's views, drawn apart: with them the images, sizes and flips are those without."""
        return np.random.default_rng((self._seed, epoch, 1)).integers(2**63, size=shape)


def steps_in_epoch(portrait: Sequence[bool], images_per_step: int) -> int:
    """Steps of one orientation each that an epoch of `TrainSampler` takes; `portrait` as it takes it."""
    upright = int(np.sum(portrait))
    return sum(-(-number // images_per_step) for number in (upright, len(portrait) - upright))


def test_views(
    num_images: int, long_edge: int, short_edge: int, square: int = 0, canvas: tuple[int, int] | None = None
) -> list[View]:
    """A view of each of `num_images` images, in order; the rest as in `View`."""
    return [View(index, long_edge, short_edge, False, square, canvas=canvas) for index in range(num_images)]


def by_size(
    items: Iterable[T], size: Callable[[T], tuple[int, int] | None], batch: int, *, most: float = math.inf
) -> Iterator[list[T]]:
    """Groups of `batch` items of one size each; only the last of a size may be smaller.

    Args:
        items: what waits for others of its size.
        size: the padded (h, w) of an item.
        batch: items in a group.
        most: so many items wait at most; then the largest group goes as it is.
    """
    waiting: defaultdict[tuple[int, int] | None, list[T]] = defaultdict(list)
    for item in items:
        key = size(item)
        waiting[key].append(item)
        if len(waiting[key]) == batch:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) >= most:
            yield waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
    yield from waiting.values()
