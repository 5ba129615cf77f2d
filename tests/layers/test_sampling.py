"""Random samples with a bounded share of positives."""

from __future__ import annotations

import torch

from mgdet import Target
from mgdet.layers.padding import PaddedTargets
from mgdet.layers.sampling import NO_LABEL, choose, choose_balanced, sample_rois


def target(boxes: list[list[float]], labels: list[int]) -> Target:
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), size=(100, 100))


def sample(proposals: list[torch.Tensor], targets: list[Target], **changes):
    """A sample from proposals of each image; those of shorter ones are padded with copies that are not usable."""
    longest = max(len(own) for own in proposals)
    boxes = torch.stack(
        [torch.cat([own, torch.tensor([[0.0, 0, 10, 10]] * (longest - len(own))).reshape(-1, 4)]) for own in proposals]
    )
    usable = torch.stack([torch.arange(longest) < len(own) for own in proposals])
    options = {"num": 512, "iou": 0.5, "num_classes": 9, **changes}
    return sample_rois(boxes, usable, PaddedTargets.of(targets), **options)


def test_every_candidate_has_the_same_chance():
    torch.manual_seed(0)
    candidates = torch.arange(20) % 2 == 0
    none = torch.zeros(1, 20, dtype=torch.bool)
    counts = sum(choose_balanced(candidates[None], none, num=6, share=0.5)[0][0].int() for _ in range(2000))
    assert (counts[~candidates] == 0).all()
    assert counts.sum() == 6000
    assert (counts[candidates] - 600).abs().max() < 100


def test_the_first_candidates_of_an_order_are_chosen():
    candidates = torch.tensor([[True, False, True, True], [False, False, True, False]])
    order = torch.tensor([[1, 3, 2, 0], [0, 1, 2, 3]])
    assert choose(candidates, order, 2).tolist() == [[False, False, True, True], [False, False, True, False]]
    assert torch.equal(choose(candidates, order, 5), candidates)
    limits = torch.tensor([[1], [0]])
    assert choose(candidates, order, limits).tolist() == [[False, False, False, True], [False] * 4]


def test_each_image_draws_for_itself_positives_before_negatives():
    torch.manual_seed(3)
    positive = torch.arange(50).expand(2, -1) < 20
    chosen, others = choose_balanced(positive, ~positive, num=20, share=0.5)
    torch.manual_seed(3)
    for i in range(2):
        for found, candidates in ((chosen, positive), (others, ~positive)):
            order = torch.randperm(50)
            first = order[candidates[i, order]][:10]
            assert found[i].nonzero()[:, 0].tolist() == first.sort().values.tolist()


def test_negatives_fill_what_positives_leave():
    positive = torch.stack([torch.arange(1000) < 3, torch.arange(1000) < 500])
    chosen, others = choose_balanced(positive, ~positive, num=256, share=0.5)
    assert chosen.sum(dim=1).tolist() == [3, 128] and others.sum(dim=1).tolist() == [253, 128]
    assert not (chosen & ~positive).any() and not (others & positive).any()


def test_an_objects_own_box_joins_as_a_positive():
    boxes = [[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 90.0, 90.0]]
    proposals = torch.tensor([[51.0, 50.0, 90.0, 90.0], [20.0, 20.0, 30.0, 30.0]])
    found = sample([proposals], [target(boxes, [4, 7])])
    assert found.num_positive.tolist() == [3]
    assert found.objects[0, :3].tolist() == [0, 1, 1]
    assert found.labels.tolist() == [[4, 7, 7, 9]]
    assert found.rows.tolist() == [[0, 1, 2, 3]]
    assert torch.equal(found.boxes[0], torch.cat([torch.tensor(boxes), proposals]))


def test_no_more_regions_than_asked_and_a_quarter_of_them_positive():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    proposals = torch.cat([boxes.expand(30, 4), boxes.expand(30, 4) + 50])
    found = sample([proposals], [target([[0.0, 0.0, 10.0, 10.0]], [3])], num=16)
    assert found.labels.tolist() == [[3] * 4 + [9] * 12]


def test_an_object_takes_its_best_proposal_only_where_low_quality_matches_count():
    objects = target([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 12.0]], [0, 1])
    proposals = [torch.tensor([[0.0, 0.0, 10.0, 10.5]])]
    assert sample(proposals, [objects]).objects.tolist() == [[0, 1, 0]]
    assert sample(proposals, [objects], low_quality=True).objects.tolist() == [[0, 1, 1]]


def test_images_with_fewer_objects_and_proposals_are_filled_up_with_regions_that_do_not_count():
    near, far = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]
    full, bare = target([near, far], [3, 4]), target([], [])
    some, none = torch.tensor([near, near, far]), torch.zeros(0, 4)
    found = sample([some, some, none, none], [full, bare, full, bare])
    absent = [NO_LABEL] * 5
    assert found.labels.tolist() == [[3, 4, 3, 3, 4], [9, 9, 9, *absent[3:]], [3, 4, *absent[2:]], absent]
    assert found.num_positive.tolist() == [5, 0, 2, 0]
    assert found.rows[1, :3].tolist() == [2, 3, 4]
