"""Weights into a detector: what fits, what is refused, and the line that accounts for every tensor."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

import forged
import recorded
from mgdet import build_detector
from mgdet.interop.loading import count_classes, load_checkpoint
from mgdet.interop.weights import Checkpoint, read_checkpoint, save_checkpoint
from mgdet.layers.backbone import build_backbone
from refusals import refusal

CONFIG = {"recipe": "mine", "student": {"detector": "retinanet", "backbone": "resnet50"}, "data": {"edges": [1, 2]}}


def test_strict_load_and_its_line(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, forged.state(seed=5), classes=forged.CLASSES, config=None)
    detector = forged.TinyDetector()
    report = load_checkpoint(detector, path)
    assert forged.same(detector.state_dict(), forged.state(seed=5))
    count = len(forged.state())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.matched == count
    assert report.line() == (
        f"{path}: {count} tensors loaded, 0 missing, 0 unexpected, 0 of another shape; SHA-256 {sha256}"
    )


def test_every_difference_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "a.pth"
    architecture, sizes = "another architecture", "the names agree, the sizes do not"
    for change, part, reason in [
        (lambda w: w.pop("neck.lateral.bias"), "1 missing (neck.lateral.bias)", architecture),
        (lambda w: w.update({"neck.more": torch.zeros(1)}), "1 unexpected (neck.more)", architecture),
        (
            lambda w: w.update({"neck.lateral.bias": torch.zeros(8)}),
            "1 of another shape (neck.lateral.bias: file (8,), model (4,))",
            sizes,
        ),
    ]:
        weights = forged.state(seed=5)
        change(weights)
        save_checkpoint(path, weights, classes=None, config=None)
        detector = forged.TinyDetector(seed=0)
        text = refusal(load_checkpoint, detector, path)
        assert part in text
        assert reason in text
        assert forged.same(detector.state_dict(), forged.state(seed=0))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["neck.lateral.bias", "backbone.bn1.running_var"])
def test_weights_that_are_not_finite_are_refused(tmp_path, name, number):
    weights = forged.state(seed=5)
    weights[name].flatten()[-1] = number
    save_checkpoint(tmp_path / "a.pth", weights, classes=None, config=None)
    detector = forged.TinyDetector(seed=0)
    text = refusal(load_checkpoint, detector, tmp_path / "a.pth")
    assert f"not finite, in {name}: its training diverged" in text
    assert forged.same(detector.state_dict(), forged.state(seed=0))


@pytest.mark.parametrize("classes", [None, tuple("abcde")])
def test_other_number_of_classes_names_both(tmp_path, classes):
    path = tmp_path / "a.pth"
    save_checkpoint(path, forged.state(num_classes=5), classes=classes, config=None)
    text = refusal(load_checkpoint, forged.TinyDetector(3), path)
    assert "trained for 5 classes, this detector has 3" in text


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "cascade_mask_rcnn", "retinanet", "reppoints", "solo"])
@pytest.mark.parametrize(("here", "there"), [(1, 80), (1, 3), (2, 5), (80, 1)])
def test_classes_are_counted_without_the_background(name, here, there):
    """One class and the background are two outputs, and 80 classes are 81, not 40."""
    with torch.device("meta"):
        detector, other = (
            build_detector(name, backbone="test_resnet", num_classes=number, channels=32) for number in (here, there)
        )
    checkpoint = Checkpoint(Path("a.pth"), "", other.state_dict(), None, None, "mmdetection", 1)
    assert count_classes(detector, checkpoint) == there
    wider = {
        entry: value for entry, value in other.state_dict().items() if not entry.startswith(other.class_predictors)
    }
    wider["backbone.layer1.0.bn1.weight"] = torch.zeros(128)
    assert count_classes(detector, replace(checkpoint, state_dict=wider)) is None


def test_own_file_of_another_architecture_says_what_it_is(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, forged.state() | {"backbone.layer9.weight": torch.zeros(1)}, classes=None, config=CONFIG)
    assert "it holds a retinanet with the backbone resnet50" in refusal(load_checkpoint, forged.TinyDetector(), path)
    for grids, words in (([9, 8, 6, 5, 3], "resnet50 and grids of 9 8 6 5 3 cells"), (5, "the backbone resnet50")):
        config = CONFIG | {"student": CONFIG["student"] | {"grids": grids}}
        save_checkpoint(path, forged.state() | {"other": torch.zeros(1)}, classes=None, config=config)
        assert refusal(load_checkpoint, forged.TinyDetector(), path).endswith(words)


def test_partial_load_names_what_it_skips(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, forged.state(5, num_classes=5), classes=None, config=None)
    detector = forged.TinyDetector(3, seed=0)
    report = load_checkpoint(detector, path, partial=("bbox_head.retina_cls.",))
    start, loaded = forged.state(0), forged.state(5, num_classes=5)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, start[name] if "retina_cls" in name else loaded[name]), name
    assert "2 of another shape (bbox_head.retina_cls.weight: file (45, 4, 3, 3), model (27, 4, 3, 3)" in report.line()


def test_backbone_file_fills_the_backbone(tmp_path):
    path = tmp_path / "resnet.pth"
    weights = {n.removeprefix("backbone."): v for n, v in forged.state(5).items() if n.startswith("backbone.")}
    del weights["bn1.num_batches_tracked"]
    torch.save(weights | {"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}, path)
    assert read_checkpoint(path).kind == "backbone"
    detector = forged.TinyDetector(seed=0)
    assert "only a backbone" in refusal(load_checkpoint, detector, path)
    report = load_checkpoint(detector, path, partial=("neck.", "bbox_head."))
    assert report.matched == len(weights)
    assert report.unexpected == ["fc.weight", "fc.bias"]
    assert torch.equal(detector.backbone.conv1.weight, weights["conv1.weight"])
    assert torch.equal(detector.neck.lateral.bias, forged.state(0)["neck.lateral.bias"])


def test_read_checkpoint_may_be_given(tmp_path):
    torch.save(forged.state(5), tmp_path / "a.pth")
    detector = forged.TinyDetector()
    load_checkpoint(detector, read_checkpoint(tmp_path / "a.pth"))
    assert forged.same(detector.state_dict(), forged.state(5))


def recorded_file(path, name: str) -> None:
    """A file with the names and shapes of the original's detector; every number of a tensor is the same one."""
    shapes = recorded.record(name)["state_dict"]
    weights = {key: torch.zeros(1).expand(shape) if shape else torch.tensor(0) for key, shape in shapes.items()}
    torch.save({"meta": {"CLASSES": tuple(f"class {i}" for i in range(80))}, "state_dict": weights}, path)


def test_original_checkpoint_fits_our_retinanet(tmp_path):
    recorded_file(tmp_path / "r50.pth", "retinanet_r50")
    detector = build_detector("retinanet", backbone="resnet50", num_classes=80)
    report = load_checkpoint(detector, tmp_path / "r50.pth")
    assert (report.matched, report.missing, report.unexpected, report.mismatched) == (354, [], [], [])
    assert all(parameter.abs().max() == 0 for parameter in detector.parameters())


def test_checkpoint_of_the_teacher_does_not_fit_the_student(tmp_path):
    recorded_file(tmp_path / "x101.pth", "retinanet_x101_64x4d")
    detector = build_detector("retinanet", backbone="resnet50", num_classes=80)
    text = refusal(load_checkpoint, detector, tmp_path / "x101.pth")
    assert "306 unexpected (backbone.layer3.10." in text
    assert "another architecture" in text


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "test_mambaout", "cspnext_tiny"])
def test_timms_own_file_fits_timms_extractor_of_features(name, tmp_path):
    """Their names differ in `stages.0` and `model.`, and the file has parts behind the last stage."""
    weights = timm.create_model(name).state_dict()
    torch.save(weights, tmp_path / "a.pth")
    detector = torch.nn.Module()
    detector.backbone = build_backbone(name, frozen_stages=0)
    report = load_checkpoint(detector, tmp_path / "a.pth")
    assert (report.missing, report.mismatched) == ([], [])
    assert report.matched == len(detector.state_dict())
    assert report.matched + len(report.unexpected) == len(weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load(dtype, tmp_path):
    weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in forged.state(1).items()}
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    detector = forged.TinyDetector()
    load_checkpoint(detector, tmp_path / "a.pth")
    assert detector.neck.lateral.weight.dtype == torch.float32
    assert torch.equal(detector.neck.lateral.weight.to(dtype), weights["neck.lateral.weight"])
