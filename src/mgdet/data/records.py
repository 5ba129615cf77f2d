"""What a data set says, whatever its format: images, objects and classes in flat arrays, checked in one place.

Letters in shapes: I images, N objects.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import msgspec
import numpy as np

from mgdet.data.segmentation import Unreadable, canonical
from mgdet.data.values import four_numbers, integer_of, number, truth
from mgdet.errors import UserError

Id = int | str

LONGEST_EDGE = 2**20
"""OpenCV reads no image with a longer edge, in pixels."""


class Reason(Enum):
    """Why something is left out: the phrase for one and for many."""

    NOT_A_BOX = "box that is not four numbers", "boxes that are not four numbers"
    NO_EXTENT = "box without width or height", "boxes without width or height"
    NOT_A_LABEL = "label that is neither a box nor a polygon", "labels that are neither boxes nor polygons"
    OUT_OF_SHARES = (
        "label that is not in fractions of the image's size",
        "labels that are not in fractions of the image's size",
    )
    NO_IMAGE = "file of labels that belongs to no image", "files of labels that belong to no image"
    NOT_AN_AREA = "area that is not a number of 0 or more", "areas that are not numbers of 0 or more"
    NOT_A_FLAG = "object whose crowd flag is neither yes nor no", "objects whose crowd flag is neither yes nor no"
    NO_MASK = "object without a segmentation", "objects without a segmentation"
    NOT_A_MASK = "object whose segmentation cannot be read", "objects whose segmentation cannot be read"
    CROWD = "crowd (iscrowd is set)", "crowds (iscrowd is set)"
    IGNORED = "ignored object", "ignored objects"
    NO_AREA = "object with area 0", "objects with area 0"
    DEGENERATE = "box under a pixel or outside its image", "boxes under a pixel or outside their images"
    EMPTY_IMAGE = "image without an object to train on", "images without an object to train on"
    SMALL_IMAGE = "image under 32 pixels", "images under 32 pixels"


@dataclass(slots=True)
class LeftOut:
    """What was left out, counted by reason, with the first example of each."""

    counts: dict[Reason, int] = field(default_factory=dict)
    examples: dict[Reason, str] = field(default_factory=dict)

    def add(self, reason: Reason, example: str, count: int = 1) -> None:
        """Counts `count` things that are left out for one reason; `example` describes the first of them."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples.setdefault(reason, example)

    def sentences(self, verb: str = "left out") -> list[str]:
        """One line for each reason, as in "left out 2 ignored objects (first: annotation 7 of image 'a.jpg')"."""
        lead = f"{verb} " if verb else ""
        return [f"{lead}{self.phrase(reason)} (first: {self.examples[reason]})" for reason in self.counts]

    def phrase(self, reason: Reason) -> str:
        """As in "2 ignored objects"."""
        count = self.counts[reason]
        return f"{count:,} {reason.value[0 if count == 1 else 1]}"


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """A data set, read once. Objects are sorted by image, and within an image in the order of the file.

    source: the file or folder that was read, for messages.
    folder: where `files` start from.
    classes: names by label.
    category_ids: ids in the file by label, as results in COCO format name them.
    image_ids: I ids in the file, integers of any size or texts; the names of the files where the format has no ids.
    files: I names of image files, relative to `folder`.
    heights, widths: (I,) int64, pixels of the image as it is seen upright; 0 where the file does not say it.
    starts: (I + 1,) int64; the objects of image i are rows starts[i] .. starts[i + 1].
    boxes: (N, 4) float64, x, y, width, height, pixels of the image file.
    labels: (N,) int64.
    crowd: (N,) bool; not trained on, and in evaluation a detection on it counts neither way.
    ignored: (N,) bool; not trained on, but an object like others in evaluation, as COCO's `ignore` is.
    areas: (N,) float64, square pixels; NaN where the file gives none.
    segmentations: JSON of all masks in one block, as `segmentation.canonical` writes it; empty if masks were not read.
    spans: (N, 2) int64; the mask of row n is segmentations[spans[n, 0] : spans[n, 1]], empty without a mask.
    left_out: what of the file is not in the records, and why.
    has_masks: whether masks were read; an object without one cannot be used where masks are needed.
    annotated: False where the file lists images but no objects at all, as COCO's test files do.
    notes: how it was understood, where that should be said.
    """

    source: str
    folder: Path
    classes: tuple[str, ...]
    category_ids: tuple[Id, ...]
    image_ids: Sequence[Id]
    files: Sequence[str]
    heights: np.ndarray
    widths: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray
    segmentations: np.ndarray
    spans: np.ndarray
    left_out: LeftOut
    has_masks: bool = False
    annotated: bool = True
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, image: int) -> slice:
        """The rows of an image's objects."""
        return slice(int(self.starts[image]), int(self.starts[image + 1]))

    def image_of(self, row: int) -> int:
        """The image of an object."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def segmentation(self, row: int) -> bytes:
        """The mask of an object as JSON; empty without one."""
        start, end = self.spans[row].tolist()
        return self.segmentations[start:end].tobytes()

    def describe(self, row: int) -> str:
        """An object for messages: its number within its image."""
        image = self.image_of(row)
        return f"object {row - int(self.starts[image]) + 1} of image '{self.files[image]}'"


class RecordsBuilder:
    """Gathers images and objects of any format, checks them, and makes `Records`.

    Objects may come in any order. Values may be of any type: what is surely meant is read, what is not is left out
    and counted. Names in messages are the caller's, e.g. "annotation 7".
    """

    def __init__(
        self,
        source: str,
        folder: Path,
        classes: Sequence[str],
        category_ids: Sequence[Id] | None = None,
        *,
        masks: bool = False,
    ) -> None:
        """Args:
        source: the file or folder that is read, for messages.
        folder: where file names start from.
        classes: names by label, at least one.
        category_ids: ids by label; 1, 2, ... if the format has none.
        masks: keep the objects' segmentations, and count objects without a readable one.

        Raises:
            UserError: there is no class.
        """
        if not classes:
            raise UserError(f"no category is declared in '{source}'")
        self.source, self.folder, self.masks = source, folder, masks
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids) if category_ids is not None else tuple(range(1, len(classes) + 1))
        self.left_out = LeftOut()
        self.annotated = True
        self.image_ids: list[Id] = []
        self.files: list[str] = []
        self.heights, self.widths = array("q"), array("q")
        self._images, self._labels = array("q"), array("q")
        self._boxes, self._areas = array("d"), array("d")
        self._crowd, self._ignored = array("b"), array("b")
        self._segmentations, self._ends = bytearray(), array("q", [0])

    def add_image(self, file: str, height: object = None, width: object = None, image_id: Id | None = None) -> int:
        """Adds an image; returns its index, by which objects name it.

        Args:
            file: name of the image file, relative to the folder.
            height, width: in pixels; None, 0 or less where they are not known.
            image_id: the id in the file; by default `file`. The caller sees to it that no two are the same.

        Raises:
            UserError: a size is not a number of pixels.
        """
        index = len(self.files)
        self.heights.append(self._edge(height, "height", index, file))
        self.widths.append(self._edge(width, "width", index, file))
        self.image_ids.append(file if image_id is None else image_id)
        self.files.append(file)
        return index

    def add_object(
        self,
        image: int,
        label: int,
        box: object,
        *,
        name: str,
        area: object = None,
        crowd: object = False,
        ignored: object = False,
        segmentation: object = None,
    ) -> None:
        """Adds an object, unless it cannot be used at all: then it is counted as left out.

        Args:
            image: index of its image.
            label: index of its class.
            box: x, y, width, height in pixels of the image file; numbers or texts of numbers.
            name: the object in messages, as in "annotation 7".
            area: square pixels, or None: the mask's or the box's.
            crowd: a region of many objects, or otherwise not to be trained on and not to be counted.
            ignored: not to be trained on, but counted.
            segmentation: polygons or RLE in one of COCO's forms, or None; see `segmentation.canonical`.
        """
        values = four_numbers(box)
        if values is None:
            self.leave_out(Reason.NOT_A_BOX, image, name, box)
            return
        if min(values[2:]) <= 0:
            # No detection can match it, so it would only lower every score.
            self.leave_out(Reason.NO_EXTENT, image, name, box)
            return
        height, width = self.heights[image], self.widths[image]
        size = (height, width) if height and width else (0, 0)
        mask = b""
        if self.masks:
            try:
                mask = canonical(segmentation, size, values)
                if not mask:
                    self.leave_out(Reason.NO_MASK, image, name)
            except Unreadable as error:
                self.leave_out(Reason.NOT_A_MASK, image, name, str(error))
        flags = self._flag(crowd, image, name), self._flag(ignored, image, name)
        self.append(image, label, values, self._area(area, image, name), *flags, mask)

    def append(
        self,
        image: int,
        label: int,
        box: Sequence[float],
        area: float,
        crowd: bool,
        ignored: bool,
        mask: bytes | msgspec.Raw,
    ) -> None:
        """Adds an object whose values have been checked: finite numbers, a box with extent, an area of 0
        or more or NaN."""
        self._images.append(image)
        self._labels.append(label)
        self._boxes.extend(box)
        self._areas.append(area)
        self._crowd.append(crowd)
        self._ignored.append(ignored)
        self._segmentations += mask
        self._ends.append(len(self._segmentations))

    def leave_out(self, reason: Reason, image: int, name: str, value: object = None) -> None:
        """Counts something of an object that is left out."""
        shown = "" if value is None else f": {value!r:.60}" if not isinstance(value, str) else f": {value:.120}"
        self.left_out.add(reason, f"{name} of image '{self.files[image]}'{shown}")

    def build(self) -> Records:
        """The records.

        Raises:
            UserError: there is no image.
        """
        if not self.files:
            raise UserError(f"no image is listed in '{self.source}'")
        images = np.frombuffer(self._images, np.int64)
        counts = np.bincount(images, minlength=len(self.files))
        starts = np.concatenate([[0], np.cumsum(counts)])
        columns = {
            "boxes": np.frombuffer(self._boxes, np.float64).reshape(-1, 4),
            "labels": np.frombuffer(self._labels, np.int64),
            "crowd": np.frombuffer(self._crowd, np.int8).astype(bool),
            "ignored": np.frombuffer(self._ignored, np.int8).astype(bool),
            "areas": np.frombuffer(self._areas, np.float64),
        }
        ends = np.frombuffer(self._ends, np.int64)
        columns["spans"] = np.stack([ends[:-1], ends[1:]], axis=1)
        if np.any(np.diff(images) < 0):
            order = np.argsort(images, kind="stable")
            columns = {name: column[order] for name, column in columns.items()}
        return Records(
            source=self.source,
            folder=self.folder,
            classes=self.classes,
            category_ids=self.category_ids,
            image_ids=self.image_ids,
            files=self.files,
            heights=np.frombuffer(self.heights, np.int64),
            widths=np.frombuffer(self.widths, np.int64),
            starts=starts,
            segmentations=np.frombuffer(self._segmentations, np.uint8),
            left_out=self.left_out,
            has_masks=self.masks,
            annotated=self.annotated,
            notes=(),
            **columns,
        )

    def _edge(self, value: object, name: str, index: int, file: str) -> int:
        if value is None or value == "":
            return 0
        pixels = number(value)
        if pixels is None or pixels != int(pixels) or pixels > LONGEST_EDGE:
            raise UserError(
                f"image number {index + 1} ('{file:.80}') in '{self.source}' has {name} {value!r:.40}, "
                f"which is not a number of pixels up to {LONGEST_EDGE:,}"
            )
        return max(0, int(pixels))

    def _area(self, value: object, image: int, name: str) -> float:
        if value is None or value == "":
            return math.nan
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        area = number(value)
        if area is None or area < 0:
            self.leave_out(Reason.NOT_AN_AREA, image, name, value)
            return math.nan
        return area

    def _flag(self, value: object, image: int, name: str) -> bool:
        flag = truth(value)
        if flag is None:
            self.leave_out(Reason.NOT_A_FLAG, image, name, value)
            return True
        return flag


def expected_layout(source: object, folder: Path) -> str:
    """The end of a sentence about a file or folder that is not there."""
    return f"expected are the annotations '{source}' and their images in the folder '{folder}'"


def id_order(key: Id) -> tuple[int, int, str]:
    """Sorts ids ascending: integers, also those written as text, before other texts."""
    if isinstance(key, int):
        return 0, key, ""
    value = integer_of(key)
    return (1, 0, key) if value is None else (0, value, key)
