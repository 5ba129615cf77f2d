"""Pictures wait for others of their size, but only a few of them."""

from __future__ import annotations

import numpy as np
import torch

from mgdet.data.transforms import View
from mgdet.detectors.face import Face
from mgdet.evaluate.stream import find_in
from mgdet.structures import Detections


class Finds(Face):
    """Finds one object in each image, with a score that tells its place in the batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def see(self, images, sizes, *, outputs=False):
        raise NotImplementedError

    def learn(self, images, targets, *, outputs=False):
        raise NotImplementedError

    def find(self, images, sizes, scales=None):
        scores = [torch.tensor([0.9, 0.2]) for _ in sizes]
        return [Detections(torch.zeros(2, 4), own, torch.zeros(2, dtype=torch.int64)) for own in scores]


VIEW = View(0, 10_000, 32, False)


def test_few_pictures_wait():
    """Of many sizes none fills a batch; memory must not grow with their number."""
    left, seen, most = [], [], 0

    def read():
        for index in range(40):
            left.append(index)
            yield np.zeros((32, 32 + 32 * index, 3), np.uint8), str(index)

    for index, image, _ in find_in(Finds(), read(), VIEW, score=0.0, batch=4):
        assert image.shape[1] == 32 + 32 * index
        seen.append(index)
        most = max(most, len(left) - len(seen) + 1)
    assert sorted(seen) == list(range(40))
    assert most <= 12


def test_objects_under_the_score_are_left_out():
    (shown,) = find_in(Finds(), [(np.zeros((32, 32, 3), np.uint8), "one")], VIEW, score=0.5, batch=1)
    assert shown.found.scores.tolist() == [torch.tensor(0.9).item()] and len(shown.found.boxes) == 1
