"""What `mgdet test` does: a checkpoint or detections over a data set, scores as tables, detections as a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mgdet.config import Config, DataConfig
from mgdet.data.dataset import DetectionDataset
from mgdet.data.images import check_images
from mgdet.data.open import open_splits
from mgdet.detectors.exported import Exported, is_exported, load_exported
from mgdet.detectors.face import Face
from mgdet.detectors.foreign import names_library
from mgdet.distributed import World
from mgdet.errors import UserError, refuse_unused
from mgdet.evaluate.coco import IMAGES_AT_ONCE, METRICS, CocoScores, check_truth, evaluate, run_detector
from mgdet.evaluate.results import is_results_file, read_results, results_notes
from mgdet.files import atomic_write
from mgdet.interop.weights import read_checkpoint
from mgdet.models import check_classes, has_masks, load_detector
from mgdet.models.opened import keep_classes, open_detector
from mgdet.precision import set_float32
from mgdet.report.numbers import percent

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
    batch: int | None = None,
    own_sizes: bool = False,
) -> dict[str, CocoScores] | None:
    """Measures a checkpoint, or somebody's detections, on the evaluation images of a recipe.

    Args:
        config: the recipe; its student and its data count, for detections and exported graphs its data alone.
        source: a checkpoint file, its URL, a run's folder, an exported graph, SOURCE:NAME of another library, or a
            .json file in COCO's results format.
        metrics: "bbox", "segm" or both.
        out: where the detections go in COCO's results format; None for nowhere.
        world: this process among the others.
        say: is told what was loaded and the tables; by the first process only.
        ema: as `read_checkpoint` takes it; of checkpoints.
        amp: precision of a checkpoint's backbone and neck: "bf16", "fp16", or "off", which is exact float32 everywhere.
        batch: images per forward pass; None where nobody asked for a number, as for detections that are made already.
        own_sizes: images as another library resizes them for its detector, not as the data of `config` says.

    Returns:
        The scores for each metric on rank 0, none where the data set has no annotations; None on other ranks.

    Raises:
        UserError: bad input; `out` exists already.
    """
    if batch is not None and batch < 1:
        raise UserError(f"--batch is {batch}; give 1 or more")
    given = is_results_file(source)
    graph = load_exported(source) if is_exported(source) else None
    masks = given or (has_masks(config.student) if graph is None else graph.has_masks)
    _check(config, source, metrics, out, given=given, masks=masks)
    if what := not_a_checkpoint(source):
        made = given or graph is not None
        refuse_unused(
            what, {"--ema": ema, "--train.amp": made and amp != "off", "--batch": given and batch is not None}
        )
    splits = open_splits(
        config.data,
        val_masks="segm" in metrics,
        required=("val",),
        unlabelled=out is not None,
        barrier=world.barrier,
    )
    records = splits.records["val"]
    measured = records.annotated or out is None
    if measured:
        check_truth(records, metrics)
    if given:
        if "segm" in metrics:
            records = check_images(records)  # masks need the size of every image
        results = read_results(Path(source), records, metrics)
        lines = [f"{source}: {len(results):,} detections", splits.line, *results_notes(Path(source), results, records)]
    else:
        dataset = DetectionDataset(records, training=False)
        detector, opened, own = _open(config, graph or source, dataset, world, ema=ema)
        if own_sizes and own is not None:
            sizes: dict[str, Any] = {"long_edge": own.long_edge, "short_edge": own.short_edge, "square": own.square}
            config = replace(config, data=replace(config.data, **sizes))
        float32 = set_float32(world.device, exact=True)
        found = _detect(config, detector, dataset, world, amp=amp, batch=batch or IMAGES_AT_ONCE)
        if found is None:
            return None
        records, results = dataset.records, found
        lines = [*opened, splits.line, *dataset.notes, *filter(None, [float32])]
        if amp != "off":
            lines.insert(
                len(opened), f"measured with backbone and neck in {amp}; float32 may score a little differently"
            )
    if not world.main:
        return None
    for note in lines:
        say(note)
    if out is not None:  # before anything is measured: what took hours to find must not be lost
        atomic_write(out, lambda file: file.write(json.dumps(results).encode()))
    scores = evaluate(records, results, metrics) if measured else {}
    if not measured:
        say(f"'{records.source}' has no annotations: nothing is measured")
    for metric in scores:
        say(_tables(metric, scores[metric]))
    if out is not None:
        say(f"{len(results):,} detections written to {out}")
    return scores


def not_a_checkpoint(source: str) -> str:
    """What is no file of weights, as the start of a sentence; empty for a checkpoint."""
    if is_results_file(source):
        return f"{source} holds detections that are made already"
    if names_library(source):
        return f"{source} is another library's detector"
    return f"{source} is an exported graph" if is_exported(source) else ""


def _check(config: Config, source: str, metrics: Sequence[str], out: Path | None, *, given: bool, masks: bool) -> None:
    """Refuses options that cannot be fulfilled; `given`: the source holds detections; `masks`: it may hold masks."""
    if not metrics:
        raise UserError("--eval is empty; give bbox, segm or both")
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"--eval has '{metric}'; the choices are {' and '.join(METRICS)}")
        if metric == "segm" and not masks:
            finder = source if is_exported(source) else f"a {config.student.detector}"
            raise UserError(f"--eval has segm, but {finder} finds only boxes; choose bbox")
    if out is None:
        return
    if given:
        raise UserError(
            f"--out writes the detections of a checkpoint, and {source} already holds some; leave --out out"
        )
    if out.exists():
        raise UserError(f"{out} exists already; give the name of a new file")
    if not out.parent.is_dir():
        raise UserError(f"the folder {out.parent} of {out.name} does not exist; make it first")


def _open(
    config: Config, source: str | Exported, dataset: DetectionDataset, world: World, *, ema: bool
) -> tuple[Face, Sequence[str], DataConfig | None]:
    """The detector, the lines that account for it, and how another library resizes images for it."""
    if isinstance(source, Exported):
        check_classes(source.path, source.classes, dataset.classes)
        return source, [source.line()], None
    if names_library(source):
        opened = world.in_turn(lambda: open_detector(source))
        keep_classes(opened, dataset.classes)
        return opened.detector, opened.lines, opened.data
    checkpoint = world.in_turn(lambda: read_checkpoint(source, ema=ema))
    detector, line = load_detector(config.student, checkpoint, dataset.classes)
    return detector, [line], None


def _detect(
    config: Config, detector: Face, dataset: DetectionDataset, world: World, *, amp: str, batch: int
) -> list[dict[str, Any]] | None:
    """What a detector finds: all of it on rank 0, None elsewhere."""
    square, canvas = config.data.square, None
    if isinstance(detector, Exported) and detector.canvas is not None:
        square, canvas = detector.preprocessing.square, detector.canvas
    with progress_bar(world.main) as progress:
        task = progress.add_task("testing", total=None)
        return run_detector(
            detector.to(world.device),
            dataset,
            long_edge=config.data.long_edge,
            short_edge=config.data.short_edge[1],
            square=square,
            canvas=canvas,
            device=world.device,
            amp=amp,
            batch=batch,
            workers=config.data.workers,
            rank=world.rank,
            world_size=world.size,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def progress_bar(shown: bool) -> Progress:
    """A bar on the terminal that vanishes when it is done; nothing where there is no terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not (shown and sys.stderr.isatty()))


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
    console = Console(width=100, color_system=None, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(summary, classes)
    return captured.get().rstrip()
