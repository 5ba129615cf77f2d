"""What a teacher finds in a sample of the validation images, shown to it as the run shows it the training images."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from mgdet.config import Config
from mgdet.data.batch import Batch, collate
from mgdet.data.dataset import DetectionDataset
from mgdet.data.open import take
from mgdet.data.records import Records
from mgdet.data.transforms import View
from mgdet.detectors.face import Face
from mgdet.detectors.foreign.base import match_classes
from mgdet.engine.step import teacher_canvas
from mgdet.evaluate.arrays import Arrays
from mgdet.evaluate.coco import evaluate
from mgdet.methods.teacher import Teacher
from mgdet.precision import autocast
from mgdet.structures import Detections

MOST_IMAGES = 64
SWAPPED_IMAGES, FEWEST_SWAPPED = 24, 8
"""How many images are looked at with red and blue swapped, at most and at least."""
COVERED = 0.5
"""The intersection over union from which a detection covers an object."""
OFTEN, ENOUGH_PAIRS, RARELY, MOSTLY = 3, 10, 0.2, 0.7
"""A class must be found so often to be looked at, all of them so often, with their own names in at most this share, and
those of one other in at least that, for classes that are in another order."""
ROUNDS = 40
"""Resamples of the images that tell how far chance may move the score."""


@dataclass(slots=True)
class Score:
    """What was found. Precisions are in [0, 1], or -1 where nothing counts.

    metric: bbox or segm.
    images, objects: of the sample.
    ap: COCO's AP over the classes that the teacher knows.
    error: its standard error, by resampling the images.
    matched: objects that a detection of any class covers, by half of their union.
    right: how many of these have their own class in the best of such detections.
    renamed: where the teacher's classes stand for others of the data: each with the one that it finds; else empty.
    swapped, straight: AP on the first images of the sample with red and blue swapped, and as they are; -1 where it was
        not tried.
    seconds: for each image, reading included.
    """

    metric: str
    images: int
    objects: int
    ap: float
    error: float
    matched: int
    right: int
    renamed: dict[str, str]
    swapped: float
    straight: float
    seconds: float


def labels_by_name(theirs: Sequence[str], classes: Sequence[str]) -> list[int]:
    """For each label of a teacher the data's label of the same name, or -1."""
    found = [match_classes(theirs, (name,)) for name in classes]
    labels = [-1] * len(theirs)
    for label, place in enumerate(found):
        if place is not None and (labels[place[0]] < 0 or theirs[place[0]] == classes[label]):
            labels[place[0]] = label
    return labels


def score_teacher(
    teacher: Teacher,
    student: Face,
    config: Config,
    dataset: DetectionDataset,
    labels: Sequence[int],
    *,
    device: torch.device,
    seconds: float,
) -> Score | None:
    """Has the teacher detect in validation images that hold objects it knows, always the same ones first.

    Args:
        teacher: on `device`; it must find objects.
        student: whose canvas the images are put on first, as in training.
        config: the run.
        dataset: opened for testing, with objects.
        labels: as `labels_by_name` gives them.
        device: where the teacher is.
        seconds: no further image is begun that would end later than this.

    Returns:
        None where no image holds an object of a class that the teacher knows.
    """
    known = {label for label in labels if label >= 0}
    records = dataset.records
    order = _images_with(records, known)
    if not order:
        return None
    metric = "bbox"
    if config.train.metrics[0] == "segm" and teacher.detector.has_masks and records.has_masks:
        metric = "segm"
    look = _Look(teacher, student, config, dataset, np.asarray(labels), device)
    started = time.perf_counter()
    found = look.at(order[:MOST_IMAGES], started + seconds * 2 / 3)
    each = (time.perf_counter() - started) / len(found)
    swapped, again = [], order[: min(len(found), SWAPPED_IMAGES)]
    if len(again) >= FEWEST_SWAPPED and each * len(again) < started + seconds - time.perf_counter():
        swapped = look.at(again, started + seconds, swap=True)
    sample = _Sample(records, order[: len(found)], found, metric, known)
    both = [
        _Sample(records, again, own[: len(again)], metric, known).ap() if swapped else -1.0 for own in (swapped, found)
    ]
    pairs = sample.pairs()
    return Score(
        metric=metric,
        images=len(found),
        objects=sample.objects(),
        ap=sample.ap(),
        error=sample.error(),
        matched=len(pairs),
        right=sum(found == true for found, true in pairs),
        renamed=_renamed(pairs, records.classes),
        swapped=both[0],
        straight=both[1],
        seconds=each,
    )


def _images_with(records: Records, known: set[int]) -> list[int]:
    """The images that hold an object that counts, of one of the classes, in an order that is drawn once for all."""
    counts = np.isin(records.labels, list(known)) & ~records.crowd
    owners = np.repeat(np.arange(len(records)), np.diff(records.starts))
    images = np.unique(owners[counts])
    return np.random.default_rng(0).permutation(images).tolist()


@dataclass(frozen=True, slots=True)
class _Look:
    """A teacher that looks at images, one after the other."""

    teacher: Teacher
    student: Face
    config: Config
    dataset: DetectionDataset
    labels: np.ndarray
    device: torch.device

    def at(self, images: Sequence[int], end: float, *, swap: bool = False) -> list[Arrays]:
        """What it finds in as many of the images as can be done by `end`, in the data's labels; in one at least."""
        found: list[Arrays] = []
        started = time.perf_counter()
        for index in images:
            now = time.perf_counter()
            if found and now + (now - started) / len(found) > end:
                break
            found.append(self._in_image(index, swap))
        return found

    def _in_image(self, index: int, swap: bool) -> Arrays:
        data = self.config.data
        example = self.dataset[View(index, data.long_edge, data.short_edge[1], False, data.square)]
        batch = collate([example]).to(self.device).fitted(self.student.multiple, self.student.native_size)
        if swap:
            batch = replace(batch, pixels=batch.pixels.flip(3))
        (detections,) = self._find(batch)
        own = Arrays.of(detections)
        labels = self.labels[own.labels]
        kept = np.flatnonzero(labels >= 0)
        masks = None if own.masks is None else [own.masks[i] for i in kept.tolist()]
        return Arrays(own.boxes[kept], own.scores[kept], labels[kept], masks, own.size)

    def _find(self, batch: Batch) -> list[Detections]:
        face, settings = self.teacher.detector, self.config.teacher
        assert settings is not None
        height, width = batch.pixels.shape[1:3]
        canvas = teacher_canvas((height, width), settings.canvas, face.native_size, face.multiple)
        images, sizes = batch.images_on(canvas, face.pixels)
        # Of the rounded sizes: masks are pasted into images of size / scale, which must be the originals to the pixel.
        scales = [(w / width, h / height) for (h, w), (height, width) in zip(sizes, batch.originals)]
        with autocast(self.device, self.config.train.amp):
            return self.teacher.find(images.contiguous(memory_format=torch.channels_last), sizes, scales)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Detections in some images of a data set, to be scored.

    images: the images, by position; one may occur twice.
    found: in each of them.
    known: the labels that count.
    """

    records: Records
    images: Sequence[int]
    found: Sequence[Arrays]
    metric: str
    known: set[int]

    def ap(self) -> float:
        """The mean over the classes that count and occur."""
        order = np.argsort(self.images, kind="stable").tolist()
        chosen = np.asarray(self.images)[order]
        own = replace(take(self.records, chosen), image_ids=list(range(len(order))))
        results: list[dict[str, Any]] = [
            result
            for place, position in enumerate(order)
            for result in self.found[position].results(place, self.records.category_ids)
        ]
        classes = evaluate(own, results, (self.metric,))[self.metric].per_class.values()
        values = [scores["AP"] for label, scores in enumerate(classes) if label in self.known and scores["AP"] >= 0]
        return sum(values) / len(values) if values else -1.0

    def error(self) -> float:
        """The standard deviation of the AP when images are drawn anew, each as often as chance has it."""
        rng = np.random.default_rng(0)
        scores = []
        for _ in range(ROUNDS):
            drawn = rng.integers(len(self.images), size=len(self.images)).tolist()
            sample = replace(self, images=[self.images[i] for i in drawn], found=[self.found[i] for i in drawn])
            scores.append(sample.ap())
        return float(np.std(scores))

    def objects(self) -> int:
        """How many objects count in the sample."""
        records = take(self.records, np.sort(np.asarray(self.images)))
        return int((np.isin(records.labels, list(self.known)) & ~records.crowd).sum())

    def pairs(self) -> list[tuple[int, int]]:
        """For each object that is found at all, the label of the best detection on it and its own label."""
        pairs = []
        for index, own in zip(self.images, self.found):
            rows = np.arange(self.records.starts[index], self.records.starts[index + 1])
            rows = rows[np.isin(self.records.labels[rows], list(self.known)) & ~self.records.crowd[rows]]
            boxes = torch.from_numpy(self.records.boxes[rows].astype(np.float32))
            boxes[:, 2:] += boxes[:, :2]
            covers = box_iou(boxes, torch.from_numpy(own.boxes)).numpy() >= COVERED
            scores = np.where(covers, own.scores, -1.0)
            for row, each in zip(rows.tolist(), scores):
                if len(each) and each.max() >= 0:
                    pairs.append((int(own.labels[each.argmax()]), int(self.records.labels[row])))
        return pairs


def _renamed(pairs: Sequence[tuple[int, int]], classes: Sequence[str]) -> dict[str, str]:
    """Which class each class stands for, where hardly any stands for itself and most for one other; else nothing."""
    trues: dict[int, list[int]] = {}
    for found, true in pairs:
        trues.setdefault(found, []).append(true)
    often = {found: Counter(own).most_common(1)[0] for found, own in trues.items() if len(own) >= OFTEN}
    total = sum(len(trues[found]) for found in often)
    right = sum(true == found for found in often for true in trues[found])
    if total < ENOUGH_PAIRS or right > RARELY * total or sum(count for _, count in often.values()) < MOSTLY * total:
        return {}
    return {classes[found]: classes[true] for found, (true, _) in often.items()}
