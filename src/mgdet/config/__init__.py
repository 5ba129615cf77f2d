"""One run as one value: `Config` and its sections, with strict reading and writing.

A recipe (`mgdet.recipes`) returns a `Config`; the command line changes fields of it; the loop stores it beside the
run, and `Config.from_dict` reads it back.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from mgdet.config.augment import AugmentConfig
from mgdet.config.data import DataConfig
from mgdet.config.methods import FGDConfig, MGDConfig, PairingConfig, PKDConfig
from mgdet.config.models import PROPOSALS_PER_LEVEL, ROIS_PER_IMAGE, ModelConfig
from mgdet.config.training import Metric, OptimizerConfig, ScheduleConfig, TrainConfig
from mgdet.errors import UserError
from mgdet.sections import Section, plain, read, require

__all__ = [
    "METHODS",
    "PROPOSALS_PER_LEVEL",
    "ROIS_PER_IMAGE",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "FGDConfig",
    "MGDConfig",
    "Metric",
    "ModelConfig",
    "OptimizerConfig",
    "PKDConfig",
    "PairingConfig",
    "ScheduleConfig",
    "TrainConfig",
]

METHODS = ("mgd", "pkd", "fgd")
"""Sections of `Config` that are methods of distillation."""


@dataclass(kw_only=True, slots=True)
class Config(Section):
    """Everything that decides a run."""

    student: ModelConfig
    """The detector that trains."""
    teacher: ModelConfig | None = None
    """The frozen detector it learns from; None for training alone."""
    inherit: bool = False
    """Start the student's neck and head as a copy of the teacher's."""
    mgd: MGDConfig = field(default_factory=MGDConfig)
    """Masked Generative Distillation."""
    pkd: PKDConfig = field(default_factory=PKDConfig)
    """Distillation by Pearson correlation."""
    fgd: FGDConfig = field(default_factory=FGDConfig)
    """Focal and Global Distillation."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Which levels are compared."""
    data: DataConfig
    """The images."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of the training images."""
    optimizer: OptimizerConfig
    """How weights change."""
    schedule: ScheduleConfig
    """How long, and at which rate."""
    train: TrainConfig
    """The loop."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The sections of the methods that are on."""
        return tuple(name for name in METHODS if getattr(self, name).on)

    def check_together(self) -> None:
        """Refuses what settings cannot mean together: a teacher that teaches nothing, methods without one,
        or a teacher's setting on the student.

        Raises:
            UserError: says which setting is wrong or missing.
        """
        for entry in dataclasses.fields(self):
            section = getattr(self, entry.name)
            if isinstance(section, Section):
                section.check_together()
        if self.student.precision != "step":
            raise UserError(
                f"student.precision is {self.student.precision}, but a student trains in the precision of train.amp; "
                "give --train.amp, or --teacher.precision for its teacher"
            )
        require(
            self.student.canvas == (0, 0),
            f"student.canvas is {self.student.canvas[0]} {self.student.canvas[1]}, but only a teacher has a canvas of "
            "its own; give --data.square or --data.short-edge",
        )
        if self.teacher is None and (self.methods or self.inherit):
            raise UserError(
                f"{self._learns_by()}, but there is no teacher; give --teacher.detector and --teacher.weights"
            )
        if self.teacher is not None and not self.methods and not self.inherit:
            raise UserError(
                "there is a teacher, but nothing is learned from it: no method has a weight or a share, and inherit is "
                "off; give e.g. --mgd.weight 2e-5"
            )

    def _learns_by(self) -> str:
        if not self.methods:
            return "inherit is on"
        method = getattr(self, self.methods[0])
        setting = "share" if method.share else "weight"
        return f"{self.methods[0]}.{setting} is {getattr(method, setting):g}"

    def to_dict(self) -> dict[str, Any]:
        """This config as plain dicts, lists and scalars, ready for JSON."""
        result: dict[str, Any] = plain(dataclasses.asdict(self))
        return result

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Reads what `to_dict` wrote, also before a field came in: what is missing takes its default.

        Raises:
            UserError: a field is unknown or of another type, or one without a default is missing.
        """
        config: Config = read(cls, _modern(values), "config")
        return config


def _modern(values: Any) -> Any:
    """The config of a run from before methods had sections that are always there, and inherit was the run's."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    mgd = values.get("mgd", {})
    if mgd is None:
        del values["mgd"]
    elif isinstance(mgd, dict) and "inherit" in mgd:
        values["mgd"] = {name: value for name, value in mgd.items() if name != "inherit"}
        values.setdefault("inherit", mgd["inherit"])
    return values
