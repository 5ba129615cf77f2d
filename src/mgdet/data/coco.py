"""A data set in COCO format: checked once when it is opened, then read one view at a time."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import hotcoco.mask
import numpy as np

from mgdet.data.transforms import Example, View, make_example, read_image
from mgdet.errors import UserError

MIN_EDGE = 32
"""Images with an edge under this many pixels are not trained on."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the annotation file says about an image: its id, its file, and its size in pixels."""

    id: int
    file_name: str
    height: int
    width: int


class CocoDataset:
    """Images with boxes, and masks if wanted.

    Objects are all annotations but crowds, those marked `ignore`, and those whose box lies outside the image, has no
    area, or is under one pixel wide or high. Annotations may lack `area` (then it is the box's) and `iscrowd` (then
    it is 0).

    classes: names of the categories, by ascending id.
    category_ids: their ids; label i means `category_ids[i]`.
    images: in the order of the file. For training only those with an object and no edge under `MIN_EDGE`.
    portrait: one flag an image: is it no wider than high?
    annotations: the annotation file.
    folder: the folder that file names start from.
    notes: sentences on what was left out of training.
    """

    def __init__(self, annotations: Path, images: Path, *, training: bool, masks: bool = False) -> None:
        """Reads and checks the annotation file.

        Args:
            annotations: a COCO instances file.
            images: folder that its file names start from.
            training: leave out images that cannot be trained on.
            masks: also read the objects' segmentations, polygons or RLE.

        Raises:
            UserError: something is missing, is not COCO format, or refers to what is not there.
        """
        _require_files(annotations, images)
        data = _read_json(annotations)
        where = f"in '{annotations}'"
        names = _read_categories(data["categories"], where)
        infos = _read_images(data["images"], where)
        records = data["annotations"]
        _check_annotations(records, names, infos, where)

        self.annotations = annotations
        self.folder = images
        self.category_ids = tuple(sorted(names))
        self.classes = tuple(names[i] for i in self.category_ids)
        self.notes: list[str] = []
        objects, dropped = _select_objects(records, infos)
        self.images = list(infos.values())
        if training:
            self.images = [
                info for info in self.images if objects[info.id] and min(info.height, info.width) >= MIN_EDGE
            ]
            self._take_notes(infos, dropped)
            if not self.images:
                raise UserError(f"no image {where} can be trained on: none has a usable box and {MIN_EDGE} pixels")
        self.portrait = [info.width <= info.height for info in self.images]
        for info in self.images[:8]:
            if not (images / info.file_name).is_file():
                raise UserError(f"image '{images / info.file_name}', listed {where}, does not exist")
        self._store(objects)
        self._segmentations = _Segmentations(self.images, objects, where) if masks else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, view: View) -> Example:
        """Reads one image with its objects.

        Raises:
            UserError: the image is missing, unreadable, truncated, or not of the size that the annotations give.
        """
        info = self.images[view.index]
        path = self.folder / info.file_name
        image = read_image(path)
        height, width = image.shape[:2]
        if (height, width) != (info.height, info.width):
            raise UserError(
                f"image '{path}' is {width} x {height} pixels, "
                f"but '{self.annotations}' says {info.width} x {info.height}"
            )
        rows = slice(self._starts[view.index], self._starts[view.index + 1])
        masks = None
        if self._segmentations is not None:
            masks = [self._segmentations.decode(i, height, width) for i in range(rows.start, rows.stop)]
        return make_example(
            image,
            view,
            file=str(path),
            image_id=info.id,
            boxes=self._boxes[rows],
            labels=self._labels[rows],
            masks=masks,
        )

    def _store(self, objects: dict[int, list[dict]]) -> None:
        # Flat arrays rather than objects of Python: forked workers then share them for good.
        label = {category: i for i, category in enumerate(self.category_ids)}
        rows = [record for info in self.images for record in objects[info.id]]
        self._starts = np.cumsum([0] + [len(objects[info.id]) for info in self.images])
        boxes = np.array([record["bbox"] for record in rows], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        self._boxes = boxes.astype(np.float32)
        self._labels = np.array([label[record["category_id"]] for record in rows], dtype=np.int64)

    def _take_notes(self, infos: dict[int, ImageInfo], dropped: list[dict]) -> None:
        if dropped:
            first = dropped[0]
            self.notes.append(
                f"{_count(len(dropped), 'degenerate box', 'degenerate boxes')} dropped "
                f"(first: annotation {first.get('id')} of image {infos[first['image_id']].file_name})"
            )
        kept = {info.id for info in self.images}
        unused = [info for info in infos.values() if info.id not in kept]
        if unused:
            self.notes.append(
                f"{_count(len(unused), 'image', 'images')} of {len(infos)} without a usable box or under {MIN_EDGE} "
                f"pixels left out (first: {unused[0].file_name})"
            )


class _Segmentations:
    """The segmentations of all objects, as JSON in one block of bytes: small, and shared by forked workers."""

    def __init__(self, images: list[ImageInfo], objects: dict[int, list[dict]], where: str) -> None:
        parts = []
        for info in images:
            for record in objects[info.id]:
                _check_segmentation(record, info, where)
                parts.append(json.dumps(record["segmentation"]).encode())
        self._ends = np.cumsum([0] + [len(part) for part in parts])
        self._text = b"".join(parts)

    def decode(self, row: int, height: int, width: int) -> np.ndarray:
        """The mask of object `row`: (height, width) uint8 of zeros and ones."""
        segmentation = json.loads(self._text[self._ends[row] : self._ends[row + 1]])
        return _decode_mask(segmentation, height, width)


def _decode_mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    rles = hotcoco.mask.frPyObjects(segmentation, height, width)
    mask: np.ndarray = hotcoco.mask.decode(hotcoco.mask.merge(rles) if isinstance(rles, list) else rles)
    return cv2.transpose(mask.T)  # the same mask, row by row in memory


def _require_files(annotations: Path, images: Path) -> None:
    layout = f"expected are the COCO annotation file '{annotations}' and its images in the folder '{images}'"
    if not annotations.is_file():
        raise UserError(f"there is no file '{annotations}'; {layout}")
    if not images.is_dir():
        raise UserError(f"there is no folder '{images}'; {layout}")


def _read_json(path: Path) -> dict[str, list]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"'{path}' is not a COCO annotation file: it is not JSON ({error})") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(name), list):
            raise UserError(f"'{path}' is not a COCO annotation file: it has no list '{name}'")
    return data


def _field(record: Any, name: str, kind: type, what: str) -> Any:
    """`record[name]`, which must be a `kind`; `what` names the record in errors."""
    if not isinstance(record, dict):
        raise UserError(f"{what} is {record!r:.80}, not an object with fields")
    if name not in record:
        raise UserError(f"{what} has no '{name}'")
    if type(record[name]) is not kind:
        raise UserError(f"{what} has {name} {record[name]!r:.80}, which should be of type {kind.__name__}")
    return record[name]


def _read_categories(records: list, where: str) -> dict[int, str]:
    """Id -> name."""
    names: dict[int, str] = {}
    for i, record in enumerate(records):
        what = f"category number {i + 1} {where}"
        category = _field(record, "id", int, what)
        if category in names:
            raise UserError(f"two categories {where} have the id {category}")
        names[category] = _field(record, "name", str, what)
    if not names:
        raise UserError(f"no category is declared {where}")
    return names


def _read_images(records: list, where: str) -> dict[int, ImageInfo]:
    """Id -> image, in the order of the file."""
    infos: dict[int, ImageInfo] = {}
    for i, record in enumerate(records):
        what = f"image number {i + 1} {where}"
        info = ImageInfo(
            _field(record, "id", int, what),
            _field(record, "file_name", str, what),
            _field(record, "height", int, what),
            _field(record, "width", int, what),
        )
        if info.height < 1 or info.width < 1:
            raise UserError(f"{what} has no pixels: width {info.width}, height {info.height}")
        if info.id in infos:
            raise UserError(f"two images {where} have the id {info.id}")
        infos[info.id] = info
    if not infos:
        raise UserError(f"no image is listed {where}")
    return infos


def _check_annotations(records: list, names: dict[int, str], infos: dict[int, ImageInfo], where: str) -> None:
    for i, record in enumerate(records):
        what = f"annotation {record.get('id', '')} (number {i + 1}) {where}" if isinstance(record, dict) else where
        _field(record, "image_id", int, what)
        _field(record, "category_id", int, what)
        box = _field(record, "bbox", list, what)
        if len(box) != 4 or not all(type(v) in (int, float) and math.isfinite(v) for v in box):
            raise UserError(f"{what} has bbox {box!r:.80}, which should be four numbers: x, y, width, height")
    for field, known, noun in (("category_id", names, "category"), ("image_id", infos, "image")):
        unknown = sorted({record[field] for record in records} - known.keys())
        if unknown:
            ids = ", ".join(str(i) for i in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            valid = ", ".join(str(i) for i in islice(sorted(known), 5)) + (", ..." if len(known) > 5 else "")
            raise UserError(f"annotations {where} use {noun} ids that no {noun} declares: {ids}; declared are {valid}")


def _select_objects(
    records: list[dict], infos: dict[int, ImageInfo]
) -> tuple[defaultdict[int, list[dict]], list[dict]]:
    """The objects of each image id, and the annotations that are dropped for their boxes."""
    objects: defaultdict[int, list[dict]] = defaultdict(list)
    dropped = []
    for record in records:
        if record.get("iscrowd") or record.get("ignore"):
            continue
        if _usable(record, infos[record["image_id"]]):
            objects[record["image_id"]].append(record)
        else:
            dropped.append(record)
    return objects, dropped


def _usable(record: dict, info: ImageInfo) -> bool:
    x, y, width, height = record["bbox"]
    area = record.get("area")
    inside_x = min(x + width, info.width) - max(x, 0)
    inside_y = min(y + height, info.height) - max(y, 0)
    return width >= 1 and height >= 1 and (area is None or area > 0) and inside_x > 0 and inside_y > 0


def _check_segmentation(record: dict, info: ImageInfo, where: str) -> None:
    what = f"annotation {record.get('id', '')} of image '{info.file_name}' {where}"
    segmentation = record.get("segmentation")
    if not segmentation:
        raise UserError(f"{what} has no segmentation, which training with masks needs")
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [info.height, info.width]:
            raise UserError(f"{what} has an RLE of size {segmentation.get('size')}, not {[info.height, info.width]}")
        try:
            _decode_mask(segmentation, info.height, info.width)
        except (TypeError, ValueError) as error:
            raise UserError(f"{what} has a broken RLE: {error}") from None
    elif not isinstance(segmentation, list) or not all(_is_polygon(part) for part in segmentation):
        raise UserError(f"{what} has a polygon that is not x, y, x, y, ... of three points or more")


def _is_polygon(part: Any) -> bool:
    return (
        isinstance(part, list)
        and len(part) >= 6
        and len(part) % 2 == 0
        and all(type(v) in (int, float) and math.isfinite(v) for v in part)
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
