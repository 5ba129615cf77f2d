"""Half precision and eight bits: a network of few bits between an input and detections in float32."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from lively import how_of, ours, picture

from mgdet.cli import main
from mgdet.detectors.exported import Exported
from mgdet.detectors.face import Face
from mgdet.export.graph import build_graph, canvas_of
from mgdet.export.half import to_half
from mgdet.export.int8 import to_int8
from mgdet.export.metadata import Notes
from mgdet.export.regions import regions_of
from mgdet.export.verify import resemble
from tiny import liven, write_detector

pytestmark = pytest.mark.slow

SIZE = (96, 128)


@lru_cache(maxsize=1)
def built(name: str) -> tuple[Face, bytes]:
    """A detector and its graph in float32, kept for the next test of the same."""
    detector = ours(name)
    return detector, build_graph(detector, canvas_of(detector, SIZE)).SerializeToString()


def of_few_bits(name: str, precision: str) -> tuple[Face, Exported, onnx.ModelProto]:
    detector, graph = built(name)
    model = onnx.load_from_string(graph)
    few = to_half(model) if precision == "fp16" else to_int8(model, [picture(*SIZE, seed) for seed in range(8)])
    notes = Notes(tuple("abc"), how_of(detector, SIZE), name, "")
    return detector, Exported(notes.file_of(few, precision), path=Path("few.onnx")), few


@pytest.mark.parametrize("name", ["solo", "faster_rcnn", "retinanet"])
def test_half_precision(name):
    detector, graph, model = of_few_bits(name, "fp16")
    weights = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) > 100]
    assert sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in weights) > len(weights) / 2
    found = graph.run(picture(*SIZE))
    assert len(found.scores) > 0
    seen = resemble(detector, graph, [picture(*SIZE)], overlap=0.9)
    assert seen.share > 0.9


def test_eight_bits():
    _, graph, model = of_few_bits("retinanet", "int8")
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert len(graph.run(picture(*SIZE)).scores) > 0


def test_the_last_layers_of_a_network_are_known():
    model = onnx.load_from_string(built("retinanet")[1])
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
