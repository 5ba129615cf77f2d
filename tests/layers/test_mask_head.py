"""Masks cut from targets and pasted into images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mgdet.layers import mask_head
from mgdet.layers.blocks import BlockSize
from mgdet.layers.mask_head import crop_masks, paste_masks


def square(size: int, low: int, high: int) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.uint8)
    mask[low:high, low:high] = 1
    return mask


def test_a_mask_is_cut_from_its_own_object():
    masks = torch.stack([square(64, 0, 32), square(64, 32, 64)])
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [0.0, 0.0, 64.0, 64.0], [32.0, 32.0, 60.0, 60.0]])
    cut = crop_masks([masks[:0], masks], [boxes[:0], boxes], [torch.zeros(0).long(), torch.tensor([0, 1, 1])])
    assert cut.shape == (3, 28, 28) and cut.dtype == torch.bool
    assert cut[0, :14, :14].all() and cut[0].sum() == 14 * 14
    assert cut[1, 14:, 14:].all() and cut[1].sum() == 14 * 14
    assert cut[2].all()


def test_cutting_in_parts_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    masks = (torch.rand(7, 64, 48) < 0.5).byte()
    corners = torch.rand(40, 2) * 30
    boxes = torch.cat([corners, corners + 1 + torch.rand(40, 2) * 30], dim=1)
    objects = torch.randint(0, 7, (40,))
    whole = crop_masks([masks], [boxes], [objects])
    monkeypatch.setattr(mask_head, "PIXELS_PER_BLOCK", BlockSize(cpu=2 * 64 * 48, gpu=0))
    assert whole.any() and not whole.all()
    assert torch.equal(whole, crop_masks([masks], [boxes], [objects]))


def test_a_target_without_masks_is_refused():
    with pytest.raises(ValueError, match="has none"):
        crop_masks([None], [torch.zeros(1, 4)], [torch.tensor([0])])


def test_a_full_mask_fills_its_box_and_nothing_else():
    boxes = torch.tensor([[4.0, 6.0, 20.0, 30.0], [0.0, 0.0, 40.0, 32.0], [30.0, 20.0, 40.0, 32.0]])
    pasted = paste_masks(torch.ones(3, 28, 28), boxes, (32, 40), threshold=0.5)
    expected = torch.zeros(3, 32, 40, dtype=torch.bool)
    expected[0, 6:30, 4:20] = expected[1] = expected[2, 20:, 30:] = True
    assert torch.equal(pasted, expected)


def test_pasting_agrees_with_sampling_the_whole_image():
    torch.manual_seed(0)
    masks = torch.rand(20, 28, 28)
    corners = torch.rand(20, 2) * 60
    boxes = torch.cat([corners, corners + 1 + torch.rand(20, 2) * 60], dim=1)
    y, x = torch.meshgrid(torch.arange(100) + 0.5, torch.arange(120) + 0.5, indexing="ij")
    spans = (boxes[:, 2:] - boxes[:, :2])[:, None, None]
    grid = (torch.stack([x, y], dim=-1) - boxes[:, None, None, :2]) / spans * 2 - 1
    whole = torch.nn.functional.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    pasted = paste_masks(masks, boxes, (100, 120), threshold=0.5)
    assert (pasted != (whole >= 0.5)).sum() <= 5
    assert pasted.sum() > 1000


def test_boxes_outside_without_area_or_absent_give_empty_masks():
    boxes = torch.tensor([[50.0, 50.0, 60.0, 60.0], [10.0, 10.0, 10.0, 10.0]])
    pasted = paste_masks(torch.ones(2, 28, 28), boxes, (32, 40), threshold=0.5)
    assert pasted.shape == (2, 32, 40) and not pasted.any()
    assert paste_masks(torch.ones(0, 28, 28), torch.zeros(0, 4), (32, 40), threshold=0.5).shape == (0, 32, 40)


WITHIN_THREE_GIGABYTES = """
import pathlib, resource, torch
from mgdet.layers.blocks import BlockSize
from mgdet.layers.mask_head import paste_masks

used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**30, resource.RLIM_INFINITY))
boxes = torch.tensor([0.0, 0.0, 4000.0, 3000.0]).expand(100, 4)
pasted = paste_masks(torch.ones(100, 28, 28), boxes, (3000, 4000), threshold=0.5)
assert all(mask.float().mean() > 0.99 for mask in pasted)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits the memory of a process as Linux does")
def test_a_hundred_masks_of_a_large_image_stay_below_four_gigabytes():
    outcome = subprocess.run(
        [sys.executable, "-c", WITHIN_THREE_GIGABYTES], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
