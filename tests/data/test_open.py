"""Splits of every format, opened as a run opens them."""

import json

import numpy as np
import pytest

import formats
import mgdet.data.open
from mgdet.config import DataConfig
from mgdet.data.dataset import DetectionDataset
from mgdet.data.open import open_splits, take, validation_images
from mgdet.data.segmentation import to_rle
from mgdet.data.transforms import View
from mgdet.errors import UserError
from mgdet.evaluate.coco import evaluate

POLYGONS = {name for name in formats.LAYOUTS if not name.startswith(("yolo", "voc"))} | {"yolo_polygons"}


def open_data(root, **options):
    names = {name: options.pop(name) for name in ("val_share", "split_seed") if name in options}
    return open_splits(DataConfig(root=str(root), **names), **options)


def truth_as_detections(records, *, masks):
    """What a perfect detector would find."""
    results = []
    for i in range(len(records)):
        for row in range(records.starts[i], records.starts[i + 1]):
            result = {
                "image_id": records.image_ids[i],
                "category_id": records.category_ids[records.labels[row]],
                "bbox": records.boxes[row].tolist(),
                "score": 0.9,
            }
            if masks:
                rle = to_rle(records.segmentation(row), int(records.heights[i]), int(records.widths[i]))
                result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
            results.append(result)
    return results


@pytest.mark.parametrize("name", formats.LAYOUTS)
def test_the_truth_handed_back_is_perfect(tmp_path, name):
    formats.LAYOUTS[name](tmp_path)
    masks = name in POLYGONS
    metrics = ("bbox", "segm") if masks else ("bbox",)
    splits = open_data(tmp_path, train_masks=masks, val_masks=masks)
    for records in (splits.records["train"], splits.records["val"]):
        scores = evaluate(records, truth_as_detections(records, masks=masks), metrics)
        assert [scores[metric].stats["AP"] for metric in metrics] == [1.0] * len(metrics)


@pytest.mark.parametrize("name", formats.LAYOUTS)
def test_all_layouts_hold_the_same_data_set(tmp_path, name):
    formats.LAYOUTS[name](tmp_path)
    splits = open_data(tmp_path)
    for split, records in (("train", splits.records["train"]), ("val", splits.records["val"])):
        pictures = formats.pictures(split)
        boxes = [thing.box for picture in pictures for thing in picture.things]
        assert records.classes == formats.CLASSES
        np.testing.assert_allclose(records.boxes, boxes, atol=1e-9)
        dataset = DetectionDataset(records, training=False)
        for i, picture in enumerate(pictures):
            example = dataset[View(i, 96, 96, False)]
            np.testing.assert_array_equal(example.image, picture.pixels)
            assert example.target.labels.tolist() == [thing.label for thing in picture.things]


def test_one_line_says_what_was_found(tmp_path):
    formats.yolo(tmp_path)
    line = open_data(tmp_path).line
    assert (
        line == f"data in {tmp_path}: YOLO; train 6 images (data.yaml, train); val 3 images (data.yaml, val); 3 classes"
    )


@pytest.mark.parametrize("name", formats.LAYOUTS)
def test_the_names_that_were_found_open_the_same_again(tmp_path, name):
    formats.LAYOUTS[name](tmp_path)
    found = open_data(tmp_path)
    assert all(
        (found.data.train_annotations, found.data.train_images, found.data.val_annotations, found.data.val_images)
    )
    again = open_splits(found.data)
    assert again.data == found.data
    for before, after in (
        (found.records["train"], again.records["train"]),
        (found.records["val"], again.records["val"]),
    ):
        assert before.files == after.files
        assert before.classes == after.classes
        np.testing.assert_array_equal(before.boxes, after.boxes)


def test_a_share_that_was_taken_opens_the_same_again(tmp_path):
    formats.default(tmp_path)
    found = open_data(tmp_path, val_share=0.3)
    again = open_splits(found.data)
    assert again.data == found.data
    assert again.records["val"].files == found.records["val"].files


@pytest.mark.parametrize("name", formats.LAYOUTS)
def test_measuring_reads_the_validation_split_alone(tmp_path, name):
    formats.LAYOUTS[name](tmp_path)
    splits = open_data(tmp_path, required=("val",))
    assert list(splits.records) == ["val"]
    assert len(splits.records["val"]) == formats.NUM_VAL
    assert splits.records["val"].classes == formats.CLASSES


@pytest.mark.parametrize("layout", [formats.default, formats.yolo, formats.voc])
@pytest.mark.parametrize("masks", [(False, False), (True, False), (False, True)])
def test_a_share_divides_the_training_images(tmp_path, layout, masks):
    layout(tmp_path)
    splits = open_data(tmp_path, val_share=0.34, train_masks=masks[0], val_masks=masks[1])
    assert len(splits.records["train"]) == 4 and len(splits.records["val"]) == 2
    assert splits.records["val"].files == open_data(tmp_path, val_share=0.34, required=("val",)).records["val"].files
    files = [*splits.records["train"].files, *splits.records["val"].files]
    assert sorted(file.rsplit("/")[-1] for file in files) == [picture.name for picture in formats.pictures("train")]
    assert "val 2 images (0.34 of train by data.split_seed 0)" in splits.line


def many(root, files, labels):
    """A COCO data set of images with one object each, without image files."""
    images = [{"id": i, "file_name": file, "height": 64, "width": 64} for i, file in enumerate(files)]
    annotations = [
        {"id": i, "image_id": i, "category_id": label, "bbox": [i, 2, 30, 40], "segmentation": [[i, 2, 40, 2, 40, 50]]}
        for i, label in enumerate(labels)
    ]
    categories = [{"id": label, "name": str(label)} for label in sorted(set(labels))]
    (root / "train.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (root / "train").mkdir()


def test_each_class_gives_its_share(tmp_path):
    labels = [0] * 100 + [1] * 20 + [2] * 10
    many(tmp_path, [f"{i}.jpg" for i in range(130)], np.random.default_rng(0).permutation(labels).tolist())
    for seed in range(5):
        splits = open_data(tmp_path, val_share=0.1, split_seed=seed)
        assert np.bincount(splits.records["val"].labels).tolist() == [10, 2, 1]
        assert np.bincount(splits.records["train"].labels).tolist() == [90, 18, 9]
    assert splits.records["val"].files != open_data(tmp_path, val_share=0.1).records["val"].files


def test_the_order_in_the_file_does_not_decide_who_is_taken(tmp_path):
    many(tmp_path, [f"{i}.jpg" for i in range(50)], [i % 3 for i in range(50)])
    before = open_data(tmp_path, val_share=0.2).records["val"].files
    content = json.loads((tmp_path / "train.json").read_text())
    content["images"].reverse()
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert sorted(open_data(tmp_path, val_share=0.2).records["val"].files) == sorted(before)


def test_altered_copies_of_a_photo_stay_together(tmp_path):
    many(tmp_path, [f"{i // 3}_jpg.rf.{i}.jpg" for i in range(60)], [0] * 60)
    splits = open_data(tmp_path, val_share=0.2)
    photos = [
        {file.split("_")[0] for file in records.files} for records in (splits.records["train"], splits.records["val"])
    ]
    assert len(photos[1]) == 4 and len(splits.records["val"]) == 12
    assert not photos[0] & photos[1]


def test_too_few_images_to_share_are_said(tmp_path):
    many(tmp_path, ["0.jpg"], [0])
    with pytest.raises(UserError, match=r"data.val_share is 0.5, but .* has 1 images, too few"):
        open_data(tmp_path, val_share=0.5)


def test_some_images_keep_their_objects(tmp_path):
    many(tmp_path, [f"{i}.jpg" for i in range(5)], [0, 1, 0, 1, 2])
    splits = open_data(tmp_path, val_share=0.2, train_masks=True)
    whole = open_data(tmp_path, val_share=0.2, train_masks=True).records["train"]
    some = take(whole, np.array([1, 3]))
    assert some.files == [whole.files[1], whole.files[3]]
    assert some.starts.tolist() == [0, 1, 2]
    for row, old in ((0, 1), (1, 3)):
        assert some.boxes[row].tolist() == whole.boxes[old].tolist()
        assert some.segmentation(row) == whole.segmentation(old) != b""
    assert validation_images(splits.records["train"], 0.5, 0).sum() == 2


def test_one_reading_serves_both_splits(tmp_path, monkeypatch):
    formats.voc(tmp_path)
    readings, waits = [], []
    read_voc = mgdet.data.open.read_voc
    monkeypatch.setattr(
        "mgdet.data.open.read_voc", lambda *args, **options: readings.append(1) or read_voc(*args, **options)
    )
    splits = open_data(tmp_path, barrier=lambda: waits.append(1))
    assert [len(splits.records[split]) for split in ("train", "val")] == [formats.NUM_TRAIN, formats.NUM_VAL]
    assert len(readings) == 1
    assert waits  # processes of a machine read together
