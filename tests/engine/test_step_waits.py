"""A whole step of training waits once more than its losses do, whatever the batch and the methods."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mgdet import Teacher
from mgdet.config import Config, FGDConfig, MGDConfig, OptimizerConfig, PKDConfig
from mgdet.data.batch import Batch
from mgdet.detectors.build import DETECTORS
from mgdet.engine.step import Step
from mgdet.models import detector_from, with_methods
from tiny import ALONE, distilled, model

waits = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "waits.py")))
SIZE = (64, 64)


def config_of(name: str, optimizer: str) -> Config:
    config = distilled()
    config.student = replace(model(), detector=name)
    config.teacher = replace(model("resnet10t"), detector=name, weights="no such file")
    config.mgd, config.pkd, config.fgd = MGDConfig(weight=2e-3), PKDConfig(weight=6.0), FGDConfig(weight=1.0)
    config.optimizer = OptimizerConfig(name=optimizer, lr=1e-4)
    return config


def step_of(config: Config) -> Step:
    torch.manual_seed(0)
    teacher = Teacher(detector_from(config.teacher, 80))
    student = detector_from(config.student, 80)
    return Step(with_methods(config, student, teacher.detector, lambda line: None), teacher, config, ALONE)


def batch_of(number: int, num_objects: int) -> Batch:
    targets = waits.scene(number, num_objects, SIZE)
    pixels = torch.randint(0, 256, (number, *SIZE, 3), dtype=torch.uint8)
    return Batch(pixels, targets, ["x"] * number, [0] * number, [SIZE] * number, [(1.0, 1.0)] * number)


TAKES_SECONDS = ("faster_rcnn", "cascade_mask_rcnn")
CASES = [pytest.param(name, "sgd", marks=[pytest.mark.slow] if name in TAKES_SECONDS else []) for name in DETECTORS] + [
    pytest.param("retinanet", "adamw")
]


@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_a_step_waits_once_more_than_its_losses(name, optimizer):
    step = step_of(config_of(name, optimizer))
    step.model.train()
    found = []
    for number, num_objects in ((2, 3), (6, 12)):
        batch = batch_of(number, num_objects)
        with torch.no_grad():
            maps = step.student.student.pyramid(batch.images()).maps
            with waits.counting() as losses:
                step.student.student.losses(maps, batch.targets)
        with waits.counting() as work:
            outcome = step.take([batch], number=0, lr=1e-4)
        with waits.counting() as measured:
            shares = step.take([batch], number=0, lr=1e-4, measure=True).shares
        assert shares.keys() >= {"mgd", "pkd", "fgd", "mgd_fpn_0"} and not outcome.shares
        assert measured.waits == work.waits
        assert outcome.finite
        assert {key.split("_")[1] for key in outcome.losses if "fpn" in key} == {"mgd", "pkd", "fgd"}
        assert work.waits.total() == losses.waits.total() + 1 <= 4
        found.append(work.waits)
    assert found[0] == found[1]
