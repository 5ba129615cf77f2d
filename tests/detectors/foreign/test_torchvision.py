"""torchvision's detectors behind the outer face, held to torchvision itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from tv_models import MASK, MOBILE, RETINA, SSDLITE, detector_of, reference, small_images

from mgdet.detectors.foreign.torchvision import MODELS
from mgdet.errors import UserError
from mgdet.structures import Target

FAST = (RETINA, MOBILE, SSDLITE)
EACH = [pytest.param(name, marks=[] if name in FAST else pytest.mark.long) for name in MODELS]


def batch(name: str) -> tuple[list, list, list[tuple[int, int]]]:
    """Two images of different sizes, the second without an object, as torchvision takes them."""
    generator = torch.Generator().manual_seed(5)
    sizes = {"ssd300_vgg16": [(300, 300)] * 2, SSDLITE: [(320, 320)] * 2}.get(name, [(96, 120), (96, 100)])
    images = [torch.rand(3, height, width, generator=generator) for height, width in sizes]
    masks = torch.zeros(2, *sizes[0], dtype=torch.uint8)
    masks[0, 12:60, 8:50] = 1
    masks[1, 30:90, 20:95] = 1
    boxes = torch.tensor([[8.0, 12, 50, 60], [20, 30, 95, 90]])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": masks[:0]}
    return images, [{"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}, nothing], sizes


def our_targets(theirs: list[dict], sizes: list[tuple[int, int]]) -> list[Target]:
    return [Target(t["boxes"], t["labels"] - 1, t["masks"], size=size) for t, size in zip(theirs, sizes)]


@pytest.mark.parametrize("name", [*EACH, pytest.param("mask", id="maskrcnn_small")])
def test_losses_and_detections_are_torchvisions_own(name):
    # A Mask R-CNN whose heads see few regions is quick enough for every run.
    settings = {"box_detections_per_img": 8} if name == "mask" else {}
    name = MASK if name == "mask" else name
    model = reference(name, **settings)
    ours = detector_of(model, name)
    images, targets, sizes = batch(name)
    model.train()
    ours.train()
    normalised, _ = model.transform(images, targets)
    assert normalised.image_sizes == sizes
    torch.manual_seed(11)
    losses = model(images, targets)
    torch.manual_seed(11)
    learned = ours.learn(normalised.tensors, our_targets(targets, sizes))
    assert learned.losses.keys() == losses.keys()
    assert all(torch.equal(learned.losses[loss], losses[loss]) for loss in losses)
    assert all(value.isfinite() for value in losses.values())
    assert [level.stride for level in ours.levels] == pytest.approx(
        [normalised.tensors.shape[-1] / tap.shape[-1] for tap in learned.seen.taps], rel=0.5
    )

    model.eval()
    ours.eval()
    with torch.no_grad():
        theirs = model(images)
        found = ours.find(normalised.tensors, sizes)
    assert len(found[0].boxes) > 0
    for own, every in zip(found, theirs):
        # The sigmoid heads of RetinaNet and FCOS have an output for the background, which is no class of the data.
        other = {part: value[every["labels"] > 0] for part, value in every.items()}
        assert torch.equal(own.boxes, other["boxes"])
        assert torch.equal(own.scores, other["scores"])
        assert torch.equal(own.labels, other["labels"] - 1)
        assert torch.equal(own.scores, own.scores.sort(descending=True).values)
        assert (own.masks is not None) == ours.has_masks == ("masks" in other)
        if own.masks is not None:
            assert torch.equal(own.masks, other["masks"][:, 0] > 0.5)
            assert own.masks.any()


@pytest.mark.parametrize("name", EACH)
def test_pixels_are_what_torchvision_normalises_with(name):
    model = reference(name)
    ours = detector_of(model, name)
    images, _, sizes = batch(name)
    theirs = model.transform(images)[0].tensors
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ours.pixels[:2])
    (height, width), image = sizes[0], images[0]
    assert torch.allclose((255 * image - mean) / std, theirs[0][:, :height, :width], atol=2e-5)
    assert ours.native_size == {"ssd300_vgg16": (300, 300), SSDLITE: (320, 320)}.get(name)


def test_only_norms_follow_the_training_flag_and_a_step_reaches_every_parameter():
    ours = detector_of(reference(MOBILE), MOBILE)
    _, targets, sizes = batch(MOBILE)
    inputs = ours._whole[0].transform
    assert not list(inputs.parameters())
    canvas = torch.randn(2, 3, 96, 128)
    truth = our_targets(targets, sizes)
    norm = next(module for module in ours.modules() if isinstance(module, nn.BatchNorm2d))
    ours.eval()
    before = norm.running_mean.clone()
    losses = ours.learn(canvas, truth).losses
    assert "loss_classifier" in losses and torch.equal(norm.running_mean, before)
    ours.train()
    ours.find(canvas, sizes)
    assert not torch.equal(norm.running_mean, before)
    assert all(module.training for module in ours.modules())
    sum(ours.learn(canvas, truth).losses.values()).backward()
    assert [name for name, p in ours.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_teacher_stops_at_the_tap_and_shows_what_a_student_would():
    ours = detector_of(reference(MOBILE), MOBILE).eval()
    _, targets, sizes = batch(MOBILE)
    canvas = torch.randn(2, 3, 96, 128)
    ran = []
    ours.rpn.register_forward_hook(lambda *args: ran.append(1))
    taps = ours.see(canvas, sizes).taps
    assert not ran
    learned = ours.learn(canvas, our_targets(targets, sizes)).seen.taps
    assert len(taps) == len(learned) == len(ours.levels) == 2
    assert all(torch.equal(a, b) for a, b in zip(taps, learned))
    assert [level.channels for level in ours.levels] == [256, 256]


def test_names_are_torchvisions_and_a_copy_is_a_detector_of_its_own():
    model = reference(MOBILE)
    ours = detector_of(model, MOBILE).eval()
    assert list(ours.state_dict()) == list(model.state_dict())
    other = copy.deepcopy(ours)
    nn.init.zeros_(other.roi_heads.box_predictor.cls_score.weight)
    canvas, sizes = small_images(ours)
    mine, its = ours.find(canvas, sizes)[0], other.find(canvas, sizes)[0]
    assert not torch.equal(mine.scores[:4], its.scores[:4])
    backbone = [name for name, _ in ours.named_parameters() if name.startswith(ours.backbone_prefixes)]
    assert backbone and all(name.startswith("backbone.body.") for name in backbone)


def test_in_bfloat16_boxes_and_losses_stay_float32():
    ours = detector_of(reference(MOBILE), MOBILE).eval()
    _, targets, sizes = batch(MOBILE)
    canvas = torch.randn(2, 3, 96, 128)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        learned = ours.learn(canvas, our_targets(targets, sizes))
        found = ours.find(canvas, sizes)
    assert all(value.dtype == torch.float32 for value in learned.losses.values())
    boxes = found[0].boxes
    assert boxes.dtype == torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


def test_scales_give_boxes_and_masks_of_the_file():
    model = reference(MASK, box_detections_per_img=4)
    ours = detector_of(model, MASK).eval()
    canvas, sizes = torch.randn(1, 3, 64, 96), [(60, 90)]
    with torch.no_grad():
        plain, scaled = ours.find(canvas, sizes)[0], ours.find(canvas, sizes, [(0.5, 0.75)])[0]
    assert torch.allclose(scaled.boxes, plain.boxes / torch.tensor([0.5, 0.75, 0.5, 0.75]))
    assert scaled.masks.shape == (len(scaled.boxes), 80, 180)
    assert plain.masks.shape == (len(plain.boxes), 60, 90)


def test_what_cannot_be_learned_is_a_sentence_or_works():
    mask = detector_of(reference(MASK), MASK)
    with pytest.raises(UserError, match="an image has 1 boxes without any"):
        target = Target(torch.tensor([[1.0, 2, 30, 40]]), torch.tensor([0]), size=(64, 64))
        mask.learn(torch.randn(1, 3, 64, 64), [target])
    ssd = detector_of(reference(SSDLITE), SSDLITE).train()
    _, targets, sizes = batch(SSDLITE)
    with pytest.raises(UserError, match=r"one value per channel in 1 image of .*--train\.batch"):
        ssd.learn(torch.randn(1, 3, 320, 320), our_targets(targets, sizes)[:1])
    with pytest.raises(UserError, match=r"320 x 320 pixels only, not of 320 x 352; set --data\.square 320"):
        ssd.learn(torch.randn(2, 3, 320, 352), our_targets(targets, sizes))
    assert all(module.training for module in ssd.modules())


@pytest.mark.parametrize("name", EACH)
def test_empty_boxes_and_numbers_that_are_not_finite(name):
    ours = detector_of(reference(name), name).train()
    _, targets, sizes = batch(name)
    truth = our_targets(targets, sizes)
    flat = copy.deepcopy(truth)
    flat[0].boxes = torch.cat([truth[0].boxes, torch.tensor([[30.0, 20, 30, 40]])])
    flat[0].labels = torch.tensor([0, 2, 1])
    flat[0].masks = torch.cat([truth[0].masks, truth[0].masks[:1]])
    canvas = torch.randn(2, 3, *(ours.native_size or (96, 128)))
    losses = []
    for target in (truth, flat):
        torch.manual_seed(0)
        losses.append(ours.learn(canvas, target).losses)
    assert all(torch.equal(losses[0][loss], losses[1][loss]) for loss in losses[0])
    nothing = ours.learn(canvas, [truth[1], truth[1]]).losses
    assert all(value.isfinite() for value in nothing.values())
    canvas[0, :, 5, 5] = float("nan")
    assert not sum(ours.learn(canvas, truth).losses.values()).isfinite()
    with torch.no_grad():
        assert len(ours.eval().find(canvas, sizes)) == 2


def test_the_first_image_does_not_decide_the_strides():
    """Its size without padding, from which torchvision takes them, is 40 x 500 of 64 x 512 here."""
    canvas = torch.randn(1, 3, 64, 512, generator=torch.Generator().manual_seed(2))
    model = reference(MASK)
    detector, other = (detector_of(model, MASK) for _ in range(2))
    assert all(module.training for module in other.modules())
    images, sizes = small_images(detector)
    with torch.no_grad():
        expected = detector.eval().find(images, sizes)
        other.eval().find(canvas, [(40, 500)])
        found = other.find(images, sizes)
    for part in ("box_roi_pool", "mask_roi_pool"):
        assert getattr(other.roi_heads, part).scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert len(expected[0].boxes) > 0
    for a, b in zip(expected, found):
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and torch.equal(a.masks, b.masks)
