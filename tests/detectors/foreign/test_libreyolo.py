"""YOLOX and YOLOv9 behind the outer face, held to LibreYOLO itself."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("libreyolo")

from yolo_models import CANVAS, MODELS, NANO, SIZES, TINY, detector_of, library_of, ours_of, photos

from mgdet.errors import UserError
from mgdet.structures import Target

FAST = (NANO, TINY)
EACH = [pytest.param(name, marks=[] if name in FAST else pytest.mark.long) for name in MODELS]
BOXES = torch.tensor([[8.0, 12, 50, 60], [20, 5, 90, 44]])
LABELS = torch.tensor([0, 2])


def targets() -> list[Target]:
    """The second image has no object."""
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), size=SIZES[1])
    return [Target(BOXES, LABELS, size=SIZES[0]), nothing]


def their_targets(name: str) -> torch.Tensor:
    """The same in the library's form, padded to more rows than are needed."""
    rows = torch.zeros(2, 4, 5)
    rows[0, :2, 0] = LABELS.float()
    if name.startswith("yolox"):
        rows[0, :2, 1:3], rows[0, :2, 3:] = (BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]
    else:
        height, width = CANVAS
        rows[:, :, 0] = -1
        rows[0, :2, 0] = LABELS.float()
        rows[0, :2, 1:] = BOXES / torch.tensor([width, height, width, height])
    return rows


def preprocessed(name: str) -> torch.Tensor:
    """What the library's own preprocessing makes of the images; both are as large as the canvas or padded to it."""
    if name.startswith("yolox"):
        from libreyolo.preprocess.yolox import preprocess_numpy
    else:
        from libreyolo.preprocess.yolo9 import preprocess_numpy
    return torch.stack([torch.from_numpy(preprocess_numpy(image.numpy(), CANVAS)[0].copy()) for image in photos()])


@pytest.mark.parametrize("name", EACH)
def test_pixels_losses_and_detections_are_the_librarys_own(name):
    ours = detector_of(name)
    theirs = library_of(ours)
    images, pixels = ours_of(photos(), ours), preprocessed(name)
    assert torch.equal(ours.as_library(images), pixels)

    ours.train(), theirs.train()
    learned = ours.learn(images, targets())
    losses = theirs(pixels, their_targets(name))
    assert set(learned.losses) == set(ours.loss_names) and len(ours.loss_names) == 3
    assert all(torch.equal(value, losses[loss]) for loss, value in learned.losses.items())
    assert sum(learned.losses.values()).item() == pytest.approx(losses["total_loss"].item(), rel=1e-6)
    assert all(value.isfinite() and value > 0 for value in learned.losses.values())
    assert [(level.stride, level.channels) for level in ours.levels] == [
        (stride, tap.shape[1]) for stride, tap in zip((8, 16, 32), learned.seen.taps)
    ]

    ours.eval(), theirs.eval()
    found = ours.find(images, SIZES)
    for place, own in enumerate(found):
        wanted = alone(ours, theirs, pixels, place)
        assert wanted["num_detections"] == len(own.boxes) > 0
        assert np.array_equal(np.array(wanted["boxes"], dtype=np.float32), own.boxes.detach().numpy())
        assert np.array_equal(np.array(wanted["scores"], dtype=np.float32), own.scores.detach().numpy())
        assert wanted["classes"] == own.labels.tolist()
        assert torch.equal(own.scores, own.scores.sort(descending=True).values)
        height, width = SIZES[place]
        assert own.boxes.min() >= 0 and own.boxes[:, 2].max() <= width and own.boxes[:, 3].max() <= height


def alone(ours, theirs: nn.Module, pixels: torch.Tensor, place: int) -> dict:
    """The library's detections of one image of the batch, as its own wrapper makes them with validation's numbers."""
    wrapper = object.__new__(ours.wrapper())
    wrapper.letterbox_pad, wrapper.input_size = "topleft", CANVAS
    with torch.no_grad():
        raw = theirs(pixels)
    one = [level[place : place + 1] for level in raw] if isinstance(raw, list) else pick(raw, place)
    height, width = SIZES[place]
    return wrapper._postprocess(one, 0.001, 0.6, (width, height), max_det=300, input_size=SIZES[place], letterbox=True)


def pick(raw: dict, place: int) -> dict:
    return {"predictions": raw["predictions"][place : place + 1]}


@pytest.mark.parametrize("name", EACH)
def test_a_teacher_stops_at_the_tap_and_a_step_reaches_every_parameter(name):
    ours = detector_of(name).eval()
    images = ours_of(photos(), ours)
    ran = []
    ours.head.register_forward_hook(lambda *args: ran.append(1))
    with torch.no_grad():
        taps = ours.see(images, SIZES).taps
    assert not ran
    learned = ours.learn(images, targets())
    assert ran and all(torch.equal(a, b) for a, b in zip(taps, learned.seen.taps))
    sum(ours.train().learn(images, targets()).losses.values()).backward()
    assert [entry for entry, p in ours.named_parameters() if p.grad is None] == []
    backbone = [entry for entry, _ in ours.named_parameters() if entry.startswith(ours.backbone_prefixes)]
    assert 0 < len(backbone) < len(list(ours.parameters()))
    assert not any("C3_" in entry or entry.startswith(("neck.", "head.")) for entry in backbone)


@pytest.mark.parametrize("name", FAST)
def test_only_norms_follow_the_training_flag(name):
    ours = detector_of(name)
    images = ours_of(photos(), ours)
    norm = next(module for module in ours.modules() if isinstance(module, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    assert "cls_loss" in ours.eval().learn(images, targets()).losses
    assert torch.equal(norm.running_mean, before)
    with torch.no_grad():
        assert len(ours.train().find(images, SIZES)) == 2
    assert not torch.equal(norm.running_mean, before)
    assert all(module.training for module in ours.modules())


@pytest.mark.parametrize("name", FAST)
def test_columns_scales_and_empty_boxes(name):
    ours = detector_of(name).eval()
    images = ours_of(photos(), ours)
    with torch.no_grad():
        every = ours.find(images, SIZES)[0]
        scaled = ours.find(images, SIZES, [(0.5, 0.75), (1.0, 1.0)])[0]
    assert torch.allclose(scaled.boxes, every.boxes / torch.tensor([0.5, 0.75, 0.5, 0.75]))

    flat = targets()
    flat[0].boxes = torch.cat([torch.tensor([[30.0, 20, 30, 40]]), BOXES])
    flat[0].labels = torch.cat([torch.tensor([1]), LABELS])
    losses, others = ours.learn(images, targets()).losses, ours.learn(images, flat).losses
    assert all(torch.equal(losses[loss], others[loss]) for loss in losses)

    ours.assign((2, 0), ours.names)
    with torch.no_grad():
        some = ours.find(images, SIZES)[0]
    kept = every.labels != 1
    assert 0 < len(some.boxes) < len(every.boxes)
    assert torch.equal(some.boxes, every.boxes[kept])
    assert some.labels.tolist() == [{2: 0, 0: 1}[label] for label in every.labels[kept].tolist()]
    swapped = targets()
    swapped[0].labels = torch.tensor([1, 0])
    others = ours.learn(images, swapped).losses
    assert all(torch.equal(losses[loss], others[loss]) for loss in losses)


@pytest.mark.parametrize("name", FAST)
def test_no_objects_numbers_that_are_not_finite_and_a_batch_too_small(name):
    ours = detector_of(name).train()
    images = ours_of(photos(), ours)
    nothing = targets()[1]
    assert all(value.isfinite() for value in ours.learn(images, [nothing, nothing]).losses.values())
    images[0, :, 5, 5] = float("nan")
    total = sum(copy.deepcopy(ours).learn(images, targets()).losses.values())
    assert not total.isfinite()
    total.backward()
    with torch.no_grad():
        assert len(copy.deepcopy(ours).eval().find(images, SIZES)) == 2
    if name == NANO:
        with pytest.raises(UserError, match=r"one value per channel in 1 image of 32 x 32.*--train\.batch"):
            ours.learn(torch.zeros(1, 3, 32, 32), [nothing])
        assert all(module.training for module in ours.modules())


@pytest.mark.parametrize("name", FAST)
def test_in_bfloat16_boxes_and_losses_stay_float32_and_close(name):
    ours = detector_of(name).eval()
    images = ours_of(photos(), ours)
    with torch.no_grad():
        exact = ours.learn(images, targets()).losses
        with torch.autocast("cpu", dtype=torch.bfloat16):
            learned = ours.learn(images, targets()).losses
            boxes = ours.find(images, SIZES)[0].boxes
    assert all(value.dtype == torch.float32 for value in learned.values())
    assert float(sum(learned.values())) == pytest.approx(float(sum(exact.values())), rel=0.1)
    assert boxes.dtype == torch.float32 and not torch.equal(boxes, boxes.bfloat16().float())


@pytest.mark.parametrize("name", FAST)
def test_grids_kept_from_inference_mode_do_not_stop_training_and_copies_are_apart(name):
    ours = detector_of(name)
    images = ours_of(photos(), ours)
    with torch.inference_mode():
        ours.learn(images, targets())
        ours.find(images, SIZES)
    sum(ours.learn(images, targets()).losses.values()).backward()
    other = copy.deepcopy(ours).eval()
    ours.eval()
    for predictor in other._predictors():
        nn.init.zeros_(predictor.weight)
    assert not torch.equal(ours.find(images, SIZES)[0].boxes, other.find(images, SIZES)[0].boxes)
