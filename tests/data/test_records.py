"""The builder that every format fills, and what values of any type mean."""

import math

import msgspec
import numpy as np
import pytest

from mgdet.data.records import Reason, RecordsBuilder, id_order
from mgdet.data.segmentation import Unreadable, canonical, decode
from mgdet.data.values import four_numbers, number, truth
from mgdet.errors import UserError


def builder(tmp_path, **options):
    return RecordsBuilder("data.yaml", tmp_path, ["cat", "dog"], **options)


def test_objects_of_any_order_are_sorted_by_image_and_keep_theirs_within_it(tmp_path):
    b = builder(tmp_path, masks=True)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        b.add_image(name, 48, 64)
    for row, image in enumerate((2, 0, 2, 0)):
        polygon = [row, 0, row + 9, 0, row + 9, 9]
        b.add_object(image, row % 2, [row, 0, 9, 9], name=f"line {row}", area=row + 1, segmentation=polygon)
    records = b.build()
    assert records.starts.tolist() == [0, 2, 2, 4]
    assert records.boxes[:, 0].tolist() == [1, 3, 0, 2]
    assert records.areas.tolist() == [2, 4, 1, 3]
    assert records.labels.tolist() == [1, 1, 0, 0]
    assert [msgspec.json.decode(records.segmentation(row))[0][0] for row in range(4)] == [1, 3, 0, 2]
    assert records.rows(2) == slice(2, 4)
    assert [records.image_of(row) for row in range(4)] == [0, 0, 2, 2]
    assert records.describe(3) == "object 2 of image 'c.jpg'"
    assert (records.image_ids, records.category_ids) == (["a.jpg", "b.jpg", "c.jpg"], (1, 2))


def test_nothing_declared_or_listed(tmp_path):
    with pytest.raises(UserError, match=r"no category is declared in 'data.yaml'"):
        RecordsBuilder("data.yaml", tmp_path, [])
    with pytest.raises(UserError, match=r"no image is listed in 'data.yaml'"):
        builder(tmp_path).build()


def test_what_is_left_out_is_counted_with_the_first_example(tmp_path):
    b = builder(tmp_path)
    b.add_image("a.jpg")
    for i, box in enumerate(([1, 2, 3], "1 2 3 4", [1, 2, 0, 4], None, [5, 5, 5, 5])):
        b.add_object(0, 0, box, name=f"line {i + 1}")
    assert b.build().boxes.tolist() == [[5, 5, 5, 5]]
    assert b.left_out.counts == {Reason.NOT_A_BOX: 3, Reason.NO_EXTENT: 1}
    assert b.left_out.sentences() == [
        "left out 3 boxes that are not four numbers (first: line 1 of image 'a.jpg': [1, 2, 3])",
        "left out 1 box without width or height (first: line 3 of image 'a.jpg': [1, 2, 0, 4])",
    ]


NUMBERS = {3: 3, "3": 3, " 3.5 ": 3.5, "1e2": 100, -0.5: -0.5}
NO_NUMBERS = (None, True, "", "x", "1_0", "nan", "inf", math.nan, math.inf, 10**400, "9" * 41, [1], {})


def test_numbers():
    assert {value: number(value) for value in NUMBERS} == NUMBERS
    assert [number(value) for value in NO_NUMBERS] == [None] * len(NO_NUMBERS)
    assert four_numbers("(1, 2, 3, 4)") == four_numbers(["1", 2, 3.0, "4"]) == (1, 2, 3, 4)
    assert four_numbers([1, 2, 3, 2**31]) is None


def test_flags():
    assert [truth(value) for value in (1, True, "1", "true", " Yes ", 2, 0.5)] == [True] * 7
    assert [truth(value) for value in (0, False, None, "", "0", "No", [], {}, "null")] == [False] * 9
    assert [truth(value) for value in ("maybe", math.nan, [0], {"a": 1})] == [None] * 4


def test_ids_ascend_as_numbers_and_then_as_texts():
    assert sorted(["b", "10", 9, -3, "a", "2"], key=id_order) == [-3, "2", 9, "10", "a", "b"]


def test_a_swapped_rle_that_fits_the_box_neither_way_is_not_read():
    rle = {"size": [6, 4], "counts": [0, 2, 22]}
    assert np.argwhere(decode(canonical(rle, (4, 6), (0, 0, 1, 2)), 4, 6)).tolist() == [[0, 0], [1, 0]]
    with pytest.raises(Unreadable, match=r"of size \[6, 4\], not \[4, 6\], and does not fit the box"):
        canonical(rle, (4, 6), (3, 3, 1, 1))
