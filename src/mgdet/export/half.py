"""The network of a graph in half precision; what makes detections of its results stays in float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mgdet.export.regions import regions_of

LARGEST = float(np.finfo(np.float16).max)


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose network, between the normalised image and the last layers' results, is float16.

    Coordinates, scores and all that is chosen or suppressed by them stay float32, and so do input and outputs.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    network = regions_of(half).network
    types = _types(half)
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    made = {name for node in graph.node if node.name in network for name in node.output if name in types}
    nodes: list[NodeProto] = []
    cast = set[str]()

    def halved(name: str) -> str:
        """The float16 form of a float32 value, which is made where it is first needed."""
        short = f"{name}/half"
        if short not in cast and name not in made:
            cast.add(short)
            if name in weights:
                values = np.clip(numpy_helper.to_array(weights[name]), -LARGEST, LARGEST).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(values, short))
            else:
                nodes.append(helper.make_node("Cast", [name], [short], name=f"{short}/cast", to=TensorProto.FLOAT16))
        return short

    outside = {name for node in graph.node if node.name not in network for name in node.input}
    outside |= {output.name for output in graph.output}
    for node in graph.node:
        if node.name not in network:
            nodes.append(node)
            continue
        # The scales of a Resize are float32 whatever it resizes.
        values = node.input[:1] if node.op_type == "Resize" else node.input
        for place, name in enumerate(values):
            if name in types or name in weights:
                node.input[place] = halved(name)
        plain = list(node.output)
        node.output[:] = [f"{name}/half" if name in made else name for name in plain]
        nodes.append(node)
        for name in plain:
            if name in made and name in outside:
                nodes.append(
                    helper.make_node("Cast", [f"{name}/half"], [name], name=f"{name}/cast", to=TensorProto.FLOAT)
                )
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return half


def _types(model: onnx.ModelProto) -> set[str]:
    """The names of all float32 values that nodes give."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
