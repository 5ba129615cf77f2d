"""Overlaps of boxes, by hand."""

import torch

from mgdet.layers.boxes import pairwise_iou


def test_overlaps_by_hand():
    a = torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 20, 20]])
    b = torch.tensor([[0.0, 0, 10, 10], [0, 0, 5, 10], [10, 0, 20, 10], [12, 12, 14, 18], [20, 20, 20, 20]])
    expected = torch.tensor(
        [
            [1.0, 0.5, 0.0, 0.0, 0.0],  # itself, its half, a neighbour that touches, apart, a point
            [25 / 175, 0.0, 25 / 175, 6 / 106, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0],  # a point overlaps nothing, not even itself
        ]
    )
    torch.testing.assert_close(pairwise_iou(a, b), expected)
    torch.testing.assert_close(pairwise_iou(b, a), expected.T)


def test_nothing_has_no_overlaps():
    some, none = torch.rand(3, 4), torch.zeros(0, 4)
    assert pairwise_iou(some, none).shape == (3, 0)
    assert pairwise_iou(none, some).shape == (0, 3)
