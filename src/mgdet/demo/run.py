"""`mgdet demo`: the whole product in minutes, on any machine, without a download."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import torch
from rich.console import Console
from rich.table import Table

from mgdet.config import Config
from mgdet.config.training import SEEDS
from mgdet.data.batch import collate
from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.data.sampler import test_views
from mgdet.demo.shapes import write_shapes
from mgdet.distributed import World
from mgdet.engine.checkpoint import LAST_FILE
from mgdet.engine.loop import train
from mgdet.errors import UserError, nearest
from mgdet.evaluate.draw import comparison, curves, draw_detections, draw_target
from mgdet.files import atomic_write
from mgdet.interop.weights import read_checkpoint
from mgdet.models import load_detector
from mgdet.precision import cpu_has_bfloat16
from mgdet.recipes.demo import IMAGE_SIZE, PAIRS, demo_distilled, demo_inherits, demo_student, demo_teacher
from mgdet.report.measure import test_checkpoint
from mgdet.report.numbers import STATS, percent
from mgdet.structures import Target

TITLES = {
    "teacher": "teacher",
    "student": "student alone",
    "inherits": "student that only inherits",
    "distilled": "student with MGD",
}
PICTURES = 4
"""Images in the picture of detections."""
SHOWN = 0.7
"""Score from which on a detection is drawn."""
ZOOM = 2

METRIC_NAMES = {"bbox": "box AP", "segm": "mask AP"}


@dataclass(slots=True)
class Row:
    """One line of the table: what a run reached and how large its detector is."""

    run: str
    scores: dict[str, float]
    parameters: int


def demo(out: Path, *, pair: str, quick: bool, seed: int, say: Callable[[str], None]) -> int:
    """Makes `shapes`, trains a teacher and its student alone, inheriting, and with MGD, and compares them.

    When it is run again after an interruption, it continues where it stopped.

    Args:
        out: folder for everything.
        pair: a key of `mgdet.recipes.demo.PAIRS`.
        quick: fewer images and a shorter schedule.
        seed: of data and training.
        say: is told where things are, and the table.

    Returns:
        0, or 128 + the signal that stopped it.

    Raises:
        UserError: no such pair, `out` holds a demo of other settings, or cannot be written.
    """
    if pair not in PAIRS:
        raise UserError(f"there is no pair '{pair}'{nearest(pair, PAIRS)}")
    if not 0 <= seed < SEEDS:
        raise UserError(f"--seed is {seed}; give 0 or more, below 2**64")
    root = out / "shapes"
    say(f"making the data set {root}")
    length = PAIRS[pair].quick if quick else PAIRS[pair].full
    write_shapes(
        root,
        num_train=length.num_train,
        num_val=length.num_val,
        num_test=length.num_test,
        size=IMAGE_SIZE,
        seed=seed,
        smallest=PAIRS[pair].smallest,
    )
    world = World.alone()
    runs = configs(out, pair=pair, quick=quick, seed=seed)
    for run, config in runs.items():
        code = train(config, out / run, resume=True, world=world)
        if code:
            return code
    say("measuring on the test images")
    found = {run: test_scores(config, out / run, world) for run, config in runs.items()}
    parameters = {run: _num_parameters(out / run) for run in runs}
    tables = []
    for metric in PAIRS[pair].metrics:
        rows = [Row(run, found[run][metric], parameters[run]) for run in runs]
        tables.append(_table(rows, METRIC_NAMES[metric]))
    text = "\n\n".join(tables)
    atomic_write(out / "table.txt", lambda file: file.write(text.encode()))
    _draw_curves(out, PAIRS[pair].metrics[0])
    _draw_detections(out, root, masks="segm" in PAIRS[pair].metrics)
    say(f"\n{text}\n")
    say(f"table       {out / 'table.txt'}\ndetections  {out / 'detections.png'}\ncurves      {out / 'curves.png'}")
    return 0


def configs(out: Path, *, pair: str, quick: bool, seed: int) -> dict[str, Config]:
    """The runs by the name of their folder, in the order in which they must run."""
    recipes = {
        "teacher": demo_teacher,
        "student": demo_student,
        "inherits": demo_inherits,
        "distilled": demo_distilled,
    }
    runs = {run: recipe(pair, quick=quick) for run, recipe in recipes.items()}
    for config in runs.values():
        config.data.root = str(out / "shapes")
        config.train.seed = seed
        config.train.amp = "bf16" if cpu_has_bfloat16() else "off"
        if config.teacher is not None:
            config.teacher.weights = str(out / "teacher" / LAST_FILE)
    return runs


def test_scores(config: Config, folder: Path, world: World) -> dict[str, dict[str, float]]:
    """COCO's twelve numbers of a run's last student on the test images, for each metric."""
    data = replace(config.data, val_annotations="annotations/test.json", val_images="test")
    scores = test_checkpoint(
        replace(config, data=data),
        str(folder / LAST_FILE),
        metrics=config.train.metrics,
        out=None,
        world=world,
        say=lambda line: None,
    )
    assert scores is not None
    return {metric: found.stats for metric, found in scores.items()}


def history(folder: Path, metric: str) -> list[dict[str, float]]:
    """A run's evaluations in their order: the step and COCO's twelve numbers."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "eval" and line["metric"] == metric]


def gap_closed(rows: list[Row], run: str) -> float | None:
    """How much of the distance from the student alone to the teacher a run closes, in AP; None without a distance."""
    ap = {row.run: row.scores["AP"] for row in rows}
    gap = ap["teacher"] - ap["student"]
    return (ap[run] - ap["student"]) / gap if gap > 0 else None


def _num_parameters(folder: Path) -> int:
    checkpoint = read_checkpoint(folder / LAST_FILE)
    assert checkpoint.config is not None and checkpoint.classes is not None
    detector, _ = load_detector(Config.from_dict(checkpoint.config).student, checkpoint, checkpoint.classes)
    return sum(parameter.numel() for parameter in detector.parameters())


def _table(rows: list[Row], name: str) -> str:
    table = Table(title=f"shapes, {name} in percent", title_justify="left", box=None, pad_edge=False)
    for column in ("", *STATS, "parameters", "gap closed"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        scores = (percent(row.scores[column]) for column in STATS)
        closed = gap_closed(rows, row.run) if row.run in ("inherits", "distilled") else None
        gap = "" if closed is None else f"{closed:.0%}"
        table.add_row(TITLES[row.run], *scores, f"{row.parameters / 1e6:.2f} M", gap)
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def _draw_curves(out: Path, metric: str) -> None:
    series = {
        title: [(line["step"], 100 * line["AP"]) for line in history(out / run, metric)]
        for run, title in TITLES.items()
        if (out / run).exists()
    }
    name = METRIC_NAMES[metric]
    curves(series, title=f"{name} on shapes", x_label="step", y_label=f"{name} in percent", out=out / "curves.png")


@torch.inference_mode()
def _draw_detections(out: Path, root: Path, *, masks: bool) -> None:
    """Truth, student alone, student with MGD and teacher, side by side, on the first test images."""
    records = read_coco(root / "annotations" / "test.json", root / "test", masks=masks)
    data = DetectionDataset(records, training=False, masks=masks)
    views = test_views(PICTURES, max(IMAGE_SIZE), min(IMAGE_SIZE))
    detectors = []
    for run in ("student", "distilled", "teacher"):
        checkpoint = read_checkpoint(out / run / LAST_FILE)
        assert checkpoint.config is not None
        detectors.append(load_detector(Config.from_dict(checkpoint.config).student, checkpoint, data.classes)[0])
    rows = []
    for view in views:
        example = data[view]
        target: Target = example.target
        row = [draw_target(example.image, target, data.classes, zoom=ZOOM)]
        batch = collate([example])
        for detector in detectors:
            found = detector.find(batch.images(detector.pixels), batch.sizes)[0]
            row.append(draw_detections(example.image, found, data.classes, score=SHOWN, zoom=ZOOM))
        rows.append(row)
    picture = comparison(rows, ["truth", TITLES["student"], TITLES["distilled"], TITLES["teacher"]])
    _, encoded = cv2.imencode(".png", picture)
    atomic_write(out / "detections.png", lambda file: file.write(encoded.tobytes()))
