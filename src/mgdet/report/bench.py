"""The images that everything is measured on: each source is loaded, run over them, and scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import hotcoco
import torch

from mgdet.data.dataset import DetectionDataset
from mgdet.detectors.exported import Exported
from mgdet.detectors.face import Face
from mgdet.errors import UserError
from mgdet.evaluate.coco import CocoScores, coco_scores, evaluator, run_detector
from mgdet.evaluate.results import read_results, results_notes
from mgdet.evaluate.truth import Truth
from mgdet.models import has_masks, load_detector
from mgdet.models.opened import keep_classes
from mgdet.report.history import read_history
from mgdet.report.intervals import Results, Side
from mgdet.report.numbers import Run
from mgdet.report.sources import Source

TIDE = {
    "Cls": "classification",
    "Loc": "localization",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}
"""TIDE's error types, as they are shown."""


@dataclass(slots=True)
class Entry:
    """A source on its way through the comparison.

    detector: on the CPU; None for detections.
    results: what it finds, in COCO's results format with the ids of the data set.
    numbered: the same with the ids of `Truth`.
    scores: for each metric.
    matched: hotcoco's evaluator for each metric.
    line: what was loaded.
    notes: what is odd about it.
    """

    source: Source
    detector: Face | None = None
    results: Results = field(default_factory=list)
    numbered: Results = field(default_factory=list)
    scores: dict[str, CocoScores] = field(default_factory=dict)
    matched: dict[str, hotcoco.COCOeval] = field(default_factory=dict)
    line: str = ""
    notes: list[str] = field(default_factory=list)

    def run(self) -> Run:
        """What is kept of it."""
        source = self.source
        history = read_history(source.folder) if source.folder is not None else None
        return Run(source.given, str(source.file), source.sha256, source.seed, self.scores, history)

    def errors(self, metric: str) -> dict[str, float]:
        """How much AP50 would rise without each of TIDE's types of errors, in shares of 1."""
        found = self.matched[metric].tide_errors()["delta_ap"]
        return {name: found[name] for name in TIDE}


class Bench:
    """Everything that is the same for all sources.

    Args:
        dataset: opened for testing, with masks if "segm" is among the metrics.
        metrics: "bbox", "segm" or both.
        device: where detectors run.
        workers: processes that read images.
    """

    def __init__(self, dataset: DetectionDataset, metrics: Sequence[str], device: torch.device, workers: int):
        self.dataset, self.metrics, self.device, self.workers = dataset, tuple(metrics), device, workers
        self.truth = Truth(dataset.records)
        self._cocos = {metric: self.truth.coco(masks=metric == "segm") for metric in metrics}

    def load(self, source: Source) -> Entry:
        """Reads detections, or builds the detector with its weights, which `source` then gives away.

        Raises:
            UserError: it does not fit the data, or does not find what is to be measured.
        """
        if source.sizes is None:
            results = read_results(source.file, self.dataset.records, self.metrics)
            notes = results_notes(source.file, results, self.dataset.records)
            return Entry(source, results=results, line=f"{source.file}: {len(results):,} detections", notes=notes)
        if (opened := source.opened) is not None:
            source.opened = None
            self._check_masks(source, opened.name, opened.detector.has_masks)
            keep_classes(opened, self.dataset.classes)
            return Entry(source, opened.detector, line="\n".join(opened.lines), notes=_graph_notes(opened.detector))
        assert source.checkpoint is not None and source.model is not None
        self._check_masks(source, source.model.detector, has_masks(source.model))
        detector, line = load_detector(source.model, source.checkpoint, self.dataset.classes)
        source.checkpoint = None
        return Entry(source, detector, line=line, notes=list(source.notes))

    def _check_masks(self, source: Source, what: str, masks: bool) -> None:
        if "segm" in self.metrics and not masks:
            raise UserError(f"{source.given} is a {what}, which finds only boxes; give --eval bbox")

    def measure(self, entry: Entry, progress: Callable[[int, int], None]) -> None:
        """Runs the detector over all images, in float32, and scores what was found.

        Args:
            entry: what `load` gave.
            progress: called after every batch with the number of images done and to do.
        """
        sizes = entry.source.sizes
        if entry.detector is not None and sizes is not None:
            found = run_detector(
                entry.detector.to(self.device),
                self.dataset,
                long_edge=sizes.long_edge,
                short_edge=sizes.short_edge,
                square=sizes.square,
                canvas=sizes.canvas,
                device=self.device,
                amp="off",
                workers=self.workers,
                rank=0,
                world_size=1,
                progress=progress,
            )
            entry.detector.to("cpu")
            entry.results = found or []
        entry.numbered = self.truth.results(entry.results)
        for metric, coco in self._cocos.items():
            entry.matched[metric] = evaluator(coco, entry.numbered, metric)
            entry.scores[metric] = coco_scores(entry.matched[metric], self.dataset.records)


def _graph_notes(detector: Face) -> list[str]:
    """What a time of an exported graph is of, beside times of torch."""
    if not isinstance(detector, Exported):
        return []
    return [
        f"the time of {detector.path} is that of ONNX Runtime on {detector.device_name}, in "
        f"{detector.origin['precision']}"
    ]


def side_of(entries: Sequence[Entry], metric: str) -> Side:
    """Runs of one kind as a side of a difference."""
    return Side([entry.numbered for entry in entries], [entry.scores[metric] for entry in entries])
