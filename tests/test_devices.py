"""Everything that trains and detects, on the device where it will: `pytest -m gpu` takes the CUDA half."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mgdet import MGD, DistilledStudent, Target, Teacher, build_detector
from mgdet.detectors.build import DETECTORS
from mgdet.distributed import World
from mgdet.engine.loop import train
from tiny import records

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SIZES = [(128, 160), (96, 150)]


def build(name: str, backbone: str = "test_resnet"):
    torch.manual_seed(1)
    return build_detector(name, backbone=backbone, num_classes=3, channels=32, frozen_stages=0)


def targets(device: str) -> list[Target]:
    boxes = [torch.tensor([[10.0, 20, 70, 90], [80, 30, 150, 120]]), torch.tensor([[20.0, 10, 120, 90]])]
    found = []
    for own, labels, size in zip(boxes, ([0, 2], [1]), SIZES):
        masks = torch.zeros(len(own), 128, 160, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, own.int().tolist()):
            mask[y0:y1, x0:x1] = 1
        found.append(Target(own, torch.tensor(labels), masks, size=size, padded=(96, 160)).to(device))
    return found


@pytest.mark.parametrize(
    ("device", "amp"),
    [
        ("cpu", torch.bfloat16),
        pytest.param("cuda", None, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("name", DETECTORS)
def test_losses_and_gradients_are_those_of_the_cpu(device, name, amp, monkeypatch):
    monkeypatch.setattr(torch, "randperm", torch.arange)
    images = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    results = []
    for where, kind in (("cpu", None), (device, amp)):
        student, teacher = build(name), Teacher(build(name, "resnet10t")).to(where)
        levels = [MGD(32, 32, weight=1e-3, mask_ratio=0.0) for _ in range(student.num_taps)]
        model = DistilledStudent(student, levels).to(where).train()
        pixels = images.to(where, memory_format=torch.channels_last)
        with torch.autocast(where, dtype=kind or torch.float32, enabled=kind is not None):
            losses = model(pixels, targets(where), teacher(pixels))
        sum(losses.values()).backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        results.append({key: value.item() for key, value in losses.items()} | {"norm": norm.item()})
    expected, values = results
    for key, value in values.items():
        assert math.isfinite(value), key
        # Half precision moves boxes, and with them which proposals are sampled.
        assert value == pytest.approx(expected[key], rel=0.3 if amp else 5e-3, abs=0.05 if amp else 1e-5), key


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_detections_stay_on_their_device(device, name):
    detector = build(name).to(device).eval()
    detector.score_threshold = detector.mask_threshold = detector.filter_threshold = 0.0
    maps = detector.pyramid(torch.randn(2, 3, 128, 160, device=device)).maps
    for found, size in zip(detector.detect(maps, SIZES), SIZES, strict=True):
        assert {value.device.type for value in found if value is not None} == {device}
        assert len(found.boxes) == len(found.scores) == len(found.labels) > 0
        if detector.has_masks:
            assert found.masks.shape == (len(found.boxes), *size)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_run(device, amp, tiny, tmp_path):
    config = tiny.config()
    config.data = replace(config.data, long_edge=256, short_edge=(192, 192))
    config.train = replace(config.train, amp=amp, stop_after=4, log_every=1, eval_every=0)
    assert train(config, tmp_path / "run", resume=False, world=World(rank=0, size=1, device=torch.device(device))) == 0
    lines = records(tmp_path / "run")
    assert len(lines) == 4
    assert all(math.isfinite(value) for line in lines for key, value in line.items() if "loss" in key)
