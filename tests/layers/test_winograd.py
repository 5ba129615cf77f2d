"""Convolutions with fewer multiplications, beside torch's in float64, and where torch's own way is taken."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mgdet import build_detector
from mgdet.layers import winograd
from mgdet.layers.inference import fold_batch_norms, inference_form
from mgdet.layers.winograd import Convolution, quicken

SHAPES = [(1, 256, 256, 33, 45), (2, 256, 300, 25, 32), (1, 260, 256, 88, 17), (3, 257, 259, 4, 130)]
"""(B, C, K, H, W): edges that are no multiples of a tile, and channels that are none of anything."""


def pair_of(channels: int, kernels: int, **options) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A convolution of torch and the same one, quickened."""
    torch.manual_seed(0)
    own = nn.Conv2d(channels, kernels, 3, padding=1, **options).to(memory_format=torch.channels_last)
    other = copy.deepcopy(own)
    quicken(other)
    return own, other


def input_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape).relu().to(memory_format=torch.channels_last).requires_grad_()


def error(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


def count(monkeypatch, what: str = "convolve") -> list[torch.Size]:
    """Of what the fast way was taken for, from now on."""
    taken, way = [], getattr(winograd, what)
    monkeypatch.setattr(winograd, what, lambda x, *rest: taken.append(x.shape) or way(x, *rest))
    return taken


@pytest.mark.parametrize("block", [winograd.NUMBERS_PER_BLOCK, 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("batch", "channels", "kernels", "height", "width"), SHAPES)
def test_values_and_gradients_are_those_of_a_convolution(
    batch, channels, kernels, height, width, bias, block, monkeypatch
):
    monkeypatch.setattr(winograd, "NUMBERS_PER_BLOCK", block)
    plain, quick = pair_of(channels, kernels, bias=bias)
    exact = copy.deepcopy(plain).double()
    x = input_of(batch, channels, height, width)
    taken, of_weights = count(monkeypatch), count(monkeypatch, "weight_gradient")
    results = []
    for convolution in (quick, exact):
        own = x.detach().to(convolution.weight.dtype).requires_grad_()
        y = convolution(own)
        assert y.shape == (batch, kernels, height, width) and y.is_contiguous(memory_format=torch.channels_last)
        (y.sin() * torch.linspace(0, 1, width, dtype=y.dtype)).sum().backward()
        results.append([y.detach(), own.grad, *(parameter.grad for parameter in convolution.parameters())])
    assert taken == [x.shape, (batch, kernels, height, width)]
    assert of_weights == [x.shape]
    assert len(results[0]) == (4 if bias else 3)
    for value, expected in zip(*results):
        assert value.dtype == torch.float32
        assert error(value, expected) < 5e-6


@pytest.mark.parametrize("trained", [("x",), ("weight",), ("bias",), ("x", "bias"), ("weight", "bias")])
def test_only_the_gradients_that_are_asked_for_are_made(trained, monkeypatch):
    of_weights = count(monkeypatch, "weight_gradient")
    results = []
    for convolution in pair_of(256, 256):
        x = input_of(1, 256, 35, 40)
        torch.nn.init.normal_(x.requires_grad_(False), generator=torch.Generator().manual_seed(1))
        tensors = {"x": x, "weight": convolution.weight, "bias": convolution.bias}
        for name, tensor in tensors.items():
            tensor.requires_grad_(name in trained)
        convolution(x).square().sum().backward()
        results.append({name: tensor.grad for name, tensor in tensors.items()})
    plain, quick = results
    assert {name for name, gradient in quick.items() if gradient is not None} == set(trained)
    for name in trained:
        assert error(quick[name], plain[name].double()) < 1e-5
    assert len(of_weights) == ("weight" in trained)


def test_what_follows_may_write_over_the_result():
    plain, quick = pair_of(256, 256)
    x = input_of(1, 256, 35, 40)
    with torch.no_grad():
        exact = F.relu(plain.double()(x.double()))
    assert error(F.relu(quick(x), inplace=True).detach(), exact) < 5e-6
    F.relu(quick(x), inplace=True).sum().backward()


SLOW = {
    "stride": nn.Conv2d(256, 256, 3, stride=2, padding=1),
    "no padding": nn.Conv2d(256, 256, 3),
    "mirrored": nn.Conv2d(256, 256, 3, padding=1, padding_mode="reflect"),
    "dilated": nn.Conv2d(256, 256, 3, padding=2, dilation=2),
    "groups": nn.Conv2d(256, 256, 3, padding=1, groups=2),
    "one cell": nn.Conv2d(256, 256, 1),
    "few channels": nn.Conv2d(128, 256, 3, padding=1),
    "few kernels": nn.Conv2d(256, 36, 3, padding=1),
}


@pytest.mark.parametrize("kind", SLOW)
def test_other_convolutions_are_left_alone(kind):
    convolution = copy.deepcopy(SLOW[kind])
    quicken(convolution)
    assert type(convolution) is nn.Conv2d


def test_small_maps_other_types_and_autocast_take_the_usual_way(monkeypatch):
    plain, quick = pair_of(256, 256)
    taken = count(monkeypatch)
    x = input_of(1, 256, 35, 40)
    assert torch.equal(quick(x[..., :38]), plain(x[..., :38]))
    assert torch.equal(copy.deepcopy(quick).double()(x.double()), copy.deepcopy(plain).double()(x.double()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quick(x), plain(x))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        quick(x)
    assert taken == [x.shape]


def test_a_graph_holds_convolutions():
    _, quick = pair_of(256, 256)
    graph = torch.export.export(quick.eval(), (torch.randn(1, 256, 35, 40),)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [torch.ops.aten.conv2d.default]


@pytest.mark.slow
def test_a_detector_that_looks_is_quick_and_one_that_is_counted_is_not(monkeypatch):
    detector = build_detector("retinanet", backbone="resnet18", num_classes=3, channels=256).eval()
    names = [*detector.state_dict()]
    quick, plain = inference_form(detector), inference_form(detector, quick=False)
    taken = count(monkeypatch)
    images = torch.randn(1, 3, 320, 352)
    with torch.no_grad():
        expected = plain.head(plain.pyramid(images).maps)
        assert not taken
        found = quick.head(quick.pyramid(images).maps)
    assert len(taken) == 1 + 8, "the neck and the towers of the head on the finest level"
    for own, other in zip(found, expected):
        for level, exact in zip(own, other):
            assert error(level, exact.double()) < 1e-4
    assert not any(isinstance(module, Convolution) for module in detector.modules())
    assert [*detector.state_dict()] == names


def test_batch_norms_fold_into_quick_convolutions_too():
    network = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256)).eval()
    network[1].running_mean.normal_()
    x = torch.randn(1, 256, 35, 40)
    expected = network(x)
    quicken(network)
    assert fold_batch_norms(network) == 1
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
