"""From a detector to a model in ONNX: torch traces its form, and a shell around it takes the image as it is decoded."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mgdet.data.transforms import padded_size
from mgdet.detectors.exported import IMAGE, OUTPUTS
from mgdet.detectors.face import Face
from mgdet.errors import UserError, shortage
from mgdet.export.forms import form_of
from mgdet.export.forms.base import Form
from mgdet.export.translations import TABLE

OPSET = 20
INPUT_PREFIX = "input/"
"""What the names of the nodes begin with that turn pixels into images."""
TRACED_EDGES = (256, 320)
LARGEST = 2**31 - 1
"""Bytes of a model that is one file."""


class Canvas(NamedTuple):
    """Which images a graph takes: of (h, w), or with zeros of any size; the network sees multiples of `multiple`.

    traced: least edges of the empty image that a graph for images of any size is traced with.
    """

    height: int
    width: int
    multiple: int
    traced: tuple[int, int]

    @property
    def fixed(self) -> bool:
        """Does the graph take this size only?"""
        return self.height > 0

    @property
    def padded(self) -> tuple[int, int]:
        """The (h, w) that the network sees; for images of any size those that it is traced with."""
        height, width = (self.height, self.width) if self.fixed else self.traced
        return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple


def canvas_of(detector: Face, size: tuple[int, int] | None) -> Canvas:
    """Images of `size` (h, w), or of any size; padded as evaluation pads them, to multiples that the detector takes."""
    multiple, _ = padded_size((1, 1), detector.multiple)
    height, width = size or (0, 0)
    least = detector.smallest_side if size is None else 0
    traced = max(TRACED_EDGES[0], least), max(TRACED_EDGES[1], least)
    return Canvas(height, width, multiple if detector.native_size is None else 1, traced)


def build_graph(detector: Face, canvas: Canvas) -> onnx.ModelProto:
    """The graph of a detector, in float32.

    It takes `image`, (1, h, w, 3) uint8 RGB, and gives `boxes` (N, 4) xyxy in its pixels, `scores` (N,), `labels` (N,)
    and, for detectors with masks, `masks` (N, h, w) bool.

    Args:
        detector: in eval mode; best its `inference_form`.
        canvas: which images the graph takes.

    Raises:
        UserError: torch cannot trace the detector, or its weights are too many for one file.
    """
    outputs = OUTPUTS if detector.has_masks else OUTPUTS[:3]
    model = _traced(detector, canvas, outputs)
    _take_pixels(model, detector, canvas)
    if detector.has_masks:
        _crop_masks(model)
    _describe_outputs(model, canvas)
    if model.ByteSize() > LARGEST:
        raise UserError(
            "the detector's weights are more than 2 GiB, which no single ONNX file holds; take a smaller one"
        )
    return model


class _Network(nn.Module):
    """A form whose image fills the canvas, where that is fixed; it gives its results in a plain tuple."""

    def __init__(self, form: Form, canvas: Canvas):
        super().__init__()
        self.form = form
        self.filled: Tensor
        self.register_buffer("filled", torch.tensor([canvas.width, canvas.height] * 2, dtype=torch.float32))

    def forward(self, images: Tensor, limits: Tensor | None = None) -> tuple[Tensor, ...]:
        found = self.form(images, self.filled if limits is None else limits)
        return tuple(value for value in found if value is not None)


class _AnyLinspace(TorchFunctionMode):
    """Lets `linspace` count as many steps as an image of any size asks for; torch would write the number down."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace and len(args) == 3 and isinstance(args[2], torch.SymInt):
            start, end, steps = args
            return start + torch.arange(steps, **kwargs) * ((end - start) / torch.sym_max(steps - 1, 1))
        return func(*args, **kwargs)


def _traced(detector: Face, canvas: Canvas, outputs: tuple[str, ...]) -> onnx.ModelProto:
    """The network alone: images (1, 3, H, W) float, and, of any size, `limits` (4,), to the outputs."""
    height, width = canvas.padded
    arguments: tuple[Tensor, ...] = (torch.zeros(1, 3, height, width),)
    shapes: Any = None
    if not canvas.fixed:
        dim = torch.export.Dim
        arguments += (torch.tensor([width, height] * 2, dtype=torch.float32),)
        shapes = {"images": {2: canvas.multiple * dim("rows"), 3: canvas.multiple * dim("columns")}, "limits": None}
    network = _Network(form_of(detector), canvas).eval()
    try:
        with quiet(), torch.no_grad(), _AnyLinspace():
            program = torch.export.export(network, arguments, dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(
                program,
                input_names=["images", "limits"][: len(arguments)],
                output_names=list(outputs),
                opset_version=OPSET,
                custom_translation_table=TABLE,
                verbose=False,
            )
    except Exception as error:  # whatever a library's code does that cannot be traced
        if shortage(error):
            raise
        raise _untraceable(error, canvas) from error
    assert exported is not None
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # where on this machine it was traced
    return exported.model_proto


def _untraceable(error: Exception, canvas: Canvas) -> UserError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    first = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    if canvas.fixed:
        return UserError(f"torch cannot trace this detector ({first[:200]})")
    return UserError(f"torch cannot trace this detector for images of any size ({first[:200]}); give a --size")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks that exporters and optimisers print, log and warn of: they are about their own code."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _take_pixels(model: onnx.ModelProto, detector: Face, canvas: Canvas) -> None:
    """Puts in front of the network what turns pixels into its images: type, order, normalisation, padding."""
    graph = model.graph
    nodes: list[NodeProto] = []

    def constant(name: str, values: Any, kind: int) -> str:
        array = helper.make_tensor(f"input/{name}", kind, [len(values)], values)
        graph.initializer.append(array)
        return array.name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"input/{kind.lower()}_{len(nodes)}", **attributes))
        return output

    pixels = detector.pixels
    mean, std = (
        numpy_helper.from_array(torch.tensor(values).view(1, 3, 1, 1).numpy(), f"input/{name}")
        for name, values in (("mean", pixels.mean), ("std", pixels.std))
    )
    graph.initializer.extend([mean, std])
    planes = node("Transpose", [IMAGE], "input/planes", perm=[0, 3, 1, 2])
    if pixels.bgr:
        planes = node("Gather", [planes, constant("channels", [2, 1, 0], TensorProto.INT64)], "input/bgr", axis=1)
    values = node("Cast", [planes], "input/float", to=TensorProto.FLOAT)
    centred = node("Sub", [values, mean.name], "input/centred")
    padded = (canvas.height, canvas.width) != canvas.padded
    node("Div", [centred, std.name], "input/normalised" if padded else "images")
    edges: list[int | str] = [canvas.height, canvas.width] if canvas.fixed else ["height", "width"]
    if canvas.fixed and padded:
        below, beside = (whole - edge for whole, edge in zip(canvas.padded, (canvas.height, canvas.width)))
        node("Pad", ["input/normalised", constant("pads", [0] * 6 + [below, beside], TensorProto.INT64)], "images")
    if not canvas.fixed:
        size = node("Shape", [IMAGE], "input/size", start=1, end=3)
        unit = constant("multiple", [canvas.multiple], TensorProto.INT64)
        more = node("Mod", [node("Neg", [size], "input/negative"), unit], "input/more")
        pads = node("Concat", [constant("before", [0] * 6, TensorProto.INT64), more], "input/pads", axis=0)
        node("Pad", ["input/normalised", pads], "images")
        order = constant("order", [1, 0, 1, 0], TensorProto.INT64)
        node("Cast", [node("Gather", [size, order], "input/limits")], "limits", to=TensorProto.FLOAT)
    network = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *network])
    graph.input.append(helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [1, *edges, 3]))


def _crop_masks(model: onnx.ModelProto) -> None:
    """Takes the padding off the masks."""
    graph = model.graph
    masks = OUTPUTS[3]
    for node in graph.node:
        for outputs in (node.output, node.input):
            for place, name in enumerate(outputs):
                if name == masks:
                    outputs[place] = "output/padded"
    for name, values in (("starts", [0, 0]), ("axes", [1, 2])):
        graph.initializer.append(helper.make_tensor(f"output/{name}", TensorProto.INT64, [2], values))
    graph.node.extend(
        [
            helper.make_node("Shape", [IMAGE], ["output/size"], name="output/shape", start=1, end=3),
            helper.make_node(
                "Slice",
                ["output/padded", "output/starts", "output/size", "output/axes"],
                [masks],
                name="output/crop",
            ),
        ]
    )


def _describe_outputs(model: onnx.ModelProto, canvas: Canvas) -> None:
    """Names the lengths in the outputs, as those of the input are named."""
    del model.graph.value_info[:]
    size: list[int | str] = [canvas.height, canvas.width] if canvas.fixed else ["height", "width"]
    shapes: dict[str, list[int | str]] = {"boxes": ["objects", 4], "masks": ["objects", *size]}
    for output in model.graph.output:
        kind = output.type.tensor_type.elem_type
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, shapes.get(output.name, ["objects"])))
