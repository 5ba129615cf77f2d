"""Annotation files: what becomes an object, which images are trained on, and every complaint."""

import re

import cv2
import numpy as np
import pytest

from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.data.transforms import View
from mgdet.errors import UserError


def open_data(data, training=True, masks=False):
    return DetectionDataset(read_coco(*data.write(), masks=masks), training=training, masks=masks)


def view(index, long_edge=80, short_edge=48):
    return View(index, long_edge, short_edge, False)


def test_categories_are_sorted_by_id(small_data):
    dataset = open_data(small_data)
    assert dataset.category_ids == (3, 7)
    assert dataset.classes == ("dog", "cat")


def test_training_leaves_out_empty_and_small_images(small_data):
    dataset = open_data(small_data)
    assert [info.file_name for info in dataset.images] == ["0.png", "1.png"]
    assert dataset.portrait == [False, True]
    assert dataset.notes[:-1] == [
        "left out of training: 1 image under 32 pixels (first: 3.png)",
        "left out of training: 1 image without an object to train on (first: 2.png)",
    ]
    assert "1 box reaches far beyond its image (first: object 2 of image '0.png')" in dataset.notes[-1]


def test_testing_takes_all_images(small_data):
    dataset = open_data(small_data, training=False)
    assert [info.id for info in dataset.images] == [10, 11, 12, 13]
    assert dataset.portrait == [False, True, False, True]
    assert len(dataset.notes) == 1 and "1 box reaches far beyond its image" in dataset.notes[0]
    assert len(dataset[view(2)].target.boxes) == 0


def test_target_in_file_order_and_pixels(small_data):
    example = open_data(small_data)[view(0)]
    assert np.array_equal(example.image, small_data.pixels[0])
    assert example.target.boxes.tolist() == [[4, 8, 24, 24], [30.5, 10.25, 64, 30.25]]
    assert example.target.labels.tolist() == [1, 0]
    assert example.target.masks is None
    assert (example.image_id, example.original) == (10, (48, 64))
    assert example.file == str(small_data.images / "0.png")


def test_polygons_and_rle_become_masks(small_data):
    dataset = open_data(small_data, masks=True)
    first = dataset[view(0)].target.masks
    assert first.shape == (2, 64, 64)
    expected = np.zeros((64, 64), np.uint8)
    expected[8:24, 4:24] = 1
    assert np.array_equal(first[0].numpy(), expected)
    second = dataset[view(1, 80, 40)].target.masks
    assert second.shape == (1, 96, 64)
    expected = np.zeros((96, 64), np.uint8)
    expected[:80, 20:40] = 1  # columns of 80: 20 empty, 20 full
    assert np.array_equal(second[0].numpy(), expected)


def test_compressed_rle(small_data):
    import pycocotools.mask

    mask = np.random.default_rng(0).integers(0, 2, (48, 64), dtype=np.uint8)
    rle = pycocotools.mask.encode(np.asfortranarray(mask))
    small_data.data["annotations"][0]["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    masks = open_data(small_data, masks=True)[view(0)].target.masks
    assert np.array_equal(masks[0, :48, :64].numpy(), mask)


def test_unusable_boxes_are_dropped_and_counted_once(small_data):
    for box in ([4, 8, 0.9, 16], [4, 8, 20, 0], [64, 8, 20, 16], [4, -16, 20, 16], [4, 8, -5, 16]):
        small_data.add(0, 7, box)
    small_data.add(0, 7, [4, 8, 20, 16], area=0)
    small_data.add(0, 7, [0, 0, 20, 16], iscrowd=1)
    small_data.add(0, 7, [0, 0, 20, 16], ignore=1)
    dataset = open_data(small_data)
    assert len(dataset[view(0)].target.boxes) == 2
    assert "left out 2 boxes without width or height (first: annotation 105 of image '0.png'" in dataset.notes[0]
    assert dataset.notes[1:5] == [
        "left out of training: 1 crowd (iscrowd is set) (first: object 7 of image '0.png')",
        "left out of training: 1 ignored object (first: object 8 of image '0.png')",
        "left out of training: 3 boxes under a pixel or outside their images (first: object 3 of image '0.png')",
        "left out of training: 1 object with area 0 (first: object 6 of image '0.png')",
    ]


def test_boxes_partly_outside_are_clipped(small_data):
    small_data.add(0, 7, [-10, 40, 20, 30], area=1.0, iscrowd=0)
    dataset = open_data(small_data)
    assert dataset[view(0)].target.boxes[2].tolist() == [0, 40, 10, 48]
    assert "2 boxes reach far beyond their images (first: object 2 of image '0.png'); only what" in dataset.notes[-1]


@pytest.mark.parametrize("box", [[64 - 1e-6, 8, 20, 16], [4, -20, 16, 20 + 1e-9]])
def test_a_box_that_only_rounding_leaves_inside_is_outside(small_data, box):
    small_data.add(0, 7, box)
    dataset = open_data(small_data)
    assert len(dataset[view(0, 333, 177)].target.boxes) == 2
    assert "1 box under a pixel or outside its image" in dataset.notes[0]


def test_an_image_with_only_a_crowd_is_not_trained_on(small_data):
    small_data.add(2, 7, [0, 0, 20, 16], iscrowd=1)
    assert "2.png" not in {info.file_name for info in open_data(small_data).images}


def set_first(part, **fields):
    return lambda data: data[part][0].update(fields)


def drop_first(part, field):
    return lambda data: data[part][0].pop(field)


BAD_FILES = {
    "no list": (lambda data: data.pop("categories"), "is not a COCO annotation file: it has no list 'categories'"),
    "a list of another kind": (lambda data: data.update(images={}), "it has no list 'images'"),
    "no categories": (lambda data: data.update(categories=[], annotations=[]), "no category is declared"),
    "no images": (lambda data: data.update(images=[], annotations=[]), "no image is listed"),
    "category without name": (drop_first("categories", "name"), "category number 1 .* has no 'name'"),
    "same category twice": (set_first("categories", id=3), "two categories .* have the id 3"),
    "half a pixel": (
        set_first("images", height=48.5),
        "image number 1 .* has height 48.5, which is not a number of pix",
    ),
    "height as a word": (set_first("images", height="tall"), "has height 'tall', which is not a number of pixels"),
    "more pixels than can be": (set_first("images", height=2**20 + 1), "is not a number of pixels up to 1,048,576"),
    "same image twice": (set_first("images", id=11), "two images .* have the id 11"),
    "undeclared category": (
        set_first("annotations", category_id=91),
        "use category ids that no category declares: 91; declared are 3, 7",
    ),
    "unknown image": (set_first("annotations", image_id=99), "use image ids that no image declares: 99"),
    "no image id": (drop_first("annotations", "image_id"), r"annotation 100 \(number 1\) .* has no 'image_id'"),
    "yes as an id": (set_first("annotations", category_id=True), "category_id True, which is neither an integer nor"),
    "not an object": (lambda data: data["annotations"].insert(0, 5), "not an object"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_annotation_file(small_data, case):
    change, message = BAD_FILES[case]
    change(small_data.data)
    with pytest.raises(UserError, match=message) as caught:
        open_data(small_data)
    assert "train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_BOXES = {
    "missing": None,
    "empty": [],
    "three": [1, 2, 3],
    "five": [1, 2, 3, 4, 0],
    "words": [1, 2, 3, "wide"],
    "without end": [1, 2, 3, float("inf")],
    "not a number": [1, 2, 3, float("nan")],
    "beyond any image": [1, 2, 3, 1e18],
}


@pytest.mark.parametrize("case", BAD_BOXES)
def test_a_box_that_is_none_is_left_out_and_counted(small_data, case):
    small_data.data["annotations"][0]["bbox"] = BAD_BOXES[case]
    dataset = open_data(small_data)
    assert dataset[view(0)].target.labels.tolist() == [0]
    assert "left out 1 box that is not four numbers (first: annotation 100 of image '0.png'" in dataset.notes[0]


BAD_SEGMENTATIONS = {
    "missing": (None, "object without a segmentation"),
    "empty": ([], "object without a segmentation"),
    "two points": ([[1, 1, 2, 2]], "no polygon of it has three points or more"),
    "odd": ([[1, 1, 2, 2, 3, 3, 4]], "odd number of coordinates"),
    "no number": ([[1, 1, 2, 2, 3, float("nan")]], "not x, y, x, y"),
    "text": ("x", "it is 'x'"),
    "other size": ({"size": [64, 40], "counts": [3072]}, r"RLE is of size \[64, 40\], not \[48, 64\]"),
    "too long": ({"size": [48, 64], "counts": [9999]}, "RLE is broken"),
    "no counts": ({"size": [48, 64], "counts": None}, "counts None"),
    "broken text": ({"size": [48, 64], "counts": "abc"}, "RLE is broken"),
}


@pytest.mark.parametrize("case", BAD_SEGMENTATIONS)
def test_a_bad_segmentation_is_left_out_and_counted_with_masks_only(small_data, case):
    segmentation, message = BAD_SEGMENTATIONS[case]
    small_data.data["annotations"][0]["segmentation"] = segmentation
    dataset = open_data(small_data, masks=True)
    assert re.search("left out 1 object .*annotation 100 of image '0.png'", dataset.notes[0])
    assert re.search(message, dataset.notes[0])
    target = dataset[view(0)].target
    assert (target.labels.tolist(), len(target.masks)) == ([0], 1)
    assert len(open_data(small_data)[view(0)].target.boxes) == 2


def test_not_json(small_data):
    annotations, images = small_data.write()
    for content in (b'{"images": [', b"\xff\xfe\x00", b""):
        annotations.write_bytes(content)
        with pytest.raises(UserError, match=r"train\.json' is not a COCO annotation file: it is not JSON"):
            DetectionDataset(read_coco(annotations, images), training=True)


def test_missing_folders_show_the_layout(small_data, tmp_path):
    gone = tmp_path / "gone"
    layout = "expected are the annotations '.*train.json' and their images in the folder '.*train'"
    for annotations, images in ((gone / "train.json", small_data.images), (small_data.annotations, gone / "train")):
        with pytest.raises(UserError, match=f"there is no .*{layout}"):
            DetectionDataset(read_coco(annotations, images), training=True)


def test_a_missing_image_is_named_at_once(small_data):
    (small_data.images / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png', listed in .*, does not exist"):
        open_data(small_data)


def test_an_image_of_another_size_is_named(small_data):
    dataset = open_data(small_data)
    cv2.imwrite(str(small_data.images / "0.png"), np.zeros((64, 48, 3), np.uint8))
    with pytest.raises(UserError, match=r"0\.png' is 48 x 64 pixels, but '.*' says 64 x 48"):
        dataset[view(0)]


def test_nothing_to_train_on(small_data):
    small_data.data["annotations"] = []
    with pytest.raises(UserError, match="can be trained on"):
        open_data(small_data)
    assert len(open_data(small_data, training=False)) == 4
