"""Annotation files that nobody planned: a clean read or one sentence, in little time and memory."""

import cv2
import neighbours
import numpy as np
import pytest

from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.data.transforms import View
from mgdet.errors import UserError
from mgdet.evaluate.coco import evaluate
from mutate import check_reader, json_mutants


def seed_file():
    """Boxes, polygons, RLE of every kind, a crowd, and what is left out."""
    data = neighbours.base()
    masks = [neighbours.filled(box) for box in neighbours.BOXES]
    data["annotations"][1]["segmentation"] = neighbours.compressed(masks[1])
    rle = {"size": [neighbours.HEIGHT, neighbours.WIDTH], "counts": neighbours.run_lengths(masks[2])}
    data["annotations"].append(data["annotations"][2] | {"id": 9, "iscrowd": 1, "segmentation": rle})
    return data


@pytest.mark.parametrize("number", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_mutated_annotation_files(tmp_path, number):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), np.zeros((neighbours.HEIGHT, neighbours.WIDTH, 3), np.uint8))
    path = tmp_path / "mutant.json"

    def read(mutant):
        path.write_bytes(mutant)
        for masks in (False, True):
            records = read_coco(path, tmp_path, masks=masks)
            tested = DetectionDataset(records, training=False).records
            evaluate(tested, [], ("bbox", "segm") if len(records.segmentations) else ("bbox",))
            dataset = DetectionDataset(records, training=True, masks=masks)
            for index in range(len(dataset)):
                dataset[View(index, 64, 48, True)]

    counts = check_reader(read, json_mutants(seed_file(), number), UserError)
    assert counts["read"] + counts["refused"] == number
    assert min(counts.values()) > number / 10, counts
