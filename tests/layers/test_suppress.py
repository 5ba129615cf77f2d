"""Suppression of a batch in rounds against torchvision's, one box after the other."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import nms

from mgdet.layers import suppress as module
from mgdet.layers.suppress import suppress

SPANS = (300, 120, 7)


@pytest.fixture(params=["one after the other", "all together"])
def way(request, monkeypatch):
    if request.param == "all together":
        monkeypatch.setattr(module, "_image_by_image", module._all_together)


def crowd(seed: int, spans: tuple[int, ...] = SPANS) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (2, T, 4) that overlap much, some without extent, and scores, best first within each level."""
    draw = torch.Generator().manual_seed(seed)
    corners = torch.rand((2, sum(spans), 2), generator=draw) * 60
    boxes = torch.cat([corners, corners + 10 + torch.rand((2, sum(spans), 2), generator=draw) * 30], dim=2)
    boxes[:, ::11, 2] = boxes[:, ::11, 0]
    scores = torch.rand((2, sum(spans)), generator=draw)
    parts = [part.sort(dim=1, descending=True).values for part in scores.split(list(spans), dim=1)]
    return boxes, torch.cat(parts, dim=1)


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_each_level_of_each_image_as_torchvision(way, threshold):
    boxes, scores = crowd(seed=0)
    kept = suppress(boxes, scores, SPANS, threshold=threshold)
    for i in range(2):
        columns = zip(*(column[i].split(list(SPANS)) for column in (boxes, scores, kept)))
        for own, values, found in columns:
            solid = (own[:, 2:] > own[:, :2]).all(dim=1).nonzero()[:, 0]
            expected = solid[nms(own[solid], values[solid], threshold)].sort().values
            assert found.nonzero()[:, 0].tolist() == expected.tolist()
    assert 20 < kept.sum() < 0.9 * kept.numel()


def test_chains_longer_than_the_rounds_between_two_looks(way):
    number = 5 * module.ROUNDS
    left = torch.arange(number) * 10.0
    boxes = torch.stack([left, torch.zeros(number), left + 30, torch.full((number,), 30.0)], dim=1)[None]
    kept = suppress(boxes, torch.linspace(1, 0, number)[None], [number], threshold=0.4)
    assert kept[0].nonzero()[:, 0].tolist() == list(range(0, number, 2))
