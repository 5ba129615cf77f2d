"""Reading ahead: the same batches with and without workers, and errors that stay sentences."""

import multiprocessing
import os
import signal
from itertools import islice

import pytest
import torch

from mgdet.data import loader, sampler
from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.errors import UserError


def open_train(data, workers, masks=True):
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
    return loader.train_loader(dataset, views, workers=workers, pin=False)


def test_workers_change_nothing(small_data):
    alone, helped = (list(islice(open_train(small_data, workers), 6)) for workers in (0, 2))
    for one, other in zip(alone, helped):
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
def test_test_batches_are_single_and_in_order(small_data, workers):
    dataset = DetectionDataset(read_coco(*small_data.write()), training=False)
    views = sampler.test_views(len(dataset), 0, 1, 64, 64)
    batches = list(loader.test_loader(dataset, views, workers=workers, pin=False))
    assert [batch.image_ids for batch in batches] == [[10], [11], [12], [13]]
    assert [tuple(batch.pixels.shape) for batch in batches] == [
        (1, 64, 64, 3),
        (1, 64, 32, 3),
        (1, 64, 64, 3),
        (1, 64, 64, 3),
    ]
    assert batches[0].sizes == [(48, 64)]


def test_workers_leave_ctrl_c_to_the_main_process(small_data):
    batches = open_train(small_data, 1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    assert len(list(islice(batches, 8))) == 8
    assert worker.is_alive()
    batches.close()
    assert not worker.is_alive()
