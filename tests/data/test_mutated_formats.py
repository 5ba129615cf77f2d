"""YOLO and VOC files with bytes and values changed at random: a sentence or a clean read, soon, and nothing else."""

import os
import random
import re
import resource
import time

import numpy as np
import pytest

import formats
from mgdet.config import DataConfig
from mgdet.data.dataset import DetectionDataset
from mgdet.data.open import open_splits
from mgdet.errors import UserError

SECONDS, GIBIBYTES = 2, 1
TARGETS = {
    "yolo": ["data.yaml", "labels/train/train_0.txt", "list.txt"],
    "voc": ["Annotations/train_0.xml", "ImageSets/Main/train.txt"],
}
VALUES = [
    b"",
    b"-1",
    b"0",
    b"1e999",
    b"nan",
    b"NaN",
    b"9" * 400,
    b"1" * 5000,
    b"true",
    b"null",
    b"~",
    b"/",
    b"..",
    b".",
]
VALUES += [
    b"\xff\xfe",
    b"\x00",
    b"\xef\xbb\xbf",
    b"[[[[",
    b"{",
    b"- ",
    b"*a",
    b"&a",
    b"!!python/name:os.system",
    b"<<: *a",
]
VALUES += [
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    b"&b;",
    b"<object>",
    b"</annotation>",
    b"]]>",
    b"\r",
    b"\t",
    "é".encode("latin-1"),
]
VALUES += [
    b"C:\\x\\images\\train",
    b"~/images",
    b"$HOME",
    b"images/" * 200,
    b"\n" * 100,
    b"images/train",
    b"train",
    b"0.5",
]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three changes, of bytes or of whole values."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice((1, 2, 8, 64)))
        words = list(re.finditer(rb"[^\s<>,:\[\]]+", content))
        kind = rng.randrange(6)
        if kind == 0:
            content = content[:start] + rng.randbytes(end - start) + content[end:]
        elif kind == 1:
            content = content[:start] + content[end:]
        elif kind == 2:
            content = content[:end] + content[start:end] * rng.choice((1, 2, 50)) + content[end:]
        elif kind == 3:
            content = content[:start] + rng.choice(VALUES) + content[start:]
        elif kind == 4:
            content = content[:start]
        elif words:
            word = rng.choice(words)
            content = content[: word.start()] + rng.choice(VALUES) + content[word.end() :]
    return content


def read(root) -> str:
    """Opens the data set as a run does; the sentence, or "" after a clean read."""
    try:
        splits = open_splits(DataConfig(root=str(root)), train_masks=True)
        DetectionDataset(splits.records["train"], training=True)
        DetectionDataset(splits.records["val"], training=False)
    except UserError as error:
        return str(error)
    for records in splits.records.values():
        assert np.isfinite(records.boxes).all()
        assert len(records.starts) == len(records) + 1 and records.starts[-1] == len(records.labels)
        assert ((records.labels >= 0) & (records.labels < len(records.classes))).all()
    return ""


def check(tmp_path, name: str, number: int, seed: int) -> None:
    """Changes the files of a data set, `number` times in all."""
    root = tmp_path / "data"
    formats.LAYOUTS[name](root)
    if name == "yolo":
        (root / "list.txt").write_text("".join(f"./images/val/{p.name}\n" for p in formats.pictures("val")))
        text = (root / "data.yaml").read_text()
        (root / "data.yaml").write_text(text.replace("val: images/val", "val: list.txt"))
    assert read(root) == ""
    rng = random.Random(seed)
    files = sorted(root.rglob("*"))
    outcomes = {True: 0, False: 0}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for file in TARGETS[name]:
        content = (root / file).read_bytes()
        for i in range(number // len(TARGETS[name])):
            (root / file).write_bytes(mutate(content, rng))
            start = time.perf_counter()
            sentence = read(root)
            assert time.perf_counter() - start < SECONDS, f"{file}, mutation {i} of seed {seed}"
            assert len(sentence) < 1500 and "\n" not in sentence, f"{file}, mutation {i} of seed {seed}: {sentence}"
            outcomes[sentence == ""] += 1
        (root / file).write_bytes(content)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 2**20 < GIBIBYTES
    assert sorted(root.rglob("*")) == files
    assert min(outcomes.values()) > number / 20, outcomes  # both happen, or the test sees nothing


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(formats, "NUM_TRAIN", 3)
    monkeypatch.setattr(formats, "NUM_VAL", 2)
    check(tmp_path, name, 500, seed=0)
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_many_changed_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(formats, "NUM_TRAIN", 3)
    monkeypatch.setattr(formats, "NUM_VAL", 2)
    check(tmp_path, name, 10_000, seed=1)
    assert os.listdir(tmp_path) == ["data"]
