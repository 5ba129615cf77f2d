"""Detectors, foreign classes and files for the tests of this folder."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

CLASSES = ("circle", "square", "star")


class TinyDetector(nn.Module):
    """The names of a detector on a few hundred numbers."""

    class_predictors = ("bbox_head.retina_cls.",)

    def __init__(self, num_classes: int = 3, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.num_classes = num_classes
        self.backbone = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 4, 3, bias=False), bn1=nn.BatchNorm2d(4)))
        self.neck = nn.Sequential(OrderedDict(lateral=nn.Conv2d(4, 4, 1)))
        self.bbox_head = nn.Sequential(
            OrderedDict(retina_cls=nn.Conv2d(4, 9 * num_classes, 3), retina_reg=nn.Conv2d(4, 36, 3))
        )


def state(seed: int = 1, num_classes: int = 3) -> dict[str, Tensor]:
    return dict(TinyDetector(num_classes, seed).state_dict())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class HistoryBuffer:
    """As MMEngine's: arrays, and methods of its own class by name."""

    def __init__(self):
        self._log_history = np.arange(5.0)
        self._count_history = np.ones(5, dtype=np.int64)
        self.last = np.float32(3.5)

    def mean(self):
        return self._log_history.mean()

    def __getstate__(self):
        return self.__dict__ | {"statistics_methods": {"mean": HistoryBuffer.mean}}


class MessageHub:
    def __init__(self):
        self.log_scalars = OrderedDict(loss=HistoryBuffer())


class ConfigDict(dict):
    """As addict's: a dict with attributes of its own, whose state is itself."""

    def __getstate__(self):
        return self

    def __setstate__(self, values):
        self.update(values)


class MMLogger:
    __slots__ = ("level", "name")

    def __init__(self):
        self.name, self.level = "mmengine", 20


class NameList(list):
    pass


FOREIGN = {
    "mmengine.logging.history_buffer": [HistoryBuffer],
    "mmengine.logging.message_hub": [MessageHub],
    "mmengine.logging.logger": [MMLogger],
    "mmcv.utils.config": [ConfigDict],
    "some_project.lists": [NameList],
}


def save_foreign(path: Path, content: object, *, zipped: bool) -> None:
    """Saves with the foreign classes under their own modules' names, which are gone again afterwards."""
    modules = {}
    for name, classes in FOREIGN.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        for cls in classes:
            setattr(modules[name], cls.__name__, cls)
            cls.__module__ = name
    sys.modules.update(modules)
    try:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    finally:
        for name in modules:
            del sys.modules[name]


def mgd_training(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the original's distiller: both detectors, generators and stored feature maps."""
    stored = {
        f"{who}_neck_fpn_convs_{i}_conv": torch.zeros(1, 4, 2, 2) for i in range(5) for who in ("student", "teacher")
    }
    generators = {
        f"distill_losses.loss_mgd_fpn_{i}.generation.{j}.{kind}": torch.zeros(2)
        for i in range(5)
        for j in (0, 2)
        for kind in ("weight", "bias")
    }
    sides = {f"student.{name}": value for name, value in student.items()}
    sides |= {f"teacher.{name}": value for name, value in teacher.items()}
    return sides | stored | generators
