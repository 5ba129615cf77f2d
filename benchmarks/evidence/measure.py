"""The test images: the last student of each finished run finds objects on them once, and its detections are kept.

The last student, not the best one: which is best would be a choice made on test images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evidence.data import data_config, fingerprint, test_root
from evidence.pairs import Pair
from evidence.runs import Finished, Planned, commit, finished_of, read_lines
from evidence.work import Say
from mgdet.data.open import open_splits
from mgdet.data.records import Records
from mgdet.distributed import World
from mgdet.engine.checkpoint import LAST_FILE, read_config
from mgdet.evaluate.coco import evaluate
from mgdet.report.measure import test_checkpoint

LOOKS_FILE = "looks.jsonl"
"""A line for each time that students were measured on the test images."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A finished run on the test images.

    folder: of the run.
    seed: of the run.
    finished: what it ended with.
    scores: COCO's numbers of each metric; empty where the run broke off.
    results: its detections in COCO's results format.
    """

    folder: Path
    seed: int
    finished: Finished
    scores: dict[str, dict[str, float]]
    results: list[dict[str, Any]]


class TestImages:
    """The test images of a pair.

    records: their annotations.

    Args:
        pair: the pair.
        root: of everything.
        name: of the pair.
        say: is told what is measured.
    """

    def __init__(self, pair: Pair, root: Path, name: str, say: Say):
        self.pair, self.say, self._looks, self._noted = pair, say, root / name / LOOKS_FILE, False
        self._data = data_config(test_root(root, pair.images), pair.images.size)
        self._mark = fingerprint(test_root(root, pair.images))
        masks = "segm" in pair.metrics
        self.records: Records = open_splits(self._data, val_masks=masks, required=("val",)).records["val"]

    def measure(self, runs: Sequence[Planned]) -> list[Measured]:
        """Those of these runs that are finished, in their order."""
        found = [(run.folder, finished) for run in runs if (finished := finished_of(run)) is not None]
        return [self._measure(folder, finished) for folder, finished in found]

    @property
    def looks(self) -> list[dict[str, Any]]:
        """When students were measured here, and with which code."""
        return read_lines(self._looks)

    def _note_look(self) -> None:
        """Adds one line for all that this object measures."""
        if self._noted:
            return
        self._noted = True
        look = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "commit": commit()}
        with self._looks.open("a") as file:
            file.write(json.dumps(look) + "\n")

    def _file(self, folder: Path, finished: Finished) -> Path:
        """Detections belong to a student's file, test images and metrics: another one of these has its own."""
        return folder / f"test-{finished.sha256[:12]}-{self._mark}-{'-'.join(self.pair.metrics)}.json"

    def _measure(self, folder: Path, finished: Finished) -> Measured:
        config = read_config(folder)
        assert config is not None
        if not finished.val:
            return Measured(folder, config.train.seed, finished, {}, [])
        path = self._file(folder, finished)
        if not path.exists():
            self._note_look()
            self.say(f"testing {folder}")
            world = World.alone()
            config = replace(config, data=self._data)
            source = str(folder / LAST_FILE)
            test_checkpoint(config, source, metrics=self.pair.metrics, out=path, world=world, say=lambda line: None)
        results = json.loads(path.read_text())
        found = evaluate(self.records, results, self.pair.metrics)
        scores: dict[str, dict[str, float]] = {metric: found[metric].stats for metric in self.pair.metrics}
        return Measured(folder, config.train.seed, finished, scores, results)
