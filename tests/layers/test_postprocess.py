"""Non-maximum suppression within classes, on both sides of the number from which classes go one by one."""

import pytest
import torch

from mgdet.layers import postprocess
from mgdet.layers.postprocess import class_nms


def scene(number):
    """Boxes on a coarse grid, so that many overlap, and scores without ties."""
    draw = torch.Generator().manual_seed(number)
    corners = torch.randint(0, 120, (number, 2), generator=draw).float()
    edges = torch.randint(8, 40, (number, 2), generator=draw).float()
    labels = torch.randint(0, 5, (number,), generator=draw)
    scores = (torch.randperm(number, generator=draw) + 1) / (number + 1)
    return torch.cat([corners, corners + edges], dim=1), scores, labels


def greedy(boxes, scores, labels, threshold, limit):
    """The definition: the best box stays, what overlaps it more in its class goes, and so on."""
    kept, left = [], scores.argsort(descending=True)
    while len(left) and len(kept) < limit:
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        overlap = (high - low).clamp(min=0).prod(1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        iou = overlap / (area[best] + area[left] - overlap)
        left = left[(iou <= threshold) | (labels[left] != labels[best])]
    return kept


@pytest.mark.parametrize(
    ("number", "limit"),
    [(1, 20), (500, 20), (500, 1000), (postprocess.SPLIT_FROM, 100), (postprocess.SPLIT_FROM + 1, 30)],
)
def test_it_is_the_definition(number, limit):
    boxes, scores, labels = scene(number)
    found = class_nms(boxes, scores, labels, threshold=0.5, limit=limit)
    assert found.tolist() == greedy(boxes, scores, labels, 0.5, limit)
    assert 0 < len(found) <= limit


def test_classes_go_one_by_one_from_ten_thousand_boxes_on(monkeypatch):
    calls = []
    monkeypatch.setattr(postprocess, "nms", lambda boxes, *_: calls.append(len(boxes)) or torch.arange(len(boxes)))
    for number in (postprocess.SPLIT_FROM - 1, postprocess.SPLIT_FROM):
        class_nms(*scene(number), threshold=0.5, limit=10)
    assert calls[0] == 9_999 and len(calls) == 1 + 5 and sum(calls[1:]) == 10_000


def test_nothing_stays_nothing():
    none = class_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), threshold=0.5, limit=10)
    assert none.tolist() == [] and none.dtype == torch.int64
