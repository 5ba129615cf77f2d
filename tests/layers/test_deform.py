"""Deformable convolution by torch's own operators, beside torchvision's kernel."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mgdet.layers import deform
from mgdet.layers.deform import deform_conv2d

# batch, channels in and out, groups, kernel, stride, padding, (H, W)
CASES = {
    "plain": (2, 8, 6, 1, (3, 3), (1, 1), (1, 1), (7, 9)),
    "groups": (1, 32, 32, 8, (3, 3), (1, 1), (1, 1), (12, 11)),
    "strided": (2, 16, 8, 4, (3, 3), (2, 2), (1, 1), (9, 10)),
    "oblong": (1, 4, 4, 1, (1, 3), (2, 1), (0, 2), (8, 8)),
    "one cell": (1, 8, 8, 2, (3, 3), (1, 1), (1, 1), (1, 1)),
}


def draw(case: str) -> tuple[list[Tensor], dict]:
    batch, channels, out, groups, kernel, stride, padding, size = CASES[case]
    torch.manual_seed(0)
    output = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, kernel, stride)]
    tensors = [
        torch.randn(batch, channels, *size),
        min(size) / 3 * torch.randn(batch, 2 * kernel[0] * kernel[1], *output),  # far enough to leave the map
        torch.randn(out, channels // groups, *kernel),
    ]
    return [tensor.requires_grad_() for tensor in tensors], {"stride": stride, "padding": padding}


def relative(mine: Tensor, theirs: Tensor) -> float:
    return ((mine - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["plain", "channels last"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_torchvisions(case, layout):
    tensors, options = draw(case)
    tensors = [tensor.detach().contiguous(memory_format=layout).requires_grad_() for tensor in tensors]
    mine, theirs = deform_conv2d(*tensors, **options), torchvision.ops.deform_conv2d(*tensors, **options)
    assert mine.shape == theirs.shape
    assert relative(mine, theirs) < 8e-7
    seed = torch.randn_like(theirs)
    for own, other in zip(torch.autograd.grad(mine, tensors, seed), torch.autograd.grad(theirs, tensors, seed)):
        assert relative(own, other) < 2e-6


@pytest.mark.parametrize("case", ["plain", "groups"])
def test_blocks_change_nothing(case, monkeypatch):
    tensors, options = draw(case)
    whole = deform_conv2d(*tensors, **options)
    seed = torch.randn_like(whole)
    expected = torch.autograd.grad(whole, tensors, seed)
    limit = 10 * tensors[0].shape[1] * tensors[1].shape[1] // 2  # ten positions, so the last block is a rest
    monkeypatch.setattr(deform, "FORWARD_SAMPLES", limit)
    monkeypatch.setattr(deform, "BACKWARD_SAMPLES", limit)
    parts = deform_conv2d(*tensors, **options)
    assert relative(parts, whole) < 8e-7
    for own, other in zip(torch.autograd.grad(parts, tensors, seed), expected):
        assert relative(own, other) < 2e-6


def test_no_gradient_is_computed_that_nobody_wants():
    (x, offsets, weight), options = draw("groups")
    moved = deform_conv2d(x, offsets.detach(), weight, **options)
    moved.sum().backward()
    assert offsets.grad is None
    assert x.grad is not None and weight.grad is not None


def test_what_is_not_a_number_stays_so():
    (x, offsets, weight), options = draw("plain")
    with torch.no_grad():
        offsets[0, 0, 0, 0] = torch.nan
        moved = deform_conv2d(x, offsets, weight, **options)
    assert moved[0, :, 0, 0].isnan().all()
    assert moved.isnan().sum() == moved.shape[1]


@pytest.fixture
def bags(monkeypatch) -> list[int]:
    """How many numbers each call of `embedding_bag` samples, from now on."""
    sizes, embedding_bag = [], torch.nn.functional.embedding_bag

    def record(*arguments, **keywords):
        samples = embedding_bag(*arguments, **keywords)
        sizes.append(samples.numel())
        return samples

    monkeypatch.setattr(torch.nn.functional, "embedding_bag", record)
    return sizes


def test_memory_holds_one_block_of_samples(bags, monkeypatch):
    (x, offsets, weight), options = draw("groups")
    monkeypatch.setattr(deform, "FORWARD_SAMPLES", 5000)
    monkeypatch.setattr(deform, "BACKWARD_SAMPLES", 5000)
    deform_conv2d(x, offsets, weight, **options).sum().backward()
    assert 0 < max(bags) <= 5000


def test_small_images_share_a_block(bags, monkeypatch):
    (x, offsets, weight), options = draw("plain")
    of_one = offsets[0, 0].numel() * 9 * x.shape[1]
    x, offsets = x.repeat(3, 1, 1, 1), offsets.repeat(3, 1, 1, 1)
    monkeypatch.setattr(deform, "FORWARD_SAMPLES", 4 * of_one)
    deform_conv2d(x, offsets, weight, **options).sum().backward()
    assert sorted(bags) == [2 * of_one] * 2 + [4 * of_one] * 2  # forward and back


def test_torchvisions_kernel_serves_other_devices():
    with FakeTensorMode():
        x, offsets = torch.empty(1, 8, 7, 9, device="cuda"), torch.empty(1, 18, 7, 9, device="cuda")
        moved = deform_conv2d(x, offsets, torch.empty(6, 8, 3, 3, device="cuda"), stride=(1, 1), padding=(1, 1))
    assert moved.device.type == "cuda"
    assert moved.shape == (1, 6, 7, 9)
