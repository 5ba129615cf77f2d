"""What the losses ask of a device: few waits whatever the batch, no more kernels for more images, nothing elsewhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import nms

from mgdet import MGD, DistilledStudent, build_detector
from mgdet.detectors import solo, solo_targets
from mgdet.detectors.build import DETECTORS
from mgdet.layers import host, mask_head, padding, suppress
from mgdet.layers.blocks import BlockSize
from mgdet.layers.host import to_device, to_host
from mgdet.methods.fgd import FGD
from mgdet.methods.pairing import Pair
from mgdet.methods.pkd import PKD
from mgdet.methods.student import LevelMethod
from mgdet.structures import Seen

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "waits.py"
SIZE, SMALL = (64, 64), (32, 64)
HALF = [torch.bfloat16, torch.float16]


def load_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("waits_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


waits = load_benchmark()


def build(name: str):
    torch.manual_seed(0)
    return build_detector(name, backbone="resnet10t", num_classes=80, channels=32)


@pytest.mark.parametrize("name", DETECTORS)
def test_waits_and_kernels_do_not_grow_with_the_batch(name):
    works = []
    for batch, num_objects in ((2, 3), (8, 3), (8, 30)):
        losses = waits.losses_of(name, batch, num_objects, SMALL)
        with waits.counting() as work:
            losses()
        works.append(work)
    few, many, crowded = works
    assert few.waits == many.waits == crowded.waits and few.waits.total() <= 3
    assert set(few.waits) <= {"tolist"}
    assert few.kernels <= many.kernels <= 1.15 * few.kernels
    assert crowded.kernels <= 1.15 * many.kernels


@pytest.mark.parametrize("name", DETECTORS)
def test_kernels_do_not_grow_where_objects_pass_in_the_blocks_of_a_large_image(name, monkeypatch):
    """Blocks of a small image hold as many objects, seven as on an average one of COCO, as those of 1344 x 800."""
    small, objects = (64, 128), 7
    smaller = waits.FULL_SIZE[0] * waits.FULL_SIZE[1] // (small[0] * small[1])
    for module, block in (
        (padding, "PAIRS_PER_BLOCK"),
        *((own, "PIXELS_PER_BLOCK") for own in (mask_head, solo_targets)),
    ):
        monkeypatch.setattr(module, block, BlockSize(*(size // smaller for size in getattr(module, block))))
    monkeypatch.setattr(solo, "NUMBERS_PER_BLOCK", solo.NUMBERS_PER_BLOCK // smaller)
    works = []
    for batch in (2, 8):
        losses = waits.losses_of(name, batch, objects, small)
        with waits.counting() as work:
            losses()
        works.append(work)
    few, many = works
    assert few.waits == many.waits
    assert few.kernels <= many.kernels <= 1.15 * few.kernels


NUMBERS = torch.arange(6.0)
WAITING = {
    "item": lambda: NUMBERS.sum().item(),
    "bool": lambda: bool(NUMBERS.sum() > 3),
    "index": lambda: range(9)[NUMBERS.long().sum() // 5],
    "tolist": NUMBERS.tolist,
    "numpy": NUMBERS.numpy,
    "cpu": NUMBERS.cpu,
    "to": lambda: NUMBERS.to("cpu"),
    "to_host": lambda: to_host(NUMBERS),
    "nonzero": NUMBERS.nonzero,
    "where": lambda: torch.where(NUMBERS > 2),
    "mask": lambda: NUMBERS[NUMBERS > 2],
    "mask assigned": lambda: NUMBERS.clone().index_put((NUMBERS > 2,), torch.tensor(1.0)),
    "masked_select": lambda: NUMBERS.masked_select(NUMBERS > 2),
    "unique": NUMBERS.unique,
    "repeat_interleave": lambda: NUMBERS.repeat_interleave(torch.tensor([1, 2, 3, 4, 5, 6])),
    "equal": lambda: torch.equal(NUMBERS, NUMBERS),
    "tensor": lambda: torch.tensor([1.0], device=NUMBERS.device),
    "new_tensor": lambda: NUMBERS.new_tensor([1.0]),
    "nms": lambda: nms(NUMBERS[:4].expand(3, 4), NUMBERS[:3], 0.5),
}
FREE = {
    "numbers as an index": lambda: NUMBERS[torch.tensor([1, 2])],
    "where with values": lambda: torch.where(NUMBERS > 2, NUMBERS, 0.0),
    "sized repeat_interleave": lambda: NUMBERS.repeat_interleave(torch.ones(6, dtype=torch.int64), output_size=6),
    "to_device": lambda: to_device([1, 2], NUMBERS.device),
    "dtype": lambda: NUMBERS.to(torch.float64),
    "sort": lambda: NUMBERS.sort(stable=True),
}


@pytest.mark.parametrize("kind", WAITING)
def test_what_waits_is_counted(kind):
    with waits.counting() as work:
        WAITING[kind]()
    assert work.waits.total() == 1


@pytest.mark.parametrize("kind", FREE)
def test_what_does_not_wait_is_not_counted(kind):
    with waits.counting() as work:
        FREE[kind]()
    assert not work.waits


class PageableCopies(TorchDispatchMode):
    """Refuses copies between devices that wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and result.device != args[0].device:
            assert kwargs.get("non_blocking"), "a copy between devices that waits"
        return result


@pytest.fixture
def cuda_as_if(monkeypatch) -> Iterator[None]:
    """Lets autocast and page-locked memory stand for CUDA's, where nothing is computed."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    yield


def replace_to_host(monkeypatch, function) -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("mgdet.") and getattr(module, "to_host", None) is host.to_host and module is not host:
            monkeypatch.setattr(module, "to_host", function)
    monkeypatch.setattr(host, "to_host", function)


def on_fake_cuda(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def move_to_fake_cuda(model: torch.nn.Module) -> None:
    """Replaces what a model holds by what it would be on a GPU; `Module.to` cannot under a fake mode."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(on_fake_cuda(value), value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = on_fake_cuda(value)


def every_method(num_taps: int, channels: int, teacher_channels: int) -> list[LevelMethod]:
    """All methods on all levels, with the convolutions that align widths."""
    parts = {"temperature": 0.5, "foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "relation": 5e-6}
    methods = []
    for level in range(num_taps):
        for method in (
            MGD(channels, teacher_channels, weight=1e-3, mask_ratio=0.5),
            PKD(channels, teacher_channels, weight=6.0),
            FGD(channels, teacher_channels, weight=1.0, **parts),
        ):
            methods.append(LevelMethod(method, Pair(level, level)))
    return methods


@pytest.mark.skipif(torch.__version__ < "2.10", reason="torch 2.9 looks for a driver at a convolution of fake tensors")
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("name", DETECTORS)
def test_on_cuda_everything_is_on_the_device_and_only_to_host_asks_for_values(name, amp, cuda_as_if, monkeypatch):
    """The shapes and devices of a step on CUDA, without one: an operator that mixes devices or needs values raises.

    The few answers that the losses wait for are those of the same step on the CPU.
    """
    detector, answers = build(name), []
    model = DistilledStudent(detector, every_method(detector.num_taps, 32, 64), standardised=True)
    targets, images = waits.scene(2, 3, SIZE), torch.randn(2, 3, *SIZE)
    # A teacher of another width, and on a finer grid.
    taps = [torch.randn(2, 64, 2 * tap.shape[2], 2 * tap.shape[3]) for tap in detector.pyramid(images).taps]
    monkeypatch.setattr(suppress, "_image_by_image", suppress._all_together)

    def ask(tensor: torch.Tensor) -> object:
        answers.append(tensor.tolist())
        return answers[-1]

    with monkeypatch.context() as patched:
        replace_to_host(patched, ask)
        expected = model(images, targets, Seen(taps, taps))
    replace_to_host(monkeypatch, lambda _: answers.pop(0))
    with FakeTensorMode(), PageableCopies():
        move_to_fake_cuda(model)
        there = [
            replace(target, **{name: on_fake_cuda(getattr(target, name)) for name in ("boxes", "labels", "masks")})
            for target in targets
        ]
        shown = [on_fake_cuda(tap) for tap in taps]
        with torch.autocast("cuda", dtype=amp, enabled=amp is not None):
            losses = model(on_fake_cuda(images), there, Seen(shown, shown))
    assert not answers
    assert losses.keys() == expected.keys()
    for key, value in losses.items():
        assert value.device.type == "cuda" and value.dtype == torch.float32 and value.shape == (), key


@pytest.mark.parametrize("amp", HALF)
@pytest.mark.parametrize("name", DETECTORS)
def test_half_precision_gives_finite_close_losses(name, amp, monkeypatch):
    monkeypatch.setattr(torch, "randperm", torch.arange)
    # So large that every level has two cells: oneDNN's bfloat16 gradients of single ones are wrong.
    size = (160, 160)
    detector, images, targets = build(name).train(), torch.randn(2, 3, *size), waits.scene(2, 3, size)
    exact = detector.losses(detector.pyramid(images).maps, targets)
    with torch.autocast("cpu", dtype=amp):
        rough = detector.losses(detector.pyramid(images).maps, targets)
    sum(rough.values()).backward()
    # Half precision moves proposals, and with them which of them are sampled.
    tolerance = {"rtol": 0.1, "atol": 0.05} if hasattr(detector, "rpn_head") else {"rtol": 0.02, "atol": 0.005}
    for key, value in rough.items():
        assert value.dtype == torch.float32, key
        torch.testing.assert_close(value, exact[key], **tolerance, msg=lambda text, key=key: f"{key}: {text}")
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


CROWDED = """
import contextlib, importlib.util, sys
spec = importlib.util.spec_from_file_location("waits_benchmark", sys.argv[1])
waits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(waits)
with waits.as_on_a_gpu() if sys.argv[3] == "gpu" else contextlib.nullcontext():
    waits.memory_of(sys.argv[2], 1)  # what is only allocated once
    least = waits.memory_of(sys.argv[2], 1)
    print(waits.memory_of(sys.argv[2], 800) - least)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads a process's memory as Linux gives it")
@pytest.mark.parametrize("way", ["cpu", "gpu"])
@pytest.mark.parametrize("name", DETECTORS)
def test_eight_hundred_objects_take_less_than_300_megabytes(name, way):
    if (name, way) == ("solo", "gpu"):
        pytest.skip("a CPU sums up bytes by way of copies of four bytes each, for which blocks of a GPU are too large")
    command = [sys.executable, "-c", CROWDED, str(BENCHMARK), name, way]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert float(outcome.stdout) < 300
