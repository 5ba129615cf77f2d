"""What `mgdet data` does: a data set as training would see it, in tables and as a picture of samples."""

from __future__ import annotations

import contextlib
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mgdet.config import DataConfig
from mgdet.data.dataset import DetectionDataset, check_same_classes
from mgdet.data.doubts import seen_in_training
from mgdet.data.folders import Place
from mgdet.data.image_files import damaged
from mgdet.data.images import find_missing
from mgdet.data.layouts import find_places, with_places
from mgdet.data.open import format_of, open_splits, read_places
from mgdet.data.pictures import LOOKED_AT, depth_notes
from mgdet.data.records import LeftOut, Reason, Records
from mgdet.data.segmentation import decode
from mgdet.data.transforms import read_image
from mgdet.errors import UserError
from mgdet.evaluate.coco import check_truth
from mgdet.evaluate.draw import comparison, draw_target
from mgdet.files import atomic_write, make_folder
from mgdet.structures import Target

PICTURE_FILE = "samples.jpg"
WIDTH = 80
"""Columns of the terminal that tables are made for."""
COLUMNS, ROWS, CELL_EDGE = 4, 4, 480
BANDS = ("small", "medium", "large")
BAND_EDGES = (32**2, 96**2)
"""COCO's size bands: a medium object has at least the first area in square pixels, a large one the second."""
SHOWN = 3
"""Images in a message."""
MASK_REASONS = (Reason.NO_MASK, Reason.NOT_A_MASK)


def describe_data(data: DataConfig, *, masks: bool, out: Path | None, say: Callable[[str], None]) -> int:
    """Says what a data set holds, and whether a detector can be trained on it.

    Args:
        data: the data set; names that are empty are found by looking.
        masks: it is meant for a detector that finds masks.
        out: the folder for a picture of sixteen samples; None for no picture.
        say: is told the lines and tables.

    Returns:
        0, or 2 if it cannot be trained on; the reasons have been said.

    Raises:
        UserError: there is no data set, or `out` holds a picture already.
    """
    if out is not None and (out / PICTURE_FILE).exists():
        raise UserError(f"{out} already holds {PICTURE_FILE}; give another --out")
    problems: list[str] = []
    try:
        places, title = find_places(data)
    except UserError as error:  # say what there is, then what is missing
        problems.append(str(error))
        places, title = find_places(data, required=())
    say("\n".join([f"{data.root}: {title or 'named by options'}", *_where(places, data)]))
    splits = _read(with_places(data, places), places, problems)
    for table in (_splits_table, _classes_table, _sizes_table) if splits else ():
        say(f"\n{table(splits)}")
    notes = _check(splits, masks, problems)
    page = None
    if out is not None and splits:
        split = "train" if "train" in splits else next(iter(splits))
        try:
            page = _draw_samples(splits[split], split)
        except UserError as error:
            problems.append(str(error))
    if notes:
        say("\n" + "\n".join(_wrapped(note) for note in notes))
    if problems:
        say("\nIt cannot be trained on:\n" + "\n".join(_wrapped(problem) for problem in dict.fromkeys(problems)))
    if out is not None and page is not None:
        say(f"\n{_write_page(page, out)} shows samples with boxes and masks")
    return 2 if problems else 0


def _wrapped(sentence: str) -> str:
    """A sentence in lines that fit the terminal; paths stay whole."""
    return textwrap.fill(
        sentence, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _read(data: DataConfig, places: Mapping[str, Place], problems: list[str]) -> dict[str, Records]:
    """The splits that can be read, with masks where there are any; what hinders training is added to `problems`."""
    if data.val_share and "train" in places:
        try:
            return open_splits(data, train_masks=True, val_masks=True).records
        except UserError as error:
            problems.append(str(error))
            return {}
    root = Path(data.root)
    if any(format_of(root, place) == "voc" for place in places.values()):  # its splits share their classes
        trained = {split: place for split, place in places.items() if split != "test"}
        for wanted in (places, trained)[: 1 + ("test" in places)]:
            with contextlib.suppress(UserError):
                return read_places(root, wanted, dict.fromkeys(wanted, True))
    read: dict[str, Records] = {}
    for split, place in places.items():
        try:
            read |= read_places(root, {split: place}, {split: True})
        except UserError as error:
            if split != "test":  # which training never looks at
                problems.append(str(error))
    if any(format_of(root, places[split]) == "voc" for split in read):  # its splits share their classes
        read = read_places(root, {split: places[split] for split in read}, dict.fromkeys(read, True))
    return read


def _check(splits: Mapping[str, Records], masks: bool, problems: list[str]) -> list[str]:
    """What training and evaluation leave out; what hinders them is added to `problems`."""
    metrics = ("bbox", "segm") if masks else ("bbox",)
    notes = []
    files: dict[str, list[Path]] = {}
    for split in ("train", "val"):
        if split not in splits:
            continue
        records = splits[split] if masks else _without_masks(splits[split])
        broken: list[str] = []
        try:
            if not find_missing(records.folder, records.files) and (broken := damaged(records)):
                problems.append(_about_broken(records, broken))
            if split == "val":
                check_truth(records, metrics)
            dataset = DetectionDataset(records, training=split == "train", masks=masks and split == "train")
            files[split] = [dataset.file(i) for i in range(len(dataset))]
            notes += [*dataset.notes, *depth_notes(files[split][:LOOKED_AT])]
        except UserError as error:
            if str(error) not in broken:
                problems.append(str(error))
    if "train" in splits and "val" in splits:
        try:
            check_same_classes(splits["train"], splits["val"])
        except UserError as error:
            problems.append(str(error))
    return notes + seen_in_training(files.get("train", ()), files.get("val", ()))


def _about_broken(records: Records, broken: list[str]) -> str:
    if len(broken) == 1:
        return broken[0]
    some = "; ".join(broken[:SHOWN]) + ("; ..." if len(broken) > SHOWN else "")
    return f"{len(broken):,} of the {len(records):,} images of '{records.source}' cannot be used: {some}"


def _without_masks(records: Records) -> Records:
    """The records as a box detector reads them, which never looks at masks: those that do not fit do no harm."""
    left_out = LeftOut()
    for reason, count in records.left_out.counts.items():
        if reason not in MASK_REASONS:
            left_out.add(reason, records.left_out.examples[reason], count)
    return replace(records, spans=np.zeros_like(records.spans), has_masks=False, left_out=left_out)


def _where(places: Mapping[str, Place], data: DataConfig) -> list[str]:
    """One line for each split: where it is."""
    lines = []
    for split, place in places.items():
        where = place.images if place.annotations == place.images else f"{place.annotations}, {place.images}"
        if split == "val" and data.val_share:
            where = f"{data.val_share:g} of train, by data.split_seed {data.split_seed}"
        lines.append(f"  {split}: {where}")
    return lines


def _splits_table(splits: Mapping[str, Records]) -> str:
    table = Table(box=None, pad_edge=False)
    table.add_column("split")
    for name in ("images", "without objects", "objects", "with masks", "crowds"):
        table.add_column(name, justify="right")
    for split, records in splits.items():
        counts = np.diff(records.starts)
        masked = int((records.spans[:, 1] > records.spans[:, 0]).sum())
        numbers = (len(records), int((counts == 0).sum()), len(records.labels), masked, int(records.crowd.sum()))
        table.add_row(split, *(f"{number:,}" for number in numbers))
    return _text(table)


def _classes_table(splits: Mapping[str, Records]) -> str:
    """Objects of each class in each split, and in all of them together by COCO's size band."""
    table = Table(title="objects, crowds not counted", title_justify="left", box=None, pad_edge=False)
    table.add_column("class", overflow="fold")
    for name in (*splits, *BANDS):
        table.add_column(name, justify="right")
    counts = {split: _band_counts(records) for split, records in splits.items()}
    names = dict.fromkeys((label, name) for records in splits.values() for label, name in enumerate(records.classes))
    totals = np.zeros(len(splits) + len(BANDS), dtype=np.int64)
    for label, name in names:
        bands = [
            counts[split][label] if records.classes[label : label + 1] == (name,) else np.zeros(len(BANDS), np.int64)
            for split, records in splits.items()
        ]
        row = np.array([*(band.sum() for band in bands), *np.sum(bands, axis=0)])
        totals += row
        table.add_row(name, *(f"{number:,}" for number in row))
    table.add_row("all", *(f"{number:,}" for number in totals))
    return _text(table)


def _band_counts(records: Records) -> np.ndarray:
    """(classes, 3): objects by class and size band, crowds left aside."""
    areas = np.where(np.isnan(records.areas), records.boxes[:, 2] * records.boxes[:, 3], records.areas)
    bands = np.digitize(areas, BAND_EDGES)
    result = np.zeros((len(records.classes), len(BANDS)), dtype=np.int64)
    np.add.at(result, (records.labels[~records.crowd], bands[~records.crowd]), 1)
    return result


def _sizes_table(splits: Mapping[str, Records]) -> str:
    """The smallest, the median and the largest image of each split, and the most frequent sizes."""
    table = Table(title="image sizes, width x height in pixels", title_justify="left", box=None, pad_edge=False)
    for name in ("split", "smallest", "median", "largest", "most frequent"):
        table.add_column(name)
    for split, records in splits.items():
        sizes = list(zip(records.widths.tolist(), records.heights.tolist()))
        known = sorted((size for size in sizes if min(size) > 0), key=lambda size: (size[0] * size[1], size))
        if not known:
            table.add_row(split, "-", "-", "-", "not in the annotations")
            continue
        frequent = ", ".join(f"{_size(size)} ({count:,})" for size, count in Counter(known).most_common(3))
        table.add_row(split, *(_size(known[i]) for i in (0, len(known) // 2, -1)), frequent)
    return _text(table)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _text(table: Table) -> str:
    console = Console(width=WIDTH, color_system=None, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


# The picture.


def _draw_samples(records: Records, split: str) -> np.ndarray:
    """Sixteen images with what is on them: (H, W, 3) uint8, BGR."""
    indices = _sample_indices(records)
    cells = [_draw(records, index) for index in indices]
    cells += [np.full((1, 1, 3), 255, np.uint8)] * (-len(cells) % COLUMNS)
    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    title = f"{split}: {len(indices)} of {len(records):,}"
    return comparison(rows, [title, *[""] * (COLUMNS - 1)])


def _write_page(page: np.ndarray, out: Path) -> Path:
    _, encoded = cv2.imencode(".jpg", page)
    make_folder(out)
    atomic_write(out / PICTURE_FILE, lambda file: file.write(encoded.tobytes()))
    return out / PICTURE_FILE


def _sample_indices(records: Records) -> list[int]:
    """Images spread evenly over the data set, those with objects first."""
    filled = np.flatnonzero(np.diff(records.starts))
    images = filled if len(filled) else np.arange(len(records))
    number = min(COLUMNS * ROWS, len(images))
    chosen: list[int] = images[((np.arange(number) + 0.5) * len(images) / number).astype(int)].tolist()
    return chosen


def _draw(records: Records, index: int) -> np.ndarray:
    """One image with its boxes and masks, `CELL_EDGE` pixels long."""
    image = read_image(records.folder / records.files[index])
    height, width = image.shape[:2]
    factor = CELL_EDGE / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    rows = records.rows(index)
    boxes = records.boxes[rows].copy()
    boxes[:, 2:] += boxes[:, :2]
    masks = [_mask(records, row, height, width, size) for row in range(rows.start, rows.stop)]
    target = Target(
        torch.from_numpy((boxes * factor).astype(np.float32)),
        torch.from_numpy(records.labels[rows]),
        torch.from_numpy(np.stack(masks)) if masks else None,
        size=size,
    )
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return draw_target(cv2.resize(image, size[::-1], interpolation=method), target, records.classes)


def _mask(records: Records, row: int, height: int, width: int, size: tuple[int, int]) -> np.ndarray:
    """An object's mask at a size; nothing where it has none, or one of another size than its image."""
    segmentation = records.segmentation(row)
    if not segmentation:
        return np.zeros(size, np.uint8)
    try:
        mask = np.ascontiguousarray(decode(segmentation, height, width))
    except ValueError:
        return np.zeros(size, np.uint8)
    return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
