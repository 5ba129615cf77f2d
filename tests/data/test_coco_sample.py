"""The recorded pipeline of the original, on the real images that it was recorded from."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

import mgdet.data.loader as loader
import mgdet.data.sampler as sampler
from mgdet.data.batch import collate
from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.data.segmentation import to_rle
from mgdet.data.transforms import View
from mgdet.evaluate.coco import evaluate

ROOT = Path(os.environ["MGDET_COCO_SAMPLE"])
RECORDED = json.loads((Path(__file__).parents[1] / "parity" / "pipeline.json").read_text())


def open_split(split, training=True, masks=False):
    records = read_coco(ROOT / "annotations" / f"instances_{split}.json", ROOT / split, masks=masks)
    return DetectionDataset(records, training=training, masks=masks)


@pytest.fixture(scope="module")
def with_masks():
    return {split: open_split(split, masks=True) for split in ("train2017", "val2017")}


@pytest.mark.parametrize("record", RECORDED["train"], ids=lambda r: f"{Path(r['file']).stem}-{int(r['flip'])}")
def test_view(record, with_masks):
    split, name = record["file"].split("/")
    dataset = with_masks[split]
    index = [info.file_name for info in dataset.images].index(name)
    example = dataset[View(index, 1333, 800, record["flip"])]
    batch = collate([example])

    assert list(example.image.shape) == record["img_shape"]
    assert list(batch.pixels.shape[1:]) == record["pad_shape"]
    assert np.float32([*example.scale, *example.scale]).tolist() == record["scale_factor"]

    image = batch.images()[0].numpy()
    assert list(image.shape) == record["image"]["shape"]
    assert image.sum(dtype=np.float64) == pytest.approx(record["image"]["sum"], abs=1e-6)
    assert np.abs(image).sum(dtype=np.float64) == pytest.approx(record["image"]["abssum"], abs=1e-6)
    rng = np.random.default_rng(zlib.crc32(f"sample:{name}:{int(record['flip'])}".encode()))
    sample = image.reshape(-1)[rng.integers(0, image.size, 64)]
    assert sample.tolist() == np.float32(record["image"]["sample"]).tolist()

    assert example.target.boxes.tolist() == np.float32(record["boxes"]).tolist()
    assert example.target.labels.tolist() == record["labels"]
    assert list(example.target.masks.shape) == record["mask_shape"]
    assert example.target.masks.sum((1, 2)).tolist() == record["mask_areas"]


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_which_images(split):
    record = RECORDED[split]
    train, test = open_split(split), open_split(split, training=False)
    assert len(train) == record["images_train_mode"]
    assert len(test) == record["images_test_mode"]
    kept = {info.file_name for info in train.images}
    assert sorted(info.file_name for info in test.images if info.file_name not in kept) == record["dropped"]
    assert train.portrait.count(False) == record["group_flags_landscape"]
    assert train.portrait.count(True) == record["group_flags_portrait"]
    if "label_histogram" in record:
        labels = np.concatenate([train[View(i, 64, 64, False)].target.labels for i in range(len(train))])
        assert len(labels) == record["boxes"]
        assert np.bincount(labels, minlength=80).tolist() == record["label_histogram"]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_test_image_arrives_once_and_in_order(workers):
    dataset = open_split("val2017", training=False)
    views = [[view] for view in sampler.test_views(len(dataset), 160, 96)]
    batches = loader.test_loader(dataset, views, workers=workers, pin=False)
    assert [batch.image_ids[0] for batch in batches] == [info.id for info in dataset.images]


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_the_truth_handed_back_scores_one(split):
    records = open_split(split, training=False, masks=True).records
    detections = []
    for image in range(len(records)):
        rows = records.rows(image)
        for row in range(rows.start, rows.stop):
            if not records.crowd[row]:
                size = int(records.heights[image]), int(records.widths[image])
                rle = to_rle(records.segmentation(row), *size)
                detections.append(
                    {
                        "image_id": records.image_ids[image],
                        "category_id": records.category_ids[records.labels[row]],
                        "bbox": records.boxes[row].tolist(),
                        "score": 0.9,
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    }
                )
    for scores in evaluate(records, detections, ["bbox", "segm"]).values():
        assert scores.stats["AP"] == 1
