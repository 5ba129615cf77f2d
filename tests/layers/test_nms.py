"""Suppression in blocks against torchvision's, one box after the other."""

from __future__ import annotations

import pytest
import torch
import torchvision

from mgdet.layers import nms as module
from mgdet.layers.nms import nms


def crowd(number: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    corners = torch.rand((number, 2), generator=draw) * 90
    boxes = torch.cat([corners, corners + 5 + torch.rand((number, 2), generator=draw) * 30], dim=1)
    return boxes.to(dtype), torch.rand(number, generator=draw).to(dtype)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.7, 1.0])
@pytest.mark.parametrize("number", [0, 1, module.FEW, module.FEW + 1, 11 * module.BLOCK, 2500])
def test_as_torchvision(number, threshold):
    boxes, scores = crowd(number)
    assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


def test_in_double_precision():
    boxes, scores = crowd(2000, dtype=torch.float64)
    assert torch.equal(nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))


def test_equal_scores_keep_their_order():
    boxes, scores = crowd(2000)
    scores = (scores * 5).round()
    found = nms(boxes, scores, 0.4)
    assert torch.equal(found, torchvision.ops.nms(boxes, scores, 0.4))
    assert len(set(scores[found].tolist())) > 3


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.9])
def test_an_overlap_that_rounds_to_the_threshold(threshold):
    # Pairs of boxes whose overlap is just that share of their union, in whole numbers.
    number, tenths = 800, round(10 * threshold)
    x = torch.arange(number) * 1000.0
    first = torch.stack([x, torch.zeros(number), x + 10, torch.full((number,), 10.0)], dim=1)
    second = torch.stack([x, torch.zeros(number), x + tenths, torch.full((number,), 10.0)], dim=1)
    boxes = torch.cat([first, second])
    scores = torch.linspace(1, 0, 2 * number)
    assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


def test_boxes_without_extent_and_without_numbers():
    boxes, scores = crowd(2000)
    boxes[::7, 2:] = boxes[::7, :2]
    boxes[::13] = torch.nan
    boxes[3::17] = boxes[3::17].flip(1)
    assert torch.equal(nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))
