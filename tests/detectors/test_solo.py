"""SOLO against the recorded values of the original, from keys to masks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import recorded
from mgdet import Detector, Target, build_detector
from mgdet.detectors import solo, solo_targets
from mgdet.errors import UserError
from mgdet.layers.blocks import BlockSize

BACKBONES = {"solo_r50": "resnet50", "solo_r101": "resnet101"}
SIZE = (192, 256)


@pytest.fixture(scope="module", params=list(BACKBONES))
def case(request):
    """(detector with the recorded weights, json record, npz arrays, pyramid of the recorded images)."""
    name = request.param
    detector = build_detector("solo", backbone=BACKBONES[name], num_classes=80)
    recorded.fill(detector)
    detector.train()
    with torch.no_grad():
        pyramid = detector.pyramid(recorded.images())
    return detector, recorded.record(name), recorded.arrays(name), pyramid


def all_masks(head: solo.SOLOHead, features: list[torch.Tensor]) -> list[torch.Tensor]:
    """The mask logits of every cell, (B, G * G, h, w) a level."""
    masks = []
    for level, grid in enumerate(solo.GRIDS):
        cells, rows = torch.arange(grid**2).expand(2, -1), torch.arange(2 * grid**2)
        masks.append(head.masks(level, features[level], cells, rows).unflatten(0, (2, grid**2)))
    return masks


def owners(objects: solo_targets.Objects, batch: int) -> list[torch.Tensor]:
    """What `assign_cells` says of each level with the published grids."""
    return [solo_targets.assign_cells(objects, *level, batch) for level in zip(solo.GRIDS, solo_targets.SIZE_RANGES)]


def test_keys_and_shapes(case):
    detector, stored, _, _ = case
    assert {key: list(value.shape) for key, value in detector.state_dict().items()} == stored["state_dict"]


def test_frozen_parameters_and_norms(case):
    detector, stored, _, _ = case
    frozen = [key for key, parameter in detector.named_parameters() if not parameter.requires_grad]
    assert sorted(frozen) == sorted(stored["requires_grad_false"])
    assert not any(m.training for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_network(case):
    detector, stored, samples, pyramid = case
    with torch.no_grad():
        stages = detector.backbone(recorded.images())
        features, logits = detector.mask_head(pyramid.maps)
        masks = all_masks(detector.mask_head, features)
        size = pyramid.maps[0].shape[-2:]
        shown = [F.interpolate(level.sigmoid(), size=size, mode="bilinear") for level in masks]
        peaks = [detector._peaks(level) for level in logits]
    groups = {
        "backbone.{}": stages,
        "fpn.{}": pyramid.maps,
        "fpn_convs.{}.conv": pyramid.taps,
        "solo.train.cls.{}": logits,
        "solo.train.mask.{}": masks,
        "solo.eval.cls.{}": peaks,
        "solo.eval.mask.{}": shown,
    }
    checked = [pattern.format(i) for pattern, tensors in groups.items() for i in range(len(tensors))]
    for pattern, tensors in groups.items():
        for i, tensor in enumerate(tensors):
            recorded.assert_tensor(tensor, pattern.format(i), stored, samples)
    assert sorted(checked) == sorted(stored["tensors"])


def test_targets(case):
    _, _, samples, _ = case
    objects = solo_targets.gather_objects(recorded.targets(), SIZE)
    for level, (grid, stride, owner) in enumerate(zip(solo.GRIDS, solo.STRIDES, owners(objects, 2))):
        small = objects.masks[stride // 2]
        for i in range(2):
            name = f"solo.targets.{i}.{level}"
            cells = (owner[i] >= 0).nonzero()[:, 0]
            np.testing.assert_array_equal(cells, samples[f"{name}.pos_idx"])
            np.testing.assert_array_equal(torch.stack([cells // grid, cells % grid], 1), samples[f"{name}.label_fg"])
            areas = small[owner[i, cells]].sum(dim=(1, 2))
            np.testing.assert_array_equal(areas, samples[f"{name}.mask_area"])


def test_losses_and_gradients(case):
    detector, stored, _, _ = case
    detector.zero_grad()
    losses = detector.loss_parts(detector.pyramid(recorded.images()).maps, recorded.targets())
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(stored["train.losses"], rel=1e-5)
    sum(losses.values()).backward()
    recorded.assert_gradients(detector, stored["train.grad_norms"], tolerance=2e-3)
    total = torch.stack([p.grad.norm() for p in detector.parameters() if p.grad is not None]).norm().item()
    assert total == pytest.approx(stored["train.grad_total_norm"], rel=2e-3)


def test_losses_of_synthetic_outputs(case, monkeypatch):
    detector, stored, _, pyramid = case
    sizes = [(2 * SIZE[0] // stride, 2 * SIZE[1] // stride) for stride in solo.STRIDES]
    masks, logits = [], []
    for level, (grid, size) in enumerate(zip(solo.GRIDS, sizes)):
        masks.append(recorded.synthetic(f"solo.mask.{level}", (2, grid**2, *size), 2.0))
        logits.append(recorded.synthetic(f"solo.cls.{level}", (2, 80, grid, grid), 1.5, -3.0))
    monkeypatch.setattr(detector.mask_head, "forward", lambda maps: (masks, logits))
    images = torch.arange(2)[:, None]
    monkeypatch.setattr(
        detector.mask_head, "masks", lambda level, features, cells, rows: features[images, cells].flatten(0, 1)[rows]
    )
    losses = detector.losses(pyramid.maps, recorded.targets())
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(stored["synth.losses"], rel=1e-5)


def test_detections(case, monkeypatch):
    detector, stored, samples, pyramid = case
    monkeypatch.setattr(detector, "score_threshold", stored["test_overrides"]["model.test_cfg.score_thr"])
    monkeypatch.setattr(detector, "filter_threshold", stored["test_overrides"]["model.test_cfg.filter_thr"])
    with torch.no_grad():
        found = detector.detect(pyramid.maps, recorded.IMAGE_SIZES)
    for i, (detections, size) in enumerate(zip(found, recorded.IMAGE_SIZES)):
        assert len(detections.scores) == stored[f"test.{i}.n"]
        assert (detections.scores.diff() <= 0).all()
        assert detections.masks.shape[1:] == size
        # Of masks that differ in a pixel, overlaps differ, and by them scores.
        np.testing.assert_allclose(detections.scores[:20], samples[f"test.{i}.boxes"][:, 4], atol=1e-5, rtol=1e-3)
        np.testing.assert_array_equal(detections.labels[:20], samples[f"test.{i}.labels"])
        areas = detections.masks[:20].sum(dim=(1, 2))
        np.testing.assert_allclose(areas, samples[f"test.{i}.mask_area"], atol=2, rtol=0)
        stored_masks = np.unpackbits(samples[f"test.{i}.masks_packed"], axis=2)[:, :, : size[1]]
        assert (detections.masks[:5].numpy() != stored_masks).sum(axis=(1, 2)).max() <= 2
        for box, mask in zip(detections.boxes, detections.masks):
            y, x = mask.nonzero(as_tuple=True)
            tight = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
            assert box.tolist() == tight


def tiny(**changes) -> Detector:
    return build_detector("solo", backbone="resnet10t", channels=32, **{"num_classes": 3, **changes})


def target(boxes: list[list[int]], labels: list[int], size: tuple[int, int] = (128, 128)) -> Target:
    """Objects that fill their boxes."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = 1
    return Target(torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(labels).long(), masks, size=size)


@pytest.mark.parametrize("second", [target([], []), target([[20, 20, 70, 90]], [1])])
def test_every_parameter_gets_a_gradient_with_and_without_objects(second):
    detector = tiny()
    losses = detector.losses(detector.pyramid(torch.randn(2, 3, 128, 128)).maps, [target([], []), second])
    assert losses["loss_cls"].item() > 0
    assert (losses["loss_mask"].item() > 0) == (len(second.labels) > 0)
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_other_grids():
    grids = (9, 8, 6, 5, 3)
    detector = tiny(grids=grids)
    assert detector.grids == grids
    assert [conv.out_channels for conv in detector.mask_head.conv_mask_list] == [81, 64, 36, 25, 9]
    maps = detector.pyramid(torch.randn(2, 3, 128, 128)).maps
    _, logits = detector.head(maps)
    assert [level.shape[-2:] for level in logits] == [(grid, grid) for grid in grids]
    # The middle fifth of the object, from 49.4 to 70.6 on both axes, touches two of the 8 cells of 16 pixels.
    objects = solo_targets.gather_objects([target([[7, 7, 113, 113]], [1])], (128, 128))
    found = solo_targets.assign_cells(objects, grids[1], (48, 192), 1)[0].view(8, 8)
    assert (found >= 0).nonzero().tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]
    losses = detector.losses(maps, [target([[20, 20, 80, 80]], [0]), target([[7, 7, 113, 113]], [1])])
    sum(losses.values()).backward()
    assert losses["loss_mask"] > 0 and all(p.grad is not None for p in detector.mask_head.parameters())
    detector.score_threshold, detector.filter_threshold = 0.0, 0.0
    torch.nn.init.normal_(detector.mask_head.conv_mask_list[4].weight, std=1.0)
    with torch.no_grad():
        assert len(detector.detect(maps, [(128, 128)] * 2)[0].scores) > 0


def test_grids_of_a_detector_without_cells_are_refused():
    with pytest.raises(UserError, match="grids does not apply to mask_rcnn, whose masks do not belong to cells"):
        build_detector("mask_rcnn", backbone="resnet10t", num_classes=3, grids=(9, 8, 6, 5, 3))


def test_losses_are_float32_under_autocast():
    detector = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        maps = detector.pyramid(torch.randn(1, 3, 128, 128)).maps
        losses = detector.losses(maps, [target([[20, 20, 70, 90]], [1])])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_targets_without_masks_are_refused():
    detector = tiny()
    maps = detector.pyramid(torch.zeros(1, 3, 64, 64)).maps
    with pytest.raises(ValueError, match="learns from masks"):
        detector.losses(maps, [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), size=(64, 64))])


def test_no_detection_above_either_threshold_is_an_empty_result():
    detector = tiny()
    with torch.no_grad():
        maps = detector.pyramid(torch.randn(1, 3, 64, 64)).maps
        for name in ("score_threshold", "filter_threshold"):
            detector.score_threshold, detector.filter_threshold = 0.0, 0.0
            setattr(detector, name, 0.999)
            found = detector.detect(maps, [(60, 50)])[0]
            assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.labels.shape == (0,)
            assert found.masks.shape == (0, 60, 50) and found.masks.dtype == torch.bool


def test_scales_bring_masks_and_boxes_back_to_the_image_file():
    torch.manual_seed(0)
    detector = tiny()
    detector.score_threshold, detector.filter_threshold = 0.0, 0.0
    torch.nn.init.normal_(detector.mask_head.conv_mask_list[0].weight, std=1.0)
    with torch.no_grad():
        maps = detector.pyramid(torch.randn(1, 3, 64, 96)).maps
        here = detector.detect(maps, [(64, 90)])[0]
        there = detector.detect(maps, [(64, 90)], [(2.0, 0.5)])[0]
    assert len(here.scores) > 0
    assert there.masks.shape == (len(here.scores), 128, 45)
    assert torch.equal(here.scores, there.scores)
    assert torch.equal(there.boxes, solo.mask_boxes(there.masks))
    stretched = F.interpolate(here.masks[None].float(), size=(128, 45), mode="bilinear")[0] > 0.5
    assert (stretched == there.masks).float().mean() > 0.95


@pytest.mark.parametrize("factor", [4, 8, 16])
def test_masks_shrink_as_opencv_shrinks_them(factor):
    draw = np.random.default_rng(0)
    masks = (draw.random((30, 96, 128)) < draw.random((30, 1, 1))).astype(np.uint8)
    size = (128 // factor, 96 // factor)
    expected = np.stack([cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR) for mask in masks])
    np.testing.assert_array_equal(solo_targets.shrink_masks(torch.from_numpy(masks), factor), expected)


def test_later_objects_take_the_cells_of_earlier_ones():
    box = [20, 20, 80, 80]
    objects = solo_targets.gather_objects([target([box], [0]), target([box, box], [0, 1])], (128, 128))
    owner = owners(objects, 2)[0]
    assert set(owner[0].tolist()) == {-1, 0}
    assert set(owner[1].tolist()) == {-1, 2}


def test_objects_go_to_the_levels_of_their_size():
    sizes = [8, 60, 110, 250, 390]
    levels = [[0], [0, 1], [1, 2], [2, 3], [3, 4]]
    for size, expected in zip(sizes, levels):
        objects = solo_targets.gather_objects([target([[0, 0, size, size]], [0], (416, 416))], (416, 416))
        assert [level for level, owner in enumerate(owners(objects, 1)) if (owner >= 0).any()] == expected


def test_an_empty_mask_takes_no_cell():
    hidden = target([[20, 20, 80, 80]], [0])
    hidden.masks.zero_()
    objects = solo_targets.gather_objects([hidden], (128, 128))
    assert all((owner == -1).all() for owner in owners(objects, 1))


def test_masks_of_smaller_images_are_padded_to_the_batch():
    small = target([[20, 20, 80, 80]], [0], (100, 90))
    large = target([[20, 20, 80, 80]], [0], (128, 128))
    objects = solo_targets.gather_objects([small, large], (128, 128))
    assert all(torch.equal(masks[0], masks[1]) and masks.any() for masks in objects.masks.values())
    assert objects.image.tolist() == [0, 1]


def test_pasting_in_parts_changes_nothing(monkeypatch):
    masks = torch.rand(5, 16, 24)
    whole = solo.resize_masks(masks, (60, 90), (120, 200), threshold=0.5)
    monkeypatch.setattr(solo, "PASTE_PIXELS", 2 * 120 * 200)
    assert whole.any() and not whole.all()
    assert torch.equal(whole, solo.resize_masks(masks, (60, 90), (120, 200), threshold=0.5))


def test_masks_in_blocks_change_neither_losses_nor_gradients(monkeypatch):
    torch.manual_seed(0)
    detector = tiny()
    with torch.no_grad():
        maps = detector.pyramid(torch.randn(2, 3, 128, 128)).maps
    boxes = [[8, 8, 40, 40], [60, 20, 100, 80], [20, 70, 50, 110], [80, 90, 120, 120]]
    targets = [target(boxes, [0, 1, 2, 0]), target(boxes[1:2], [2], (100, 110))]
    results = []
    for _ in range(2):
        detector.zero_grad()
        losses = detector.losses(maps, targets)
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
        results.append((losses, gradients))
        monkeypatch.setattr(solo_targets, "PIXELS_PER_BLOCK", BlockSize(cpu=2 * 128 * 128, gpu=0))
        monkeypatch.setattr(solo, "NUMBERS_PER_BLOCK", 3 * 16 * 16)
    for whole, parts in zip(*results):
        torch.testing.assert_close(parts, whole)


def test_positive_cells_come_in_blocks_and_in_order():
    owner = torch.full((2, 9), -1)
    owner[0, [1, 4, 8]], owner[1, 2] = torch.tensor([5, 6, 7]), 9
    first, second = solo_targets.cell_blocks(owner, [3, 1], longest=2)
    assert first.cells.flatten()[first.rows].tolist() == [1, 4, 2] and first.owners.tolist() == [5, 6, 9]
    assert second.cells.flatten()[second.rows].tolist() == [8] and second.owners.tolist() == [7]
    (nothing,) = solo_targets.cell_blocks(torch.full((2, 9), -1), [0, 0], longest=2)
    assert nothing.cells.shape == (2, 0) and len(nothing.rows) == len(nothing.owners) == 0
