"""Counts what the losses of each detector ask of a GPU: waits, kernels, and memory where there are many objects.

No GPU is needed. Waits and kernels are counted in the operators that run on a CPU, on the way that a GPU takes. Memory
is the process's peak in forward and backward of the losses, on one image of 1333 x 800, beyond that with one object.

    OMP_NUM_THREADS=1 python benchmarks/waits.py --objects 400 800
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mgdet import Target, build_detector
from mgdet.detectors.build import DETECTORS
from mgdet.layers import deform, roi, roi_align, suppress, winograd
from mgdet.layers.blocks import BlockSize

WAITING_OPERATORS = {
    "aten._local_scalar_dense",
    "aten._unique2",
    "aten.equal",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten.nonzero",
    "aten.unique_consecutive",
    "aten.unique_dim",
    "torchvision.nms",
}
MASKING_OPERATORS = {"aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_"}
WITHOUT_KERNEL = {"aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty", "aten.new_empty_strided"}
TO_HOST = {"tolist", "numpy", "cpu"}
FROM_PYTHON = {"tensor", "as_tensor", "new_tensor"}
SAME_DEVICE = ("torch.nn.utils.clip_grad", "torch.optim")
"""Parts of torch that bring tensors of several devices together; here all are on one, and nothing moves."""
FULL_SIZE = (800, 1344)
"""(h, w) of a batch of COCO's images."""


class Work:
    """What was asked of the device: `kernels`, and `waits` by what waited."""

    def __init__(self) -> None:
        self.kernels, self.waits = 0, Counter[str]()


class _Calls(TorchFunctionMode):
    """Sees the calls that no operator shows: to the host as lists, and from Python's numbers."""

    def __init__(self, work: Work):
        super().__init__()
        self.work = work

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        pageable = name == "new_tensor" or (name in FROM_PYTHON and kwargs.get("device") is not None)
        moved = name == "to" and any(isinstance(a, torch.device | str) for a in (*args[1:], kwargs.get("device")))
        moved = moved and not sys._getframe(1).f_globals["__name__"].startswith(SAME_DEVICE)
        if name in TO_HOST or pageable or (moved and not kwargs.get("non_blocking")):
            self.work.waits[name] += 1
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    """Sees every operator that runs."""

    def __init__(self, work: Work):
        super().__init__()
        self.work = work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.work.kernels += not is_view and name not in WITHOUT_KERNEL
        masks = name in MASKING_OPERATORS and any(t is not None and t.dtype == torch.bool for t in args[1])
        repeats = func is torch.ops.aten.repeat_interleave.Tensor and (kwargs or {}).get("output_size") is None
        if name in WAITING_OPERATORS or masks or repeats:
            self.work.waits[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Takes the way that a GPU takes."""
    with contextlib.ExitStack() as stack:
        for module in (roi, roi_align, deform, winograd):
            stack.enter_context(patch.object(module, "eager_on_cpu", lambda x: False))
        stack.enter_context(patch.object(suppress, "_image_by_image", suppress._all_together))
        stack.enter_context(patch.object(BlockSize, "on", lambda size, device: size.gpu))
        yield


@contextmanager
def counting() -> Iterator[Work]:
    """Counts what happens inside, on the way that a GPU takes."""
    work = Work()
    with as_on_a_gpu(), _Calls(work), _Operators(work):
        yield work


def scene(batch: int, num_objects: int, size: tuple[int, int]) -> list[Target]:
    """Targets with small square objects all over the image, (h, w), each image with one object less."""
    draw = torch.Generator().manual_seed(0)
    height, width = size
    targets = []
    for i in range(batch):
        number = max(1, num_objects - i)
        edge = min(20 + 10 * (i % 3), min(size) // 2)
        corners = torch.rand((number, 2), generator=draw) * torch.tensor([width - edge - 1, height - edge - 1])
        boxes = torch.cat([corners, corners + edge], dim=1).round()
        masks = torch.zeros((number, height, width), dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
            mask[top:bottom, left:right] = 1
        labels = torch.randint(0, 80, (number,), generator=draw)
        targets.append(Target(boxes, labels, masks, size=size, padded=size))
    return targets


def feature_maps(detector: Any, batch: int, size: tuple[int, int]) -> list[Tensor]:
    """Random pyramid levels of the detector for images of (h, w)."""
    strides = (4, 8, 16, 32, 64) if detector.num_taps == 4 else (8, 16, 32, 64, 128)
    draw = torch.Generator().manual_seed(1)
    shapes = [(batch, detector.tap_channels, -(-size[0] // s), -(-size[1] // s)) for s in strides]
    return [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]


def detector_of(name: str) -> Any:
    torch.manual_seed(0)
    return build_detector(name, backbone="resnet10t", channels=32, num_classes=80)


def losses_of(name: str, batch: int, num_objects: int, size: tuple[int, int]) -> Callable[[], dict[str, Tensor]]:
    """The losses of a detector on a scene, to be called."""
    detector = detector_of(name)
    maps, targets = feature_maps(detector, batch, size), scene(batch, num_objects, size)
    return lambda: detector.losses(maps, targets)


def peak_memory() -> int:
    """The largest resident memory of this process in bytes since `forget_peak` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    """Gives what is free back to the system, so that all that is used from here on shows."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def memory_of(name: str, num_objects: int) -> float:
    """MB at the peak of forward and backward with so many objects, beyond what targets and maps take."""
    losses = losses_of(name, 1, num_objects, FULL_SIZE)
    forget_peak()
    before = peak_memory()
    sum(losses().values()).backward()
    return (peak_memory() - before) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="*", default=[2, 8])
    parser.add_argument("--objects", type=int, nargs="*", default=[400, 800])
    parser.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for name in arguments.detectors:
        found = results[name] = {}
        for batch in arguments.batch:
            losses = losses_of(name, batch, 5, (64, 96))
            with counting() as work:
                losses()
            found |= {f"waits, B={batch}": work.waits.total(), f"kernels, B={batch}": work.kernels}
        if arguments.objects:
            memory_of(name, 1)  # what is only allocated once
            least = memory_of(name, 1)
            for number in arguments.objects:
                found[f"MB for {number} objects"] = round(memory_of(name, number) - least, 1)
        print(f"{name:18}", "  ".join(f"{key}: {value:g}" for key, value in found.items()), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"torch": torch.__version__, "results": results}, indent=1))


if __name__ == "__main__":
    main()
