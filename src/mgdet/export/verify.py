"""Does the exported graph find what torch finds? Detections are compared as sets: equal scores have no order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from mgdet.data.batch import Batch
from mgdet.data.transforms import padded_size
from mgdet.detectors.exported import Exported
from mgdet.detectors.face import Face
from mgdet.evaluate.coco import detect
from mgdet.export.forms.base import Limits
from mgdet.structures import Detections, Target

BOX_TOLERANCE, SCORE_TOLERANCE = 0.05, 1e-4
MASK_IOU, MASK_PIXELS = 0.98, 2
"""Masks agree from this overlap on, or where no more pixels than these differ: of a small mask one is many percent."""
OVERLAP_TOLERANCE = 1e-3
NEIGHBOUR = 1.0
"""Pixels between two boxes from which on they are two, and not one that was computed differently."""
MOST_CHOSEN = 0.02
"""Share of detections that may differ because rounding chose between candidates: neighbours, proposals, queries."""
MOST_ROUNDING = 1.0
"""Detections that rounding decided on, for each pair: with more of them nothing is shown by the pairs."""
SURE = 0.3
"""Score from which on a detection counts where a graph of few bits is compared."""


@dataclass
class Agreement:
    """What came of comparing detections of some images.

    images, pairs: how many were compared.
    box, score: the largest differences of pairs, in pixels and in score.
    mask: the smallest overlap of a pair's masks.
    rounding: detections that only one side has, as a threshold decided on them by rounding.
    tied: what only one side has, as it and a neighbour score the same, in words.
    lacking: what only one side has for no reason that its scores and boxes show, in words.
    """

    images: int = 0
    pairs: int = 0
    box: float = 0.0
    score: float = 0.0
    mask: float = 1.0
    rounding: int = 0
    tied: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)

    def line(self, *, masks: bool) -> str:
        """All of it in one line."""
        parts = [f"{self.pairs:,} detections on {self.images} images, labels equal, boxes within {self.box:.2g} pixels"]
        parts.append(f"scores within {self.score:.1g}")
        if masks:
            parts.append(f"masks' IoU at least {self.mask:.3f}")
        if self.rounding:
            parts.append(f"and {self.rounding} that a threshold decided by rounding")
        if chosen := len(self.tied) + len(self.lacking):
            parts.append(f"and {chosen} of candidates that rounding chose between")
        return ", ".join(parts)


def as_batch(image: np.ndarray) -> Batch:
    """One image (h, w, 3) uint8 RGB as a batch, padded as evaluation pads it."""
    size = (image.shape[0], image.shape[1])
    height, width = padded_size(size)
    pixels = torch.zeros((1, height, width, 3), dtype=torch.uint8)
    pixels[0, : size[0], : size[1]] = torch.from_numpy(image)
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), size=size)
    return Batch(pixels, [target], [""], [0], [size], [(1.0, 1.0)])


def compare(detector: Face, exported: Exported, images: Sequence[np.ndarray], limits: Limits) -> Agreement:
    """Runs both on images (h, w, 3) uint8, RGB, as the graph takes them.

    Args:
        detector: what the graph was made of, on a CPU.
        exported: the graph.
        images: at least one.
        limits: of the detector.
    """
    total = Agreement()
    for image in images:
        (expected,) = detect(detector, as_batch(image))
        match(expected, exported.run(image), limits, total)
    return total


@dataclass
class Resemblance:
    """How much of what torch is sure of a graph of few bits finds again: a box of the same class with enough overlap.

    images: how many were compared.
    objects: torch's detections with a score from 0.3 on.
    found: those that are found again.
    overlap: the IoU from which on a box is the same.
    """

    overlap: float
    images: int = 0
    objects: int = 0
    found: int = 0

    @property
    def share(self) -> float:
        """Of the objects that are found again."""
        return self.found / max(1, self.objects)

    def line(self) -> str:
        """All of it in one line."""
        return (
            f"{self.found:,} of torch's {self.objects:,} detections with a score from {SURE} on are found again on "
            f"{self.images} images (same class, IoU from {self.overlap} on)"
        )


def resemble(detector: Face, exported: Exported, images: Sequence[np.ndarray], *, overlap: float) -> Resemblance:
    """Compares a graph of few bits with the detector that it was made of; arguments as in `compare`."""
    total = Resemblance(overlap)
    for image in images:
        (expected,) = detect(detector, as_batch(image))
        found = exported.run(image)
        sure = expected.scores >= SURE
        same = (box_iou(expected.boxes[sure], found.boxes) >= overlap) & (
            expected.labels[sure][:, None] == found.labels
        )
        total.images += 1
        total.objects += int(sure.sum())
        total.found += int(same.any(dim=1).sum())
    return total


def match(expected: Detections, found: Detections, limits: Limits, total: Agreement) -> None:
    """Pairs the detections of one image, and adds what comes of it to `total`."""
    free = torch.ones(len(found.scores), dtype=torch.bool)
    total.images += 1
    single: list[int] = []
    for place in range(len(expected.scores)):
        partner = _partner(expected, place, found, free)
        if partner is None:
            single.append(place)
            continue
        free[partner] = False
        total.pairs += 1
        total.box = max(total.box, float((expected.boxes[place] - found.boxes[partner]).abs().max()))
        total.score = max(total.score, abs(float(expected.scores[place] - found.scores[partner])))
        if expected.masks is not None and found.masks is not None:
            _compare_masks(expected.masks[place], found.masks[partner], total)
    for own, other, places, side in (
        (expected, found, single, "torch"),
        (found, expected, free.nonzero().flatten().tolist(), "ONNX Runtime"),
    ):
        for place in places:
            if _by_rounding(own, place, other, limits):
                total.rounding += 1
            elif _tied(own, place, other, limits):
                total.tied.append(_described(own, place, side))
            else:
                total.lacking.append(_described(own, place, side))


def _partner(expected: Detections, place: int, found: Detections, free: Tensor) -> int | None:
    """The nearest detection that agrees in label, score and box, of those that are free."""
    distance = (found.boxes - expected.boxes[place]).abs().amax(dim=1)
    close = free & (found.labels == expected.labels[place]) & (distance <= BOX_TOLERANCE)
    close &= (found.scores - expected.scores[place]).abs() <= SCORE_TOLERANCE
    if not close.any():
        return None
    return int(torch.where(close, distance, torch.inf).argmin())


def _compare_masks(own: Tensor, other: Tensor, total: Agreement) -> None:
    union = int((own | other).sum())
    differing = int((own ^ other).sum())
    if differing > MASK_PIXELS:
        iou = 1 - differing / union
        total.mask = min(total.mask, iou)
        if iou < MASK_IOU:
            total.lacking.append(f"two masks of one object have an IoU of {iou:.3f}")


def _by_rounding(own: Detections, place: int, other: Detections, limits: Limits) -> bool:
    """Can rounding alone be why only one side keeps this detection?"""
    score = float(own.scores[place])
    if score <= limits.score + SCORE_TOLERANCE:
        return True
    if len(own.scores) >= limits.most and score <= float(own.scores.min()) + SCORE_TOLERANCE:
        return True
    if limits.overlap is None:
        return False
    rivals = (other.labels == own.labels[place]) & (other.scores >= score - SCORE_TOLERANCE)
    overlaps = box_iou(own.boxes[place : place + 1], other.boxes[rivals])[0]
    return bool(((overlaps - limits.overlap).abs() <= OVERLAP_TOLERANCE).any())


def _tied(own: Detections, place: int, other: Detections, limits: Limits) -> bool:
    """Has the other side a neighbour with the same score, either of which may suppress the other?"""
    if limits.overlap is None:
        return False
    box = own.boxes[place]
    rivals = (other.labels == own.labels[place]) & ((other.scores - own.scores[place]).abs() <= SCORE_TOLERANCE)
    rivals &= (other.boxes - box).abs().amax(dim=1) >= NEIGHBOUR
    return bool((box_iou(box[None], other.boxes[rivals]) >= limits.overlap).any())


def _described(own: Detections, place: int, side: str) -> str:
    box = ", ".join(f"{value:.1f}" for value in own.boxes[place].tolist())
    return f"only {side} finds class {int(own.labels[place])} at ({box}) with a score of {float(own.scores[place]):.4f}"
