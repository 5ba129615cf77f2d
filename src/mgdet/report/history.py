"""What a run logged while it trained, as curves by epoch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mgdet.config import METHODS
from mgdet.report.numbers import History

METRICS_FILE = "metrics.jsonl"


def read_history(folder: Path) -> History | None:
    """The curves of the run in a folder; None where it logged nothing. Lines that a kill cut off are passed over."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return None
    records = [record for line in path.read_bytes().splitlines() if (record := _record(line)) is not None]
    training = [record for record in records if record["kind"] == "train" and record.get("epoch")]
    if not training:
        return None
    steps_per_epoch = training[-1]["step"] / training[-1]["epoch"]
    history = History()
    for record in training:
        if not isinstance(record.get("loss"), float):
            continue  # it was not finite
        methods = {method: _sum_of(record, method) for method in METHODS}
        history.detection.append((record["epoch"], record["loss"] - math.fsum(filter(None, methods.values()))))
        for method, value in methods.items():
            if value is not None:
                history.methods.setdefault(method, []).append((record["epoch"], value))
    for record in records:
        if record["kind"] == "eval" and isinstance(record.get("AP"), float):
            point = (record["step"] / steps_per_epoch, record["AP"])
            history.scores.setdefault(record["metric"], []).append(point)
    return history


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    known = isinstance(record, dict) and record.get("kind") in ("train", "eval") and isinstance(record.get("step"), int)
    return record if known else None


def _sum_of(record: dict[str, Any], method: str) -> float | None:
    """The loss of a method, over all levels; None where the run had no such method."""
    own = [
        value
        for name, value in record.items()
        if (name.startswith(f"loss_{method}_fpn_") or name == f"loss_{method}") and isinstance(value, float)
    ]
    return math.fsum(own) if own else None
