"""The sections of the methods of distillation, and of how levels pair."""

from __future__ import annotations

from dataclasses import dataclass

from mgdet.sections import Section, require, title


@dataclass(kw_only=True, slots=True)
class MethodConfig(Section):
    """What every method has: a weight that is given, or one that is found."""

    weight: float = 0.0
    """Weight of the loss; 0: off."""
    share: float = 0.0
    """Instead of a weight: the length of the method's gradient on each of the student's maps, as a share of that of the
    detector's own losses, e.g. 0.3. The first steps of the run set the weight of each level. 0: use `weight`."""

    @property
    def on(self) -> bool:
        """Does the method take part?"""
        return self.weight > 0 or self.share > 0

    @property
    def own_weight(self) -> float:
        """The weight that its modules are built with: 1 where a share finds what to multiply them with."""
        return 1.0 if self.share else self.weight

    def check_values(self) -> None:
        name = title(type(self))
        require(self.weight >= 0, f"{name}.weight is {self.weight}; give 0 or more")
        require(self.share >= 0, f"{name}.share is {self.share}; give 0 or more")

    def check_together(self) -> None:
        name = title(type(self))
        require(
            self.weight == 0 or self.share == 0,
            f"{name}.share is {self.share:g}, which finds the weight by itself, but {name}.weight is {self.weight:g}; "
            f"set one of them to 0, e.g. --{name}.weight 0",
        )


@dataclass(kw_only=True, slots=True)
class MGDConfig(MethodConfig):
    """Masked Generative Distillation, the same on every level (paper, section 3)."""

    weight: float = 0.0
    """Weight of the loss, alpha in the paper: 2e-5 for one-stage, 5e-7 for two-stage detectors; 0: off."""
    mask_ratio: float = 0.65
    """Share of the student's cells that is masked, lambda in the paper: 0.65 one-stage, 0.45 two-stage."""

    def check_values(self) -> None:
        MethodConfig.check_values(self)
        require(0 <= self.mask_ratio <= 1, f"mgd.mask_ratio is {self.mask_ratio}; give a share from 0 to 1")


@dataclass(kw_only=True, slots=True)
class PKDConfig(MethodConfig):
    """Distillation by Pearson correlation (arXiv 2207.02039)."""

    weight: float = 0.0
    """Weight of the loss: 10 for one-stage, 6 for two-stage detectors in the paper; 0: off."""
    levels: int = 4
    """How many levels are compared, from the finest on."""

    def check_values(self) -> None:
        MethodConfig.check_values(self)
        require(self.levels >= 1, f"pkd.levels is {self.levels}; give 1 or more")


@dataclass(kw_only=True, slots=True)
class FGDConfig(MethodConfig):
    """Focal and Global Distillation (arXiv 2111.11837); the parts' defaults are RetinaNet's."""

    weight: float = 0.0
    """Weight of the whole loss: 1 is as published; 0: off."""
    temperature: float = 0.5
    """Of the attention, tau in the paper."""
    foreground: float = 1e-3
    """Weight of the cells of objects, alpha in the paper: 1e-3 RetinaNet and SOLO, 1.6e-3 RepPoints, 5e-5 two-stage."""
    background: float = 5e-4
    """Weight of the other cells, beta in the paper: 5e-4, 8e-4, 2.5e-5."""
    attention: float = 5e-4
    """Weight of the attention loss, gamma in the paper: 5e-4, 8e-4, 5e-5."""
    relation: float = 5e-6
    """Weight of the relation loss, lambda in the paper: 5e-6, 8e-6, 5e-7."""

    def check_values(self) -> None:
        MethodConfig.check_values(self)
        for name in ("foreground", "background", "attention", "relation"):
            require(getattr(self, name) >= 0, f"fgd.{name} is {getattr(self, name)}; give 0 or more")
        require(self.temperature > 0, f"fgd.temperature is {self.temperature}; give a positive number")


@dataclass(kw_only=True, slots=True)
class PairingConfig(Section):
    """Which level of the teacher teaches which level of the student, and in what form."""

    pairs: tuple[str, ...] = ()
    """Pairs as strides, STUDENT:TEACHER, e.g. 8:8 16:14; empty: each level takes the nearest stride."""
    standardise: bool | None = None
    """Bring each channel of the teacher to mean 0 and deviation 1 over the batch; None: where either side is a
    detector of another library."""
