"""Annotation files: what becomes an object, which images are trained on, and every complaint."""

import cv2
import numpy as np
import pytest

from mgdet.data.coco import CocoDataset
from mgdet.data.transforms import View
from mgdet.errors import UserError


def open_data(data, training=True, masks=False):
    return CocoDataset(*data.write(), training=training, masks=masks)


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
    assert dataset.notes == ["2 images of 4 without a usable box or under 32 pixels left out (first: 2.png)"]


def test_testing_takes_all_images(small_data):
    dataset = open_data(small_data, training=False)
    assert [info.id for info in dataset.images] == [10, 11, 12, 13]
    assert dataset.portrait == [False, True, False, True]
    assert dataset.notes == []
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
    assert dataset.notes[0] == "6 degenerate boxes dropped (first: annotation 104 of image 0.png)"


def test_boxes_partly_outside_are_clipped(small_data):
    small_data.add(0, 7, [-10, 40, 20, 30], area=1.0, iscrowd=0)
    dataset = open_data(small_data)
    assert dataset[view(0)].target.boxes[2].tolist() == [0, 40, 10, 48]
    assert len(dataset.notes) == 1


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
    "image without width": (drop_first("images", "width"), "image number 1 .* has no 'width'"),
    "height as text": (set_first("images", height="48"), "has height '48', which should be of type int"),
    "no pixels": (set_first("images", height=0), "has no pixels"),
    "same image twice": (set_first("images", id=11), "two images .* have the id 11"),
    "undeclared category": (
        set_first("annotations", category_id=91),
        "use category ids that no category declares: 91; declared are 3, 7",
    ),
    "unknown image": (set_first("annotations", image_id=99), "use image ids that no image declares: 99"),
    "no box": (drop_first("annotations", "bbox"), r"annotation 100 \(number 1\) .* has no 'bbox'"),
    "box of three": (set_first("annotations", bbox=[1, 2, 3]), "should be four numbers"),
    "box of words": (set_first("annotations", bbox=[1, 2, 3, "4"]), "should be four numbers"),
    "box without end": (set_first("annotations", bbox=[1, 2, 3, float("nan")]), "should be four numbers"),
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


BAD_SEGMENTATIONS = {
    "missing": (None, "has no segmentation"),
    "empty": ([], "has no segmentation"),
    "two points": ([[1, 1, 2, 2]], "three points or more"),
    "odd": ([[1, 1, 2, 2, 3, 3, 4]], "three points or more"),
    "no number": ([[1, 1, 2, 2, 3, float("nan")]], "three points or more"),
    "text": ("x", "three points or more"),
    "other size": ({"size": [64, 48], "counts": [3072]}, "RLE of size"),
    "too long": ({"size": [48, 64], "counts": [9999]}, "broken RLE"),
    "no counts": ({"size": [48, 64], "counts": None}, "broken RLE"),
}


@pytest.mark.parametrize("case", BAD_SEGMENTATIONS)
def test_bad_segmentation_matters_with_masks_only(small_data, case):
    segmentation, message = BAD_SEGMENTATIONS[case]
    small_data.data["annotations"][0]["segmentation"] = segmentation
    with pytest.raises(UserError, match=f"annotation 100 of image '0.png' .*{message}"):
        open_data(small_data, masks=True)
    assert len(open_data(small_data)) == 2


def test_not_json(small_data):
    annotations, images = small_data.write()
    for content in (b'{"images": [', b"\xff\xfe\x00", b""):
        annotations.write_bytes(content)
        with pytest.raises(UserError, match=r"train\.json' is not a COCO annotation file: it is not JSON"):
            CocoDataset(annotations, images, training=True)


def test_missing_folders_show_the_layout(small_data, tmp_path):
    gone = tmp_path / "gone"
    layout = "expected are the COCO annotation file '.*train.json' and its images in the folder '.*train'"
    for annotations, images in ((gone / "train.json", small_data.images), (small_data.annotations, gone / "train")):
        with pytest.raises(UserError, match=f"there is no .*{layout}"):
            CocoDataset(annotations, images, training=True)


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
