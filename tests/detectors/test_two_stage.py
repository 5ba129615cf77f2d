"""Faster, Mask and Cascade Mask R-CNN against the recorded values of the original, from keys to masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import recorded
from mgdet import Detector, build_detector
from mgdet.detectors import cascade_mask_rcnn
from mgdet.layers import roi_head
from mgdet.layers.padding import PaddedTargets, image_limits
from mgdet.layers.roi import join_rois, pool_rois, roi_levels
from mgdet.layers.rpn import Proposals
from mgdet.layers.sampling import NO_LABEL, RoISample

LEVEL_SIZES = [(48, 64), (24, 32), (12, 16), (6, 8), (3, 4)]


@dataclass(frozen=True)
class Case:
    """One recorded detector, and what the record says about it."""

    detector: Detector
    stored: dict
    samples: dict[str, np.ndarray]
    kept_in_training: int
    tolerance: float

    @property
    def stages(self) -> list[tuple[str, torch.nn.Module, torch.nn.Module | None]]:
        """(prefix of its losses, box head, mask head) of each box stage."""
        heads = self.detector.roi_head
        if isinstance(heads.bbox_head, torch.nn.ModuleList):
            return [(f"s{i}.", box, mask) for i, (box, mask) in enumerate(zip(heads.bbox_head, heads.mask_head))]
        return [("", heads.bbox_head, heads.mask_head)]


CASES = {
    "faster_rcnn_r50": ("faster_rcnn", "resnet50", False, 1000, 2e-3),
    "mask_rcnn_r50": ("mask_rcnn", "resnet50", False, 1000, 2e-3),
    "cascade_mask_x101_32x4d_dcn": ("cascade_mask_rcnn", "resnext101_32x4d", True, 2000, 5e-3),
}

SLOW = pytest.param("cascade_mask_x101_32x4d_dcn", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["faster_rcnn_r50", "mask_rcnn_r50", SLOW])
def case(request):
    name, backbone, deformable, kept, tolerance = CASES[request.param]
    detector = build_detector(name, backbone=backbone, num_classes=80, deformable=deformable)
    recorded.fill(detector)
    detector.train()
    return Case(detector, recorded.record(request.param), recorded.arrays(request.param), kept, tolerance)


@pytest.fixture(scope="module")
def pyramid(case):
    with torch.no_grad():
        return case.detector.pyramid(recorded.images())


@pytest.fixture(autouse=True)
def first_candidates(monkeypatch):
    """The record took the first candidates in index order instead of a random choice."""
    monkeypatch.setattr(torch, "randperm", torch.arange)


@pytest.fixture
def drawn(monkeypatch):
    """Every image's sample of regions that the heads draw, in order, as the record counts them."""
    found = []
    for module in (roi_head, cascade_mask_rcnn):
        original = module.sample_rois

        def spy(proposals, usable, targets, original=original, **options):
            sample = original(proposals, usable, targets, **options)
            found.extend(unpadded(sample, torch.cat([targets.exists, usable], dim=1)))
            return sample

        monkeypatch.setattr(module, "sample_rois", spy)
    return found


class Sample(NamedTuple):
    """What the record says about one image's sample: rows among the objects and proposals that there are."""

    positive: Tensor
    negative: Tensor
    objects: Tensor


def unpadded(sample: RoISample, present: Tensor) -> list[Sample]:
    """The samples of each image without padding; `present` (B, N + P) says which candidates are none."""
    places = present.cumsum(dim=1) - 1
    found = []
    for i, num in enumerate(sample.num_positive.tolist()):
        counted = sample.labels[i] != NO_LABEL
        assert present[i, sample.rows[i, counted]].all() and counted[: counted.sum()].all()
        rows = places[i, sample.rows[i, counted]]
        found.append(Sample(rows[:num], rows[num:], sample.objects[i, :num]))
    return found


def objects() -> PaddedTargets:
    return PaddedTargets.of(recorded.targets())


def proposals() -> Proposals:
    """The recorded fixed proposals."""
    boxes = torch.stack(recorded.proposals())
    return Proposals(boxes, torch.ones_like(boxes[..., 0]), torch.ones_like(boxes[..., 0], dtype=torch.bool))


def test_keys_and_shapes(case):
    assert {key: list(value.shape) for key, value in case.detector.state_dict().items()} == case.stored["state_dict"]


def test_frozen_parameters_and_norms(case):
    frozen = [key for key, parameter in case.detector.named_parameters() if not parameter.requires_grad]
    assert sorted(frozen) == sorted(case.stored["requires_grad_false"])
    assert not any(m.training for m in case.detector.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_network(case, pyramid):
    with torch.no_grad():
        stages = case.detector.backbone(recorded.images())
        logits, deltas = case.detector.rpn_head(pyramid.maps)
        groups = {
            "backbone.{}": stages,
            "fpn.{}": pyramid.maps,
            "fpn_convs.{}.conv": pyramid.taps,
            "rpn.cls.{}": logits,
            "rpn.reg.{}": deltas,
        } | region_outputs(case)
    checked = {pattern.format(i): tensor for pattern, tensors in groups.items() for i, tensor in enumerate(tensors)}
    assert sorted(checked) == sorted(case.stored["tensors"])
    for name, tensor in checked.items():
        recorded.assert_tensor(tensor, name, case.stored, case.samples)


def region_outputs(case: Case) -> dict[str, list[Tensor]]:
    """What pooling and heads make of synthetic maps and fixed proposals."""
    maps, rois = recorded.feature_maps(), join_rois(recorded.proposals())
    outputs = [box(maps, rois) for _, box, _ in case.stages]
    groups = {
        "synth.roi.bbox_feats": [pool_rois(maps, rois, 7)],
        "synth.roi.cls.{}": [logits for logits, _ in outputs],
        "synth.roi.reg.{}": [deltas.flatten(1) for _, deltas in outputs],
    }
    if case.detector.has_masks:
        groups["synth.roi.mask_feats"] = [pool_rois(maps, rois[:20], 14)]
        groups["synth.roi.mask.{}"] = [mask(maps, rois[:20]) for _, _, mask in case.stages]
    return groups


def test_level_of_each_region(case):
    levels = roi_levels(join_rois(recorded.proposals()))
    np.testing.assert_array_equal(levels, case.samples["synth.roi.target_lvls"])


def test_losses_gradients_and_samples(case, drawn):
    case.detector.zero_grad()
    parts = case.detector.loss_parts(case.detector.pyramid(recorded.images()).maps, recorded.targets())
    assert_losses(parts, case.stored["train.losses"])
    sum(part.sum() for part in parts.values()).backward()
    recorded.assert_gradients(case.detector, case.stored["train.grad_norms"], tolerance=case.tolerance)
    gradients = [p.grad.double().norm() for p in case.detector.parameters() if p.grad is not None]
    assert torch.stack(gradients).norm().item() == pytest.approx(case.stored["train.grad_total_norm"], rel=1e-3)
    assert_region_samples(drawn, case.samples, "sampling", first=2)
    assert len(drawn) + 2 == len(case.stored["train.sampling"])


def test_heads_on_fixed_proposals(case, pyramid, drawn):
    case.detector.zero_grad()
    losses = case.detector.roi_head.losses(pyramid.maps, proposals(), objects(), rois_per_image=512)
    assert_losses(losses, case.stored["fixedprop.losses"])
    sum(losses.values()).backward()
    norms = case.stored["fixedprop.grad_norms"]
    recorded.assert_gradients(case.detector.roi_head, norms, tolerance=case.tolerance, prefix="roi_head.")
    assert_region_samples(drawn, case.samples, "fixedprop.sampling", first=0)


def test_heads_on_synthetic_maps(case):
    with torch.no_grad():
        losses = case.detector.roi_head.losses(recorded.feature_maps(), proposals(), objects(), rois_per_image=512)
    assert_losses(losses, case.stored["synth.roi.losses"])


def test_samples_of_anchors(case):
    anchors = torch.cat(case.detector.rpn_head.anchors.boxes(LEVEL_SIZES))
    drawn = case.detector.rpn_head.assign(anchors, LEVEL_SIZES, objects())
    for i, target in enumerate(recorded.targets()):
        height, width = target.size
        inside = (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2] < width) & (anchors[:, 3] < height)
        candidates = inside.nonzero()[:, 0] if case.detector.rpn_head.inside_only else torch.arange(len(anchors))
        assert len(candidates) == case.stored["train.sampling"][i]["n_candidates"]
        positive, negative, boxes = (part[i] for part in drawn)
        np.testing.assert_array_equal(positive.nonzero()[:, 0], candidates[case.samples[f"sampling.{i}.pos"]])
        np.testing.assert_array_equal(negative.nonzero()[:, 0], candidates[case.samples[f"sampling.{i}.neg"]])
        np.testing.assert_array_equal(boxes[positive], target.boxes[case.samples[f"sampling.{i}.pos_gt"]])


def test_proposals(case, pyramid):
    with torch.no_grad():
        outputs = case.detector.rpn_head(pyramid.maps)
    for name, before, after in [("train", 2000, case.kept_in_training), ("test", 1000, 1000)]:
        found = propose(case, outputs, before, after)
        for i, rows in enumerate(found):
            assert_same_set(rows, case.samples[f"{name}.rpn_proposals.{i}"])


def test_proposal_losses_and_boxes_from_synthetic_outputs(case):
    logits = [recorded.synthetic(f"rpn.cls.{i}", (2, 3, *size), 1.5) for i, size in enumerate(LEVEL_SIZES)]
    deltas = [recorded.synthetic(f"rpn.reg.{i}", (2, 12, *size), 0.3) for i, size in enumerate(LEVEL_SIZES)]
    assert_losses(case.detector.rpn_head.losses(logits, deltas, objects()), case.stored["synth.rpn.losses"])
    for name, before, after in [("train", 2000, case.kept_in_training), ("test", 1000, 1000)]:
        for i, rows in enumerate(propose(case, (logits, deltas), before, after)):
            assert len(rows) == case.stored[f"synth.rpn.{name}_proposals.{i}.n"]
            assert_same_set(rows[:100], case.samples[f"synth.rpn.{name}_proposals.{i}"])


def test_detections(case, pyramid, monkeypatch):
    monkeypatch.setattr(case.detector, "score_threshold", 0.02)
    with torch.no_grad():
        found = case.detector.detect(pyramid.maps, recorded.IMAGE_SIZES)
    for i, detections in enumerate(found):
        assert len(detections.scores) == case.stored[f"test.{i}.n"]
        assert_detections(detections, case.samples, f"test.{i}")


def test_detections_on_synthetic_maps(case, monkeypatch):
    monkeypatch.setattr(case.detector, "score_threshold", 0.02)
    monkeypatch.setattr(case.detector.rpn_head, "proposals", lambda *_, **__: proposals())
    with torch.no_grad():
        found = case.detector.detect(recorded.feature_maps(), recorded.IMAGE_SIZES)
    for i, detections in enumerate(found):
        assert len(detections.scores) == case.stored[f"synth.roi.test.{i}.n"]
        assert_detections(detections, case.samples, f"synth.roi.test.{i}")


def propose(case: Case, outputs: tuple[list[Tensor], list[Tensor]], before: int, after: int) -> list[Tensor]:
    """For each image (N, 5): boxes and scores."""
    limits = image_limits(recorded.IMAGE_SIZES, torch.device("cpu"))
    found = case.detector.rpn_head.proposals(*outputs, limits, candidates_per_level=before, limit=after)
    return [torch.cat([own, score[:, None]], dim=1)[usable] for own, score, usable in zip(*found)]


def assert_losses(parts: dict[str, Tensor], expected: dict[str, float | list[float]]) -> None:
    expected = {name: value for name, value in expected.items() if not name.endswith("acc")}
    assert set(parts) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name].detach().numpy(), value, rtol=1e-5, atol=1e-9, err_msg=name)


def assert_region_samples(drawn: list[Sample], samples: dict[str, np.ndarray], prefix: str, first: int) -> None:
    assert f"{prefix}.{first + len(drawn)}.pos" not in samples and drawn
    for i, sample in enumerate(drawn, start=first):
        np.testing.assert_array_equal(sample.positive, samples[f"{prefix}.{i}.pos"])
        np.testing.assert_array_equal(sample.negative, samples[f"{prefix}.{i}.neg"])
        np.testing.assert_array_equal(sample.objects, samples[f"{prefix}.{i}.pos_gt"])


def assert_same_set(rows: Tensor, expected: np.ndarray) -> None:
    """Boxes within 0.01 pixels and scores within 1e-5, in any order."""
    assert rows.shape == expected.shape
    gaps = (rows[:, None] - torch.from_numpy(expected)).abs() / torch.tensor([0.01, 0.01, 0.01, 0.01, 1e-5])
    partners = gaps.amax(dim=2) <= 1
    assert partners.any(dim=0).all() and partners.any(dim=1).all()


def assert_detections(found, samples: dict[str, np.ndarray], prefix: str) -> None:
    boxes = samples[f"{prefix}.boxes"]
    count = len(boxes)
    np.testing.assert_allclose(found.scores[:count], boxes[:, 4], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.boxes[:count], boxes[:, :4], atol=0.01, rtol=0)
    np.testing.assert_array_equal(found.labels[:count], samples[f"{prefix}.labels"])
    if f"{prefix}.mask_area" in samples:
        areas = found.masks[:count].flatten(1).sum(dim=1)
        np.testing.assert_allclose(areas, samples[f"{prefix}.mask_area"], atol=2, rtol=0)
    if f"{prefix}.masks_packed" in samples:
        packed = samples[f"{prefix}.masks_packed"]
        expected = np.unpackbits(packed, axis=-1).astype(bool)
        differing = found.masks[: len(packed)].numpy() != expected
        assert differing.sum(axis=(1, 2)).max() <= 2
