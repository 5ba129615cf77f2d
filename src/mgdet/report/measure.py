"""What `mgdet test` does: a checkpoint over a data set, its scores as tables, its detections as a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mgdet.config import Config
from mgdet.data.dataset import DetectionDataset
from mgdet.data.open import open_splits
from mgdet.distributed import World
from mgdet.errors import UserError
from mgdet.evaluate.coco import METRICS, CocoScores, check_truth, evaluate, run_detector
from mgdet.files import atomic_write
from mgdet.interop.weights import read_checkpoint
from mgdet.models import has_masks, load_detector
from mgdet.precision import set_float32

LINES = {
    "AP": "average precision, IoU 0.50:0.95",
    "AP50": "average precision, IoU 0.50",
    "AP75": "average precision, IoU 0.75",
    "APs": "average precision, small objects",
    "APm": "average precision, medium objects",
    "APl": "average precision, large objects",
    "AR1": "average recall, 1 detection per image",
    "AR10": "average recall, 10 detections per image",
    "AR100": "average recall, 100 detections per image",
    "ARs": "average recall, small objects",
    "ARm": "average recall, medium objects",
    "ARl": "average recall, large objects",
}


def test_checkpoint(
    config: Config,
    source: str,
    *,
    metrics: Sequence[str],
    out: Path | None,
    world: World,
    say: Callable[[str], None],
    ema: bool = False,
    amp: str = "off",
) -> dict[str, CocoScores] | None:
    """Measures a checkpoint on the evaluation images of a recipe.

    Args:
        config: the recipe; its student and its data count.
        source: a checkpoint file, its URL, or a run's folder.
        metrics: "bbox", "segm" or both.
        out: where the detections go in COCO's results format; None for nowhere.
        world: this process among the others.
        say: is told what was loaded and the tables; by the first process only.
        ema: as `read_checkpoint` takes it.
        amp: precision of backbone and neck: "bf16", "fp16", or "off", which is exact float32 everywhere.

    Returns:
        The scores for each metric on rank 0, none where the data set has no annotations; None on other ranks.

    Raises:
        UserError: bad input; `out` exists already.
    """
    masks = has_masks(config.student)
    if not metrics:
        raise UserError("--eval is empty; give bbox, segm or both")
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"--eval has '{metric}'; the choices are {' and '.join(METRICS)}")
        if metric == "segm" and not masks:
            raise UserError(f"--eval has segm, but a {config.student.detector} finds only boxes; choose bbox")
    if out is not None and out.exists():
        raise UserError(f"{out} exists already; give the name of a new file")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"the folder {out.parent} of {out.name} does not exist; make it first")
    splits = open_splits(config.data, val_masks="segm" in metrics, required=("val",), barrier=world.barrier)
    records = splits.records["val"]
    measured = records.annotated or out is None
    if measured:
        check_truth(records, metrics)
    dataset = DetectionDataset(records, training=False)
    checkpoint = world.in_turn(lambda: read_checkpoint(source, ema=ema))
    set_float32(world.device, exact=True)
    detector, line = load_detector(config.student, checkpoint, dataset.classes)
    with _progress(world) as progress:
        task = progress.add_task("testing", total=None)
        results = run_detector(
            detector.to(world.device),
            dataset,
            long_edge=config.data.long_edge,
            short_edge=config.data.short_edge[1],
            square=config.data.square,
            device=world.device,
            amp=amp,
            workers=config.data.workers,
            rank=world.rank,
            world_size=world.size,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if results is None:
        return None
    say(line)
    if amp != "off":
        say(f"measured with backbone and neck in {amp}; float32 may score a little differently")
    for note in (splits.line, *dataset.notes):
        say(note)
    scores = evaluate(dataset.records, results, metrics) if measured else {}
    if not measured:
        say(f"'{records.source}' has no list 'annotations': nothing is measured")
    for metric in scores:
        say(_tables(metric, scores[metric]))
    if out is not None:
        atomic_write(out, lambda file: file.write(json.dumps(results).encode()))
        say(f"{len(results):,} detections written to {out}")
    return scores


def _progress(world: World) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = world.main and sys.stderr.isatty()
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)


def _tables(metric: str, scores: CocoScores) -> str:
    """COCO's twelve numbers, and the precisions of each class, in percent."""
    summary = Table(title=f"{metric}, in percent", title_justify="left", box=None, pad_edge=False, show_header=False)
    for name, value in scores.stats.items():
        summary.add_row(name, LINES[name], percent(value))
    names = list(next(iter(scores.per_class.values())))
    classes = Table(title=f"\n{metric} of each class", title_justify="left", box=None, pad_edge=False)
    classes.add_column("class")
    for name in names:
        classes.add_column(name, justify="right")
    for label, values in scores.per_class.items():
        classes.add_row(label, *(percent(values[name]) for name in names))
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(summary, classes)
    return captured.get().rstrip()


def percent(value: float) -> str:
    """A score in [0, 1] in percent; "-" for -1, where there is nothing to score."""
    return "-" if value < 0 else f"{100 * value:.1f}"
