"""A small data set that the tests make themselves; and the tests of real images, which run where the sample is."""

import json
import os

import cv2
import numpy as np
import pytest

# MGDET_COCO_SAMPLE names the folder of a COCO sample with the images that tests/parity/pipeline.json was recorded on.
collect_ignore = [] if os.environ.get("MGDET_COCO_SAMPLE") else ["test_coco_sample.py"]


class SmallData:
    """Four images: 0 landscape with objects, 1 portrait, 2 without objects, 3 a square under 32 pixels."""

    sizes = ((48, 64), (80, 40), (40, 50), (30, 30))

    def __init__(self, root):
        self.annotations, self.images = root / "annotations" / "train.json", root / "train"
        self.annotations.parent.mkdir()
        self.images.mkdir()
        rng = np.random.default_rng(0)
        self.pixels = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in self.sizes]
        for i, pixels in enumerate(self.pixels):
            cv2.imwrite(str(self.images / f"{i}.png"), pixels)
        self.data = {
            "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
            "images": [
                {"id": 10 + i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(self.sizes)
            ],
            "annotations": [],
        }
        self.add(0, 7, [4, 8, 20, 16], segmentation=[[4, 8, 24, 8, 24, 24, 4, 24]])
        self.add(0, 3, [30.5, 10.25, 60, 20], segmentation=[[31, 11, 60, 11, 60, 30]])
        self.add(1, 3, [0, 0, 40, 80], segmentation={"size": [80, 40], "counts": [1600, 1600]})
        self.add(3, 3, [0, 0, 20, 20], segmentation=[[0, 0, 20, 0, 20, 20]])

    def add(self, image, category, box, **fields):
        annotation = {"id": 100 + len(self.data["annotations"]), "image_id": 10 + image, "category_id": category}
        self.data["annotations"].append(annotation | {"bbox": box} | fields)

    def write(self):
        self.annotations.write_text(json.dumps(self.data))
        return self.annotations, self.images


@pytest.fixture
def small_data(tmp_path):
    data = SmallData(tmp_path)
    data.write()
    return data
