"""How ONNX says what torch's own exporter has no words for: operations of torchvision, and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision  # noqa: F401 - it registers its operations
from onnx import TensorProto
from onnxscript import opset20

from mgdet.export import ops  # noqa: F401 - it registers ours

op: Any = opset20
Value = Any
"""A value of the graph that is being written."""


def _suppress(boxes: Value, scores: Value, least: float, overlap: float, limit: int) -> Value:
    chosen = op.NonMaxSuppression(
        op.Unsqueeze(boxes, op.Constant(value_ints=[0])),
        op.Unsqueeze(scores, op.Constant(value_ints=[0, 1])),
        op.Constant(value_ints=[limit]),
        op.Constant(value_floats=[overlap]),
        op.Constant(value_floats=[least]),
    )
    return op.Gather(chosen, op.Constant(value_int=2), axis=1)  # of (image, class, box)


def _suppress_by_class(
    boxes: Value, scores: Value, labels: Value, num_labels: int, least: float, overlap: float, limit: int
) -> Value:
    classes = op.Constant(value_ints=list(range(num_labels)))
    own = op.Equal(
        op.Unsqueeze(classes, op.Constant(value_ints=[1])), op.Unsqueeze(labels, op.Constant(value_ints=[0]))
    )
    nothing = op.Constant(value_float=least)
    by_class = op.Where(own, scores, nothing)
    chosen = op.NonMaxSuppression(
        op.Unsqueeze(boxes, op.Constant(value_ints=[0])),
        op.Unsqueeze(by_class, op.Constant(value_ints=[0])),
        op.Constant(value_ints=[limit]),
        op.Constant(value_floats=[overlap]),
        op.Constant(value_floats=[least]),
    )
    kept = op.Gather(chosen, op.Constant(value_int=2), axis=1)
    # Class after class; the best of all of them come first.
    number = op.Min(op.Shape(kept), op.Constant(value_ints=[limit]))
    _, order = op.TopK(op.Gather(scores, kept), number)
    return op.Gather(kept, order)


def _pool(
    maps: Sequence[Value],
    boxes: Value,
    levels: Value,
    scales: Sequence[float],
    size: int,
    samples: int,
    aligned: bool,
) -> Value:
    mode = "half_pixel" if aligned else "output_half_pixel"
    parts, places = [], []
    for level, (own, scale) in enumerate(zip(maps, scales)):
        hit = op.Equal(levels, op.Constant(value_int=level))
        rows = op.Squeeze(op.NonZero(hit), op.Constant(value_ints=[0]))
        part = op.RoiAlign(
            own,
            op.Gather(boxes, rows),
            op.Mul(rows, op.Constant(value_int=0)),
            coordinate_transformation_mode=mode,
            output_height=size,
            output_width=size,
            sampling_ratio=samples,
            spatial_scale=scale,
        )
        parts.append(part)
        places.append(rows)
    if len(parts) == 1:
        return parts[0]
    # Level after level, then back into the order of the boxes.
    order = op.Concat(*places, axis=0)
    number = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(order)), op.Constant(value_int=1))
    return op.Gather(
        op.Concat(*parts, axis=0), op.ScatterElements(op.Mul(order, op.Constant(value_int=0)), order, number)
    )


def _deform(
    x: Value,
    weight: Value,
    offset: Value,
    mask: Value,
    bias: Value,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
) -> Value:
    return op.DeformConv(
        x,
        weight,
        offset,
        bias,
        mask if use_mask else None,
        strides=[stride_h, stride_w],
        pads=[pad_h, pad_w, pad_h, pad_w],
        dilations=[dilation_h, dilation_w],
        group=groups,
        offset_group=offset_groups,
    )


def _sort(x: Value, stable: bool | None = None, dim: int = -1, descending: bool = False) -> tuple[Value, Value]:
    length = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    values, order = op.TopK(x, length, axis=dim, largest=int(descending))  # of equal values the first comes first
    return values, order


def _all(flags: Value) -> Value:
    least = op.ReduceMin(op.Cast(flags, to=TensorProto.INT32), keepdims=0)
    return op.Cast(least, to=TensorProto.BOOL)


TABLE: dict[Callable, Callable] = {
    torch.ops.mgdet.suppress.default: _suppress,
    torch.ops.mgdet.suppress_by_class.default: _suppress_by_class,
    torch.ops.mgdet.pool.default: _pool,
    torch.ops.aten._is_all_true.default: _all,
    torch.ops.aten.sort.stable: _sort,
    torch.ops.torchvision.deform_conv2d.default: _deform,
}
