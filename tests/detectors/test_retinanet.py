"""RetinaNet against the recorded values of the original, from keys to detections."""

from __future__ import annotations

import pytest
import torch

import recorded
from mgdet import Detector, Target, build_detector
from mgdet.errors import UserError

BACKBONES = {"retinanet_r50": "resnet50", "retinanet_x101_64x4d": "resnext101_64x4d"}


@pytest.fixture(scope="module", params=list(BACKBONES))
def case(request):
    """(detector with the recorded weights, json record, npz arrays, pyramid of the recorded images)."""
    name = request.param
    detector = build_detector("retinanet", backbone=BACKBONES[name], num_classes=80)
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
        logits, deltas = detector.bbox_head(pyramid.maps)
    groups = {
        "backbone.{}": stages,
        "fpn.{}": pyramid.maps,
        "fpn_convs.{}.conv": pyramid.taps,
        "head.cls.{}": logits,
        "head.reg.{}": deltas,
    }
    checked = [pattern.format(i) for pattern, tensors in groups.items() for i in range(len(tensors))]
    for pattern, tensors in groups.items():
        for i, tensor in enumerate(tensors):
            recorded.assert_tensor(tensor, pattern.format(i), stored, samples)
    assert sorted(checked) == sorted(stored["tensors"])


def test_losses_and_gradients(case):
    detector, stored, _, _ = case
    detector.zero_grad()
    maps = detector.pyramid(recorded.images()).maps
    parts = detector.loss_parts(maps, recorded.targets())
    recorded.assert_losses(parts, stored["train.losses"])
    sum(part.sum() for part in parts.values()).backward()
    recorded.assert_gradients(detector, stored["train.grad_norms"], tolerance=2e-3)
    total = torch.stack([p.grad.norm() for p in detector.parameters() if p.grad is not None]).norm().item()
    assert total == pytest.approx(stored["train.grad_total_norm"], rel=2e-3)


def test_detections(case):
    detector, stored, samples, pyramid = case
    detector.score_threshold = 0.001
    with torch.no_grad():
        recorded.assert_detections(detector.detect(pyramid.maps, recorded.IMAGE_SIZES), stored, samples, "test")
    detector.score_threshold = 0.05


class FixedHead(torch.nn.Module):
    """Replaces a head by recorded random outputs."""

    def __init__(self, maps: list[torch.Tensor]):
        super().__init__()
        sizes = [tuple(level.shape[-2:]) for level in maps]
        self.logits = [recorded.synthetic(f"head.cls.{i}", (2, 720, *size), 1.5, -3.0) for i, size in enumerate(sizes)]
        self.deltas = [recorded.synthetic(f"head.reg.{i}", (2, 36, *size), 0.3) for i, size in enumerate(sizes)]

    def forward(self, maps: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return self.logits, self.deltas


def test_synthetic_outputs(case, monkeypatch):
    detector, stored, samples, pyramid = case
    monkeypatch.setattr(detector, "bbox_head", FixedHead(pyramid.maps))
    parts = detector.loss_parts(pyramid.maps, recorded.targets())
    recorded.assert_losses(parts, stored["synth.losses"])
    found = detector.detect(pyramid.maps, recorded.IMAGE_SIZES)
    recorded.assert_detections(found, stored, samples, "synth.test")


def tiny(**changes) -> Detector:
    return build_detector("retinanet", backbone="resnet10t", channels=32, **{"num_classes": 3, **changes})


def test_an_image_without_objects_only_gives_a_classification_loss():
    detector = tiny()
    maps = detector.pyramid(torch.zeros(2, 3, 64, 64)).maps
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), size=(64, 64))
    losses = detector.losses(maps, [empty, empty])
    assert losses["loss_bbox"].item() == 0
    assert losses["loss_cls"].item() > 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


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
        there = detector.detect(maps, [(64, 64)], [(2.0, 2.0)])[0]
    torch.testing.assert_close(here.boxes, there.boxes * 2)
    torch.testing.assert_close(here.scores, there.scores)


def test_cells_beyond_an_images_own_padding_do_not_count():
    detector = tiny()
    maps = detector.pyramid(torch.zeros(1, 3, 128, 128)).maps
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    whole = detector.loss_parts(maps, [Target(*none, size=(64, 64))])["loss_cls"]
    same = detector.loss_parts(maps, [Target(*none, size=(64, 64), padded=(128, 128))])["loss_cls"]
    part = detector.loss_parts(maps, [Target(*none, size=(64, 64), padded=(64, 64))])["loss_cls"]
    torch.testing.assert_close(whole, same)
    torch.testing.assert_close(part[0] / whole[0], torch.tensor(0.25), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "retinanett"}, "did you mean 'retinanet'"),
        ({"backbone": "resnet5"}, "no backbone 'resnet5'"),
        ({"backbone": "vit_tiny_patch16_224"}, "four feature stages|strides"),
        ({"backbone": "resnet10t", "deformable": True}, "bottlenecks"),
    ],
)
def test_what_cannot_be_built_says_so(changes, sentence):
    arguments = {"name": "retinanet", "backbone": "resnet10t", "num_classes": 3, **changes}
    with pytest.raises(UserError, match=sentence):
        build_detector(**arguments)
