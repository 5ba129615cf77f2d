"""Records as ground truth for hotcoco, with ids of our own: whatever ids a file has, the scores are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import hotcoco
import msgspec
import numpy as np

from mgdet.data.records import Id, Records, id_order
from mgdet.errors import UserError


class Truth:
    """Ground truth, and the way from the ids of the file to those that hotcoco sees.

    Images count from 1 by ascending id of the file: at equal scores COCO's protocol goes by their order. Categories
    count from 1 by label, annotations from 1 by row.

    order: the records' images by their number here, from 1 on.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self.order = order = sorted(range(len(records)), key=lambda i: id_order(records.image_ids[i]))
        self._image_numbers = np.empty(len(records), dtype=np.int64)
        self._image_numbers[order] = np.arange(1, len(records) + 1)
        self._images = dict(zip(records.image_ids, self._image_numbers.tolist()))
        self._categories = {category: label + 1 for label, category in enumerate(records.category_ids)}

    def coco(self, *, masks: bool, copies: int = 1) -> hotcoco.COCO:
        """The ground truth.

        Args:
            masks: only the objects that have one.
            copies: every object and every class is there so many times: class c of K stands in copy i as i * K + c, so
                that detections of several runs are matched each with objects of their own.
        """
        records, number = self._records, len(self._records.classes)
        rows = np.arange(len(records.labels))
        if masks:
            rows = rows[records.spans[:, 1] > records.spans[:, 0]]
        copy, rows = np.repeat(np.arange(copies), len(rows)), np.tile(rows, copies)
        owners = np.repeat(self._image_numbers, np.diff(records.starts))
        annotations = [
            {"id": id_, "image_id": image, "category_id": category, "bbox": box, "iscrowd": int(crowd)}
            for id_, image, category, box, crowd in zip(
                (rows + 1 + copy * len(records.labels)).tolist(),
                owners[rows].tolist(),
                (records.labels[rows] + 1 + copy * number).tolist(),
                records.boxes[rows].tolist(),
                records.crowd[rows].tolist(),
            )
        ]
        for annotation, row, area in zip(annotations, rows.tolist(), records.areas[rows].tolist()):
            if not math.isnan(area):  # without one, hotcoco takes the mask's or else the box's
                annotation["area"] = area
            if records.has_masks and (segmentation := records.segmentation(row)):
                annotation["segmentation"] = msgspec.json.decode(segmentation)
        sizes = zip(self._image_numbers.tolist(), records.heights.tolist(), records.widths.tolist())
        return hotcoco.COCO(
            {
                "images": [{"id": i, "file_name": "", "height": height, "width": width} for i, height, width in sizes],
                "categories": [{"id": label + 1, "name": str(label)} for label in range(copies * number)],
                "annotations": annotations,
            }
        )

    def results(self, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detections in COCO's results format, with our ids.

        Raises:
            UserError: a detection is of an image or a category that the records do not have.
        """
        return [
            result
            | {
                "image_id": self._number(self._images, result, "image_id"),
                "category_id": self._number(self._categories, result, "category_id"),
            }
            for result in results
        ]

    def _number(self, numbers: dict[Id, int], result: dict[str, Any], field: str) -> int:
        if result[field] not in numbers:
            raise UserError(f"a detection has {field} {result[field]}, which '{self._records.source}' does not have")
        return numbers[result[field]]


def class_rows(records: Records) -> list[str]:
    """A name for each class, different for all: those that share one also have their category id."""
    shared = {name for name in records.classes if records.classes.count(name) > 1}
    return [
        f"{name} (id {category})" if name in shared else name
        for name, category in zip(records.classes, records.category_ids)
    ]
