"""What is odd about a data set that can be read: sentences for people, beside what is left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mgdet.data.records import Records

FAR = 0.02
"""A box that reaches so much of its image's edge beyond the image is no matter of rounding."""
MANY, FEW = 0.25, 4
"""From this share of such boxes on, and more than so many, all boxes are probably written as two corners."""
SHOWN = 3
COMPARED_FILES = 50
"""Of so many images of one name the bytes are compared."""


def doubts(records: Records) -> list[str]:
    """One sentence for each thing that is odd; it is used as it is."""
    return [*_same_files(records), *_same_objects(records), *_far_outside(records), *_same_names(records)]


def seen_in_training(train: Iterable[Path], val: Iterable[Path]) -> list[str]:
    """A sentence where validation images hold the same bytes as a training image of that name, else nothing.

    Args:
        train, val: the image files of each split, which are there.
    """
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for path in train:
        by_name[path.name].append(path)
    pairs = [(path, other) for path in val for other in by_name.get(path.name, ())]
    pairs = pairs[:: max(1, len(pairs) // COMPARED_FILES)]
    same = [
        str(mine)
        for mine, other in pairs
        if mine.stat().st_size == other.stat().st_size and mine.read_bytes() == other.read_bytes()
    ]
    if not same:
        return []
    return [
        f"{len(same)} of {len(pairs)} validation images that have the name of a training image are the same picture, "
        f"so scores will be too high: {', '.join(same[:SHOWN])}{', ...' if len(same) > SHOWN else ''}"
    ]


def _same_files(records: Records) -> list[str]:
    counts = Counter(records.files)
    if len(counts) == len(records.files):
        return []
    file, most = counts.most_common(1)[0]
    several = sum(count > 1 for count in counts.values())
    number = "1 image file is" if several == 1 else f"{several:,} image files are"
    return [
        f"{number} listed more than once (first: '{file}', {most:,} times), so the objects of one entry are background "
        "in the others; give each file one entry with all of its objects"
    ]


def _same_objects(records: Records) -> list[str]:
    """Objects of one image, class and box."""
    rows = np.column_stack([_owners(records), records.labels, records.boxes])
    mixed = rows[:, 1:] @ np.random.default_rng(0).random(5)  # equal where rows are, and nearly nowhere else
    order = np.lexsort((mixed, rows[:, 0]))
    same = (rows[order][1:] == rows[order][:-1]).all(axis=1)
    number = int(same.sum())
    if not number:
        return []
    row = int(order[1:][same].min())
    objects = "1 object is" if number == 1 else f"{number:,} objects are"
    return [f"{objects} there twice, with the same class and box (first: {records.describe(row)})"]


def _far_outside(records: Records) -> list[str]:
    """Boxes that lie in their image with a part only, and by more than tools round."""
    edges = np.stack([records.widths, records.heights], axis=1).astype(np.float64)[_owners(records)]
    corner, extent = records.boxes[:, :2], records.boxes[:, 2:]
    beyond = np.maximum(corner + extent - edges, -corner)
    far = (edges > 0).all(axis=1) & (beyond > np.maximum(FAR * edges, 1.0)).any(axis=1)
    number = int(far.sum())
    if not number:
        return []
    boxes = "1 box reaches far beyond its image" if number == 1 else f"{number:,} boxes reach far beyond their images"
    text = f"{boxes} (first: {records.describe(int(np.flatnonzero(far)[0]))})"
    if number > max(MANY * len(far), FEW):
        return [f"{text}; a box is x, y, width, height, and these look like two corners"]
    return [f"{text}; only what is inside counts in training"]


def _owners(records: Records) -> np.ndarray:
    """(N,) the image of each object."""
    return np.repeat(np.arange(len(records)), np.diff(records.starts))


def _same_names(records: Records) -> list[str]:
    twice = [name for name, count in Counter(records.classes).items() if count > 1]
    if not twice:
        return []
    names = ", ".join(f"'{name}'" for name in twice[:SHOWN]) + (", ..." if len(twice) > SHOWN else "")
    return [f"several classes have the same name: {names}"]
