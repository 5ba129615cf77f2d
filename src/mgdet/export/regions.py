"""Which nodes of a graph are its network, and which make detections of what the network says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import onnx
from onnx import NodeProto, TensorProto

from mgdet.export.graph import INPUT_PREFIX

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ARITHMETIC = ("Add", "Div", "Expand", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub", "ReduceMean", "ReduceSum")
ACTIVATIONS = (
    "Clip",
    "Elu",
    "Erf",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "PRelu",
    "Relu",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
)
NORMS = ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization")
SHAPES = (
    "AveragePool",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "Identity",
    "MaxPool",
    "Pad",
    "Reshape",
    "Resize",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
BETWEEN = frozenset((*ARITHMETIC, *ACTIVATIONS, *NORMS, *SHAPES))
"""What may stand between two layers and does not mind few bits. Points, coordinates and choices are not among them."""


class Regions(NamedTuple):
    """Names of nodes.

    network: layers with weights, and what lies between them.
    last: layers whose results the detections are made of, without another layer between.
    """

    network: set[str]
    last: set[str]


def regions_of(model: onnx.ModelProto) -> Regions:
    """The regions of a graph whose nodes all have a name."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    makers = {name: node for node in model.graph.node for name in node.output}
    layers = [node for node in model.graph.node if node.op_type in LAYERS and weights.intersection(node.input)]
    names = {node.name for node in layers}

    def before(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
        for node in nodes:
            for name in node.input:
                if name in makers:
                    yield makers[name]

    tail, last = set[str](), set[str]()
    waiting = [makers[output.name] for output in model.graph.output]
    while waiting:
        node = waiting.pop()
        if node.name in names:
            last.add(node.name)
        elif node.name not in tail:
            tail.add(node.name)
            waiting += before([node])
    network, waiting = set(names), list(before(layers))
    while waiting:
        node = waiting.pop()
        own = node.name.startswith(INPUT_PREFIX) or node.name in tail or node.op_type not in BETWEEN
        if not own and node.name not in network:
            network.add(node.name)
            waiting += before([node])
    return Regions(network, last)
