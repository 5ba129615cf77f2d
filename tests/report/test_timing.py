"""What detectors cost: counted operations against sums by hand, and turns that are fair."""

import pytest
import torch
from torch import nn

from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.detectors.face import Face
from mgdet.models import detector_from
from mgdet.report import timing
from mgdet.report.sources import Sizes
from mgdet.structures import Detections
from tiny import CLASSES, alone

SIZES = Sizes(96, 64, 0)


class Convolution(Face):
    """A detector of one convolution that finds nothing."""

    num_classes = 3

    def __init__(self, name="", log=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.name, self.log = name, log

    def __deepcopy__(self, memo):  # its inference form writes the same log
        return self

    def see(self, images, sizes, *, outputs=False):
        raise NotImplementedError

    def learn(self, images, targets, *, outputs=False):
        raise NotImplementedError

    def find(self, images, sizes, scales=None):
        self.conv(images)
        if self.log is not None:
            self.log.append((self.name, tuple(images.shape), float(images.sum())))
        return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)) for _ in sizes]


@pytest.fixture
def dataset(shown):
    records = read_coco(shown.root / "annotations" / "val.json", shown.root / "val", masks=False)
    return DetectionDataset(records, training=False)


def test_operations_are_those_of_the_median_image(dataset):
    size = timing.measure_size(Convolution(), dataset, SIZES)
    assert (size.height, size.width) in ((64, 96), (96, 64))
    assert size.gflops == 2 * (3 * 3 * 3 * 8) * (32 * 48) / 1e9
    assert size.parameters == 3 * 3 * 3 * 8 + 8


def test_operations_grow_with_the_images_and_parameters_do_not(dataset):
    detector = detector_from(alone().student, len(CLASSES)).eval()
    small, large = (timing.measure_size(detector, dataset, Sizes(edge, edge, edge)) for edge in (64, 128))
    assert large.gflops == pytest.approx(4 * small.gflops, rel=0.1)
    assert small.parameters == large.parameters == sum(p.numel() for p in detector.parameters())


def test_detectors_take_turns_on_the_same_images(dataset):
    log = []
    detectors = [(Convolution(name, log), SIZES) for name in "ab"]
    seen = []
    speeds = timing.measure_speeds(
        detectors, dataset, torch.device("cpu"), lambda done, total: seen.append((done, total))
    )
    log = log[2 * timing.WARM_UP :]
    total = timing.ROUNDS * timing.IMAGES
    assert len(log) == 2 * total
    for turn in range(total):
        first, second = log[2 * turn : 2 * turn + 2]
        assert first[1:] == second[1:]  # the same image
        assert first[0] + second[0] == ("ab", "ba")[turn % 2]
    assert len({entry[1:] for entry in log}) > 2  # of many images
    assert seen[-1] == (total, total)
    assert all(0 < speed.low <= speed.median <= speed.high for speed in speeds)


def test_it_ends_when_time_is_up(dataset, monkeypatch):
    log = []
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    timing.measure_speeds([(Convolution("a", log), SIZES)], dataset, torch.device("cpu"))
    assert len(log) == timing.WARM_UP + 1


def test_the_machine_has_a_name():
    text = timing.describe_machine(torch.device("cpu"))
    assert text.endswith("one image at a time, float32")
    assert "thread" in text
