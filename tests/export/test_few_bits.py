"""Half precision and eight bits: a network of few bits between an input and detections in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from lively import graph_of, ours, picture

from mgdet.cli import main
from mgdet.detectors.exported import Exported
from mgdet.export.graph import build_graph, canvas_of
from mgdet.export.half import to_half
from mgdet.export.int8 import to_int8
from mgdet.export.metadata import Notes
from mgdet.export.regions import regions_of
from mgdet.export.verify import resemble
from tiny import liven, write_detector

pytestmark = pytest.mark.slow

SIZE = (96, 128)


def of_few_bits(name: str, precision: str) -> tuple[object, Exported, onnx.ModelProto]:
    detector = ours(name)
    model = build_graph(detector, canvas_of(detector, SIZE))
    few = to_half(model) if precision == "fp16" else to_int8(model, [picture(*SIZE, seed) for seed in range(8)])
    how = graph_of(detector, SIZE).preprocessing
    return detector, Exported(Notes(tuple("abc"), how, name, "").file_of(few, precision), path=Path("few.onnx")), few


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn", "solo"])
def test_half_precision(name):
    detector, graph, model = of_few_bits(name, "fp16")
    weights = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) > 100]
    assert sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in weights) > len(weights) / 2
    found = graph.run(picture(*SIZE))
    assert len(found.scores) > 0
    seen = resemble(detector, graph, [picture(*SIZE)], overlap=0.9)  # type: ignore[arg-type]
    assert seen.share > 0.9


def test_eight_bits():
    _, graph, model = of_few_bits("retinanet", "int8")
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert len(graph.run(picture(*SIZE)).scores) > 0


def test_the_last_layers_of_a_network_are_known():
    detector = ours("retinanet")
    model = build_graph(detector, canvas_of(detector, SIZE))
    network, last = regions_of(model)
    assert last < network
    assert len(last) == 2 * 5  # scores and boxes of five levels
    assert not any(node.name in network for node in model.graph.node if node.op_type == "NonMaxSuppression")


@pytest.mark.parametrize("option", [["--half"], ["--int8", "CALIBRATION"]])
def test_the_command_says_how_much_is_found_again(option, tiny, tmp_path, capsys):
    checkpoint = tmp_path / "trained.pth"
    write_detector(checkpoint, seed=7)
    liven(checkpoint)
    given = [str(tiny.root / "train") if word == "CALIBRATION" else word for word in option]
    out = tmp_path / "few.onnx"
    images = ["--images", str(tiny.root / "val")]
    assert main(["export", str(checkpoint), str(out), "--size", "96", "96", *images, *given]) == 0
    text = capsys.readouterr().out
    assert "detections with a score from 0.3 on are found again on 5 images" in text
    assert main(["test", str(out), "--data.root", str(tiny.root), "--data.workers", "0"]) == 0
    assert f"in {'fp16' if option == ['--half'] else 'int8'}, 3 classes" in capsys.readouterr().out
