"""What holds for all detectors: norm layers that stay as they are, and masks of any dtype."""

from __future__ import annotations

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mgdet import MGD, DistilledStudent, Target, Teacher, build_detector
from mgdet.detectors.build import DETECTORS
from mgdet.errors import UserError


def norms(detector):
    return [module for module in detector.backbone.modules() if isinstance(module, _BatchNorm)]


@pytest.mark.parametrize("norm_eval", [True, False])
@pytest.mark.parametrize("name", DETECTORS)
def test_norm_eval_holds_from_the_start(name, norm_eval):
    options = {"num_classes": 3, "channels": 32, "frozen_stages": 0}
    detector = build_detector(name, backbone="test_resnet", norm_eval=norm_eval, **options)
    assert detector.training
    assert {norm.training for norm in norms(detector)} == {not norm_eval}


def test_frozen_stages_keep_their_statistics_also_where_others_learn():
    detector = build_detector("retinanet", backbone="test_resnet", num_classes=3, norm_eval=False, frozen_stages=1)
    detector.eval().train()
    assert {norm.training: norm.weight.requires_grad for norm in norms(detector)} == {True: True, False: False}


@pytest.mark.parametrize("name", DETECTORS)
def test_one_value_per_channel_is_said(name):
    detector = build_detector(name, backbone="test_resnet", num_classes=3, channels=32, norm_eval=False)
    masks = torch.ones(1, 32, 32, dtype=torch.uint8) if detector.has_masks else None
    target = Target(torch.tensor([[4.0, 4.0, 28.0, 28.0]]), torch.tensor([1]), masks, size=(32, 32))
    with pytest.raises(UserError, match="one value per channel in 1 image of 32 x 32; choose larger images, or two"):
        detector.learn(torch.randn(1, 3, 32, 32), [target])
    assert detector.learn(torch.randn(2, 3, 32, 32), [target, target]).losses


def test_a_step_of_python_moves_no_statistics():
    """The README's example: nobody calls `train()`."""
    student = build_detector("retinanet", backbone="test_resnet", num_classes=80, channels=32)
    teacher = Teacher(build_detector("retinanet", backbone="test_resnet", num_classes=80, channels=32))
    before = {name: value.clone() for name, value in student.named_buffers()}
    model = DistilledStudent(student, [MGD(32, 32, weight=2e-5, mask_ratio=0.65) for _ in range(5)])
    images = torch.randn(1, 3, 128, 128)
    targets = [Target(torch.tensor([[20.0, 30.0, 100.0, 120.0]]), torch.tensor([17]), size=(128, 128))]
    sum(model(images, targets, teacher(images)).values()).backward()
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], value) for name, value in student.named_buffers())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("name", [name for name, kind in DETECTORS.items() if kind.has_masks])
def test_masks_of_any_dtype_give_the_same_losses(name, dtype):
    losses = []
    boxes = torch.tensor([[10.0, 20, 90, 110], [40, 30, 120, 100]])
    masks = torch.zeros(2, 128, 128, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
        mask[y0:y1, x0:x1] = 1
    for kind in (torch.uint8, dtype):
        torch.manual_seed(0)
        detector = build_detector(name, backbone="test_resnet", num_classes=3, channels=32)
        target = Target(boxes, torch.tensor([0, 2]), masks.to(kind), size=(128, 128))
        maps = detector.pyramid(torch.ones(1, 3, 128, 128)).maps
        losses.append({key: value.item() for key, value in detector.losses(maps, [target]).items()})
    assert losses[0] == losses[1]
    assert sum(value for key, value in losses[0].items() if "loss_mask" in key) > 0
