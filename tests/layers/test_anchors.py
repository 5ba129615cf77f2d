"""Anchors of a small grid, by hand."""

import math

import torch

from mgdet.layers.anchors import AnchorGrid


def test_anchors_by_row_column_and_form():
    grid = AnchorGrid(strides=[8, 16], scales=[1.0, 2.0], ratios=[1.0, 4.0])
    assert grid.num_forms == 4
    first, second = grid.boxes([(2, 3), (1, 1)])
    assert first.shape == (2 * 3 * 4, 4) and second.shape == (4, 4)
    # Ratio 4: twice as high, half as wide. Ratios come before scales, around the cell's corner.
    forms = [[-4, -4, 4, 4], [-8, -8, 8, 8], [-2, -8, 2, 8], [-4, -16, 4, 16]]
    assert first[:4].tolist() == forms
    assert first[4:8].tolist() == [[x0 + 8, y0, x1 + 8, y1] for x0, y0, x1, y1 in forms]
    assert first[12:16].tolist() == [[x0, y0 + 8, x1, y1 + 8] for x0, y0, x1, y1 in forms]
    assert second.tolist() == [[2 * edge for edge in form] for form in forms]


def test_forms_of_one_scale_have_one_area():
    boxes = AnchorGrid(strides=[4], scales=[3.0], ratios=[0.5, 1.0, 2.0]).boxes([(1, 1)])[0]
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    torch.testing.assert_close(width * height, torch.full((3,), 144.0))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1.0, 2.0]))
    assert math.isclose(float(boxes.sum()), 0.0, abs_tol=1e-5)


def test_forms_move_with_the_module_and_are_in_no_state():
    grid = AnchorGrid([8, 16], scales=[1.0], ratios=[1.0])
    assert not grid.state_dict()
    assert grid.to(torch.float64).boxes([(1, 1), (1, 1)])[0].dtype == torch.float64


def test_anchors_count_where_their_cell_is_in_the_image():
    grid = AnchorGrid([8, 16], scales=[1.0], ratios=[1.0])
    valid = grid.valid([(2, 3), (1, 2)], torch.tensor([[8.0, 17.0], [9.0, 16.0], [torch.inf, torch.inf]]))
    assert valid.int().tolist() == [[1, 1, 1, 0, 0, 0, 1, 1], [1, 1, 0, 1, 1, 0, 1, 0], [1] * 8]
