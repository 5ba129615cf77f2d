"""Random samples with a bounded share of positives."""

from __future__ import annotations

import torch

from mgdet import Target
from mgdet.layers.sampling import choose, choose_balanced, sample_rois


def test_every_candidate_has_the_same_chance():
    torch.manual_seed(0)
    candidates = torch.arange(20) % 2 == 0
    counts = sum(choose(candidates, 3).int() for _ in range(2000))
    assert (counts[~candidates] == 0).all()
    assert counts.sum() == 6000
    assert (counts[candidates] - 600).abs().max() < 100


def test_few_candidates_are_all_chosen():
    candidates = torch.tensor([True, False, True])
    assert torch.equal(choose(candidates, 5), candidates)


def test_negatives_fill_what_positives_leave():
    positive = torch.arange(1000) < 3
    chosen, others = choose_balanced(positive, ~positive, num=256, share=0.5)
    assert (chosen.sum(), others.sum()) == (3, 253)
    positive = torch.arange(1000) < 500
    chosen, others = choose_balanced(positive, ~positive, num=256, share=0.5)
    assert (chosen.sum(), others.sum()) == (128, 128)
    assert not (chosen & ~positive).any() and not (others & positive).any()


def test_an_objects_own_box_joins_as_a_positive():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 90.0, 90.0]])
    proposals = torch.tensor([[51.0, 50.0, 90.0, 90.0], [20.0, 20.0, 30.0, 30.0]])
    sample = sample_rois(
        proposals, Target(boxes, torch.tensor([4, 7]), size=(100, 100)), num=512, iou=0.5, num_classes=9
    )
    assert sample.objects.tolist() == [0, 1, 1]
    assert sample.labels.tolist() == [4, 7, 7, 9]
    assert sample.rows.tolist() == [0, 1, 2, 3]
    assert torch.equal(sample.boxes, torch.cat([boxes, proposals]))


def test_no_more_regions_than_asked_and_a_quarter_of_them_positive():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    proposals = torch.cat([boxes.expand(30, 4), boxes.expand(30, 4) + 50])
    sample = sample_rois(proposals, Target(boxes, torch.tensor([3]), size=(100, 100)), num=16, iou=0.5, num_classes=9)
    assert sample.labels.tolist() == [3] * 4 + [9] * 12


def test_an_object_takes_its_best_proposal_only_where_low_quality_matches_count():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 12.0]])
    proposals = torch.tensor([[0.0, 0.0, 10.0, 10.5]])
    target = Target(boxes, torch.tensor([0, 1]), size=(100, 100))
    assert sample_rois(proposals, target, num=512, iou=0.5, num_classes=9).objects.tolist() == [0, 1, 0]
    assert sample_rois(proposals, target, num=512, iou=0.5, low_quality=True, num_classes=9).objects.tolist() == [
        0,
        1,
        1,
    ]


def test_without_objects_or_proposals():
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), size=(100, 100))
    one = Target(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([2]), size=(100, 100))
    assert sample_rois(torch.zeros(0, 4), none, num=512, iou=0.5, num_classes=9).labels.tolist() == []
    assert sample_rois(torch.zeros(0, 4), one, num=512, iou=0.5, low_quality=True, num_classes=9).labels.tolist() == [2]
    assert sample_rois(
        torch.tensor([[0.0, 0.0, 10.0, 10.0]]), none, num=512, iou=0.5, num_classes=9
    ).labels.tolist() == [9]
