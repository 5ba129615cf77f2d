"""Deformable convolution: where it samples, in which order, and in which precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mgdet.layers.dcn import DeformConv, convolve_at


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return nn.Conv2d(8, 4, 3, padding=1, groups=2, bias=False)


@pytest.fixture
def x():
    return torch.randn(2, 8, 7, 9, generator=torch.Generator().manual_seed(1))


def test_it_starts_as_the_plain_convolution(x):
    torch.manual_seed(0)
    deformable = DeformConv(8, 4, 3, stride=2, padding=1, groups=2)
    plain = nn.functional.conv2d(x, deformable.weight, stride=2, padding=1, groups=2)
    torch.testing.assert_close(deformable(x), plain)


def test_all_points_moved_one_row_down_and_two_columns_right(conv, x):
    offsets = torch.zeros(2, 18, 7, 9)
    offsets[:, 0::2], offsets[:, 1::2] = 1.0, 2.0
    moved = nn.functional.pad(x, (0, 2, 0, 1))[:, :, 1:, 2:]
    # The zeros around the image are seen by both, but the shifted image hides what the first row and columns still see.
    torch.testing.assert_close(convolve_at(conv, x, offsets)[:, :, 1:, 1:], conv(moved)[:, :, 1:, 1:])


def test_each_point_moves_apart_from_the_others(conv, x):
    offsets = torch.zeros(2, 18, 7, 9)
    offsets[:, 2 * 5 + 1] = -1.0  # The x of row 1, column 2: it now sees what the kernel's centre sees.
    weight = conv.weight.detach().clone()
    weight[:, :, 1, 1] += weight[:, :, 1, 2]
    weight[:, :, 1, 2] = 0.0
    expected = nn.functional.conv2d(x, weight, padding=1, groups=2)
    torch.testing.assert_close(convolve_at(conv, x, offsets), expected)


def test_half_precision_does_not_shift_the_points(conv, x):
    offsets = torch.randn(2, 18, 7, 9, generator=torch.Generator().manual_seed(2))
    expected = convolve_at(conv, x, offsets)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(convolve_at(conv, x, offsets), expected)
        assert convolve_at(conv, x.bfloat16(), offsets).dtype == torch.bfloat16
