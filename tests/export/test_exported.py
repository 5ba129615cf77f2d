"""An exported graph as a detector: what it says of itself, and what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch

from mgdet.detectors.exported import Preprocessing, load_exported, within
from mgdet.errors import UserError
from mgdet.structures import Detections
from tiny import CLASSES, write_graph

SCALE = Preprocessing("scale", 0, 0, 1333, 800, 0, (124, 116, 104), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def test_the_rule_is_said_and_survives_json():
    assert Preprocessing.from_dict(json.loads(json.dumps(SCALE.to_dict()))) == SCALE
    assert "longer edge of 1333 and a shorter edge of 800 pixels" in SCALE.line()
    letterbox = replace(SCALE, rule="letterbox", height=480, width=640)
    assert "fits into 480 x 640 (height x width)" in letterbox.to_dict()["text"]
    assert "fill the rest with (124, 116, 104)" in letterbox.line()
    squash = replace(SCALE, rule="squash", height=320, width=320, square=320)
    assert squash.line() == "resize to exactly 320 x 320 pixels, whatever the ratio"


def test_what_lies_in_the_padding_alone_is_left_out():
    boxes = torch.tensor([[0.0, 0, 50, 50], [70, 0, 90, 20], [10, 10, 30, 30]])
    found = within(Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 2])), (40, 60))
    assert found.boxes.tolist() == [[0, 0, 50, 40], [10, 10, 30, 30]]
    assert found.labels.tolist() == [0, 2]


def test_a_graph_neither_teaches_nor_learns(tmp_path):
    write_graph(tmp_path / "graph.onnx")
    graph = load_exported(tmp_path / "graph.onnx")
    assert graph.classes == CLASSES
    with pytest.raises(UserError, match="is an exported graph and cannot teach; give the checkpoint"):
        graph.see(torch.zeros(1, 3, 32, 32), [(32, 32)])
    with pytest.raises(UserError, match="cannot learn"):
        graph.learn(torch.zeros(1, 3, 32, 32), [])


def test_files_that_are_no_graph_of_ours(tmp_path):
    import onnx

    with pytest.raises(UserError, match=r"there is no file '.*none\.onnx'"):
        load_exported(tmp_path / "none.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="damaged, or no graph that ONNX Runtime can run"):
        load_exported(tmp_path / "damaged.onnx")
    write_graph(tmp_path / "other.onnx")
    model = onnx.load(tmp_path / "other.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="was not written by mgdet export"):
        load_exported(tmp_path / "other.onnx")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    write_graph(tmp_path / "graph.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'mgdet\[export\]'"):
        load_exported(tmp_path / "graph.onnx")
