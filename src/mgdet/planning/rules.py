"""The stated rules that adapt a published recipe to a data set: image size, batch and schedule, as plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mgdet.config import DataConfig, ScheduleConfig
from mgdet.engine.schedule import WARMUP_SHARE

FEWEST_STEPS, MOST_EPOCHS = 4000, 300
"""A schedule takes at least so many steps, unless they would be more than so many passes over the images."""
SHARE = 3.0
"""How strong a method's gradient is meant to be beside the detector's own where nobody published a weight: the best of
0.3, 1, 3 and 10 on validation images of the pairs in docs/method.md."""
EDGE_DIVISOR = 32
"""Edges are multiples of this."""
HELD = 0.9
"""The share of the images that a resized image may not be larger than."""


class Edges(NamedTuple):
    """Edges of resized images in pixels: the longer one at most, and the shorter one, lowest and highest."""

    long: int
    short: tuple[int, int]


def at_scale(recipe: DataConfig, long_edge: int, short_edge: int) -> Edges:
    """The edges of a scale that a teacher was tested at, with the recipe's range below it."""
    return Edges(max(long_edge, short_edge), _range(recipe.short_edge, short_edge))


def within(edges: Edges, widths: np.ndarray, heights: np.ndarray) -> Edges:
    """The edges, but no larger than the images of a data set: enlarging them adds no detail, only time.

    Args:
        edges: what is wanted.
        widths, heights: (I,) pixels of the images.
    """
    long = min(edges.long, _up(np.quantile(np.maximum(widths, heights), HELD)))
    short = min(edges.short[1], _up(np.quantile(np.minimum(widths, heights), HELD)), long)
    return Edges(long, _range(edges.short, short))


def fitting_batch(most: int, images: int, *, together: int, fits: Callable[[int], bool]) -> int:
    """Images for each process and forward pass: a power of two that fits into memory.

    It is halved where few images would not come to `FEWEST_STEPS` in `MOST_EPOCHS` passes, but not below two.

    Args:
        most: the largest that is wanted.
        images: of the data set.
        together: how many such batches make a step.
        fits: does a batch of so many images fit?
    """
    batch = 1 << (max(most, 1).bit_length() - 1)
    while batch > 1 and not fits(batch):
        batch //= 2
    while batch > 2 and MOST_EPOCHS * images < FEWEST_STEPS * batch * together:
        batch //= 2
    return batch


def epochs_for(recipe: int, steps_per_epoch: int) -> int:
    """The recipe's passes over the images; more where they are few, so that there are `FEWEST_STEPS`."""
    return max(recipe, min(MOST_EPOCHS, -(-FEWEST_STEPS // steps_per_epoch)))


def stretched(recipe: ScheduleConfig, epochs: int, steps_per_epoch: int) -> ScheduleConfig:
    """The recipe's schedule over another number of epochs: its drops after the same shares of them.

    The warm-up takes at most an eighth of all steps.
    """
    drops = sorted({min(epochs, max(1, round(drop * epochs / recipe.epochs))) for drop in recipe.drops})
    warmup = min(recipe.warmup_steps, int(WARMUP_SHARE * epochs * steps_per_epoch))
    return replace(recipe, epochs=epochs, drops=tuple(drop for drop in drops if drop < epochs), warmup_steps=warmup)


def evaluation_interval(recipe_epochs: int, epochs: int) -> int:
    """Epochs between two evaluations, so that there are about as many as in the recipe."""
    return max(1, epochs // recipe_epochs)


def _up(pixels: float) -> int:
    return max(1, -(-int(np.ceil(pixels)) // EDGE_DIVISOR)) * EDGE_DIVISOR


def _range(like: tuple[int, int], highest: int) -> tuple[int, int]:
    """A range of edges up to `highest` with the ratio of another one, its lowest a multiple of `EDGE_DIVISOR`."""
    lowest = round(highest * like[0] / like[1] / EDGE_DIVISOR) * EDGE_DIVISOR
    return (lowest, highest) if like[0] < like[1] and 0 < lowest < highest else (highest, highest)
