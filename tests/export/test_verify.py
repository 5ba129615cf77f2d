"""What counts as the same: equal within rounding, and nothing else."""

from __future__ import annotations

import pytest
import torch

from mgdet.export.forms.base import Limits
from mgdet.export.verify import Agreement, match
from mgdet.structures import Detections

LIMITS = Limits(0.05, 0.5, 100)
BOXES = torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 70], [0, 50, 10, 60]])
SCORES, LABELS = torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0, 1, 1])


def found(**changes):
    return Detections(BOXES.clone(), SCORES.clone(), LABELS.clone())._replace(**changes)


def compared(expected, other, limits=LIMITS):
    total = Agreement()
    match(expected, other, limits, total)
    return total


def test_rounding_is_the_same():
    total = compared(found(), found(boxes=BOXES + 0.04, scores=SCORES - 9e-5))
    assert (total.pairs, total.rounding, total.lacking) == (3, 0, [])
    assert total.box == pytest.approx(0.04, abs=1e-5) and total.score == pytest.approx(9e-5, abs=1e-6)


def test_the_order_of_equal_scores_does_not_matter():
    order = torch.tensor([2, 0, 1])
    assert compared(found(), found(boxes=BOXES[order], scores=SCORES[order], labels=LABELS[order])).pairs == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"boxes": BOXES + torch.tensor([0.0, 0, 0, 0.06])},
        {"scores": SCORES + 2e-4},
        {"labels": torch.tensor([1, 0, 0])},
    ],
)
def test_what_differs_by_more_is_not(changes):
    total = compared(found(), found(**changes))
    assert total.pairs == 0
    assert len(total.lacking) == 6
    assert total.lacking[0].startswith("only torch finds class 0 at (0.0, 0.0, 20.0, 20.0) with a score of 0.9")


def test_what_one_side_lacks_is_told():
    short = Detections(BOXES[:2], SCORES[:2], LABELS[:2])
    assert compared(found(), short).lacking == [
        "only torch finds class 1 at (0.0, 50.0, 10.0, 60.0) with a score of 0.3000"
    ]
    assert compared(short, found()).lacking[0].startswith("only ONNX Runtime finds class 1")


def test_a_score_on_the_threshold_may_go():
    total = compared(found(scores=torch.tensor([0.9, 0.6, 0.05009])), Detections(BOXES[:2], SCORES[:2], LABELS[:2]))
    assert (total.rounding, total.lacking) == (1, [])


def test_of_two_that_overlap_and_score_the_same_either_may_go():
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 4, 20, 24]])
    one, other = (Detections(boxes[i : i + 1], torch.tensor([0.5]), torch.tensor([0])) for i in (0, 1))
    assert (len(compared(one, other).tied), compared(one, other).lacking) == (2, [])
    moved = one._replace(boxes=one.boxes + 0.5)
    assert len(compared(one, moved).lacking) == 2  # one box, computed differently
    assert len(compared(one, other._replace(scores=torch.tensor([0.4]))).lacking) == 2
    assert len(compared(one, other, LIMITS._replace(overlap=0.9)).lacking) == 2


def test_masks_are_compared_too():
    masks = torch.zeros(3, 80, 80, dtype=torch.bool)
    masks[:, :20, :20] = True
    other = masks.clone()
    other[0, :2, 0] = False
    assert compared(found(masks=masks), found(masks=other)).lacking == []  # two pixels
    other[0, :20, 0] = False
    assert compared(found(masks=masks), found(masks=other)).lacking == ["two masks of one object have an IoU of 0.950"]
