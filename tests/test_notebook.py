"""The notebook in docs/, cell by cell, as a reader runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOK = json.loads((DOCS / "distill.ipynb").read_text())


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, cell in enumerate(NOTEBOOK["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert (tmp_path / "runs/student/report/report.html").is_file()
    assert all(len(prediction.boxes) == len(prediction.names) for prediction in names["predictions"])  # type: ignore[attr-defined]
    distilled, again = (tmp_path / run / "student_last.pth" for run in ("runs/student/distilled", "runs/again"))
    assert distilled.is_file() and again.is_file()


def test_it_is_kept_without_outputs():
    """Outputs change with every run, and hold the paths of the machine."""
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
