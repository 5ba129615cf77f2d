"""The part of distillation that trains: a student detector and what its methods learn beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

from torch import Tensor, nn

from mgdet.methods.balance import Balance, gradient_norms
from mgdet.methods.base import Truth, standardise
from mgdet.methods.pairing import Pair, fit_size
from mgdet.structures import Seen


class LevelMethod(NamedTuple):
    """One module of a method, and the levels that it compares.

    share: finds the weight of the module, which then has one of 1, see `Balance`; 0: it has its own.
    """

    method: nn.Module
    pair: Pair
    share: float = 0.0


class Measured(NamedTuple):
    """The losses of a training step, and how hard each pulls on the student's maps, see `gradient_norms`."""

    losses: dict[str, Tensor]
    norms: dict[str, Tensor]


class Compared(NamedTuple):
    """What one module of a method compares.

    level: position of the student's map.
    student: (B, C, H, W), before it is aligned.
    teacher: (B, C', H, W); for methods that fit sizes themselves its H and W may differ.
    """

    level: int
    student: Tensor
    teacher: Tensor


class DistilledStudent(nn.Module):
    """A detector and its methods of distillation; its forward returns every loss of a training step.

    This is what DistributedDataParallel wraps, what the optimizer holds and what any training loop can call. The
    teacher stays outside. Without methods it is the detector training alone. State-dict keys are the original
    distillers': `student.*` and `distill_losses.loss_<method>_fpn_<level>.*`.

    Args:
        student: a detector, see `mgdet.detectors.face.Face`.
        levels: methods with the levels that they compare. Bare modules are one for each tap of both sides, finest
            level first.
        heads: methods that compare the heads' outputs, see `mgdet.methods.base.HeadMethod`.
        standardised: bring each channel of the teacher to mean 0 and standard deviation 1 over the batch.

    Raises:
        ValueError: a method is there twice for a level of the student.

    balance: the weights of the methods that were given a share.
    """

    student: Any

    def __init__(
        self,
        student: nn.Module,
        levels: Sequence[nn.Module | LevelMethod] = (),
        *,
        heads: Sequence[nn.Module] = (),
        standardised: bool = False,
    ):
        super().__init__()
        self.student, self.standardised = student, standardised
        self._one_for_each_tap = bool(levels) and not any(isinstance(level, LevelMethod) for level in levels)
        self._pairs: dict[str, Pair] = {}
        self.distill_losses = nn.ModuleDict()
        shares: dict[str, float] = {}
        for i, level in enumerate(levels):
            method, pair, share = level if isinstance(level, LevelMethod) else LevelMethod(level, Pair(i, i))
            name = f"loss_{method.name}_fpn_{pair.student}"
            if name in self._pairs:
                raise ValueError(f"two modules are {name}; a method compares each level of the student once")
            self.distill_losses[name], self._pairs[name] = method, pair
            if share:
                shares[name] = share
        for method in heads:
            self.distill_losses[f"loss_{method.name}"] = method
        self.balance = Balance({name: pair.student for name, pair in self._pairs.items()}, shares)

    @property
    def reads_outputs(self) -> bool:
        """Does a method compare what the heads say? Then the teacher must show its outputs, too."""
        return len(self._pairs) < len(self.distill_losses)

    @overload
    def forward(
        self, images: Tensor, targets: Sequence[Any], teacher: Seen | Sequence[Tensor] = ...
    ) -> dict[str, Tensor]: ...

    @overload
    def forward(
        self, images: Tensor, targets: Sequence[Any], teacher: Seen | Sequence[Tensor] = ..., *, measure: Literal[True]
    ) -> Measured: ...

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Any],
        teacher: Seen | Sequence[Tensor] = (),
        *,
        measure: bool = False,
    ) -> dict[str, Tensor] | Measured:
        """The detector's losses and those of every method, scalars, all to be added up.

        Args:
            images: (B, 3, H, W) float, normalised.
            targets: B targets, as the detector takes them.
            teacher: what the teacher showed of the same images; its taps alone, L tensors (B, C, H_l, W_l), do for
                methods that read taps.
            measure: also take the norms of their gradients on the student's taps, and return both as `Measured`. It
                costs a backward pass through the head and the methods.

        Raises:
            ValueError: the number of taps is not the number of modules that were given without levels.
        """
        losses, seen = self.student.learn(images, targets, outputs=self.reads_outputs)
        if not self.distill_losses:
            return Measured(dict(losses), {}) if measure else dict(losses)
        theirs = teacher if isinstance(teacher, Seen) else Seen(list(teacher), list(teacher))
        if self._one_for_each_tap and not len(self._pairs) == len(seen.taps) == len(theirs.taps):
            raise ValueError(
                f"{len(self._pairs)} distilled levels need as many taps, not {len(seen.taps)} of the student "
                f"and {len(theirs.taps)} of the teacher"
            )
        truth = Truth.of(targets)
        methods: dict[str, Tensor] = {}
        for name, method in self.distill_losses.items():
            if name in self._pairs:
                methods[name] = self._compare(method, self._pairs[name], seen, theirs, truth)
            else:
                methods[name] = method(seen, theirs, truth)
        everything = dict(losses) | self.balance.weighted(methods)
        if not measure:
            return everything
        compared = {name: loss for name, loss in methods.items() if name in self.balance.levels}
        return Measured(everything, gradient_norms(losses, compared, self.balance.levels, seen.taps))

    def _compare(self, method: Any, pair: Pair, seen: Seen, theirs: Seen, truth: Truth) -> Tensor:
        """The loss of one module."""
        mine, other = self._maps(method, pair, seen, theirs)
        loss: Tensor = method(mine, other, truth) if method.needs_truth else method(mine, other)
        return loss

    def compared(self, seen: Seen, theirs: Seen) -> dict[str, Compared]:
        """What each method for a pair of levels compares, by the name of its loss.

        Args:
            seen, theirs: what student and teacher showed of the same images.
        """
        return {
            name: Compared(pair.student, *self._maps(self.distill_losses[name], pair, seen, theirs))
            for name, pair in self._pairs.items()
        }

    def _maps(self, method: Any, pair: Pair, seen: Seen, theirs: Seen) -> tuple[Tensor, Tensor]:
        """Both maps as a module compares them: the teacher's standardised, and on the student's grid, where need be."""
        mine, other = getattr(seen, method.reads)[pair.student], getattr(theirs, method.reads)[pair.teacher]
        if self.standardised:
            other = standardise(other)
        if not self._one_for_each_tap and not method.fits_sizes:
            other = fit_size(other, (mine.shape[2], mine.shape[3]))
        return mine, other
