"""Boxes and regions: overlaps, deltas and levels, by hand and against torchvision."""

from __future__ import annotations

import torch
from torchvision.ops import box_iou, roi_align

from mgdet.layers.boxes import clip, decode, encode, pairwise_iou
from mgdet.layers.roi import STRIDES, join_rois, pool_rois, roi_levels


def boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    corners = torch.rand((*shape, 2), generator=draw) * 80
    return torch.cat([corners, corners + 2 + torch.rand((*shape, 2), generator=draw) * 60], dim=-1)


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


def test_overlaps_are_torchvisions():
    a, b = boxes(2, 20, seed=1), boxes(2, 30, seed=2)
    iou = pairwise_iou(a, b)
    assert iou.shape == (2, 20, 30) and iou.max() > 0.3
    torch.testing.assert_close(iou, torch.stack([box_iou(*pair) for pair in zip(a, b)]))
    assert torch.equal(pairwise_iou(a, b[0])[1], pairwise_iou(a[1], b[0]))


def test_deltas_lead_back_and_stay_in_the_image():
    anchors, goals, std = boxes(50, seed=3), boxes(50, seed=4), torch.tensor([0.1, 0.1, 0.2, 0.2])
    limits = torch.tensor([100.0, 60.0, 100.0, 60.0])
    deltas = encode(anchors, goals, std)
    torch.testing.assert_close(deltas, encode(anchors, goals) / std)
    torch.testing.assert_close(decode(anchors, deltas, limits, std), clip(goals, limits), atol=1e-4, rtol=0)
    assert clip(torch.tensor([-3.0, -4.0, 200.0, 200.0]), limits).tolist() == [0, 0, 100, 60]


def test_every_region_is_pooled_from_its_own_level_alone():
    maps = [torch.randn(2, 3, 512 // s, 512 // s, requires_grad=True) for s in STRIDES]
    sizes = torch.tensor([20.0, 150.0, 300.0, 500.0])
    corners = torch.rand(2, 8, 2) * 10
    rois = join_rois(torch.cat([corners, corners + sizes.repeat(2)[:, None]], dim=2))
    levels = roi_levels(rois)
    assert levels.unique().tolist() == [0, 1, 2, 3]
    pooled = pool_rois(maps, rois, 7)
    for roi, level, cells in zip(rois, levels.tolist(), pooled):
        alone = roi_align(maps[level], roi[None], 7, 1 / STRIDES[level], sampling_ratio=0, aligned=True)
        torch.testing.assert_close(cells, alone[0], rtol=1e-5, atol=1e-5)
    pooled.sum().backward()
    assert all(level.grad.isfinite().all() and level.grad.any() for level in maps)
