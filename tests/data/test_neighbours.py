"""Files as people have them: read to the same objects, or refused in one true sentence."""

import cv2
import neighbours
import numpy as np
import pytest
from neighbours import BOXES, BROKEN, CATEGORIES, COUNTED, ENCODINGS, HEIGHT, NO_MASKS, READ, REFUSED, WIDTH, write

from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.data.transforms import View
from mgdet.errors import UserError
from mgdet.evaluate.coco import evaluate

VIEW = {"long_edge": WIDTH, "short_edge": HEIGHT, "flip": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.jpg"), np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8))
    return folder


def truth_as_detections(records):
    """What the file means, whatever it looks like, under the file's own ids."""
    return [
        {
            "image_id": records.image_ids[i],
            "category_id": records.category_ids[CATEGORIES[i] - 1],
            "bbox": BOXES[i],
            "score": 0.9,
            "segmentation": neighbours.compressed(neighbours.filled(BOXES[i])),
        }
        for i in range(3)
    ]


def assert_means_the_base(path, folder):
    for masks in (False, True):
        records = read_coco(path, folder, masks=masks)
        dataset = DetectionDataset(records, training=True, masks=masks)
        assert len(dataset) == 3
        for i in range(3):
            target = dataset[View(i, **VIEW)].target
            x, y, w, h = BOXES[i]
            assert target.boxes.tolist() == [[x, y, x + w, y + h]]
            assert target.labels.tolist() == [CATEGORIES[i] - 1]
            if masks:
                assert np.array_equal(target.masks[0, :HEIGHT, :WIDTH], neighbours.filled(BOXES[i]))
        metrics = ("bbox", "segm") if masks else ("bbox",)
        for scores in evaluate(records, truth_as_detections(records), metrics).values():
            assert scores.stats["AP"] == 1
    return records


@pytest.mark.parametrize("name", READ)
def test_it_means_what_the_base_means(name, folder, tmp_path):
    assert_means_the_base(write(READ[name], tmp_path / "a.json"), folder)


@pytest.mark.parametrize("name", ENCODINGS)
def test_any_unicode_encoding(name, folder, tmp_path):
    assert_means_the_base(write(READ["base"], tmp_path / "a.json", ENCODINGS[name]), folder)


def test_nothing_is_left_out_of_the_base(folder, tmp_path):
    records = assert_means_the_base(write(READ["base"], tmp_path / "a.json"), folder)
    assert records.left_out.counts == {}


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_left_out_is_counted_with_an_example(name, folder, tmp_path):
    change, phrase = COUNTED[name]
    dataset = DetectionDataset(read_coco(write(change, tmp_path / "a.json"), folder), training=True)
    assert any("a.json': left out" in note and phrase in note for note in dataset.notes)


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_to_train_on_says_why(name, folder, tmp_path):
    change, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        DetectionDataset(read_coco(write(change, tmp_path / "a.json"), folder), training=True)
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_coco_file_says_why(name, folder, tmp_path):
    encode, message = BROKEN[name]
    path = write(READ["base"], tmp_path / "a.json", encode)
    with pytest.raises(UserError, match=f"a.json' is not a COCO annotation file: .*{message}"):
        read_coco(path, folder)


@pytest.mark.parametrize("name", NO_MASKS)
def test_without_masks_boxes_are_trained_on_and_masks_are_refused(name, folder, tmp_path):
    path = write(NO_MASKS[name], tmp_path / "a.json")
    assert len(DetectionDataset(read_coco(path, folder), training=True)) == 3
    records = read_coco(path, folder, masks=True)
    with pytest.raises(UserError, match=r"can be trained on: 3 objects (without a|whose) segmentation"):
        DetectionDataset(records, training=True, masks=True)
    with pytest.raises(
        UserError, match=r"metric segm needs masks, and no object in '.*a.json' has one: left out 3 obj"
    ):
        evaluate(records, [], ["segm"])
    assert evaluate(records, truth_as_detections(records), ["bbox"])["bbox"].stats["AP"] == 1


def test_an_object_without_a_mask_does_not_count_in_segm(folder, tmp_path):
    path = write(lambda data: data["annotations"][1].update(segmentation=[]), tmp_path / "a.json")
    records = read_coco(path, folder, masks=True)
    detections = [detection for detection in truth_as_detections(records) if detection["image_id"] != 2]
    scores = evaluate(records, detections, ["bbox", "segm"])
    assert scores["segm"].stats["AP"] == 1
    assert scores["segm"].per_class["dog"]["AP"] == -1
    assert scores["bbox"].per_class["dog"]["AP"] == 0


def test_every_class_of_one_name_has_a_row(folder, tmp_path):
    path = write(lambda data: data["categories"].append({"id": 0, "name": "cat"}), tmp_path / "a.json")
    records = read_coco(path, folder)
    detections = [d | {"category_id": c} for d, c in zip(truth_as_detections(records), CATEGORIES)]
    per_class = evaluate(records, detections)["bbox"].per_class
    assert {name: round(row["AP"], 9) for name, row in per_class.items()} == {
        "cat (id 0)": -1,
        "cat (id 1)": 1,
        "dog": 1,
    }


def test_scores_go_by_the_ids_of_the_file_where_detections_tie(folder, tmp_path):
    """COCO's protocol takes equal scores in the order of image ids: `10` comes after `9`, as a text too."""
    for ids in ([10, 9, 11], ["10", "9", "11"]):
        path = write(
            lambda data, ids=ids: [
                part[i].update({field: ids[i]})
                for part, field in ((data["images"], "id"), (data["annotations"], "image_id"))
                for i in range(3)
            ],
            tmp_path / "a.json",
        )
        records = read_coco(path, folder)
        hit = {"image_id": ids[1], "category_id": 1, "bbox": BOXES[0], "score": 0.5}
        right = {"image_id": ids[0], "category_id": 1, "bbox": BOXES[0], "score": 0.5}
        # The false alarm is of the lower id, so it comes first and halves the precision.
        assert evaluate(records, [right, hit])["bbox"].per_class["cat"]["AP"] == pytest.approx(0.5 * 51 / 101, abs=1e-9)
