"""Detections that any tool wrote: what is read, and what is said of what cannot be."""

import json

import numpy as np
import pytest
from pycocotools import mask as pycocotools_mask

from mgdet.data.records import RecordsBuilder
from mgdet.errors import UserError
from mgdet.evaluate.coco import evaluate
from mgdet.evaluate.results import is_results_file, read_results, results_notes

BOX = [10.0, 12.0, 30.0, 20.0]
POLYGON = [[10, 12, 40, 12, 40, 32, 10, 32]]


@pytest.fixture
def records(tmp_path):
    """Three images with ids of their own, two classes with COCO's ids."""
    builder = RecordsBuilder("val.json", tmp_path, ["cat", "dog"], [17, 18], masks=True)
    for number, image in enumerate((139, "x7", 2**100)):
        index = builder.add_image(f"day/{139 + number:06d}.jpg", 100, 120, image)
        builder.add_object(index, number % 2, BOX, name=f"annotation {number}", segmentation=POLYGON)
    return builder.build()


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "theirs.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def entry(**changes):
    values = {"image_id": 139, "category_id": 17, "bbox": BOX, "score": 0.5} | changes
    return {name: value for name, value in values.items() if value is not None}


def test_what_is_written_comes_back_with_the_ids_of_the_data_set(records, write):
    path = write([entry(), entry(image_id="x7", category_id=18, score=1), entry(image_id=2**100, id=4, area=3.0)])
    results = read_results(path, records)
    assert [result["image_id"] for result in results] == [139, "x7", 2**100]
    assert results[1] == {"image_id": "x7", "category_id": 18, "bbox": BOX, "score": 1.0}
    assert results[2].keys() == {"image_id", "category_id", "bbox", "score"}
    assert evaluate(records, results)["bbox"].stats["AP50"] > 0


def test_numbers_written_as_text_mean_their_numbers(records, write):
    path = write(
        [entry(image_id="139", category_id="17", score="0.5", bbox=[str(v) for v in BOX]), entry(image_id=139.0)]
    )
    assert read_results(path, records) == [entry(), entry()]


@pytest.mark.parametrize("name", ["day/000140.jpg", "000140.jpg", "000140"])
def test_images_may_be_named_by_their_files(records, write, name):
    (result,) = read_results(write([entry(image_id=name)]), records)
    assert result["image_id"] == "x7"


def test_ids_win_over_names_of_files(records, write):
    """139 is the id of the first image, and all ids are known: no name is looked at."""
    assert read_results(write([entry(image_id=139)]), records)[0]["image_id"] == 139
    assert read_results(write([entry(image_id=141), entry(image_id=140)]), records)[0]["image_id"] == 2**100


def numbered(tmp_path, **ids):
    """Images 1.jpg to 12.jpg in the order of the alphabet, and the numbers in their names."""
    names = sorted(f"images/val/{number}.jpg" for number in range(1, 13))
    builder = RecordsBuilder("data.yaml", tmp_path, ["cat"])
    for name in names:
        builder.add_image(name, 100, 120, ids.get("ids", {}).get(name))
    return builder.build(), [int(name.rpartition("/")[2][:-4]) for name in names]


@pytest.mark.parametrize("form", ["{}", "{}.jpg", "images/val/{}.jpg", 1])
def test_where_the_format_has_no_ids_images_are_named_by_their_files(tmp_path, write, form):
    records, numbers = numbered(tmp_path)
    path = write([entry(image_id=form * n if form == 1 else form.format(n), category_id=1) for n in numbers])
    results = read_results(path, records)
    assert [result["image_id"] for result in results] == records.files
    notes = results_notes(path, results, records)
    if form in (1, "{}"):
        assert "are read as names of files, as images/val/1.jpg; detections that an earlier version" in notes.pop()
    assert notes == []


def test_numbers_that_are_in_no_files_name_are_refused_where_the_format_has_no_ids(tmp_path, write):
    builder = RecordsBuilder("data.yaml", tmp_path, ["cat"])
    builder.add_image("images/a.jpg", 100, 120)
    sentence = "the data set has no ids, so name images by their files, such as images/a.jpg"
    with pytest.raises(UserError, match=sentence):
        read_results(write([entry(image_id=1, category_id=1)]), builder.build())


def test_ids_that_are_also_the_names_of_other_images_are_said(tmp_path, write):
    names = sorted(f"images/val/{number}.jpg" for number in range(1, 13))
    records, numbers = numbered(tmp_path, ids={name: i for i, name in enumerate(names, 1)})
    path = write([entry(image_id=n, category_id=1) for n in numbers])
    results = read_results(path, records)
    assert [result["image_id"] for result in results] == numbers
    (note,) = results_notes(path, results, records)
    assert "are read as ids of 'data.yaml', but they are also names of its files: 2 is read as " in note
    own = {name: n for name, n in zip(names, numbers)}
    records, _ = numbered(tmp_path, ids=own)
    assert results_notes(path, read_results(path, records), records) == []


def test_a_box_that_is_missing_is_the_one_around_the_mask(records, write):
    mask = np.zeros((100, 120), np.uint8)
    mask[12:32, 10:40] = 1
    rle = pycocotools_mask.encode(np.asfortranarray(mask))
    rle = {"size": rle["size"], "counts": rle["counts"].decode()}
    path = write([entry(bbox=None, segmentation=rle), entry(bbox=None, segmentation=POLYGON)])
    assert [result["bbox"] for result in read_results(path, records)] == [BOX, BOX]
    results = read_results(path, records, ["segm"])
    assert evaluate(records, results, ["segm"])["segm"].stats["AP"] > 0


def test_masks_are_read_only_where_they_are_measured(records, write):
    path = write([entry(segmentation={"size": [7, 7], "counts": "nonsense"})])
    assert "segmentation" not in read_results(path, records)[0]
    with pytest.raises(UserError, match=r"result number 1 has a segmentation that cannot be read: its RLE is of size"):
        read_results(path, records, ["segm"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[{", "theirs.json is no JSON"),
        ("", "theirs.json is no JSON"),
        ({"images": [], "annotations": []}, "holds annotations, not detections"),
        ({"predictions": []}, "holds no list of detections"),
        ([{"file": "a.jpg", "objects": []}], "was written by mgdet predict"),
        ([entry(), 7], "result number 2 is 7"),
        ([entry(), entry(score=None)], "result number 2 has no score"),
        ([entry(score="high")], "result number 1 has the score 'high'; give a number"),
        ("[" + json.dumps(entry()).replace("0.5", "NaN") + "]", "has the score nan"),
        ([entry(bbox=[1, 2, 3])], r"has the bbox \[1, 2, 3\]; give x, y, width and height"),
        ([entry(bbox=[5, 5, -1, 4])], "has the bbox"),
        ([entry(bbox=None)], "result number 1 has no bbox"),
        ([entry(image_id=None)], "result number 1 has no image_id"),
        ([entry(image_id=[1])], r"result number 1 has the image_id \[1\]"),
        ([entry(category_id=True)], "result number 1 has the category_id True"),
        (
            [entry(), entry(image_id=5), entry(image_id=6)],
            r"for 2 images that 'val.json' does not have, out of 3 \(ids 5, 6;",
        ),
        ([entry(category_id=3)], "category ids that 'val.json' does not declare: 3; declared are 17, 18$"),
        ([entry(category_id=0), entry(category_id=1)], "they look like labels, counted from 0"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_sentence(records, write, content, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        read_results(write(content), records)
    assert "\n" not in str(caught.value)


def test_what_is_odd_is_named(records, write):
    path = write([entry(bbox=[60, 60, 110, 95]), entry(bbox=[80, 10, 115, 60])])
    notes = results_notes(path, read_results(path, records), records)
    assert any("has no detections for 2 of the 3 images (first: id x7)" in note for note in notes)
    assert any("they look like corners" in note for note in notes)
    everywhere = write([entry(), entry(image_id="x7"), entry(image_id=2**100)])
    assert results_notes(everywhere, read_results(everywhere, records), records) == []


def test_none_at_all_scores_nothing(records, write):
    path = write([])
    assert read_results(path, records) == []
    assert evaluate(records, [])["bbox"].stats["AP"] == 0
    assert len(results_notes(path, [], records)) == 1


def test_a_results_file_is_known_by_its_name():
    assert is_results_file("a/detections.JSON")
    assert not is_results_file("a/student.pth")
    assert not is_results_file("https://example.org/weights.json")
