"""What is said of data sets that can be read and are odd all the same."""

from __future__ import annotations

from mgdet.data.doubts import doubts
from mgdet.data.records import RecordsBuilder


def records(*images, classes=("cat", "dog")):
    """Each image is its file and (label, x, y, width, height) of its objects; all are 100 x 80 pixels."""
    builder = RecordsBuilder("a.json", None, classes)
    for number, (file, *objects) in enumerate(images):
        index = builder.add_image(file, 80, 100, number)
        for label, *box in objects:
            builder.add_object(index, label, box, name="annotation")
    return builder.build()


def test_a_data_set_as_it_should_be():
    """Twins in other images, of another class or beside each other are no twins; a pixel over the edge is rounding."""
    box = (10, 10, 30, 30)
    ordinary = records(("a.jpg", (0, *box), (1, *box), (0, 10, 10, 30, 31)), ("b.jpg", (0, *box), (0, 60, 0, 41, 80.9)))
    assert doubts(ordinary) == []
    assert doubts(records(("a.jpg",))) == []


def test_a_file_with_an_entry_for_each_object():
    several = records(*[("a.jpg", (0, 10 * i, 0, 9, 9)) for i in range(4)], ("b.jpg",), ("c.jpg",), ("c.jpg",))
    assert doubts(several) == [
        "2 image files are listed more than once (first: 'a.jpg', 4 times), so the objects of one entry are background "
        "in the others; give each file one entry with all of its objects"
    ]
    assert doubts(records(("a.jpg",), ("a.jpg",)))[0].startswith(
        "1 image file is listed more than once (first: 'a.jpg', 2"
    )


def test_objects_that_are_there_twice():
    twins = (0, 10, 10, 30.5, 30), (1, 5, 5, 9, 9), (0, 10, 10, 30.5, 30)
    assert doubts(records(("a.jpg", (1, 5, 5, 9, 9)), ("b.jpg", *twins))) == [
        "1 object is there twice, with the same class and box (first: object 3 of image 'b.jpg')"
    ]
    assert doubts(records(("b.jpg", *twins, *twins)))[0].startswith("4 objects are there twice")


def test_boxes_that_are_two_corners():
    corners = records(("a.jpg", *((0, 50 + i, 40, 90, 70) for i in range(5)), (0, 1, 1, 20, 20)))
    assert doubts(corners) == [
        "5 boxes reach far beyond their images (first: object 1 of image 'a.jpg'); a box is x, y, width, height, and "
        "these look like two corners"
    ]
    one = records(("a.jpg", (0, -9, 10, 20, 20), *((1, 0, i, 9, 9) for i in range(9))))
    assert doubts(one) == [
        "1 box reaches far beyond its image (first: object 1 of image 'a.jpg'); only what is inside counts in training"
    ]


def test_classes_of_one_name():
    assert doubts(records(("a.jpg",), classes=("cat", "dog", "cat"))) == ["several classes have the same name: 'cat'"]
