"""A teacher's own precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import recorded
import tiny
from mgdet import Teacher, build_detector
from mgdet.errors import UserError
from mgdet.layers.inference import inference_form
from mgdet.layers.winograd import Convolution


@pytest.fixture
def detector():
    detector = build_detector("retinanet", backbone="resnet26", num_classes=3, channels=32, deformable=True)
    recorded.fill(detector)
    return inference_form(detector)


@pytest.fixture
def images():
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def types(taps: list[torch.Tensor]) -> set[torch.dtype]:
    return {tap.dtype for tap in taps}


def test_it_follows_the_step_or_holds_its_own(detector, images):
    for precision, plain, under_autocast in (
        ("step", torch.float32, torch.bfloat16),
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
    ):
        teacher = Teacher(inference_form(detector), precision)
        assert types(teacher(images)) == {plain}
        with torch.autocast("cpu", torch.bfloat16):
            assert types(teacher(images)) == {under_autocast}


def test_all_weights_of_a_backbone_are_rounded_those_of_quick_convolutions_too():
    form = inference_form(build_detector("retinanet", backbone="resnet18", num_classes=3, channels=32))
    convolutions = [module for module in form.backbone.modules() if isinstance(module, nn.Conv2d)]
    assert any(isinstance(module, Convolution) for module in convolutions)
    Teacher(form, "bf16")
    assert {module.weight.dtype for module in convolutions} == {torch.bfloat16}


def test_rounded_weights_are_those_of_autocast(detector, images):
    with torch.autocast("cpu", torch.bfloat16):
        expected = Teacher(inference_form(detector))(images)
    rounded = Teacher(detector, "bf16")
    assert rounded.detector.backbone.layer1[0].conv1.weight.dtype == torch.bfloat16
    assert rounded.detector.backbone.layer2[0].conv2.weight.dtype == torch.float32  # deformable
    for own, other in zip(rounded(images), expected):
        assert torch.equal(own, other)


def test_taps_in_bfloat16_are_near_those_in_float32(detector, images):
    expected = Teacher(inference_form(detector), "fp32")(images)
    for own, other in zip(Teacher(detector, "bf16")(images), expected):
        error = (own.float() - other).norm() / other.norm()
        assert 1e-4 < error < 0.03


def test_a_student_has_none_of_its_own():
    config = tiny.distilled()
    config.student.precision = "bf16"
    with pytest.raises(
        UserError, match=r"student\.precision is bf16, but a student trains in the precision of train\.amp"
    ):
        config.check_together()
