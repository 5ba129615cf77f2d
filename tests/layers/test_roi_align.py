"""RoIAlign by torch's own operators, beside torchvision's kernel."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mgdet.layers.roi_align import roi_align

SIZE, SCALE = 7, 0.25


@pytest.fixture
def maps():
    return torch.randn(2, 16, 30, 40, generator=torch.Generator().manual_seed(0), requires_grad=True)


def reference(x: Tensor, rois: Tensor, size: int = SIZE, scale: float = SCALE) -> Tensor:
    return torchvision.ops.roi_align(x, rois, size, scale, sampling_ratio=0, aligned=True)


def regions(number: int) -> Tensor:
    """Regions of 1 to 160 pixels of two images of 120 x 160 pixels, a third of them across the edges."""
    draw = torch.Generator().manual_seed(1)
    corner = torch.rand(number, 2, generator=draw) * torch.tensor([160.0, 120.0]) - 20
    edges = 1 + 159 * torch.rand(number, 2, generator=draw) ** 2
    image = torch.randint(0, 2, (number, 1), generator=draw)
    return torch.cat([image, corner, corner + edges], dim=1)


@pytest.mark.parametrize(("size", "scale"), [(7, 0.25), (14, 0.25), (7, 1 / 32), (1, 0.1)])
def test_values_and_gradients_are_torchvisions(maps, size, scale):
    rois = regions(60)
    mine, theirs = roi_align(maps, rois, size, scale), reference(maps, rois, size, scale)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)
    seed = torch.randn_like(theirs)
    own, other = (torch.autograd.grad(pooled, maps, seed)[0] for pooled in (mine, theirs))
    assert (own - other).abs().max() <= 2e-6 * other.abs().max()


ODD = {
    "beside the map": [0, -300, -300, -200, -200],
    "beyond it on every side": [1, -30, -30, 300, 300],
    "across its last cells": [1, 150, 110, 170, 130],
    "a point": [0, 50, 50, 50, 50],
    "a line": [0, 20, 30, 90, 30],
    "thin": [1, 10, 20, 10.001, 90],
    "inside out": [0, 90, 80, 20, 30],
    "the whole map": [1, 0, 0, 160, 120],
    "between cells": [0, 2, 2, 30, 30],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_regions(maps, name):
    rois = torch.tensor([ODD[name]], dtype=torch.float32)
    torch.testing.assert_close(roi_align(maps, rois, SIZE, SCALE), reference(maps, rois), rtol=0, atol=2e-6)


def test_a_map_of_one_cell():
    x, rois = torch.randn(1, 3, 1, 1), torch.tensor([[0.0, 0, 0, 4, 4], [0, -9, -9, 9, 9]])
    torch.testing.assert_close(roi_align(x, rois, SIZE, SCALE), reference(x, rois), rtol=0, atol=2e-6)


def test_no_region_and_regions_without_a_sample_have_a_gradient_of_zeros(maps):
    for rois in (torch.zeros(0, 5), torch.tensor([[0.0, 5, 5, 5, 5]])):
        pooled = roi_align(maps, rois, SIZE, SCALE)
        assert pooled.shape == (len(rois), 16, SIZE, SIZE)
        assert not pooled.any()
        assert not torch.autograd.grad(pooled.sum(), maps)[0].any()


def test_a_region_that_is_not_a_number_is_empty_and_spoils_no_other(maps):
    rois = regions(3)
    expected = roi_align(maps, rois, SIZE, SCALE)
    rois[1, 2] = torch.nan
    pooled = roi_align(maps, rois, SIZE, SCALE)
    assert not pooled[1].any()
    torch.testing.assert_close(pooled[[0, 2]], expected[[0, 2]])


def test_half_precision_is_summed_in_float32(maps):
    rois, half = regions(20), maps.detach().bfloat16()
    pooled = roi_align(half, rois, SIZE, SCALE)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, roi_align(half.float(), rois, SIZE, SCALE).bfloat16())


def test_torchvisions_kernel_serves_other_devices():
    with FakeTensorMode():
        pooled = roi_align(torch.empty(1, 8, 7, 9, device="cuda"), torch.empty(4, 5, device="cuda"), SIZE, SCALE)
    assert pooled.device.type == "cuda"
    assert pooled.shape == (4, 8, SIZE, SIZE)
