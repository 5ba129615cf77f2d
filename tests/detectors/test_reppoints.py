"""RepPoints against the recorded values of the original, from keys to detections, and its own rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recorded
from mgdet import Detector, Target, build_detector
from mgdet.detectors.reppoints import _match_nearest
from mgdet.layers.padding import NEGATIVE, PaddedTargets

LEVEL_SIZES = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
MODELS = {
    "reppoints_r50": {"backbone": "resnet50"},
    "reppoints_x101_32x4d_dcn": {"backbone": "resnext101_32x4d", "deformable": True},
}


@pytest.fixture(
    scope="module", params=["reppoints_r50", pytest.param("reppoints_x101_32x4d_dcn", marks=pytest.mark.slow)]
)
def case(request):
    """(detector with the recorded weights, json record, npz arrays, pyramid of the recorded images)."""
    name = request.param
    detector = build_detector("reppoints", **MODELS[name], num_classes=80)
    recorded.fill(detector)
    detector.train()
    with torch.no_grad():
        pyramid = detector.pyramid(recorded.images())
    return detector, recorded.record(name), recorded.arrays(name), pyramid


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
        logits, first, refined = detector.bbox_head(pyramid.maps)
        boxes = [detector.bbox_head.boxes(points.movedim(1, -1)).movedim(-1, 1) for points in refined]
    groups = {
        "backbone.{}": stages,
        "fpn.{}": pyramid.maps,
        "fpn_convs.{}.conv": pyramid.taps,
        "rep.cls.{}": logits,
        "rep.pts_init.{}": first,
        "rep.pts_refine.{}": refined,
        "rep.eval_bbox.{}": boxes,
    }
    checked = [pattern.format(i) for pattern, tensors in groups.items() for i in range(len(tensors))]
    for pattern, tensors in groups.items():
        for i, tensor in enumerate(tensors):
            recorded.assert_tensor(tensor, pattern.format(i), stored, samples)
    assert sorted(checked) == sorted(stored["tensors"])


def test_losses_and_gradients(case):
    detector, stored, _, _ = case
    tolerance = 5e-3 if "dcn" in stored["name"] else 2e-3
    detector.zero_grad()
    parts = detector.loss_parts(detector.pyramid(recorded.images()).maps, recorded.targets())
    recorded.assert_losses(parts, stored["train.losses"])
    sum(part.sum() for part in parts.values()).backward()
    recorded.assert_gradients(detector, stored["train.grad_norms"], tolerance=tolerance)
    total = torch.stack([p.grad.norm() for p in detector.parameters() if p.grad is not None]).norm().item()
    assert total == pytest.approx(stored["train.grad_total_norm"], rel=tolerance)


def test_detections(case, monkeypatch):
    detector, stored, samples, pyramid = case
    monkeypatch.setattr(detector, "score_threshold", 0.001)
    with torch.no_grad():
        recorded.assert_detections(detector.detect(pyramid.maps, recorded.IMAGE_SIZES), stored, samples, "test")


def test_synthetic_outputs(case, monkeypatch):
    detector, stored, samples, pyramid = case
    monkeypatch.setattr(detector.bbox_head, "forward", synthetic_outputs)
    monkeypatch.setattr(detector, "score_threshold", 0.001)
    with torch.no_grad():
        recorded.assert_losses(detector.loss_parts(pyramid.maps, recorded.targets()), stored["synth.losses"])
        recorded.assert_detections(detector.detect(pyramid.maps, recorded.IMAGE_SIZES), stored, samples, "synth.test")


def synthetic_outputs(_maps):
    """Replaces the head by the recorded random outputs: logits, first and refined points."""
    return (
        [recorded.synthetic(f"rep.cls.{i}", (2, 80, *size), 1.5, -3.0) for i, size in enumerate(LEVEL_SIZES)],
        [recorded.synthetic(f"rep.pts_init.{i}", (2, 18, *size), 2.0) for i, size in enumerate(LEVEL_SIZES)],
        [recorded.synthetic(f"rep.pts_refine.{i}", (2, 18, *size), 2.0) for i, size in enumerate(LEVEL_SIZES)],
    )


def tiny(**changes) -> Detector:
    torch.manual_seed(0)
    return build_detector("reppoints", backbone="resnet10t", channels=32, **{"num_classes": 3, **changes})


def target(boxes=(), labels=(), **changes) -> Target:
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), **changes)


def test_images_without_objects_only_give_a_classification_loss_and_reach_every_parameter():
    detector = tiny().train()
    losses = detector.losses(detector.pyramid(torch.zeros(2, 3, 64, 64)).maps, [target(size=(64, 64))] * 2)
    assert losses["loss_pts_init"].item() == 0 and losses["loss_pts_refine"].item() == 0
    assert losses["loss_cls"].item() > 0
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_an_image_without_objects_beside_one_with_objects():
    detector = tiny()
    maps = [level.repeat(2, 1, 1, 1) for level in detector.pyramid(torch.randn(1, 3, 64, 64)).maps]
    full = target([[8.0, 8.0, 40.0, 48.0]], [1], size=(64, 64))
    losses = detector.losses(maps, [full, target(size=(64, 64))])
    alone = detector.losses([level[:1] for level in maps], [full])
    # The image without objects counts one in the divisor of the box losses.
    torch.testing.assert_close(losses["loss_pts_init"], alone["loss_pts_init"] / 2)


def test_no_detection_above_the_threshold_is_an_empty_result():
    detector = tiny()
    detector.score_threshold = 0.999
    with torch.no_grad():
        found = detector.detect(detector.pyramid(torch.zeros(1, 3, 64, 64)).maps, [(64, 64)])[0]
    assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.labels.shape == (0,)


def test_scales_bring_detections_back_to_the_image_file():
    detector = tiny()
    detector.score_threshold = 0.0
    with torch.no_grad():
        maps = detector.pyramid(torch.randn(1, 3, 64, 64)).maps
        here = detector.detect(maps, [(64, 64)])[0]
        there = detector.detect(maps, [(64, 64)], [(2.0, 0.5)])[0]
        whole = detector.detect(maps, [(64, 64)], [(2.0, 2.0)])[0]
    torch.testing.assert_close(here.boxes, whole.boxes * 2)
    torch.testing.assert_close(here.scores, whole.scores)
    assert there.boxes[:, 0::2].max() <= 32 and there.boxes[:, 1::2].max() > 64


def test_box_of_points_is_their_mean_and_deviation():
    head = tiny().bbox_head
    points = torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 9.0]]).repeat(3, 1).flatten()  # (y, x) of nine points
    with torch.no_grad():
        head.moment_transfer.copy_(torch.tensor([1.0, 3.0]).log())
    half_width, half_height = np.std([1, 5, 9] * 3, ddof=1), 3 * np.std([0, 2, 4] * 3, ddof=1)
    expected = [5 - half_width, 2 - half_height, 5 + half_width, 2 + half_height]
    np.testing.assert_allclose(head.boxes(points).detach(), expected, rtol=1e-6)


def test_of_two_objects_at_one_cell_the_nearer_keeps_it():
    cells = torch.tensor([[0, 0, 2], [0, 0, 1], [1, 1, 1]])
    distances = torch.tensor([[0.2, 0.1, 0.5], [0.2, 0.2, torch.inf], [torch.inf, torch.inf, torch.inf]])
    assert _match_nearest(cells, distances, 3).tolist() == [[1, NEGATIVE, 2], [0, NEGATIVE, NEGATIVE], [NEGATIVE] * 3]


def test_cells_beyond_an_images_own_padding_do_not_count():
    detector = tiny()
    maps = detector.pyramid(torch.zeros(1, 3, 128, 128)).maps
    whole = detector.loss_parts(maps, [target(size=(64, 64))])["loss_cls"]
    same = detector.loss_parts(maps, [target(size=(64, 64), padded=(128, 128))])["loss_cls"]
    part = detector.loss_parts(maps, [target(size=(64, 64), padded=(64, 64))])["loss_cls"]
    torch.testing.assert_close(whole, same)
    torch.testing.assert_close(part[0] / whole[0], torch.tensor(0.25), rtol=0.1, atol=0)


def test_an_object_at_the_edge_takes_a_cell_inside_its_images_own_padding():
    detector = tiny()
    maps = detector.pyramid(torch.randn(1, 3, 128, 128)).maps
    # The centre (63, 33) is nearest to the cell at x = 64, which only the batch's padding has.
    box = {"boxes": [[55.0, 17.0, 71.0, 49.0]], "labels": [0], "size": (64, 64)}
    sizes = [tuple(level.shape[-2:]) for level in maps]
    proposals = torch.zeros(1, sum(h * w for h, w in sizes), 4)
    origins = detector.origins.boxes(sizes)
    for padded, cell in (((128, 128), 8), ((64, 64), 7)):
        first, _ = detector._match(origins, proposals, sizes, PaddedTargets.of([target(**box, padded=padded)]))
        assert (first[0] >= 0).nonzero().tolist() == [[4 * 16 + cell]]


def test_half_precision_leaves_outputs_and_losses_in_float32():
    detector = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        maps = detector.pyramid(torch.randn(1, 3, 64, 64)).maps
        losses = detector.losses(maps, [target([[8.0, 8.0, 40.0, 48.0]], [1], size=(64, 64))])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
