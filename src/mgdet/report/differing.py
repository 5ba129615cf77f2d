"""The images where two kinds differ most, in both directions, with what each of them found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import hotcoco
import numpy as np
import torch

from mgdet.data.dataset import DetectionDataset
from mgdet.data.records import Id
from mgdet.data.transforms import View
from mgdet.evaluate.draw import draw_detections, draw_target
from mgdet.structures import Detections, Target

IMAGES = 3
"""Images for each direction."""
LONG_EDGE = 560
"""Of a picture on the page, in pixels."""
MATCHED_FROM = 0.5
"""A detection has found an object where they overlap by this IoU."""


class Counts(NamedTuple):
    """What became of one image: objects found, objects missed, and detections that are none."""

    found: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where there was nothing to find and nothing was found."""
        relevant = 2 * self.found + self.missed + self.false
        return 2 * self.found / relevant if relevant else 1.0


@dataclass(slots=True)
class Seen:
    """How the detections of one run fare, image by image.

    threshold: the score threshold with the best F1 over all images.
    counts: by the number of the image in `Truth`.
    """

    threshold: float
    counts: dict[int, Counts]


@dataclass(slots=True)
class Difference:
    """An image where two kinds differ.

    file: its name.
    better: the kind that is better here.
    pictures: title, caption and (H, W, 3) uint8 BGR, the truth first.
    """

    file: str
    better: str
    pictures: list[tuple[str, str, np.ndarray]]


def look(matched: hotcoco.COCOeval) -> Seen:
    """Counts what was found in each image, at the score threshold that suits these detections best."""
    diagnosed = matched.image_diagnostics(iou_thr=MATCHED_FROM)
    detections, objects = matched.coco_dt.anns, matched.coco_gt.anns
    right = {key: status == "tp" for key, status in diagnosed["dt_status"].items()}  # none that lies on a crowd
    total = Counter(objects[key]["image_id"] for key in diagnosed["gt_status"])  # no crowds
    threshold = _best_threshold([(detections[key]["score"], own) for key, own in right.items()], total.total())
    kept = [key for key in right if detections[key]["score"] >= threshold]
    found = Counter(detections[key]["image_id"] for key in kept if right[key])
    false = Counter(detections[key]["image_id"] for key in kept if not right[key])
    counts = {image: Counts(found[image], total[image] - found[image], false[image]) for image in matched.coco_gt.imgs}
    return Seen(threshold, counts)


def _best_threshold(scored: list[tuple[float, bool]], objects: int) -> float:
    """The score at which F1 over all detections is highest; 1 without any that is right."""
    if not any(right for _, right in scored):
        return 1.0
    scored.sort(reverse=True)
    scores = np.array([score for score, _ in scored])
    found = np.cumsum([right for _, right in scored])
    f1 = 2 * found / (np.arange(1, len(scored) + 1) + objects)
    f1[:-1][scores[:-1] == scores[1:]] = -1  # equal scores come in together
    return float(scores[int(np.argmax(f1))])


def choose_images(baseline: Seen, other: Seen) -> tuple[list[int], list[int]]:
    """The images where `other` is better and those where `baseline` is, largest difference in F1 first."""
    gains = {image: counts.f1 - baseline.counts[image].f1 for image, counts in other.counts.items()}

    def weight(image: int) -> tuple[float, int]:
        return abs(gains[image]), other.counts[image].found + other.counts[image].missed

    order = sorted(gains, key=weight, reverse=True)
    return [i for i in order if gains[i] > 0][:IMAGES], [i for i in order if gains[i] < 0][:IMAGES]


def draw_image(
    dataset: DetectionDataset,
    index: int,
    found: Mapping[str, tuple[Sequence[Mapping[str, Any]], float, Counts]],
    categories: Mapping[Id, int],
) -> list[tuple[str, str, np.ndarray]]:
    """One image with its objects, and with what each kind found in it.

    Args:
        dataset: opened for testing, with masks if they are to be drawn.
        index: of the image in the data set.
        found: for each kind its detections in this image, the score threshold for drawing them, and the counts.
        categories: labels by category id.

    Returns:
        Title, caption and (H, W, 3) uint8 BGR of each picture.
    """
    info = dataset.images[index]
    scale = min(1.0, LONG_EDGE / max(info.height, info.width))
    view = View(index, round(max(info.height, info.width) * scale), round(min(info.height, info.width) * scale), False)
    example = dataset[view]
    zoom = max(1, round(LONG_EDGE / max(example.image.shape[:2])))
    target: Target = example.target
    objects = len(target.labels)
    pictures = [
        (
            "truth",
            f"{objects} object" if objects == 1 else f"{objects} objects",
            draw_target(example.image, target, dataset.classes, zoom=zoom),
        )
    ]
    for name, (results, threshold, counts) in found.items():
        detections = _detections(results, categories, example.scale, example.image.shape[:2])
        picture = draw_detections(example.image, detections, dataset.classes, score=threshold, zoom=zoom)
        pictures.append((name, f"{counts.found} found, {counts.missed} missed, {counts.false} false", picture))
    return pictures


def _detections(
    results: Sequence[Mapping[str, Any]],
    categories: Mapping[Id, int],
    scale: tuple[float, float],
    size: tuple[int, ...],
) -> Detections:
    """COCO results of one image as detections in pixels of the resized image, best first."""
    ordered = sorted(results, key=lambda result: -result["score"])
    boxes = torch.tensor([result["bbox"] for result in ordered], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes *= torch.tensor([*scale, *scale], dtype=torch.float32)
    masks = None
    if ordered and all("segmentation" in result for result in ordered):
        masks = torch.from_numpy(np.stack([_mask(result["segmentation"], scale, size) for result in ordered]))
    return Detections(
        boxes,
        torch.tensor([result["score"] for result in ordered]),
        torch.tensor([categories[result["category_id"]] for result in ordered], dtype=torch.int64),
        masks,
    )


def _mask(segmentation: Any, scale: tuple[float, float], size: tuple[int, ...]) -> np.ndarray:
    """An RLE or polygons, (h, w) bool of the resized image."""
    height, width = (round(edge / own) for edge, own in zip(size[:2], scale[::-1]))
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
    rles = hotcoco.mask.frPyObjects(segmentation, height, width)
    mask = hotcoco.mask.decode(hotcoco.mask.merge(rles) if isinstance(rles, list) else rles)
    return cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_AREA) > 0
