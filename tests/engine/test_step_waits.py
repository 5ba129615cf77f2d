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
TWO_CELLS = (160, 160)
"""So large that every level has two cells: oneDNN's bfloat16 gradients of single ones are wrong."""


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


def batch_of(number: int, num_objects: int, size: tuple[int, int] = SIZE) -> Batch:
    targets = waits.scene(number, num_objects, size)
    pixels = torch.randint(0, 256, (number, *size, 3), dtype=torch.uint8)
    return Batch(pixels, targets, ["x"] * number, [0] * number, [size] * number, [(1.0, 1.0)] * number)


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


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_and_micro_batches_add_no_wait(amp, overflow):
    """Nor does a gradient that overflows in float16, for which the scale is looked at."""
    config = config_of("retinanet", "sgd")
    config.train.amp, config.train.accumulate = amp, 2
    step = step_of(config)
    step.model.train()
    batches = [batch_of(1, 3, TWO_CELLS), batch_of(1, 5, TWO_CELLS)]
    step.take(batches, number=0, lr=1e-4)
    if overflow:
        weight = step.student.student.bbox_head.retina_cls.weight
        weight.register_hook(lambda gradient: gradient * float("inf"))
    with waits.counting() as work:
        outcome = step.take(batches, number=1, lr=1e-4)
    assert outcome.finite == (not overflow or amp == "fp16")
    # Where the run ends, the losses of each micro-batch are fetched, too.
    assert work.waits == {"tolist": 1 if outcome.finite else 2}
