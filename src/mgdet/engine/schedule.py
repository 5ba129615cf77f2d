"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from mgdet.config import OptimizerConfig, ScheduleConfig
from mgdet.errors import UserError

DROP = 0.1
USUAL_DROPS = (2 / 3, 11 / 12)
"""When the rate falls in the published recipes, as shares of all epochs."""
WARMUP_SHARE = 1 / 8
"""The share of all steps that a warm-up should take at most."""


def scaled_lr(config: OptimizerConfig, images_per_step: int) -> float:
    """The learning rate for `images_per_step` images: in proportion to the base batch (arXiv 1706.02677)."""
    return config.lr * images_per_step / config.base_batch


def learning_rate(step: int, *, lr: float, steps_per_epoch: int, config: ScheduleConfig) -> float:
    """The rate of one step.

    The rate falls to a tenth after each epoch in `config.drops`, or as a cosine from the first to the last step. During
    the first `config.warmup_steps` steps it is also multiplied by a factor that rises linearly from
    `config.warmup_ratio`.

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


def check_drops(config: ScheduleConfig) -> None:
    """Refuses drops at which a run has ended already.

    It is asked where a run starts, and not where a config is read: runs of earlier versions may have them.

    Raises:
        UserError: names the drops and the epochs.
    """
    late = [drop for drop in config.drops if drop >= config.epochs]
    if config.shape != "steps" or not late:
        return
    usual = usual_drops(config.epochs)
    drops = f"drops below {config.epochs}, e.g. --schedule.drops {_listed(usual)}, or " if usual else ""
    raise UserError(
        f"schedule.drops is {_listed(config.drops)}, but schedule.epochs is {config.epochs}, so the rate would not "
        f"fall after {' and '.join(map(str, late))}; give {drops}--schedule.shape cosine"
    )


def usual_drops(epochs: int) -> tuple[int, ...]:
    """The published drops for so many epochs, as epochs."""
    return tuple(sorted({max(1, round(share * epochs)) for share in USUAL_DROPS} - {epochs}))


def check_given(config: ScheduleConfig, given: Collection[str]) -> None:
    """Refuses settings of the one shape of a schedule that were given where it has the other.

    Args:
        config: the schedule.
        given: names of the settings that a user gave, as in `schedule.drops`.

    Raises:
        UserError: one of them would be ignored.
    """
    if config.shape == "cosine" and config.drops and "schedule.drops" in given:
        raise UserError(
            f"schedule.drops is {_listed(config.drops)}, but schedule.shape is cosine, which has no drops; give "
            "--schedule.shape steps, or leave the drops out"
        )
    if config.shape == "steps" and "schedule.cosine_floor" in given:
        raise UserError(
            f"schedule.cosine_floor is {config.cosine_floor:g}, but schedule.shape is steps, which has no floor; give "
            "--schedule.shape cosine, or leave the floor out"
        )


def schedule_notes(config: ScheduleConfig, steps_per_epoch: int) -> list[str]:
    """What to say of a schedule whose warm-up is longer than the run."""
    steps = config.epochs * steps_per_epoch
    if config.warmup_steps <= steps:
        return []
    rates = (learning_rate(step, lr=1.0, steps_per_epoch=steps_per_epoch, config=config) for step in range(steps))
    return [
        f"schedule.warmup_steps is {config.warmup_steps}, but the run has {steps:,} steps, so the rate comes to "
        f"{max(rates):.0%} of what is asked for at most; give e.g. --schedule.warmup-steps {int(WARMUP_SHARE * steps)}"
    ]


def _listed(epochs: Sequence[int]) -> str:
    return " ".join(map(str, epochs))
