"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from mgdet.config import OptimizerConfig, ScheduleConfig

DROP = 0.1


def scaled_lr(config: OptimizerConfig, images_per_step: int) -> float:
    """The learning rate for `images_per_step` images: in proportion to the base batch (arXiv 1706.02677)."""
    return config.lr * images_per_step / config.base_batch


def learning_rate(step: int, *, lr: float, steps_per_epoch: int, config: ScheduleConfig) -> float:
    """The rate of one step.

    The rate falls to a tenth after each epoch in `config.drops`, or as a cosine from the first to the last step.
    During the first `config.warmup_steps` steps it is
    also multiplied by a factor that rises linearly from `config.warmup_ratio`.

    Args:
        step: counted from 0.
        lr: rate after warm-up, before the first drop.
        steps_per_epoch: steps in one epoch.
        config: shape, drops and warm-up.
    """
    if config.shape == "cosine":
        share = step / (config.epochs * steps_per_epoch)
        rate = lr * (config.cosine_floor + (1 - config.cosine_floor) * (1 + math.cos(math.pi * share)) / 2)
    else:
        rate = lr * DROP ** sum(step // steps_per_epoch >= drop for drop in config.drops)
    if step < config.warmup_steps:
        rate *= 1 - (1 - step / config.warmup_steps) * (1 - config.warmup_ratio)
    return rate
