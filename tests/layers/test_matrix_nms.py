"""Matrix NMS on masks small enough to follow by hand."""

from __future__ import annotations

import math

import torch

from mgdet.layers.matrix_nms import matrix_nms


def masks(*spans: tuple[int, int]) -> torch.Tensor:
    """One row of twelve pixels each, set from start to end."""
    rows = torch.zeros(len(spans), 1, 12, dtype=torch.bool)
    for row, (start, end) in zip(rows, spans):
        row[0, start:end] = True
    return rows


def test_a_copy_decays_and_other_classes_and_places_do_not():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    found = matrix_nms(masks((0, 4), (0, 4), (0, 4), (6, 9)), scores, torch.tensor([1, 1, 2, 1]), sigma=2.0)
    torch.testing.assert_close(found, torch.tensor([0.9, 0.8 * math.exp(-2.0), 0.7, 0.6]))


def test_a_mask_that_is_itself_suppressed_suppresses_less():
    scores = torch.tensor([0.9, 0.8, 0.7])
    found = matrix_nms(masks((0, 6), (0, 8), (4, 10)), scores, torch.zeros(3, dtype=torch.int64), sigma=2.0)
    second = math.exp(-2 * (6 / 8) ** 2)
    third = min(math.exp(-2 * (2 / 10) ** 2), math.exp(-2 * (4 / 10) ** 2) / second)
    torch.testing.assert_close(found, torch.tensor([0.9, 0.8 * second, 0.7 * third]))


def test_no_mask_is_no_score():
    nothing = matrix_nms(masks(), torch.zeros(0), torch.zeros(0, dtype=torch.int64), sigma=2.0)
    assert nothing.shape == (0,)
