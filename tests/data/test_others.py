"""Data sets in formats that are not read: what they look like, and what helps."""

from __future__ import annotations

import json

import pytest

import formats
from mgdet.config import DataConfig
from mgdet.data.open import open_splits
from refusals import refusal

LABELME = {"version": "5.5", "shapes": [{"label": "cat", "points": [[1, 2], [30, 40]]}], "imagePath": "a.jpg"}
STUDIO = [{"id": 1, "annotations": [{"result": []}], "data": {"image": "/data/upload/1/a.jpg"}}]
FILES = {
    "train/metadata.jsonl": ("a data set of Hugging Face; convert it to COCO", ""),
    "data/train-00000-of-00001.parquet": ("a data set of Hugging Face; convert", ""),
    "train/cells.tfrecord-00000-of-00002": ("TFRecords of TensorFlow; convert", ""),
    "train/_annotations.createml.json": ("CreateML; export it from there as COCO, YOLO or Pascal VOC", "[]"),
    "via_region_data.json": ("the VGG Image Annotator; export", "{}"),
    "ds0/ann/a.jpg.json": ("Supervisely; export", "{}"),
    "samples.json": ("FiftyOne; export", "{}"),
    "training/label_2/000000.txt": ("KITTI; convert", "Car 0 0 0 1 2 3 4 0 0 0 0 0 0 0"),
    "obj.names": ("YOLO as Darknet has it; write a data.yaml", "cat"),
    "train/_darknet.labels": ("YOLO as Darknet has it; write a data.yaml", "cat"),
    "train/_annotations.csv": ("a table of boxes; convert", "filename,xmin"),
    "a.json": ("LabelMe; convert it with labelme2coco", json.dumps(LABELME)),
    "project-1.json": ("Label Studio's own JSON; export", json.dumps(STUDIO)),
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_folder_looks_like(tmp_path, name):
    words, content = FILES[name]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    (tmp_path / "a.jpg").write_bytes(b"")
    text = refusal(open_splits, DataConfig(root=str(tmp_path)))
    assert text.startswith(f"'{tmp_path}' holds no data set that mgdet knows: '{name}' in it looks like {words}")


def test_what_looks_like_nothing(tmp_path):
    (tmp_path / "notes.json").write_text('{"a": 1}')
    assert "there is no annotations/*.json (COCO)" in refusal(open_splits, DataConfig(root=str(tmp_path)))


def test_a_data_set_two_folders_down_is_found(tmp_path):
    formats.yolo(tmp_path / "outer" / "inner")
    (tmp_path / "table.csv").write_text("")
    text = refusal(open_splits, DataConfig(root=str(tmp_path)))
    assert f"but '{tmp_path}/outer/inner' in it does; give that folder as --data.root" in text
