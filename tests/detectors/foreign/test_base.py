"""Classes by name between the data and another library's head."""

from __future__ import annotations

import pytest

from mgdet.detectors.foreign.base import match_classes

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
