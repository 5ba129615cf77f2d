"""Which anchor answers for which object, by hand."""

import pytest
import torch

from mgdet.layers.matching import IGNORED, NEGATIVE, match_by_iou

IOU = torch.tensor(
    [
        [0.8, 0.1, 0.0],  # clear
        [0.6, 0.7, 0.0],  # the better of two
        [0.45, 0.2, 0.0],  # between the bounds
        [0.1, 0.1, 0.3],  # low, but the best that object 2 has
        [0.0, 0.0, 0.3],  # ties with it
        [0.0, 0.0, 0.0],
    ]
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_positive": 0.2}, [0, 1, IGNORED, 2, 2, NEGATIVE]),
        ({"min_positive": 0.31}, [0, 1, IGNORED, NEGATIVE, NEGATIVE, NEGATIVE]),
        ({"min_positive": 0.2, "low_quality": False}, [0, 1, IGNORED, NEGATIVE, NEGATIVE, NEGATIVE]),
    ],
)
def test_matches_by_hand(options, expected):
    assert match_by_iou(IOU, positive=0.5, negative=0.4, **options).tolist() == expected


def test_bounds_are_positive_and_ignored():
    iou = torch.tensor([[0.5, 0.9], [0.4, 0.0], [0.39, 0.0]])
    assert match_by_iou(iou[:, :1], positive=0.5, negative=0.4, min_positive=0.6).tolist() == [0, IGNORED, NEGATIVE]


def test_an_anchor_that_is_the_best_of_two_objects_takes_the_last():
    iou = torch.tensor([[0.7, 0.6], [0.1, 0.2]])
    assert match_by_iou(iou, positive=0.5, negative=0.4, min_positive=0.0).tolist() == [1, NEGATIVE]


@pytest.mark.parametrize("shape", [(3, 0), (0, 2), (0, 0)])
def test_without_objects_all_is_background(shape):
    found = match_by_iou(torch.zeros(shape), positive=0.5, negative=0.4, min_positive=0.0)
    assert found.tolist() == [NEGATIVE] * shape[0]
