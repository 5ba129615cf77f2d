"""An exponential moving average of a student's weights: with `train.ema` it is what is evaluated and saved."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from mgdet.detectors.face import Face

WARM_UP = 2000
"""Updates after which the decay has come to 63 % of its value."""


def decay_of(update: int, decay: float) -> float:
    """The decay of one update, counted from 1: `decay * (1 - exp(-update / 2000))`, as in YOLOX (arXiv 2107.08430).

    The first averages forget quickly, so that the start weights do not stay in them.
    """
    return decay * (1 - math.exp(-update / WARM_UP))


class Average:
    """A copy of a detector that follows it: `average = decay * average + (1 - decay) * weights` after each update.

    Parameters and the statistics of norms are averaged, other buffers are copied. It is on the detector's device, and
    an update asks the device for nothing.

    detector: the copy, without gradients.
    updates: how many there have been.
    """

    def __init__(self, source: Face, decay: float):
        """Args:
        source: the detector that trains; its tensors are changed in place only, so load its weights before.
        decay: of the average after the warm-up, e.g. 0.9998.
        """
        self.detector = copy.deepcopy(source).requires_grad_(False)
        self.decay, self.updates = decay, 0
        theirs, mine = source.state_dict(keep_vars=True), self.detector.state_dict(keep_vars=True)
        pairs = {id(theirs[name]): (mine[name], theirs[name]) for name in theirs}.values()  # tied weights once
        averaged = [(a, b) for a, b in pairs if b.is_floating_point() and (b.requires_grad or not _is_parameter(b))]
        copied = [(a, b) for a, b in pairs if not b.is_floating_point()]
        self._averaged = [a for a, _ in averaged], [b for _, b in averaged]
        self._copied = [a for a, _ in copied], [b for _, b in copied]

    @torch.no_grad()
    def update(self) -> None:
        """Follows the weights by one step."""
        self.updates += 1
        mine, theirs = self._averaged
        torch._foreach_lerp_(mine, theirs, 1 - decay_of(self.updates, self.decay))
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on."""
        return {"model": self.detector.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self.detector.load_state_dict(state["model"])
        self.updates = state["updates"]


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)
