"""Detections in COCO's results format, as anyone's tool writes them: read, and checked against a data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import hotcoco
import msgspec
import numpy as np

from mgdet.data.records import Id, Records, id_order
from mgdet.data.segmentation import Unreadable, canonical
from mgdet.data.values import four_numbers, integer_of, number
from mgdet.errors import UserError

FORM = "a list of {image_id, category_id, bbox: [x, y, width, height], score}"
SHOWN = 3
"""Unknown ids in a message."""


def is_results_file(source: str | Path) -> bool:
    """Does this name detections rather than weights?"""
    return str(source).lower().endswith(".json") and "://" not in str(source)


def read_results(path: Path, records: Records, metrics: Sequence[str] = ("bbox",)) -> list[dict[str, Any]]:
    """Reads detections that some tool has written.

    Images are named by the ids of the data set, or, where that fits all of them, by their file names, with or without
    folders and the ending. A box that is not there is the one around the mask.

    Args:
        path: a JSON file in COCO's results format.
        records: the data set that the detections are of.
        metrics: what is to be measured; masks are read for "segm" alone.

    Returns:
        The detections in the order of the file: image_id and category_id as the records have them, bbox, score and,
        for "segm", segmentation.

    Raises:
        UserError: the file is no such list, an entry is malformed, or it is of other images or categories.
    """
    items = _load(path)
    images = _images(items, records, path)
    categories = _spellings(records.category_ids)
    unknown = _keys(items, "category_id", path) - categories.keys()
    if unknown:
        raise UserError(_unknown_categories(unknown, records, path))
    places = {image: i for i, image in enumerate(records.image_ids)}
    masks = "segm" in metrics
    results = []
    for i, item in enumerate(items):
        image = images[item["image_id"]]
        where = f"{path}: result number {i + 1}"
        score = number(item.get("score"))
        if score is None:
            raise UserError(f"{where} has {_shown(item, 'score')}; give a number")
        size = int(records.heights[places[image]]), int(records.widths[places[image]])
        mask = _mask(item, size, where, wanted=masks)
        box = _box(item, mask, where)
        result = {"image_id": image, "category_id": categories[item["category_id"]], "bbox": box, "score": score}
        results.append(result | {"segmentation": mask} if masks else result)
    return results


def results_notes(path: Path, results: Sequence[Mapping[str, Any]], records: Records) -> list[str]:
    """What is odd about detections that can be measured: images without any, ids that are also the names of other
    images, and boxes that look like corners."""
    notes = []
    seen = {result["image_id"] for result in results}
    empty = len(records) - len(seen)
    if empty:
        first = next(image for image in records.image_ids if image not in seen)
        notes.append(f"{path} has no detections for {empty:,} of the {len(records):,} images (first: id {first})")
    by_name = _by_name(records)
    other = next((image for image in seen if by_name.get(image, image) != image), None)
    if other is not None and seen <= by_name.keys():
        name = records.files[list(records.image_ids).index(other)]
        notes.append(
            f"the image_ids of {path} are read as ids of '{records.source}', but they are also names of its files: "
            f"{other} is read as {name}"
        )
    if seen and _has_no_ids(records) and _count_from_one(_keys(_load(path), "image_id", path), len(records)):
        notes.append(
            f"numbers in {path} are read as names of files, as {min(seen, key=str)}; detections that an earlier "
            "version of mgdet wrote count images from 1 and have to be written again"
        )
    if results and _outside(results, records) > 0.5:
        notes.append(
            f"most boxes of {path} extend beyond their images; they look like corners (x1, y1, x2, y2), but COCO's "
            "format is x, y, width, height"
        )
    return notes


def _load(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error!s:.100}") from None
    if isinstance(content, dict) and "annotations" in content:
        raise UserError(f"{path} holds annotations, not detections; COCO's results are {FORM}")
    if not isinstance(content, list):
        raise UserError(f"{path} holds no list of detections; COCO's results are {FORM}")
    if content and isinstance(content[0], dict) and "objects" in content[0] and "file" in content[0]:
        raise UserError(
            f"{path} was written by mgdet predict, with classes by name; mgdet test --out writes COCO's form"
        )
    for i, item in enumerate(content):
        if not isinstance(item, dict):
            raise UserError(f"{path}: result number {i + 1} is {item!r:.40}; COCO's results are {FORM}")
    return content


def _keys(items: Iterable[dict[str, Any]], field: str, path: Path) -> set[Id]:
    """The ids that occur; each is an integer or a text."""
    keys: set[Id] = set()
    for i, item in enumerate(items):
        value = item.get(field)
        whole = isinstance(value, float) and value.is_integer()
        if isinstance(value, bool) or not (whole or isinstance(value, int | str)):
            raise UserError(f"{path}: result number {i + 1} has {_shown(item, field)}; COCO's results are {FORM}")
        keys.add(int(value) if whole else value)  # type: ignore[arg-type]
    return keys


def _spellings(ids: Iterable[Id]) -> dict[Id, Id]:
    """Ids by all that may be written for them: a number also as text, and the other way round."""
    other: dict[Id, Id] = {}
    own: dict[Id, Id] = {}
    for key in ids:
        own[key] = key
        value = integer_of(key) if isinstance(key, str) else str(key)
        if value is not None:
            other[value] = key
    return other | own


def _images(items: Sequence[dict[str, Any]], records: Records, path: Path) -> dict[Id, Id]:
    """The data set's id for each that occurs."""
    keys = _keys(items, "image_id", path)
    by_id = _spellings(records.image_ids)
    if keys <= by_id.keys():
        return by_id
    by_name = _by_name(records)
    unknown = min(keys - by_id.keys(), keys - by_name.keys(), key=len)
    if not unknown:
        return by_name
    example = f"those of the data set look like {next(iter(records.image_ids))}"
    if _has_no_ids(records):
        example = f"the data set has no ids, so name images by their files, such as {records.files[0]}"
    raise UserError(
        f"{path} has detections for {len(unknown):,} images that '{records.source}' does not have, out of "
        f"{len(keys):,} (ids {_some(unknown)}; {example}); give results on its images"
    )


def _has_no_ids(records: Records) -> bool:
    """Is this a format without ids, YOLO's or Pascal VOC's? Then images have their files' names for it."""
    return records.image_ids[0] == records.files[0]


def _count_from_one(keys: Iterable[Id], number: int) -> bool:
    """Are these all numbers that might count so many images?"""
    values = [integer_of(key) if isinstance(key, str) else key for key in keys]
    return all(value is not None and 1 <= value <= number for value in values)


def _by_name(records: Records) -> dict[Id, Id]:
    """The images' ids by file name, with and without folders and ending, where only one image has it."""
    names: dict[Id, Id] = {}
    twice = set()
    for file, image in zip(records.files, records.image_ids):
        pure = PurePosixPath(file)
        stem: Id | None = integer_of(pure.stem)
        for name in {file, pure.name, pure.stem} | ({stem} if stem is not None else set()):
            if names.setdefault(name, image) != image:
                twice.add(name)
    return {name: image for name, image in names.items() if name not in twice}


def _unknown_categories(unknown: set[Id], records: Records, path: Path) -> str:
    labels = set(range(len(records.classes)))
    hint = ""
    if all(isinstance(key, int) for key in unknown) and 0 in unknown and unknown <= labels:
        hint = "; they look like labels, counted from 0: COCO's format has the annotation file's category ids"
    return (
        f"{path} has category ids that '{records.source}' does not declare: {_some(unknown)}; declared are "
        f"{_some(records.category_ids)}{hint}"
    )


def _some(ids: Iterable[Id]) -> str:
    ordered = sorted(ids, key=id_order)
    return ", ".join(f"{key!s:.40}" for key in ordered[:SHOWN]) + (", ..." if len(ordered) > SHOWN else "")


def _shown(item: Mapping[str, Any], field: str) -> str:
    return f"the {field} {item[field]!r:.60}" if field in item else f"no {field}"


def _mask(item: Mapping[str, Any], size: tuple[int, int], where: str, *, wanted: bool) -> Any:
    """The mask in one of COCO's two forms; None where it is neither wanted nor needed for the box."""
    if not wanted and item.get("bbox") is not None:
        return None
    box = four_numbers(item.get("bbox")) or (0.0, 0.0, 0.0, 0.0)
    try:
        mask = canonical(item.get("segmentation"), size, box)
    except Unreadable as error:
        raise UserError(f"{where} has a segmentation that cannot be read: {error}") from None
    if not mask and wanted:
        raise UserError(f"{where} has no segmentation, which metric segm needs; choose bbox")
    return msgspec.json.decode(mask) if mask else None


def _box(item: Mapping[str, Any], mask: Any, where: str) -> list[float]:
    if item.get("bbox") is None and mask is not None:
        if isinstance(mask, dict):
            around: list[float] = hotcoco.mask.toBbox(hotcoco.mask.frPyObjects(mask, *mask["size"])).tolist()
            return around
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask])
        return [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).tolist()]
    box = four_numbers(item.get("bbox"))
    if box is None or min(box[2:]) < 0:
        raise UserError(f"{where} has {_shown(item, 'bbox')}; give x, y, width and height in pixels")
    return list(box)


def _outside(results: Sequence[Mapping[str, Any]], records: Records) -> float:
    """The share of boxes that reach out of their image by more than a tenth of it."""
    places = {image: i for i, image in enumerate(records.image_ids)}
    rows = np.array([places[result["image_id"]] for result in results])
    boxes = np.array([result["bbox"] for result in results])
    known = records.heights[rows] > 0
    right, bottom = (boxes[:, 0] + boxes[:, 2])[known], (boxes[:, 1] + boxes[:, 3])[known]
    width, height = records.widths[rows][known], records.heights[rows][known]
    return float(np.mean((right > 1.1 * width) | (bottom > 1.1 * height))) if known.any() else 0.0
