"""A data set to train or test on: the objects and images of the records that count, read one view at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mgdet.config.augment import AugmentConfig
from mgdet.data.augment import augmented
from mgdet.data.doubts import doubts
from mgdet.data.images import check_images, check_size, without_size
from mgdet.data.records import Id, LeftOut, Reason, Records, expected_layout
from mgdet.data.segmentation import decode
from mgdet.data.transforms import Example, Picture, View, make_example, read_image
from mgdet.errors import UserError

MIN_EDGE = 32
"""Images with an edge under this many pixels are not trained on."""
SLIVER = 0.01
"""A box that has less than this many pixels inside its image counts as outside: float32 may leave nothing of it."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the records say about an image: its id, its file, and its size in pixels."""

    id: Id
    file_name: str
    height: int
    width: int


class DetectionDataset:
    """Images with boxes, and masks if wanted.

    Objects are all but crowds, those marked `ignore`, and those whose box lies outside the image, has no area, or is
    under one pixel wide or high; with masks, also those without a readable segmentation.

    records: what the data set is made from, with the size of every image.
    classes: names by label.
    category_ids: ids of the annotation file; label i means `category_ids[i]`.
    images: in the order of the records. For training only those with an object and no edge under `MIN_EDGE`.
    portrait: one flag per image: is it no wider than high?
    notes: sentences on what was left out.
    """

    def __init__(
        self, records: Records, *, training: bool, masks: bool = False, augment: AugmentConfig | None = None
    ) -> None:
        """Looks for the image files and chooses objects and images.

        Args:
            records: the data set; with segmentations if `masks`.
            training: leave out images that cannot be trained on.
            masks: also give the objects' masks.
            augment: random changes of the images whose view has a seed.

        Raises:
            UserError: image files are missing, or no image can be trained on.
        """
        _require_folder(records)
        self.notes = [*records.notes, *records.left_out.sentences(f"'{records.source}': left out")]
        unknown = without_size(records)
        if len(unknown):
            self.notes.append(
                f"'{records.source}' does not give the size of {_images(len(unknown))}; it was read from the files"
            )
        self.records = records = check_images(records)
        self.classes, self.category_ids = records.classes, records.category_ids
        self.masks, self._augment = masks, augment
        left_out = LeftOut()
        usable = _usable(records, masks, left_out)
        counts = np.add.reduceat(np.append(usable, False), records.starts[:-1], dtype=np.int64)
        counts[np.diff(records.starts) == 0] = 0
        kept = np.arange(len(records))
        if training:
            kept = _trainable(records, counts, left_out)
            if not len(kept):
                raise UserError(_nothing_left(records, left_out))
            self.notes += left_out.sentences("left out of training:")
        elif records.annotated and records.crowd.all():
            self.notes.append(f"'{records.source}' has no object that counts, so there is nothing to score")
        self.notes += [f"'{records.source}': {doubt}" for doubt in doubts(records)]
        self._store(kept, usable, counts)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_objects(self) -> np.ndarray:
        """(N,) int64, how many objects each of the images has."""
        return np.diff(self._starts)

    def file(self, index: int) -> Path:
        """The file of an image, by its position in `images`."""
        return self.records.folder / self.records.files[int(self._indices[index])]

    def __getitem__(self, view: View) -> Example:
        """Reads one image with its objects.

        Raises:
            UserError: the image is missing, unreadable, truncated, or not of the size that the records give.
        """
        if self._augment is not None and view.seed is not None:
            return augmented(self.picture, len(self), view, self._augment)
        return make_example(view=view, **self.picture(view.index)._asdict())

    def picture(self, position: int) -> Picture:
        """An image as its file has it, by its position in `images`; errors as above."""
        index, path = int(self._indices[position]), self.file(position)
        image = read_image(path)
        check_size(self.records, index, image.shape[:2])
        rows = slice(int(self._starts[position]), int(self._starts[position + 1]))
        return Picture(
            image,
            file=str(path),
            image_id=self.images[position].id,
            boxes=self._boxes[rows],
            labels=self._labels[rows],
            masks=_Masks(self.records, self._rows[rows], image.shape[:2]) if self.masks else None,
        )

    def _store(self, kept: np.ndarray, usable: np.ndarray, counts: np.ndarray) -> None:
        # Flat arrays rather than objects of Python: forked workers then share them for good.
        records = self.records
        self._indices = kept
        self._starts = np.concatenate([[0], np.cumsum(counts[kept])])
        in_kept = np.zeros(len(records), dtype=bool)
        in_kept[kept] = True
        self._rows = np.flatnonzero(usable & np.repeat(in_kept, np.diff(records.starts)))
        boxes = records.boxes[self._rows]
        boxes[:, 2:] += boxes[:, :2]
        self._boxes, self._labels = boxes.astype(np.float32), records.labels[self._rows]
        self.images = [
            ImageInfo(records.image_ids[i], records.files[i], height, width)
            for i, height, width in zip(kept.tolist(), records.heights[kept].tolist(), records.widths[kept].tolist())
        ]
        self.portrait = (records.widths[kept] <= records.heights[kept]).tolist()


class _Masks(Sequence[np.ndarray]):
    """The masks of one image, each decoded when it is asked for: at full size they are large."""

    def __init__(self, records: Records, rows: np.ndarray, size: tuple[int, int]) -> None:
        self._records, self._rows, self._size = records, rows, size

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: Any) -> Any:
        return decode(self._records.segmentation(int(self._rows[i])), *self._size)


def check_same_classes(train: Records, val: Records) -> None:
    """Refuses two data sets whose classes differ.

    Raises:
        UserError: names the classes that only one has, or says that only their order differs.
    """
    if train.classes == val.classes:
        return
    parts, order = [], ""
    for mine, other in ((train, val), (val, train)):
        only = [name for name in mine.classes if name not in other.classes]
        if only:
            parts.append(f"only '{mine.source}' has {_names(only)}")
    if not parts:
        parts = [f"'{records.source}' has {_names(records.classes)}" for records in (train, val)]
        order = " (that of the category ids)"
    raise UserError(f"training and evaluation need the same classes in the same order{order}: {', and '.join(parts)}")


def _images(number: int) -> str:
    return "1 image" if number == 1 else f"{number:,} images"


def _names(classes: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in classes[:8]) + (
        f" and {len(classes) - 8} more" if len(classes) > 8 else ""
    )


def _require_folder(records: Records) -> None:
    if not records.folder.is_dir():
        raise UserError(f"there is no folder '{records.folder}'; {expected_layout(records.source, records.folder)}")


def _usable(records: Records, masks: bool, left_out: LeftOut) -> np.ndarray:
    """(N,) bool: which objects can be trained on; the others are counted."""
    sizes = np.stack([records.widths, records.heights], axis=1)
    owner = np.repeat(np.arange(len(records)), np.diff(records.starts))
    corner, extent = records.boxes[:, :2], records.boxes[:, 2:]
    inside = np.minimum(corner + extent, sizes[owner]) - np.maximum(corner, 0)
    unusable = {
        Reason.CROWD: records.crowd,
        Reason.IGNORED: records.ignored,
        Reason.DEGENERATE: (extent < 1).any(axis=1) | (inside < SLIVER).any(axis=1),
        Reason.NO_AREA: records.areas == 0,
    }
    usable = np.ones(len(records.labels), dtype=bool)
    for reason, flags in unusable.items():
        rows = np.flatnonzero(flags & usable)
        if len(rows):
            left_out.add(reason, records.describe(int(rows[0])), len(rows))
        usable[rows] = False
    if masks:
        usable &= records.spans[:, 1] > records.spans[:, 0]  # counted when they were read
    return usable


def _trainable(records: Records, counts: np.ndarray, left_out: LeftOut) -> np.ndarray:
    """Indices of the images that can be trained on; the others are counted."""
    small = np.minimum(records.heights, records.widths) < MIN_EDGE
    for reason, flags in ((Reason.SMALL_IMAGE, small), (Reason.EMPTY_IMAGE, (counts == 0) & ~small)):
        indices = np.flatnonzero(flags)
        if len(indices):
            left_out.add(reason, records.files[int(indices[0])], len(indices))
    return np.flatnonzero((counts > 0) & ~small)


def _nothing_left(records: Records, left_out: LeftOut) -> str:
    """Why no image can be trained on: what was left out, or that there was nothing."""
    total = LeftOut()
    for part in (records.left_out, left_out):
        for reason in part.counts:
            if reason not in (Reason.EMPTY_IMAGE, Reason.NOT_AN_AREA):
                total.add(reason, part.examples[reason], part.counts[reason])
    text = f"no image in '{records.source}' can be trained on"
    if not total.counts:
        return f"{text}: it has no objects" if records.annotated else f"{text}: it has no list 'annotations'"
    hint = ""
    boxes = records.boxes
    if Reason.DEGENERATE in total.counts and len(boxes) and 0 < boxes.max() <= 1:
        hint = "; all boxes lie between 0 and 1, but boxes are in pixels"
    return f"{text}: {', '.join(total.sentences(''))}{hint}"
