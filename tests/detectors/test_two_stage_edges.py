"""Two-stage detectors where there is little to see: no objects, no detections, padding, other scales."""

from __future__ import annotations

import pytest
import torch

import recorded
from mgdet import Detector, Target, build_detector
from mgdet.layers.padding import PaddedTargets
from mgdet.layers.rpn import Proposals

NAMES = ["faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"]


@pytest.fixture(params=NAMES)
def detector(request) -> Detector:
    torch.manual_seed(0)
    return build_detector(request.param, backbone="resnet10t", channels=32, num_classes=3).train()


def empty(size: int = 128) -> Target:
    masks = torch.zeros(0, size, size, dtype=torch.uint8)
    return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), masks, size=(size, size))


def one_object() -> Target:
    boxes = [[20, 24, 90, 100]]
    masks = recorded.ellipses(boxes)[:, :128, :128]
    return Target(torch.tensor(boxes, dtype=torch.float32), torch.tensor([1]), masks, size=(128, 128))


@pytest.mark.parametrize("filled", [0, 1])
def test_every_parameter_that_trains_gets_a_finite_gradient(detector, filled):
    targets = [one_object() if i < filled else empty() for i in range(2)]
    losses = detector.losses(detector.pyramid(torch.randn(2, 3, 128, 128)).maps, targets)
    for name, value in losses.items():
        assert value.isfinite(), name
        if not filled and name.endswith(("bbox", "mask")):
            assert value == 0, name
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_first_stage_without_any_proposal_still_trains(detector, monkeypatch):
    nothing = Proposals(torch.zeros(2, 5, 4), torch.full((2, 5), -1.0), torch.zeros(2, 5, dtype=torch.bool))
    monkeypatch.setattr(detector.rpn_head, "proposals", lambda *_, **__: nothing)
    maps = detector.pyramid(torch.randn(2, 3, 128, 128)).maps
    for targets in ([empty(), empty()], [one_object(), empty()]):
        losses = detector.losses(maps, targets)
        assert all(value.isfinite() for value in losses.values())
    assert [len(found.scores) for found in detector.detect(maps, [(128, 128)] * 2)] == [0, 0]


def test_no_detection_above_the_threshold_is_an_empty_result(detector):
    detector.score_threshold = 0.999
    with torch.no_grad():
        found = detector.detect(detector.pyramid(torch.zeros(1, 3, 64, 96)).maps, [(60, 90)], [(0.5, 0.5)])[0]
    assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.labels.shape == (0,)
    assert (found.masks is not None) == detector.has_masks
    if found.masks is not None:
        assert found.masks.shape == (0, 120, 180) and found.masks.dtype == torch.bool


def test_scales_bring_detections_back_to_the_image_file(detector):
    detector.score_threshold = 0.0
    with torch.no_grad():
        maps = detector.pyramid(torch.randn(1, 3, 128, 128)).maps
        here = detector.detect(maps, [(128, 128)])[0]
        there = detector.detect(maps, [(128, 128)], [(2.0, 2.0)])[0]
    assert len(here.scores) == 100
    torch.testing.assert_close(here.boxes, there.boxes * 2)
    torch.testing.assert_close(here.scores, there.scores)
    if detector.has_masks:
        assert here.masks.shape == (100, 128, 128) and there.masks.shape == (100, 64, 64)


def test_anchors_beyond_an_images_own_padding_are_not_sampled():
    head = build_detector("faster_rcnn", backbone="resnet10t", channels=32, num_classes=3).rpn_head
    sizes = [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    anchors = torch.cat(head.anchors.boxes(sizes))
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), size=(60, 60), padded=(64, 64))
    positive, negative, _ = head.assign(anchors, sizes, PaddedTargets.of([target]))
    centres = (anchors[negative[0], :2] + anchors[negative[0], 2:]) / 2
    assert not positive.any() and len(centres) == 256
    assert (centres < 64).all()


def test_an_object_no_anchor_reaches_from_inside_takes_none():
    head = build_detector("cascade_mask_rcnn", backbone="resnet10t", channels=32, num_classes=3).rpn_head
    sizes = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
    anchors = torch.cat(head.anchors.boxes(sizes))
    target = Target(torch.tensor([[0.0, 0.0, 30.0, 30.0]]), torch.tensor([0]), size=(20, 32))
    positive, negative, _ = head.assign(anchors, sizes, PaddedTargets.of([target]))
    assert not positive.any() and not negative.any()


def test_a_detector_with_masks_says_when_it_gets_none():
    detector = build_detector("mask_rcnn", backbone="resnet10t", channels=32, num_classes=3)
    target = Target(torch.tensor([[0.0, 0.0, 30.0, 30.0]]), torch.tensor([0]), size=(64, 64))
    with pytest.raises(ValueError, match="targets with masks"):
        detector.losses(detector.pyramid(torch.zeros(1, 3, 64, 64)).maps, [target])


def test_under_autocast_losses_are_float32_and_close(detector):
    images, targets = torch.randn(2, 3, 128, 128), [one_object(), one_object()]
    torch.manual_seed(1)
    exact = detector.losses(detector.pyramid(images).maps, targets)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = detector.losses(detector.pyramid(images).maps, targets)
    assert all(value.dtype == torch.float32 for value in rough.values())
    total, rough_total = sum(exact.values()), sum(rough.values())
    torch.testing.assert_close(rough_total, total, rtol=0.1, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_prefixes_of_what_depends_on_the_number_of_classes(name):
    few, many = (build_detector(name, backbone="resnet10t", channels=32, num_classes=n).state_dict() for n in (3, 5))
    differing = {key for key in few if few[key].shape != many[key].shape}
    prefixes = build_detector(name, backbone="resnet10t", channels=32, num_classes=3).class_predictors
    assert differing == {key for key in few if key.startswith(prefixes)}
