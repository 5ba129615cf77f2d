"""Processes of one machine share what the first of them reads."""

import os
import tempfile
import threading

import neighbours
import numpy as np
import pytest

from mgdet.data.coco import read_coco
from mgdet.data.shared import load, read_shared, store

ARRAYS = ("heights", "widths", "starts", "boxes", "labels", "crowd", "ignored", "areas", "segmentations", "spans")
REST = ("source", "folder", "classes", "category_ids", "image_ids", "files", "left_out", "has_masks", "annotated")


def assert_same(a, b):
    for name in ARRAYS:
        assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name == "areas")
        assert getattr(a, name).dtype == getattr(b, name).dtype
    for name in REST:
        assert getattr(a, name) == getattr(b, name)


@pytest.mark.parametrize("name", ["base", "image id huge", "image id text", "area true", "annotation id missing"])
@pytest.mark.parametrize("masks", [False, True])
def test_records_come_back_as_they_were(tmp_path, name, masks):
    path = neighbours.write(neighbours.READ[name], tmp_path / "a.json")
    records = read_coco(path, tmp_path, masks=masks)
    store(records, tmp_path / "shared")
    assert_same(load(tmp_path / "shared"), records)


def test_without_objects(tmp_path):
    path = neighbours.write(lambda data: data.update(annotations=[]), tmp_path / "a.json")
    records = read_coco(path, tmp_path)
    store(records, tmp_path / "shared")
    assert_same(load(tmp_path / "shared"), records)


def test_nobody_else_may_read_the_folder(tmp_path):
    store(read_coco(neighbours.write(neighbours.READ["base"], tmp_path / "a.json"), tmp_path), tmp_path / "shared")
    assert (tmp_path / "shared").stat().st_mode & 0o077 == 0


def in_two_processes(read, monkeypatch):
    """What two processes get; threads stand in for them, and their rank is taken from the environment in turn."""
    barrier, turn, results = threading.Barrier(2), threading.Lock(), {}
    ranks = threading.local()

    class Environment(dict):
        def get(self, name, default=None):
            return {"LOCAL_RANK": str(ranks.rank), "LOCAL_WORLD_SIZE": "2"}.get(name, default)

    monkeypatch.setattr("mgdet.data.shared.os.environ", Environment())

    def run(rank):
        ranks.rank = rank
        results[rank] = read_shared(lambda: read(rank, turn), "train", barrier.wait)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return results


def test_the_second_process_reads_nothing_and_nothing_stays_on_the_disk(tmp_path, monkeypatch):
    path = neighbours.write(neighbours.READ["base"], tmp_path / "a.json")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    os.mkdir(tmp_path / "temp")
    calls = []

    def read(rank, turn):
        with turn:
            calls.append(rank)
        return read_coco(path, tmp_path, masks=True)

    results = in_two_processes(read, monkeypatch)
    assert calls == [0]
    assert isinstance(results[1].boxes, np.memmap)
    assert_same(results[1], results[0])
    assert os.listdir(tmp_path / "temp") == []


def test_where_nothing_can_be_stored_every_process_reads(tmp_path, monkeypatch):
    path = neighbours.write(neighbours.READ["base"], tmp_path / "a.json")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    calls = []

    def read(rank, turn):
        with turn:
            calls.append(rank)
        return read_coco(path, tmp_path)

    results = in_two_processes(read, monkeypatch)
    assert sorted(calls) == [0, 1]
    assert_same(results[1], results[0])
