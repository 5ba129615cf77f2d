"""Classes by name between the data and another library's head."""

from __future__ import annotations

import pytest

from mgdet.detectors.foreign.base import match_classes
from mgdet.planning.score import labels_by_name

KNOWN = ("__background__", "person", "N/A", "tv", "couch", "hair drier", "N/A", "dining table")


@pytest.mark.parametrize(
    ("wanted", "columns"),
    [
        (("person", "tv"), (1, 3)),
        (("Sofa", "tvmonitor", "Hair-Dryer"), (4, 3, 5)),
        (("dining_table", "person"), (7, 1)),
        (("person", "N/A"), None),
        (("person", "zebra"), None),
        (("sofa", "couch"), None),
    ],
)
def test_columns_by_name_with_aliases(wanted, columns):
    known = KNOWN if "N/A" not in wanted else ("__background__", "person")
    assert match_classes(known, wanted) == columns


def test_a_placeholder_stands_for_no_class():
    assert match_classes(("background", "cell"), ("cell",)) == (1,)
    assert match_classes(("N/A", "cell"), ("n/a?", "cell")) is None


@pytest.mark.parametrize(
    ("known", "wanted", "columns"),
    [
        (("a", "A", "b"), ("A", "a", "b"), (1, 0, 2)),
        (("a", "A", "b"), ("B", "A"), (2, 1)),
        (("plus", "+", "-"), ("-", "plus", "+"), (2, 0, 1)),
        (("plus", "+", "-"), ("*",), None),
        (("sofa", "couch", "dog"), ("couch", "sofa"), (1, 0)),
        (("Sofa", "couch"), ("couch", "sofa"), (1, 0)),
        (("couch", "dog"), ("couch", "sofa"), None),
        (("N/A", "cell"), ("cell", "N/A"), (1, 0)),
    ],
)
def test_a_name_that_is_known_as_it_stands_is_that_class(known, wanted, columns):
    assert match_classes(known, wanted) == columns


def test_a_teacher_is_scored_for_the_class_that_is_named_exactly():
    for classes in (("couch", "sofa"), ("sofa", "couch")):
        label = classes.index("couch")
        assert labels_by_name(("dog", "couch"), classes) == [-1, label]
