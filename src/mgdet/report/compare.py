"""What `mgdet compare` does: runs, checkpoints and detections side by side, in numbers and as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.progress import TaskID

from mgdet.config import Config, DataConfig
from mgdet.data.dataset import DetectionDataset
from mgdet.data.open import Splits, open_splits
from mgdet.detectors.exported import Exported
from mgdet.distributed import usual_device
from mgdet.errors import UserError, nearest
from mgdet.evaluate.coco import METRICS, check_truth
from mgdet.evaluate.truth import class_rows
from mgdet.files import atomic_write, check_folder, make_folder
from mgdet.precision import set_float32
from mgdet.report import differing, features
from mgdet.report.bench import Bench, Entry, side_of
from mgdet.report.caveats import caveats
from mgdet.report.intervals import BOOTSTRAP, Bootstrap, differences
from mgdet.report.measure import progress_bar
from mgdet.report.numbers import Comparison, Kind, Measured, Role
from mgdet.report.page import Page, render
from mgdet.report.sources import Say, Source, check_same_data, group_sources, open_source, open_teacher, trained_on
from mgdet.report.terminal import tables
from mgdet.report.timing import describe_machine, measure_size, measure_speeds

PAGE_FILE, JSON_FILE = "report.html", "report.json"


@dataclass(slots=True)
class Row:
    """A kind while it is measured: what stays, and its runs."""

    kind: Kind
    entries: list[Entry]

    @property
    def first(self) -> Entry:
        """The run that stands for all: their detectors are the same."""
        return self.entries[0]


def compare(
    sources: Sequence[str],
    *,
    data: DataConfig,
    teacher: str | None = None,
    out: Path | None = None,
    recipe: Config | None = None,
    metrics: Sequence[str] = (),
    bootstrap: Bootstrap = BOOTSTRAP,
    say: Say = lambda line: None,
) -> Comparison:
    """Measures what is given on the same images and says how it differs, and how far that can be trusted.

    Runs that differ in nothing but their seed are one kind. The first kind is what the others are compared with.

    Args:
        sources: runs' folders, checkpoint files or their URLs, exported graphs, SOURCE:NAME of another library, and
            .json files of detections in COCO's results format; NAME=... gives one a name, and several of one name are
            one kind.
        data: the images to measure on; the sizes of images are those of each source's own config.
        teacher: what taught, as in `sources`; None: what the first distilled run names, if it is here.
        out: a folder for `report.html` and `report.json`; None writes nothing.
        recipe: of checkpoints that mgdet did not write; None to recognise what they hold.
        metrics: "bbox", "segm" or both; empty: what the first run was measured by, else "bbox".
        bootstrap: how the confidence intervals are made.
        say: is told what is done, the numbers as tables, and where the page is.

    Returns:
        All numbers.

    Raises:
        UserError: bad input: something is missing, does not fit the data's classes, or is of other images.
    """
    _check_out(out)
    opened, taught, notes = _open(sources, teacher, recipe)
    check_same_data(opened, data)
    groups = group_sources(opened)
    metrics = _metrics(metrics, opened)
    bench, splits = _open_bench(data, metrics)
    notes += trained_on(opened, splits.data)
    rows: list[Row] = []
    for group in groups:
        role: Role = "compared" if rows else "baseline"
        rows.append(Row(Kind(group.name, role, []), [bench.load(source) for source in group.sources]))
    if taught is not None:
        try:
            rows.append(Row(Kind(taught.name or "teacher", "teacher", []), [bench.load(taught)]))
        except UserError as error:
            if teacher is not None:
                raise
            notes.append(f"the teacher was not measured: {error}")
    entries = [entry for row in rows for entry in row.entries]
    for line in (splits.line, *(entry.line for entry in entries)):
        say(line)
    notes += [note for entry in entries for note in entry.notes]
    _measure(rows, bench)
    _set_apart(rows, bench, bootstrap)
    machine = _time(rows, bench)
    result = Comparison(_measured(bench.dataset), tuple(metrics), [row.kind for row in rows], machine)
    result.notes = [*caveats(result, groups), *notes, *bench.dataset.notes]
    say("\n" + tables(result))
    if out is not None:
        seen = _look(rows, bench)
        maps = _draw_maps(rows, bench, taught.given if taught is not None and taught.model is not None else "")
        result.notes += [note for each in maps for note in each.notes]
        _write(out, Page(result, seen, maps, bootstrap), say)
    return result


def _open(
    sources: Sequence[str], teacher: str | None, recipe: Config | None
) -> tuple[list[Source], Source | None, list[str]]:
    """What is compared, the teacher, and what is to be said of them."""
    opened = [open_source(text, recipe) for text in sources]
    taught, notes = open_teacher(teacher, opened, recipe)
    same = [source.given for source in opened if taught is not None and source.identity == taught.identity]
    if same:
        notes.append(f"{same[0]} is the teacher of the others and is shown as such")
        opened = [source for source in opened if source.given not in same]
    if not opened:
        raise UserError("there is nothing to compare; give runs, checkpoints or files of detections")
    return opened, taught, notes


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    check_folder(out)
    for name in (PAGE_FILE, JSON_FILE):
        if (out / name).exists():
            raise UserError(f"{out} already holds {name}; give another --out")


def _metrics(wanted: Sequence[str], sources: Sequence[Source]) -> list[str]:
    """What to measure: as asked for, or as the first run was measured while it trained."""
    for metric in wanted:
        if metric not in METRICS:
            raise UserError(f"--eval has '{metric}'{nearest(metric, METRICS)}")
    chosen = list(wanted) or next((list(s.config.train.metrics) for s in sources if s.config is not None), ["bbox"])
    return list(dict.fromkeys(chosen))


def _open_bench(data: DataConfig, metrics: Sequence[str]) -> tuple[Bench, Splits]:
    """The images, and what was found where."""
    masks = "segm" in metrics
    splits = open_splits(data, val_masks=masks, required=("val",))
    check_truth(splits.records["val"], metrics)
    device = usual_device()
    set_float32(device, exact=True)
    dataset = DetectionDataset(splits.records["val"], training=False, masks=masks)
    return Bench(dataset, metrics, device, data.workers), splits


def _measure(rows: Sequence[Row], bench: Bench) -> None:
    """Runs everything over all images, one after the other."""
    with progress_bar(True) as progress:
        for row in rows:
            for entry in row.entries:
                task = progress.add_task(f"{row.kind.name}: {entry.source.given}", total=None)

                def show(done: int, total: int, task: TaskID = task) -> None:
                    progress.update(task, completed=done, total=total)

                bench.measure(entry, show)
                progress.remove_task(task)
                row.kind.runs.append(entry.run())
                if entry is not row.first:
                    entry.detector = None
            for metric in bench.metrics:
                errors = [entry.errors(metric) for entry in row.entries]
                row.kind.errors[metric] = {name: fmean(own[name] for own in errors) for name in errors[0]}


def _set_apart(rows: Sequence[Row], bench: Bench, bootstrap: Bootstrap) -> None:
    """The differences of each kind to the first one, and how much of the way to the teacher it goes."""
    baseline, records = rows[0], bench.dataset.records
    with progress_bar(True) as progress:
        total = len(rows[1:]) * len(bench.metrics) * len(records.classes)
        task = progress.add_task("bootstrap", total=total)
        for row in rows[1:]:
            for metric in bench.metrics:
                row.kind.differences[metric], row.kind.class_differences[metric] = differences(
                    records,
                    metric,
                    side_of(baseline.entries, metric),
                    side_of(row.entries, metric),
                    bootstrap,
                    tick=lambda: progress.advance(task),
                )
    _close_gaps(rows, bench.metrics)


def _close_gaps(rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """The share of the way from the first kind to the teacher, where the teacher is shown to be better."""
    teacher = next((row.kind for row in rows if row.kind.role == "teacher"), None)
    if teacher is None:
        return
    for metric in metrics:
        gap = teacher.differences[metric]["AP"]
        if gap is None or gap.low <= 0:
            continue
        for kind in (row.kind for row in rows[1:] if row.kind.role == "compared"):
            if (own := kind.differences[metric]["AP"]) is not None:
                kind.gap_closed[metric] = own.value / gap.value


def _time(rows: Sequence[Row], bench: Bench) -> str:
    """What each kind's detector costs; returns the machine that the times are of, empty without detectors."""
    timed = [row for row in rows if row.first.detector is not None]
    detectors = []
    for row in timed:
        assert row.first.detector is not None and row.first.source.sizes is not None
        if not isinstance(row.first.detector, Exported):
            row.kind.size = measure_size(row.first.detector, bench.dataset, row.first.source.sizes)
        detectors.append((row.first.detector.to(bench.device), row.first.source.sizes))
    if not timed:
        return ""
    with progress_bar(True) as progress:
        task = progress.add_task("timing", total=None)
        speeds = measure_speeds(
            detectors,
            bench.dataset,
            bench.device,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    for row, speed in zip(timed, speeds):
        row.kind.speed = speed
    return describe_machine(bench.device)


def _measured(dataset: DetectionDataset) -> Measured:
    records = dataset.records
    return Measured(records.source, len(records), int((~records.crowd).sum()), tuple(class_rows(records)))


def _look(rows: Sequence[Row], bench: Bench) -> list[differing.Difference]:
    """Pictures of the images in which the first two kinds differ most."""
    shown = [row for row in rows if row.kind.role != "teacher"]
    if len(shown) < 2:
        return []
    metric, dataset = bench.metrics[0], bench.dataset
    seen = {row.kind.name: differing.look(row.first.matched[metric]) for row in rows}
    first, second = shown[0].kind.name, shown[1].kind.name
    labels = {category: label for label, category in enumerate(dataset.category_ids)}
    found: list[differing.Difference] = []
    for better, numbers in zip((second, first), differing.choose_images(seen[first], seen[second])):
        for number in numbers:
            index = bench.truth.order[number - 1]
            image = dataset.images[index].id
            own = {
                row.kind.name: (
                    [result for result in row.first.results if result["image_id"] == image],
                    seen[row.kind.name].threshold,
                    seen[row.kind.name].counts[number],
                )
                for row in rows
            }
            pictures = differing.draw_image(dataset, index, own, labels)
            found.append(differing.Difference(dataset.images[index].file_name, better, pictures))
    return found


def _draw_maps(rows: Sequence[Row], bench: Bench, teacher: str) -> list[features.Maps]:
    """The maps of each kind of run that a method of distillation made."""
    alone = next((row for row in rows if _learned_alone(row)), None)
    other = None
    if alone is not None and alone.first.detector is not None and alone.first.source.sizes is not None:
        other = features.Alone(alone.kind.name, alone.first.detector.eval(), alone.first.source.sizes)
    maps = []
    for row in rows:
        config = row.first.source.config
        if config is not None and config.teacher is not None and config.methods:
            own = features.draw_maps(
                row.first.source, row.kind.name, other, bench.dataset, bench.device, teacher_weights=teacher
            )
            maps.append(own)
    return maps


def _learned_alone(row: Row) -> bool:
    config = row.first.source.config
    return row.kind.role != "teacher" and config is not None and config.teacher is None


def _write(out: Path, page: Page, say: Say) -> None:
    """The page and its numbers, into a folder that is made where it is not there."""
    text, html = json.dumps(page.comparison.to_dict(), indent=1), render(page)
    make_folder(out)
    atomic_write(out / JSON_FILE, lambda file: file.write(text.encode()))
    atomic_write(out / PAGE_FILE, lambda file: file.write(html.encode()))
    say(f"\npage     {out / PAGE_FILE}\nnumbers  {out / JSON_FILE}")
