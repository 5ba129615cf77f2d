"""Another library's detector, opened under its own name: its head, its classes and the size of its images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torchvision.models import get_model_builder, get_model_weights
from transformers import DetrImageProcessor, ResNetConfig, ResNetModel, RTDetrImageProcessor

from mgdet.loaded import load
from mgdet.models.opened import open_detector
from refusals import refusal
from test_any_pair import save_tiny

ALIKE = [("a", "A", "b"), ("plus", "+", "-"), ("sofa", "couch", "dog"), ("cat", "cat", "dog")]


@pytest.mark.parametrize("names", ALIKE)
def test_class_names_that_look_alike_keep_their_outputs(names, tmp_path):
    folder = save_tiny("detr", tmp_path / "hf", names=names)
    opened = open_detector(f"hf:{folder}")
    assert (opened.classes, opened.detector.columns) == (names, (0, 1, 2))
    entry = "class_labels_classifier.weight"
    assert torch.equal(opened.detector.weights()[entry], load_file(folder / "model.safetensors")[entry])


def test_a_model_of_the_hub_names_its_classes_itself(tmp_path, monkeypatch):
    """Its settings lie in the hub's cache, which is not looked at before the detector is built."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    save_tiny("rt_detr_v2", repository / "snapshots" / ("0" * 40), names=("N/A", "cat", "dog"))
    opened = open_detector("hf:someone/tiny")
    assert (opened.classes, opened.detector.columns) == (("cat", "dog"), (1, 2))
    assert opened.lines[0] == "hf:someone/tiny, as published"


def test_a_backbone_finds_nothing(tmp_path):
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])).save_pretrained(
        tmp_path
    )
    for source in (f"hf:{tmp_path}", "timm:resnet18.tv_in1k"):
        message = refusal(open_detector, source)
        assert message == f"{source} is a backbone, which finds nothing; give a detector"


def test_outputs_without_a_class_are_left_out(tmp_path):
    folder = save_tiny("detr", tmp_path / "hf", names=("N/A", "cat", "N/A", "Cat", "dog"))
    opened = open_detector(f"hf:{folder}")
    assert (opened.classes, opened.detector.columns) == (("cat", "Cat", "dog"), (1, 3, 4))
    found = opened.detector.find(torch.zeros(1, 3, 64, 64), [(64, 64)])[0]
    assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < 3


@pytest.mark.parametrize(
    ("kind", "processor", "size"),
    [
        ("rt_detr_v2", None, (640, 640, 640)),
        ("detr", None, (1333, 800, 0)),
        ("detr", {"size": {"shortest_edge": 480, "longest_edge": 600}}, (600, 480, 0)),
        ("rt_detr_v2", {"size": {"height": 96, "width": 128}}, (128, 96, 0)),
        ("rt_detr_v2", {"do_resize": False}, (1333, 800, 0)),
    ],
)
def test_images_come_in_the_size_that_the_library_tests_at(kind, processor, size, tmp_path):
    folder = save_tiny(kind, tmp_path / "hf")
    if processor is not None:
        (RTDetrImageProcessor if kind == "rt_detr_v2" else DetrImageProcessor)(**processor).save_pretrained(folder)
    data = open_detector(f"hf:{folder}").data
    assert (data.long_edge, data.short_edge[1], data.square) == size


@pytest.mark.parametrize(
    ("name", "size"),
    [("ssdlite320_mobilenet_v3_large", (320, 320, 320)), ("fasterrcnn_mobilenet_v3_large_320_fpn", (640, 320, 0))],
)
def test_a_published_detector_predicts_in_its_own_size(name, size, tmp_path, monkeypatch):
    """A stand-in for torchvision's file lies in torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = get_model_weights(name).DEFAULT
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    torch.save(get_model_builder(name)(weights=None, weights_backbone=None).state_dict(), file)
    opened = open_detector(f"torchvision:{name}")
    data = opened.data
    assert (data.square or data.long_edge, data.square or data.short_edge[1], data.square) == size
    assert (len(opened.classes), opened.classes[0], opened.detector.columns[11]) == (80, "person", 13)
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.full((60, 90, 3), 99, np.uint8))
    (found,) = load(f"torchvision:{name}", device="cpu").predict(tmp_path / "photo.jpg", score=0.0)
    assert found.size == (60, 90)
