"""Inference over a data set, with a detector whose detections can be foretold from the pixels."""

import json
import pickle

import cv2
import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn

from mgdet import build_detector
from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.detectors.base import Detector
from mgdet.evaluate.arrays import Arrays
from mgdet.evaluate.coco import evaluate, run_detector
from mgdet.structures import Detections, Pyramid

SIZES = [(48, 80), (64, 64), (90, 50), (40, 100), (70, 33)]


class Calls(list):
    """A list that copies of its owner share."""

    def __deepcopy__(self, memo: dict) -> "Calls":
        return self


class Blobs(Detector):
    """Finds as many boxes as the first map's corner says, none in a dark image; remembers how it was called."""

    def __init__(self):
        backbone = nn.Sequential(nn.Conv2d(3, 4, 32, stride=32), nn.BatchNorm2d(4))
        super().__init__(backbone, num_classes=2, channels=4, norm_eval=True)
        self.neck = nn.Module()
        self.neck.forward = lambda x: Pyramid([x, x[:, :, ::2, ::2]], [x])
        generator = torch.Generator().manual_seed(0)
        for parameter in self.backbone.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator) / 100
        self.calls = Calls()

    def detect(self, maps: list[Tensor], sizes, scales=None) -> list[Detections]:
        self.calls.append((self.training, torch.is_inference_mode_enabled(), [m.dtype for m in maps], sizes))
        return [self.blobs(*image) for image in zip(maps[0][:, :, 0, 0], sizes, scales, strict=True)]

    def blobs(self, corner: Tensor, size, scale) -> Detections:
        count = 1 + int(corner.sum().item() * 10 % 6) if corner[0] > 0 else 0
        (height, width), (x, y) = size, scale
        steps = torch.arange(1, count + 1) / (count + 1)
        boxes = torch.stack([steps * 0, steps * 0, steps * width / x, steps * height / y], dim=1)
        scores = (corner[1] * steps).sigmoid().flip(0)
        return Detections(boxes, scores, torch.arange(count) % 2)


def write_data(root, brightness):
    """Images of these mean values (0: black, and so without a detection), with one box each."""
    root.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i, value in enumerate(brightness):
        height, width = SIZES[i]
        pixels = rng.integers(value // 2, value + 1, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"{i}.png"), pixels)
        images.append({"id": 50 - i, "file_name": f"{i}.png", "height": height, "width": width})
        annotations.append({"id": i + 1, "image_id": 50 - i, "category_id": 4, "bbox": [0, 0, width / 2, height / 2]})
    categories = [{"id": 9, "name": "b"}, {"id": 4, "name": "a"}]
    (root / "gt.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def run(root, detector, *, rank=0, world_size=1, amp="off", workers=0, **options):
    dataset = DetectionDataset(read_coco(root / "gt.json", root), training=False)
    return run_detector(
        detector,
        dataset,
        long_edge=133,
        short_edge=80,
        device=torch.device("cpu"),
        amp=amp,
        workers=workers,
        rank=rank,
        world_size=world_size,
        **options,
    )


def test_results_come_in_the_order_of_the_data_set_in_pixels_of_the_files(tmp_path):
    write_data(tmp_path / "d", [200, 250, 0, 230, 220])
    results = run(tmp_path / "d", Blobs())
    ids = [result["image_id"] for result in results]
    assert sorted(set(ids), reverse=True) == list(dict.fromkeys(ids)) == [50, 49, 47, 46]
    assert {result["category_id"] for result in results} == {4, 9}
    for image_id, (height, width) in zip((50, 49, 47, 46), (SIZES[i] for i in (0, 1, 3, 4))):
        found = [result for result in results if result["image_id"] == image_id]
        scores = [result["score"] for result in found]
        assert scores == sorted(scores, reverse=True)
        n = len(found)
        expected = [[0, 0, width * k / (n + 1), height * k / (n + 1)] for k in range(1, n + 1)]
        assert np.allclose([result["bbox"] for result in found], expected, atol=1e-4)
    assert -1 not in (
        evaluate(read_coco(tmp_path / "d" / "gt.json", tmp_path), results)["bbox"].stats[name]
        for name in ("AP", "AR100")
    )


def test_the_detector_runs_in_eval_and_inference_mode_and_stays_as_it_is(tmp_path):
    write_data(tmp_path / "d", [200, 250])
    for training in (True, False):
        detector = Blobs().train(training)
        before = {name: value.clone() for name, value in detector.state_dict().items()}
        run(tmp_path / "d", detector)
        assert [call[:2] for call in detector.calls] == [(False, True)] * 2
        assert detector.training is training
        assert isinstance(detector.backbone[1], nn.BatchNorm2d)
        assert all(p.requires_grad for p in detector.parameters())
        assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_heads_get_float32_maps_of_an_autocast_pyramid(tmp_path):
    write_data(tmp_path / "d", [200, 250])
    plain, half = Blobs(), Blobs()
    expected, rounded = run(tmp_path / "d", plain), run(tmp_path / "d", half, amp="bf16")
    for detector in (plain, half):
        assert [call[2] for call in detector.calls] == [[torch.float32] * 2] * 2
    assert expected != rounded


def test_progress_and_workers(tmp_path):
    write_data(tmp_path / "d", [200, 250, 0])
    seen = []
    results = run(tmp_path / "d", Blobs(), workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert results == run(tmp_path / "d", Blobs())


def write_equals(root, number):
    """Images of two padded sizes in turn, whose own sizes differ within each."""
    root.mkdir()
    rng = np.random.default_rng(1)
    images = []
    for i in range(number):
        height, width = (48, 80 - 2 * (i // 2)) if i % 2 else (80 - 2 * (i // 2), 48)
        cv2.imwrite(str(root / f"{i}.png"), rng.integers(100, 256, (height, width, 3), dtype=np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    (root / "gt.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn", "solo"])
def test_batches_of_one_size_find_what_single_images_find(name, tmp_path):
    write_equals(tmp_path / "d", 5)
    torch.manual_seed(0)
    detector = build_detector(name, backbone="test_resnet", num_classes=2, channels=32)
    detector.score_threshold = detector.mask_threshold = detector.filter_threshold = 0.0
    detector.max_detections = 10
    seen, sizes, find = [], [], type(detector).find

    def watched(self, images, *rest):
        sizes.append(tuple(images.shape))
        return find(self, images, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(detector), "find", watched)
        single = run(tmp_path / "d", detector, batch=1)
        together = run(tmp_path / "d", detector, batch=2, progress=lambda *numbers: seen.append(numbers))
    assert [shape[0] for shape in sizes] == [1] * 5 + [2, 2, 1]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert len(single) == len(together) > 20
    for one, other in zip(single, together, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)


@pytest.mark.parametrize(("number", "often"), [(7, 2), (3, 1), (1, 0)])
def test_both_processes_meet_equally_often(number, often, tmp_path, monkeypatch):
    """Two of two images fill a batch, so the two have other numbers of batches and of images."""
    write_equals(tmp_path / "d", number)
    shares = []

    def gather(share, into, dst):
        shares.append(share)
        if into is not None:
            into[:] = shares

    monkeypatch.setattr(torch.distributed, "gather_object", gather)
    meetings = []
    for rank in (1, 0):
        results = run(
            tmp_path / "d",
            Blobs(),
            rank=rank,
            world_size=2,
            batch=2,
            together=lambda rank=rank: meetings.append(rank),
        )
    assert [meetings.count(rank) for rank in (0, 1)] == [often] * 2
    assert results == run(tmp_path / "d", Blobs(), batch=2)


def test_detections_travel_as_arrays():
    """As dicts of Python they took 500 bytes each."""
    number = 1000
    boxes, labels = torch.rand(number, 4), torch.zeros(number, dtype=torch.int64)
    arrays = Arrays.of(Detections(boxes[:], torch.rand(number), labels))
    assert len(pickle.dumps(arrays)) < 30 * number
    before = arrays.boxes.copy()
    boxes.zero_()
    np.testing.assert_array_equal(arrays.boxes, before)


CASES = {
    "odd": [200, 250, 0, 230, 220],
    "second rank finds nothing": [200, 0, 250, 0, 230],
    "nobody finds anything": [0, 0, 0],
    "fewer images than ranks": [200],
}


def _one_of_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    gathered = {name: run(folder / name, Blobs(), rank=rank, world_size=2) for name in CASES}
    (folder / f"{rank}.json").write_text(json.dumps(gathered))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_exactly_what_one_gives(tmp_path):
    for name, brightness in CASES.items():
        write_data(tmp_path / name, brightness)
    alone = {name: run(tmp_path / name, Blobs()) for name in CASES}
    assert len(alone["odd"]) > 5
    assert alone["nobody finds anything"] == []
    torch.multiprocessing.spawn(_one_of_two, (tmp_path,), nprocs=2)
    assert json.loads((tmp_path / "0.json").read_text()) == alone
    assert json.loads((tmp_path / "1.json").read_text()) == dict.fromkeys(CASES)
