"""The convolutions of a graph in eight bits, with ranges that ONNX Runtime's tools measure on pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from mgdet.detectors.exported import IMAGE
from mgdet.export.graph import quiet
from mgdet.export.regions import regions_of

KINDS = ("Conv", "Gemm", "MaxPool", "Add", "Concat", "Resize", "Relu")
"""What runs in eight bits, so that what lies between convolutions need not leave them."""


class _Pictures(CalibrationDataReader):
    """Images (h, w, 3) uint8, one after the other."""

    def __init__(self, images: Sequence[np.ndarray]):
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        image = next(self._images, None)
        return None if image is None else {IMAGE: image[None]}


def to_int8(model: onnx.ModelProto, images: Sequence[np.ndarray]) -> onnx.ModelProto:
    """A copy whose network computes in eight bits but for its last layers, whose results are scores and boxes.

    Args:
        model: in float32.
        images: (h, w, 3) uint8, RGB, as the graph takes them: what the ranges are measured on.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, prepared, result = (Path(folder, name) for name in ("plain.onnx", "prepared.onnx", "int8.onnx"))
        onnx.save(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        optimised = onnx.load(prepared)
        network, last = regions_of(optimised)
        wanted = [node.name for node in optimised.graph.node if node.op_type in KINDS and node.name in network - last]
        quantize_static(
            prepared,
            result,
            _Pictures(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(KINDS),
            nodes_to_quantize=wanted,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(result)
