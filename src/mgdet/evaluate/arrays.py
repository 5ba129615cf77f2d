"""Detections as a few arrays: how thousands of images wait for the end of an evaluation, and travel to one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import hotcoco
import numpy as np

from mgdet.data.records import Id
from mgdet.structures import Detections


class Arrays(NamedTuple):
    """The detections of one image in the host's memory, 28 bytes each and its mask.

    boxes: (N, 4) float32, xyxy, pixels of the image file.
    scores: (N,) float32 in [0, 1].
    labels: (N,) int64.
    masks: N compressed run-length codes as COCO writes them, of the size (H, W); None for detectors without masks.
    size: (H, W) of the masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[bytes] | None
    size: tuple[int, int]

    @classmethod
    def of(cls, found: Detections) -> Arrays:
        """The arrays of detections on any device; nothing of the device's memory is kept."""
        boxes, scores, labels = (value.cpu().numpy().copy() for value in found[:3])
        if found.masks is None:
            return cls(boxes, scores, labels, None, (0, 0))
        codes = [hotcoco.mask.encode(mask)["counts"] for mask in found.masks.cpu().numpy()]
        return cls(boxes, scores, labels, codes, (found.masks.shape[1], found.masks.shape[2]))

    def results(self, image_id: Id, category_ids: Sequence[Id]) -> list[dict[str, Any]]:
        """The detections in COCO's results format.

        Args:
            image_id: the image's id in the annotation file.
            category_ids: the category id of each label.

        Returns:
            N dicts, in the order of the detections: image_id, category_id, bbox [x, y, w, h] in pixels, score, and with
            masks segmentation, a compressed RLE.
        """
        boxes = self.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        results: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for box, score, label in zip(boxes.tolist(), self.scores.tolist(), self.labels.tolist())
        ]
        for result, counts in zip(results, self.masks or ()):
            result["segmentation"] = {"size": list(self.size), "counts": counts.decode("ascii")}
        return results
