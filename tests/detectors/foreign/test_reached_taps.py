"""The taps lie on the way from images to losses: a detector's own losses have a gradient on each of its taps."""

from __future__ import annotations

import pytest
import test_huggingface as hugging
import torch
import tv_models
import yolo_models

from mgdet import Target, build_detector
from mgdet.detectors.build import DETECTORS
from mgdet.detectors.foreign.torchvision import MODELS


def check(detector, images, targets, reached=True):
    losses, seen = detector.train().learn(images, targets)
    total = torch.stack([loss.sum() for loss in losses.values()]).sum()
    gradients = torch.autograd.grad(total, seen.taps, allow_unused=True)
    assert len(gradients) == len(detector.levels)
    assert all((gradient is not None) == reached for gradient in gradients)
    assert not reached or any(gradient.norm() > 0 for gradient in gradients)


def targets_of(size, masks=False):
    boxes = torch.tensor([[4.0, 6.0, 40.0, 30.0], [20.0, 10.0, 52.0, 60.0]])
    drawn = torch.ones(2, *size, dtype=torch.uint8) if masks else None
    return [Target(boxes, torch.tensor([0, 2]), drawn, size=size) for _ in range(2)]


@pytest.mark.parametrize("name", DETECTORS)
def test_ours(name):
    torch.manual_seed(0)
    detector = build_detector(name, backbone="test_resnet", num_classes=3, channels=32)
    check(detector, torch.randn(2, 3, 96, 128), targets_of((96, 128), masks=True))


@pytest.mark.parametrize("kind", hugging.KINDS)
def test_hugging_face(kind):
    detector = hugging.detector_of(kind)
    check(detector, *hugging.batch_of(detector), reached=kind != "yolos")  # its heads read other tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_torchvision(name):
    detector = tv_models.detector_of(tv_models.reference(name), name)
    images, sizes = tv_models.small_images(detector)
    check(detector, images, targets_of(sizes[0], masks=detector.has_masks))


@pytest.mark.parametrize("name", [yolo_models.NANO, yolo_models.TINY])
def test_libreyolo(name):
    pytest.importorskip("libreyolo")
    torch.manual_seed(0)
    check(yolo_models.detector_of(name), torch.randn(2, 3, 64, 96), targets_of((64, 96)))
