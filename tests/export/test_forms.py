"""Forms of our detectors: for one image they find what the detectors find, with and without padding."""

from __future__ import annotations

import pytest
import torch
from lively import OURS, assert_same, formed, ours, picture

from mgdet.errors import UserError
from mgdet.export.forms import form_of
from mgdet.export.forms.base import Limits, keep_best
from mgdet.layers.mask_head import paste_all, paste_masks
from mgdet.layers.postprocess import class_nms


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("size", [(128, 160), (100, 150)])
def test_a_form_finds_what_its_detector_finds(name, size):
    detector = ours(name)
    expected, found = formed(detector, form_of(detector), picture(*size))
    assert_same(detector, expected, found)


@pytest.mark.parametrize("name", OURS)
def test_a_form_of_a_detector_that_finds_nothing_gives_empty_results(name):
    detector = ours(name)
    for threshold in ("score_threshold", "filter_threshold"):
        if hasattr(detector, threshold):
            setattr(detector, threshold, 1.0)
    expected, found = formed(detector, form_of(detector), picture(96, 128))
    assert len(expected.scores) == len(found.scores) == len(found.boxes) == len(found.labels) == 0
    assert (found.masks is not None) == detector.has_masks


@pytest.mark.parametrize("limit", [5, 1000])
def test_suppression_is_that_of_the_detectors(limit):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(400, 2, generator=generator) * 80
    boxes = torch.cat([corners, corners + torch.rand(400, 2, generator=generator) * 40], dim=1)
    scores, labels = torch.rand(400, generator=generator), torch.randint(4, (400,), generator=generator)
    above = (scores > 0.3).nonzero()[:, 0]
    expected = above[class_nms(boxes[above], scores[above], labels[above], threshold=0.5, limit=limit)]
    assert keep_best(boxes, scores, labels, Limits(0.3, 0.5, limit)).tolist() == expected.tolist()


def test_masks_are_pasted_all_at_once_as_one_by_one():
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(6, 28, 28, generator=generator)
    boxes = torch.tensor(
        [
            [3.2, 4.1, 40.7, 30.2],
            [0, 0, 64, 48],
            [-5, -7, 9, 80],
            [20, 20, 20, 20],
            [10.5, 11, 12, 12.5],
            [60, 40, 70, 50],
        ]
    )
    for threshold in (0.2, 0.5):
        expected = paste_masks(masks, boxes, (48, 64), threshold=threshold)
        assert torch.equal(paste_all(masks, boxes, (48, 64), threshold=threshold), expected)


def test_what_has_no_form_is_named():
    with pytest.raises(UserError, match="a Linear has no form"):
        form_of(torch.nn.Linear(1, 1))
