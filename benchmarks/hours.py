"""How long the published distillations take on GPUs that are not here: counted, not measured.

    python benchmarks/hours.py                # the tables of coco.md
    python benchmarks/hours.py --json out.json

One step of each recipe runs on tensors without data (torch's meta device), at the published 2 images for each GPU of
800 x 1344 pixels. Every operator of the forward and backward pass, with the teacher and the method, gives its
floating-point operations F, as torch.utils.flop_counter counts them, and the bytes M that it reads and writes. On a
GPU of P operations and W bytes per second, of which it reaches the shares u and v, and whose host takes the time L to
launch an operator, a step takes

    sum over operators of max(F / (u * P), M / (v * W), L)

Not counted: losses, assignment, suppression, evaluation, waits, the exchange of gradients and reading images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mgdet.config import Config
from mgdet.detectors.base import Detector
from mgdet.layers.box_head import POOL_SIZE as BOX_CELLS
from mgdet.layers.inference import inference_form
from mgdet.layers.mask_head import POOL_SIZE as MASK_CELLS
from mgdet.methods.student import DistilledStudent
from mgdet.methods.teacher import Teacher
from mgdet.models import detector_from, with_methods
from mgdet.recipes import RECIPES, load_recipe

SIZE = (800, 1344)
"""A landscape image of 1333 x 800 pixels, padded to multiples of 32."""
IMAGES_PER_GPU = 2
COCO_IMAGES = 117_266
"""Training images of COCO 2017 with an object."""
CLASSES = 80


class Gpu(NamedTuple):
    """What the maker publishes, dense and without sparsity.

    fp32: TFLOP/s of float32 as training multiplies it: TF32 where there is TF32.
    half: TFLOP/s in bf16, in fp16 where there is none.
    memory: GB/s.
    fp32_utilisation: share of `fp32` that large products reach.
    """

    fp32: float
    half: float
    memory: float
    fp32_utilisation: float = 0.4


GPUS = {
    "V100": Gpu(15.7, 125.0, 900.0, 0.8),
    "A100": Gpu(156.0, 312.0, 2039.0),
    "H100": Gpu(494.0, 989.0, 3350.0),
    "RTX 4090": Gpu(82.6, 165.2, 1008.0),
    "L4": Gpu(60.0, 121.0, 300.0),
}
"""SXM modules of the first three."""
UTILISATION, MEMORY_UTILISATION = 0.4, 0.7
"""Shares of what is published that large products in half precision, and all else, reach: assumed, not measured."""
LAUNCH = 6e-6
"""Seconds of the host for each operator: assumed, as in `scale.py`."""
CHECKED = {"retinanet_r50_1x": 0.205, "faster_rcnn_r50_1x": 0.216, "mask_rcnn_r50_1x": 0.265}
"""Seconds per step of 2 images for each V100, measured by MMDetection for its own code on images of 640 to 800 pixels
(docs/en/model_zoo.md, "Training Speed"); the arithmetic is held against them."""


class Work(NamedTuple):
    """One operator: floating-point operations, a multiply-add counted as two, and bytes read and written."""

    flops: float
    bytes: float


class Counter(TorchDispatchMode):
    """Notes every operator that runs within it.

    operators: one `Work` for each, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._overloadpacket
        if func.is_view:
            return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        flops = 0.0
        registry: dict[Any, Any] = flop_registry
        if name in registry:
            flops = registry[name](*args, **(kwargs or {}), out_val=result)
        elif name in _DEFORMED:
            flops = _DEFORMED[name](*args)
        self.operators.append(Work(flops, sum(tensor.numel() * tensor.element_size() for tensor in tensors)))
        return result


def _deformed(x: Tensor, weight: Tensor, offset: Tensor, *rest: Any) -> float:
    """A deformable convolution is a product of samples and weight; sampling is not counted."""
    return 2.0 * weight.numel() * offset.shape[0] * offset.shape[2] * offset.shape[3]


def _deformed_backward(grad: Tensor, x: Tensor, weight: Tensor, offset: Tensor, *rest: Any) -> float:
    return 2 * _deformed(x, weight, offset)


_DEFORMED: dict[Any, Callable[..., float]] = {
    torch.ops.torchvision.deform_conv2d: _deformed,
    torch.ops.torchvision._deform_conv2d_backward: _deformed_backward,
}


def count(config: Config, *, images: int, size: tuple[int, int]) -> list[Work]:
    """Every operator of one step of a recipe, forward, backward and update.

    Args:
        config: the recipe.
        images: in the step.
        size: (h, w) in pixels, multiples of 32.
    """
    with torch.device("meta"), _without_autocast():
        student = detector_from(config.student, CLASSES)
        model, teacher = DistilledStudent(student), None
        if config.teacher is not None and config.methods:
            frozen = detector_from(config.teacher, CLASSES)
            model = with_methods(config, student, frozen, lambda line: None)
            teacher = Teacher(inference_form(frozen))
        batch = torch.empty(images, 3, *size)
        parameters = [p for p in model.parameters() if p.requires_grad]
        with Counter() as counter:
            shown = teacher(batch) if teacher is not None else []
            maps, taps = student.pyramid(batch)
            outputs = [*tree_leaves(student.head(maps)), *_second_stage(student, maps, images)]
            for method, mine, theirs in zip(model.distill_losses.values(), taps, shown):
                outputs.append(method(mine, theirs))
            torch.autograd.grad([own.sum() for own in outputs], parameters, allow_unused=True)
        update = sum(p.numel() for p in parameters) * 4 * 5.0  # weight, gradient and momentum read, two written
    return [*counter.operators, Work(0.0, update)]


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Without data there is no autocast, and torch refuses even the question."""
    with (
        patch.object(torch, "is_autocast_enabled", lambda kind: False),
        patch.object(torch, "autocast", lambda *arguments, **options: nullcontext()),
    ):
        yield


def _second_stage(detector: Detector, maps: list[Tensor], images: int) -> list[Tensor]:
    """What the second stage of a detector says of as many regions as it trains on; a quarter of them have a mask."""
    if not detector.rois_per_image:
        return []
    head: Any = detector.roi_head
    regions = images * detector.rois_per_image
    x = _pooled(maps[0], regions, BOX_CELLS).flatten(1)
    for layer in head.bbox_head.shared_fcs:
        x = F.relu(layer(x))
    outputs = [head.bbox_head.fc_cls(x), head.bbox_head.fc_reg(x)]
    if head.mask_head is not None:
        y = _pooled(maps[0], regions // 4, MASK_CELLS)
        for block in head.mask_head.convs:
            y = block(y)
        outputs.append(head.mask_head.conv_logits(F.relu(head.mask_head.upsample(y))))
    return outputs


def _pooled(level: Tensor, regions: int, size: int) -> Tensor:
    """Regions of a level; all of the finest, which moves the most bytes."""
    rois = level.new_empty(regions, 5)
    pooled: Tensor = torchvision.ops.roi_align(level, rois, size, 0.25, aligned=True)
    return pooled


def seconds(operators: list[Work], gpu: Gpu, *, half: bool) -> float:
    """Of one step on a GPU; in half precision all bytes are half as many."""
    flops = 1e12 * (gpu.half * UTILISATION if half else gpu.fp32 * gpu.fp32_utilisation)
    memory = 1e9 * gpu.memory * MEMORY_UTILISATION * (2 if half else 1)
    return sum(max(own.flops / flops, own.bytes / memory, LAUNCH) for own in operators)


def hours(step: float, epochs: int, gpus: int) -> float:
    """Of a whole schedule whose steps take so many seconds on each GPU."""
    return step * epochs * COCO_IMAGES / (gpus * IMAGES_PER_GPU) / 3600


def rows_of(name: str) -> dict[str, Any]:
    """All that is known of one recipe."""
    config = load_recipe(name)
    operators = count(config, images=IMAGES_PER_GPU, size=SIZE)
    row: dict[str, Any] = {
        "epochs": config.schedule.epochs,
        "TFLOP": sum(own.flops for own in operators) / 1e12,
        "GB": sum(own.bytes for own in operators) / 1e9,
        "seconds": {},
    }
    for gpu, own in GPUS.items():
        row["seconds"][gpu] = [seconds(operators, own, half=half) for half in (False, True)]
    return row


def tables(rows: dict[str, dict[str, Any]], checked: dict[str, dict[str, Any]]) -> str:
    """Steps, hours and the check against what was measured by others, in Markdown."""
    lines = [
        "| recipe | epochs | TFLOP per step | GB per step | " + " | ".join(f"8 x {gpu}" for gpu in GPUS) + " |",
        f"|---|---:|---:|---:|{'---:|' * len(GPUS)}",
    ]
    for name, row in rows.items():
        times = (" / ".join(f"{hours(step, row['epochs'], 8):.2g}" for step in row["seconds"][gpu]) for gpu in GPUS)
        lines.append(f"| `{name}` | {row['epochs']} | {row['TFLOP']:.2f} | {row['GB']:.0f} | {' | '.join(times)} |")
    lines += ["", "| V100, float32, 2 images | computed | measured by MMDetection |", "|---|---:|---:|"]
    for name, row in checked.items():
        lines.append(f"| `{name}` | {row['seconds']['V100'][0]:.2f} s | {CHECKED[name]:.3f} s |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    checked = {name: rows_of(name) for name in CHECKED}
    pairs = {recipe.original: name for name, recipe in reversed(RECIPES.items()) if recipe.distilled}
    rows = {name: rows_of(name) for name in reversed(pairs.values())}
    print(tables(rows, checked))
    if arguments.json:
        arguments.json.write_text(json.dumps({"checked": checked, "recipes": rows}, indent=1))


if __name__ == "__main__":
    main()
