"""Which anchor answers for which object, by hand and against the rule spelled out anchor by anchor."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from mgdet import Target
from mgdet.layers import matching, padding
from mgdet.layers.blocks import BlockSize
from mgdet.layers.matching import match_by_iou
from mgdet.layers.padding import IGNORED, NEGATIVE, PaddedTargets

RULES = {"positive": 0.5, "negative": 0.3, "min_positive": 0.2}


def boxes(number: int, seed: int) -> torch.Tensor:
    """Random boxes on a coarse grid, so that overlaps tie."""
    draw = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 8, (number, 2), generator=draw) * 10.0
    return torch.cat([corners, corners + torch.randint(1, 5, (number, 2), generator=draw) * 10.0], dim=1)


def targets(counts: list[int]) -> list[Target]:
    return [Target(boxes(n, i), torch.arange(n) % 3, size=(120, 120)) for i, n in enumerate(counts)]


def by_hand(target: Target, anchors: torch.Tensor, allowed: torch.Tensor, low_quality: bool) -> list[int]:
    iou = box_iou(target.boxes, anchors)
    iou[:, ~allowed] = -1
    matches = []
    for a in range(len(anchors)):
        best = max((iou[n, a].item() for n in range(len(iou))), default=-1.0)
        match = NEGATIVE if best < RULES["negative"] else IGNORED
        if best >= RULES["positive"]:
            match = next(n for n in range(len(iou)) if iou[n, a] == best)
        for n in range(len(iou)):
            if low_quality and iou[n, a] == iou[n].max() >= RULES["min_positive"]:
                match = n
        matches.append(match)
    return matches


@pytest.mark.parametrize("pairs", [padding.PAIRS_PER_BLOCK.cpu, 3 * 150, 1])
@pytest.mark.parametrize("low_quality", [True, False])
def test_every_anchor_as_by_hand_whatever_the_blocks(low_quality, pairs, monkeypatch):
    monkeypatch.setattr(padding, "PAIRS_PER_BLOCK", BlockSize(pairs, pairs))
    found, anchors = targets([7, 0, 2]), boxes(150, seed=9)
    allowed = torch.rand(3, 150, generator=torch.Generator().manual_seed(1)) < 0.8
    match = match_by_iou(PaddedTargets.of(found), anchors, allowed=allowed, low_quality=low_quality, **RULES)
    expected = [by_hand(own, anchors, there, low_quality) for own, there in zip(found, allowed)]
    assert match.tolist() == expected
    assert {NEGATIVE, IGNORED, 0, 6} <= set(expected[0])


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


@pytest.fixture
def match(monkeypatch):
    """Matches for given overlaps (A, N) of one image."""

    def found(iou: torch.Tensor, **options) -> list[int]:
        monkeypatch.setattr(matching, "pairwise_iou", lambda *_: iou.T[None].clone())
        some, allowed = targets([iou.shape[1]]), torch.ones(1, len(iou), dtype=torch.bool)
        rules = {"positive": 0.5, "negative": 0.4, **options}
        return match_by_iou(PaddedTargets.of(some), torch.zeros(len(iou), 4), allowed=allowed, **rules)[0].tolist()

    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_positive": 0.2}, [0, 1, IGNORED, 2, 2, NEGATIVE]),
        ({"min_positive": 0.31}, [0, 1, IGNORED, NEGATIVE, NEGATIVE, NEGATIVE]),
        ({"min_positive": 0.2, "low_quality": False}, [0, 1, IGNORED, NEGATIVE, NEGATIVE, NEGATIVE]),
    ],
)
def test_matches_by_hand(options, expected, match):
    assert match(IOU, **options) == expected


def test_bounds_are_positive_and_ignored(match):
    iou = torch.tensor([[0.5, 0.9], [0.4, 0.0], [0.39, 0.0]])
    assert match(iou[:, :1], min_positive=0.6) == [0, IGNORED, NEGATIVE]


def test_an_anchor_that_is_the_best_of_two_objects_takes_the_last(match):
    iou = torch.tensor([[0.7, 0.6], [0.1, 0.2]])
    assert match(iou, min_positive=0.0) == [1, NEGATIVE]


def test_anchors_may_differ_between_images():
    found, anchors = targets([3, 4]), torch.stack([boxes(40, 5), boxes(40, 6)])
    allowed = torch.ones(2, 40, dtype=torch.bool)
    match = match_by_iou(PaddedTargets.of(found), anchors, allowed=allowed, **RULES)
    assert match.tolist() == [by_hand(own, its, allowed[0], True) for own, its in zip(found, anchors)]


def test_padded_targets_hold_what_the_targets_hold():
    found = targets([2, 0, 3])
    found[2].padded = (128, 160)
    padded = PaddedTargets.of(found)
    assert padded.exists.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    for i, target in enumerate(found):
        assert torch.equal(padded.boxes[i, padded.exists[i]], target.boxes)
        assert torch.equal(padded.labels[i, padded.exists[i]], target.labels)
    assert (padded.boxes[~padded.exists] == torch.tensor([0.0, 0.0, 1.0, 1.0])).all()
    assert padded.padded.tolist() == [[torch.inf] * 2, [torch.inf] * 2, [128, 160]]
    assert padded.limits.tolist() == [[120.0] * 4] * 3
    assert PaddedTargets.of(targets([0])).boxes.shape == (1, 1, 4)


def test_labels_and_boxes_of_a_match():
    padded = PaddedTargets.of(targets([3, 0]))
    match = torch.tensor([[2, NEGATIVE, IGNORED, 1], [NEGATIVE, NEGATIVE, IGNORED, NEGATIVE]])
    assert padded.labels_of(match, background=9).tolist() == [[2, 9, -1, 1], [9, 9, -1, 9]]
    assert torch.equal(padded.boxes_of(match)[0, [0, 3]], padded.boxes[0, [2, 1]])
    assert (padded.boxes_of(match)[..., 2:] > padded.boxes_of(match)[..., :2]).all()
