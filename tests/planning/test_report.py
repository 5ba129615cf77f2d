"""What a check says, as values."""

from __future__ import annotations

import json

from mgdet.planning.report import Report


def test_what_is_not_finite_is_null_in_json():
    report = Report(values={"loss": float("inf"), "parts": {"norms": [1.0, float("nan")]}})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    values = json.loads(report.to_json(), parse_constant=refuse)["values"]
    assert values == {"loss": None, "parts": {"norms": [1.0, None]}}
