"""How hard each loss pulls on the student's maps, and the weights that give a method its share of that.

Letters in shapes: B images, level l of H_l x W_l cells with C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mgdet.errors import UserError

MEASURED_STEPS = 200
"""Steps at the start of a run that decide the weights, and in which these grow from 0."""
REMEMBERED = 0.25
"""The share of these over which means reach back: gradients fall fast at first, and the weights are for what comes."""
UNREACHED = -1.0
"""Stands for the norm of a gradient that does not exist, as no path leads from the loss to the map."""
SCALE = 2.0**16
"""What losses are brought to before their gradient is taken: in float16 that of a loss around 1 would vanish."""
SMALLEST = 1e-12


def gradient_norms(
    detector: Mapping[str, Tensor], methods: Mapping[str, Tensor], levels: Mapping[str, int], taps: Sequence[Tensor]
) -> dict[str, Tensor]:
    """L2 norms of the gradients that losses have on the student's taps; the graph stays for the backward pass.

    Nothing waits for the device, no random number is drawn, and no `.grad` is touched.

    Args:
        detector: the detector's own losses, scalars.
        methods: one scalar for each module of a method.
        levels: for each of these the tap that it compares, by position.
        taps: the student's, (B, C, H_l, W_l).

    Returns:
        Float32 scalars: `detector_<position>` for each tap, the norm of the sum of the detector's losses, and one for
        each module on its tap. `UNREACHED` where a loss does not depend on the tap.
    """
    norms = {}
    with torch.autocast(taps[0].device.type, enabled=False):
        own = torch.stack([loss.float().sum() for loss in detector.values()]).sum()
        for position, norm in enumerate(_norms(own, taps)):
            norms[f"detector_{position}"] = norm
        for name, loss in methods.items():
            (norms[name],) = _norms(loss.float(), [taps[levels[name]]])
    return norms


def _norms(loss: Tensor, taps: Sequence[Tensor]) -> list[Tensor]:
    """The norm of the gradient of one loss on each of the taps."""
    unreached = torch.full((), UNREACHED, device=loss.device)
    trained = [tap for tap in taps if tap.requires_grad]
    if not trained or not loss.requires_grad:
        return [unreached] * len(taps)
    scale = SCALE / loss.detach().abs().clamp(min=SMALLEST)
    found = iter(torch.autograd.grad(loss * scale, trained, retain_graph=True, allow_unused=True))
    gradients = [next(found) if tap.requires_grad else None for tap in taps]
    return [
        unreached if gradient is None else torch.linalg.vector_norm(gradient, dtype=torch.float32) / scale
        for gradient in gradients
    ]


class Balance:
    """The weights of the methods that were given a share instead of one.

    A share s means that the gradient of the method on a map of the student is s times as long as that of the detector's
    own losses there:

        weight_l * |d method_l / d tap_l| = s * |d detector / d tap_l|

    Both norms are means over the first `MEASURED_STEPS` steps of the run in which a step counts the less the longer ago
    it was, so a level of two cells gets a weight of its own. In these steps the mean so far decides, times the share of
    them that is done: the detector's gradient is largest at the start of a run, and a method that is as strong would
    leave Adam a second moment that slows the student for a thousand steps. From then on the weights stand still. A step
    with a norm that is not finite does not count. Where either mean is 0 the weight is 0.

    It knows plain numbers alone. All processes of a run give it the same.

    weights: for each module of a method with a share, what its loss is multiplied with.
    levels: for each module of any method the tap that it compares, by position.

    Args:
        levels: see above.
        shares: the share of each module that was given one.
    """

    def __init__(self, levels: Mapping[str, int], shares: Mapping[str, float]):
        self.levels, self.shares = dict(levels), dict(shares)
        self.weights = dict.fromkeys(self.shares, 0.0)
        self._steps, self._sums = 0, dict[str, float]()

    @property
    def measuring(self) -> bool:
        """Are there weights that are still to be decided?"""
        return bool(self.shares) and self._steps < MEASURED_STEPS

    def weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses of the methods as they join the others."""
        return {name: loss * self.weights[name] if name in self.weights else loss for name, loss in losses.items()}

    def take(self, norms: Mapping[str, float]) -> None:
        """Learns what `gradient_norms` found in one step, as means over micro-batches and processes.

        Raises:
            UserError: a method has a share of a map that the detector's losses do not reach.
        """
        if not self.measuring or not all(map(math.isfinite, norms.values())):
            return
        for name in self.shares:
            if UNREACHED in (norms[name], self._own(name, norms)):
                raise UserError(_unreached(name))
        self._steps += 1
        kept = 1 - 1 / max(1.0, REMEMBERED * MEASURED_STEPS)
        for name, norm in norms.items():
            self._sums[name] = kept * self._sums.get(name, 0.0) + norm
        done = self._steps / MEASURED_STEPS
        self.weights = {name: done * weight for name, weight in self.weights_for(self._sums, self.shares).items()}

    def weights_for(self, norms: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, float]:
        """The weight of each module of `shares`, as its norm and that of the detector on its taps decide it."""
        return {
            name: share * max(0.0, self._own(name, norms)) / norms[name] if norms[name] > 0 else 0.0
            for name, share in shares.items()
        }

    def found(self, norms: Mapping[str, float]) -> dict[str, float]:
        """How strong each method is in a step, with its weights as they are.

        Returns:
            `<method>`: the norm of its gradient on all of its maps together, as a share of that of the detector's own
            losses on the same; `<method>_fpn_<level>`: what one level has of this. A single level of the detector's
            would be no measure: without an object there its gradient all but vanishes. Methods that cannot be compared
            are left out.
        """
        shares: dict[str, float] = {}
        for method, names in self.methods().items():
            own = math.hypot(*(max(0.0, self._own(name, norms)) for name in names))
            parts = {name: max(0.0, norms[name]) * self.weights.get(name, 1.0) for name in names}
            whole = math.hypot(*parts.values())
            if own > 0 and math.isfinite(whole / own):
                shares[method] = whole / own
                shares |= {name.removeprefix("loss_"): part / own for name, part in parts.items()}
        return shares

    def methods(self) -> dict[str, list[str]]:
        """The modules of each method, finest level first."""
        methods: dict[str, list[str]] = {}
        for name in self.levels:
            methods.setdefault(name.removeprefix("loss_").partition("_")[0], []).append(name)
        return methods

    def lines(self) -> list[str]:
        """The weights that were decided, one line for each method; none while they are not."""
        if self.measuring:
            return []
        lines = []
        for method, names in self.methods().items():
            parts = [
                f"{level_of(name)} {self.weights[name]:.3g}"
                + ("" if self.weights[name] else ", as one of the two has no gradient there")
                for name in names
                if name in self.weights
            ]
            if parts:
                lines.append(
                    f"{method}.share is met by these weights, measured in {self._steps} steps: {', '.join(parts)}"
                )
        return lines

    def state(self) -> dict[str, Any]:
        """Plain values from which `restore` goes on as if nothing had happened; none where no method has a share."""
        if not self.shares:
            return {}
        return {"steps": self._steps, "sums": dict(self._sums), "weights": dict(self.weights)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave."""
        self._steps, self._sums, self.weights = state["steps"], dict(state["sums"]), dict(state["weights"])

    def _own(self, name: str, norms: Mapping[str, float]) -> float:
        """The norm of the detector's gradient on the tap of one module."""
        return norms[f"detector_{self.levels[name]}"]


def level_of(name: str) -> str:
    """The level of a module by the name of its loss, as in `fpn_3`."""
    return name[name.index("fpn_") :]


def _unreached(name: str) -> str:
    method = name.removeprefix("loss_").partition("_")[0]
    return (
        f"{method}.share cannot be measured at {level_of(name)}, where the student's own losses or that of {method} "
        f"have no gradient on its map; give --{method}.share 0 and a --{method}.weight"
    )
