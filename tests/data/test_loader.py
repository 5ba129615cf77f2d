"""Reading ahead: the same batches with and without workers, and errors that stay sentences."""

import multiprocessing
import os
import signal
import time
from itertools import islice

import pytest
import torch

from mgdet.data import loader, sampler
from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.errors import Stalled, TrainingError, UserError


def open_train(data, workers, masks=True, **options):
    dataset = DetectionDataset(read_coco(*data.write(), masks=masks), training=True, masks=masks)
    views = sampler.TrainSampler(
        dataset.portrait,
        batch=2,
        accumulate=1,
        rank=0,
        world_size=1,
        seed=3,
        long_edge=120,
        short_edge=(40, 60),
        short_edge_step=1,
        flip=0.5,
    )
    return loader.train_loader(dataset, views, workers=workers, pin=False, **options)


def test_workers_change_nothing(small_data):
    alone, helped = (list(islice(open_train(small_data, workers), 6)) for workers in (0, 2))
    assert not alone[0].packed_masks and helped[0].packed_masks  # eight cells in a byte between processes
    for one, other in zip(alone, (batch.to("cpu") for batch in helped), strict=True):
        assert torch.equal(one.images(), other.images())
        assert one.files == other.files
        assert one.scales == other.scales
        for a, b in zip(one.targets, other.targets):
            assert torch.equal(a.boxes, b.boxes)
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.masks, b.masks)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_sentence(small_data, workers):
    batches = open_train(small_data, workers)
    (small_data.images / "1.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"image '.*1\.png' cannot be decoded") as caught:
        list(islice(batches, 4))
    assert str(caught.value).count("\n") == 0


def test_reading_draws_nothing_from_the_run(small_data):
    before = torch.get_rng_state()
    next(open_train(small_data, 1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_test_batches_are_in_order(small_data, workers):
    dataset = DetectionDataset(read_coco(*small_data.write()), training=False)
    views = [[view] for view in sampler.test_views(len(dataset), 64, 64)]
    batches = list(loader.test_loader(dataset, views, workers=workers, pin=False))
    assert [batch.image_ids for batch in batches] == [[10], [11], [12], [13]]
    assert [tuple(batch.pixels.shape) for batch in batches] == [
        (1, 64, 64, 3),
        (1, 64, 32, 3),
        (1, 64, 64, 3),
        (1, 64, 64, 3),
    ]
    assert batches[0].sizes == [(48, 64)]


def assert_ended(worker):
    worker.join(5)  # a process that was killed takes its time to go on a busy machine
    assert not worker.is_alive()


def test_workers_leave_ctrl_c_to_the_main_process(small_data):
    batches = open_train(small_data, 1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    assert len(list(islice(batches, 8))) == 8
    assert worker.is_alive()
    batches.close()
    assert_ended(worker)


@pytest.fixture
def hanging(monkeypatch):
    """The second batch never comes; what takes seconds takes less."""

    def hang(self, views, read=loader._BatchReader.__getitems__):
        if hang.done:
            while True:
                time.sleep(100)
        hang.done = True
        return read(self, views)

    hang.done = False
    monkeypatch.setattr(loader._BatchReader, "__getitems__", hang)
    monkeypatch.setattr(loader, "POLL", 0.05)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)


@pytest.mark.parametrize(("stopping", "limit"), [(False, "PATIENCE"), (True, "GRACE")])
def test_a_worker_that_hangs_is_given_up_and_ended(small_data, hanging, monkeypatch, stopping, limit):
    batches = open_train(small_data, 1, stopping=lambda: stopping)
    next(batches)
    monkeypatch.setattr(loader, limit, 0.3)  # starting takes longer on a busy machine
    (worker,) = multiprocessing.active_children()
    started = time.monotonic()
    with pytest.raises(Stalled, match="no images came for 0 seconds: a process that reads them hangs"):
        next(batches)
    assert time.monotonic() - started < 5
    assert_ended(worker)


def test_a_worker_that_hangs_in_an_evaluation_is_given_up_soon_after_a_request_to_stop(
    small_data, hanging, monkeypatch
):
    monkeypatch.setattr(loader, "PATIENCE", 60)
    dataset = DetectionDataset(read_coco(*small_data.write()), training=False)
    views = sampler.test_views(len(dataset), 64, 64)
    batches = loader.test_loader(dataset, [[view] for view in views], workers=1, pin=False, stopping=lambda: True)
    next(batches)
    monkeypatch.setattr(loader, "GRACE", 0.3)
    with pytest.raises(Stalled):
        next(batches)


def test_a_worker_that_hangs_keeps_nobody_who_leaves(small_data, hanging):
    batches = open_train(small_data, 2)
    next(batches)
    workers = multiprocessing.active_children()
    time.sleep(0.2)
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 5
    assert len(workers) == 2
    for worker in workers:
        assert_ended(worker)


def test_a_slow_worker_is_waited_for(small_data, monkeypatch):
    def slow(self, views, read=loader._BatchReader.__getitems__):
        time.sleep(0.3)
        return read(self, views)

    monkeypatch.setattr(loader, "POLL", 0.05)
    expected = [batch.files for batch in islice(open_train(small_data, 0), 3)]
    monkeypatch.setattr(loader._BatchReader, "__getitems__", slow)
    assert [batch.files for batch in islice(open_train(small_data, 1), 3)] == expected


def test_shared_memory_that_is_full_is_one_sentence(small_data, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(TrainingError, match=r"no shared memory is left .*; enlarge /dev/shm .* --data\.workers 0$"):
        next(open_train(small_data, 1))
    next(open_train(small_data, 0))


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 1])
def test_pinned_batches_are_the_same_ones(small_data, workers):
    dataset = DetectionDataset(read_coco(*small_data.write(), masks=True), training=True, masks=True)
    views = [[sampler.View(i, 64, 64, False)] for i in range(2)]
    plain, pinned = (
        list(loader._batches(dataset, views, workers=workers, pin=pin, stopping=lambda: False)) for pin in (False, True)
    )
    for one, other in zip(plain, pinned, strict=True):
        assert all(tensor.is_pinned() for tensor in other.tensors())
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.targets[0].boxes, other.targets[0].boxes)
