"""Opens the splits of a data set of any format as records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgdet.config import DataConfig
from mgdet.data.coco import read_coco
from mgdet.data.file_names import as_found
from mgdet.data.folders import Place
from mgdet.data.layouts import find_places, with_places
from mgdet.data.records import LeftOut, Records
from mgdet.data.shared import read_shared
from mgdet.data.voc import read_voc
from mgdet.data.yolo import YAML_SUFFIXES, read_yolo
from mgdet.errors import UserError

_COPY_MARK = ".rf."
"""Roboflow writes several altered copies of one photo, as `photo_jpg.rf.HASH.jpg`."""


class Splits(NamedTuple):
    """The splits of a data set.

    records: of "train" and "val", those that were asked for.
    data: the config with the names of its splits, as a run stores it.
    line: what was found, in one line.
    """

    records: dict[str, Records]
    data: DataConfig
    line: str


def open_splits(
    data: DataConfig,
    *,
    train_masks: bool = False,
    val_masks: bool = False,
    required: tuple[str, ...] = ("train", "val"),
    unlabelled: bool = False,
    barrier: Callable[[], None] = lambda: None,
) -> Splits:
    """Finds and reads the splits that a run or a test needs.

    Args:
        data: names that are empty are found by looking.
        train_masks, val_masks: read masks in that split.
        required: ("train", "val"), or ("val",) to measure only.
        unlabelled: also take a split in which no image has an annotation; its records are not `annotated`.
        barrier: waits for all processes of the run, which open the splits together and read them once a machine.

    Raises:
        UserError: a split is not there, or cannot be read.
    """
    places, title = find_places(data, required=required)
    masks = {"train": train_masks, "val": val_masks}
    read = cache(
        lambda: _read_splits(data, places, masks, required, unlabelled)
    )  # both come from one reading, once it is needed
    records = {split: read_shared(partial(_one_of, read, split), split, barrier) for split in required}
    return Splits(records, with_places(data, places), _line(data, title, places, records))


def _one_of(read: Callable[[], dict[str, Records]], split: str) -> Records:
    return read()[split]


def _read_splits(
    data: DataConfig,
    places: Mapping[str, Place],
    masks: Mapping[str, bool],
    required: tuple[str, ...],
    unlabelled: bool,
) -> dict[str, Records]:
    root = Path(data.root)
    if data.val_share:
        return _divide(root, places["train"], masks, data.val_share, data.split_seed)
    # VOC's classes are those that occur, so both of its splits are looked at, whichever is asked for.
    wanted = [s for s in masks if s in places and (s in required or format_of(root, places[s]) == "voc")]
    return read_places(root, {split: places[split] for split in wanted}, masks, unlabelled=unlabelled)


def read_places(
    root: Path, places: Mapping[str, Place], masks: Mapping[str, bool], *, unlabelled: bool = False
) -> dict[str, Records]:
    """Reads splits of any formats, each with or without masks; `unlabelled` as in `open_splits`.

    Raises:
        UserError: one cannot be read.
    """
    records: dict[str, Records] = {}
    voc = {split: place for split, place in places.items() if format_of(root, place) == "voc"}
    if voc:
        own = read_voc(root, list(voc.values()), masks=[masks[split] for split in voc], unlabelled=unlabelled)
        records.update(zip(voc, own))
    for split, place in places.items():
        if split in voc:
            continue
        path = root / place.annotations
        if format_of(root, place) == "yolo":
            records[split] = read_yolo(path, place.images, masks=masks[split], unlabelled=unlabelled)
        else:
            records[split] = as_found(read_coco(path, root / place.images, masks=masks[split]))
    return {split: records[split] for split in places}


def format_of(root: Path, place: Place) -> str:
    """coco, yolo or voc, by the kind of a split's annotations."""
    path = root / place.annotations
    if path.suffix.lower() in YAML_SUFFIXES:
        return "yolo"
    folder = path.is_dir() and path.suffix.lower() != ".json"
    return "voc" if path.suffix.lower() == ".txt" or folder else "coco"


def take(records: Records, images: np.ndarray) -> Records:
    """Some images of a data set, with their objects.

    Args:
        images: (I,) indices in ascending order.
    """
    rows = np.concatenate([np.arange(records.starts[i], records.starts[i + 1]) for i in images.tolist()])
    return replace(
        records,
        image_ids=[records.image_ids[i] for i in images.tolist()],
        files=[records.files[i] for i in images.tolist()],
        heights=records.heights[images],
        widths=records.widths[images],
        starts=np.concatenate([[0], np.cumsum(np.diff(records.starts)[images])]),
        **{name: getattr(records, name)[rows] for name in ("boxes", "labels", "crowd", "ignored", "areas", "spans")},
    )


def validation_images(records: Records, share: float, seed: int) -> np.ndarray:
    """Which images to evaluate on: (I,) bool, the same for the same images, share and seed.

    Each class gets its share: images are drawn evenly from a list that is sorted by the rarest class on each.
    Altered copies of one photo stay together.
    """
    counts = np.bincount(records.labels, minlength=len(records.classes))
    rarest = [
        min(records.labels[records.rows(i)].tolist(), key=lambda label: (counts[label], label), default=-1)
        for i in range(len(records))
    ]
    groups: dict[str, list[int]] = {}
    for i in sorted(range(len(records)), key=lambda i: records.files[i]):
        groups.setdefault(records.files[i].split(_COPY_MARK)[0], []).append(i)
    members = list(groups.values())
    shuffled = np.random.default_rng(seed).permutation(len(members)).tolist()
    order = sorted(shuffled, key=lambda g: rarest[members[g][0]])
    number = min(max(1, round(share * len(order))), len(order) - 1)
    chosen = ((np.arange(number) + 0.5) * len(order) / max(number, 1)).astype(int)
    flags = np.zeros(len(records), dtype=bool)
    for position in chosen.tolist():
        flags[members[order[position]]] = True
    return flags


def _divide(root: Path, place: Place, masks: Mapping[str, bool], share: float, seed: int) -> dict[str, Records]:
    """The training split as two: to train and to evaluate on."""
    # Without masks in any case: which objects count decides which images are taken.
    read = {kind: read_places(root, {"train": place}, {"train": kind})["train"] for kind in {False, *masks.values()}}
    flags = validation_images(read[False], share, seed)
    if not 0 < flags.sum() < len(flags):
        raise UserError(
            f"data.val_share is {share:g}, but '{read[False].source}' has {len(flags)} images, too few to take some "
            "for validation; name a validation split with --data.val-annotations and --data.val-images"
        )
    val = replace(take(read[masks["val"]], np.flatnonzero(flags)), left_out=LeftOut(), notes=())
    return {"train": take(read[masks["train"]], np.flatnonzero(~flags)), "val": val}


def _line(data: DataConfig, title: str, places: Mapping[str, Place], records: Mapping[str, Records]) -> str:
    """What was found, as in "data in pets: COCO; train 12 images (train.json, train); 3 classes"."""
    parts = [title] if title else []
    for split, found in records.items():
        place = places[split]
        where = place.images if place.annotations == place.images else f"{place.annotations}, {place.images}"
        if split == "val" and data.val_share:
            where = f"{data.val_share:g} of train by data.split_seed {data.split_seed}"
        parts.append(f"{split} {len(found):,} images ({where})")
    number = len(next(iter(records.values())).classes)
    return f"data in {data.root}: {'; '.join([*parts, f'{number} classes' if number > 1 else '1 class'])}"
