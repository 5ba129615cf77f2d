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
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        order = sorted(range(len(records)), key=lambda i: id_order(records.image_ids[i]))
        self._image_numbers = np.empty(len(records), dtype=np.int64)
        self._image_numbers[order] = np.arange(1, len(records) + 1)
        self._images = dict(zip(records.image_ids, self._image_numbers.tolist()))
        self._categories = {category: label + 1 for label, category in enumerate(records.category_ids)}

    def coco(self, *, masks: bool) -> hotcoco.COCO:
        """The ground truth; with `masks` only the objects that have one."""
        records = self._records
        rows = np.arange(len(records.labels))
        if masks:
            rows = rows[records.spans[:, 1] > records.spans[:, 0]]
        owners = np.repeat(self._image_numbers, np.diff(records.starts))[rows]
        annotations = [
            {"id": row + 1, "image_id": image, "category_id": label + 1, "bbox": box, "iscrowd": int(crowd)}
            for row, image, label, box, crowd in zip(
                rows.tolist(),
                owners.tolist(),
                records.labels[rows].tolist(),
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
                "categories": [{"id": label + 1, "name": str(label)} for label in range(len(records.classes))],
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
