"""COCO evaluation: a detector over a data set, its detections as COCO results, and the results as scores.

The scores are hotcoco's, which are pycocotools' to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
import torch
import torch.distributed

from mgdet.data.batch import Batch
from mgdet.data.dataset import DetectionDataset
from mgdet.data.loader import test_loader
from mgdet.data.records import Id, Records
from mgdet.data.sampler import by_size, test_views
from mgdet.data.transforms import View, padded_size
from mgdet.detectors.face import Face
from mgdet.errors import UserError, nearest
from mgdet.evaluate.arrays import Arrays
from mgdet.evaluate.truth import Truth, class_rows
from mgdet.layers.inference import inference_form
from mgdet.precision import autocast
from mgdet.structures import Detections

METRICS = ("bbox", "segm")
IMAGES_AT_ONCE = 4
"""Images per forward pass: enough for a GPU, while those that wait for others of their size stay few."""

# COCO's twelve numbers: which array of the evaluator, and where in it. IoU thresholds are 0.50 to 0.95 in steps of
# 0.05, areas are all, small, medium and large, and detections per image are at most 1, 10 and 100.
_ALL_IOUS, _IOU_50, _IOU_75 = slice(None), slice(0, 1), slice(5, 6)
_STATS: dict[str, tuple[str, slice, int, int]] = {
    "AP": ("precision", _ALL_IOUS, 0, 2),
    "AP50": ("precision", _IOU_50, 0, 2),
    "AP75": ("precision", _IOU_75, 0, 2),
    "APs": ("precision", _ALL_IOUS, 1, 2),
    "APm": ("precision", _ALL_IOUS, 2, 2),
    "APl": ("precision", _ALL_IOUS, 3, 2),
    "AR1": ("recall", _ALL_IOUS, 0, 0),
    "AR10": ("recall", _ALL_IOUS, 0, 1),
    "AR100": ("recall", _ALL_IOUS, 0, 2),
    "ARs": ("recall", _ALL_IOUS, 1, 2),
    "ARm": ("recall", _ALL_IOUS, 2, 2),
    "ARl": ("recall", _ALL_IOUS, 3, 2),
}
_PER_CLASS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(slots=True)
class CocoScores:
    """What COCO's protocol says of one kind of detections. Every number is in [0, 1], or -1 where nothing counts.

    stats: COCO's twelve numbers in COCO's order. AP is "Average Precision (AP) @[ IoU=0.50:0.95 | area=all |
        maxDets=100 ]"; AP50 and AP75 are the same at one IoU; APs, APm, APl at one area (up to 32^2, up to 96^2,
        above); AR1, AR10, AR100 are "Average Recall (AR)" at so many detections per image; ARs, ARm, ARl at one area.
    per_class: AP, AP50, AP75, APs, APm and APl for each class name, by label; names that occur twice also have the id.
    """

    stats: dict[str, float]
    per_class: dict[str, dict[str, float]]


def coco_results(detections: Detections, image_id: Id, category_ids: Sequence[Id]) -> list[dict[str, Any]]:
    """The detections of one image in COCO's results format.

    Args:
        detections: N detections, boxes (N, 4) xyxy in pixels of the image file; masks, if any, (N, H, W) of its size.
        image_id: the image's id in the annotation file.
        category_ids: the category id of each label.

    Returns:
        N dicts, in the order of the detections: image_id, category_id, bbox [x, y, w, h] in pixels, score, and with
        masks segmentation, a compressed RLE.
    """
    return Arrays.of(detections).results(image_id, category_ids)


def evaluate(
    records: Records, results: list[dict[str, Any]], metrics: Sequence[str] = ("bbox",)
) -> dict[str, CocoScores]:
    """Scores detections by COCO's protocol, over all images of the records.

    Ground truth without an area counts with the area of its mask, if masks were read, or else of its box. "segm"
    leaves out ground truth without a readable mask.

    Args:
        records: the data set; with masks if "segm" is among the metrics.
        results: detections in COCO's results format with the file's own ids, boxes [x, y, w, h] in pixels of the
            image files. There may be none: that scores 0.
        metrics: "bbox", "segm" or both. "segm" takes the area of a detection from its mask.

    Returns:
        The scores for each metric.

    Raises:
        UserError: a metric is unknown, the results are of other images or categories, or "segm" is asked for where
            the records or the results have no masks.
    """
    check_truth(records, metrics)
    truth = Truth(records)
    own = truth.results(results)
    return {
        metric: coco_scores(evaluator(truth.coco(masks=metric == "segm"), own, metric), records) for metric in metrics
    }


def check_truth(records: Records, metrics: Sequence[str]) -> None:
    """Refuses to measure what cannot be measured, before hours are spent on it.

    Raises:
        UserError: a metric is unknown, the annotation file lists no objects at all, or "segm" is among the metrics
            and no object has a mask.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"metric is '{metric}'{nearest(metric, METRICS)}")
    if not records.annotated:
        raise UserError(f"'{records.source}' has no list 'annotations', so nothing can be measured on it")
    if "segm" in metrics and len(records.labels) and not len(records.segmentations):
        why = f": {records.left_out.sentences()[0]}" if records.left_out.counts else ""
        raise UserError(f"metric segm needs masks, and no object in '{records.source}' has one{why}; choose bbox")


def check_patience(records: Records, metric: str, patience: int) -> None:
    """Refuses to wait for a better AP where no object counts, so that there is none.

    Args:
        records: what is evaluated on.
        metric: "bbox" or "segm".
        patience: `train.patience`.

    Raises:
        UserError: it is above 0, and the objects, if there are any, are crowds or, for "segm", without a mask.
    """
    counts = ~records.crowd
    if metric == "segm":
        counts &= records.spans[:, 1] > records.spans[:, 0]
    if patience and not counts.any():
        raise UserError(
            f"train.patience is {patience}, but no object in '{records.source}' counts in an evaluation, so {metric} "
            "AP has no value; give --train.patience 0, or other validation images"
        )


def evaluator(truth: hotcoco.COCO, results: list[dict[str, Any]], metric: str) -> hotcoco.COCOeval:
    """hotcoco's evaluator of one metric, after it has matched all detections.

    Args:
        truth: what `Truth.coco` gives; for "segm" with masks.
        results: detections with the ids of `truth`.
        metric: "bbox" or "segm".

    Raises:
        UserError: "segm" is asked for and the results have no masks.
    """
    if metric == "segm":
        if any("segmentation" not in result for result in results):
            raise UserError("metric segm needs masks, and this detector finds only boxes; choose bbox")
        # With a box in the result its area would decide between small, medium and large.
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    matched = hotcoco.COCOeval(truth, truth.load_res(results), metric)
    matched.evaluate()
    matched.accumulate()
    return matched


def coco_scores(matched: hotcoco.COCOeval, records: Records) -> CocoScores:
    """COCO's numbers of an evaluator that has matched detections with the objects of the records."""
    # precision: (10 IoUs, 101 recalls, K classes, 4 areas, 3 limits); recall: the same without recalls.
    arrays = matched.eval
    assert arrays is not None
    return CocoScores(
        stats={name: _mean(arrays, name) for name in _STATS},
        per_class={
            class_name: {name: _mean(arrays, name, slice(k, k + 1)) for name in _PER_CLASS}
            for k, class_name in enumerate(class_rows(records))
        },
    )


def _mean(arrays: dict[str, np.ndarray], name: str, classes: slice = slice(None)) -> float:
    """One of the twelve numbers, over some classes: the mean of all entries that have ground truth, or else -1."""
    which, ious, area, limit = _STATS[name]
    values = arrays[which][ious, ..., classes, area, limit]
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def run_detector(
    detector: Face,
    dataset: DetectionDataset,
    *,
    long_edge: int,
    short_edge: int,
    square: int = 0,
    canvas: tuple[int, int] | None = None,
    device: torch.device,
    amp: str,
    workers: int,
    rank: int,
    world_size: int,
    batch: int = IMAGES_AT_ONCE,
    progress: Callable[[int, int], None] | None = None,
    together: Callable[[], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]] | None:
    """Detects objects in all images of a data set, every process in its share, in batches of one padded size.

    The result does not depend on the number of processes: the batches are the same. What runs is the detector's
    `inference_form`; the detector itself stays as it is.

    Args:
        detector: on `device`; `detect` must give boxes in pixels of the image files.
        dataset: opened for testing.
        long_edge: the longer edge of a resized image is at most this many pixels.
        short_edge: the shorter edge of a resized image in pixels.
        square: the edge in pixels to which images are squashed instead; 0: their ratio is kept.
        canvas: images are as large as fits into this (h, w) instead; None: see the edges.
        device: where the detector is.
        amp: "off", "bf16" or "fp16" for backbone and neck; the heads run in float32.
        workers: processes that read images, for each process here.
        rank: number of this process, 0 .. world_size - 1.
        world_size: number of processes; with more than one, the default process group gathers the results.
        batch: images per forward pass.
        progress: called after every batch with the number of images done and to do, of this process.
        together: called after a batch, by every process equally often.
        stopping: was this process asked to stop? Then a worker that hangs is given up soon.

    Returns:
        On rank 0 the detections of all images in COCO's results format, in the order of the data set and best first;
        None on other ranks.
    """
    images = dataset.images
    views = test_views(len(images), long_edge, short_edge, square, canvas)

    def padded(view: View) -> tuple[int, int]:
        image = images[view.index]
        return padded_size(view.size_of((image.height, image.width)), detector.multiple)

    groups = list(by_size(views, padded, batch))
    everyone_has, groups = len(groups) // world_size, groups[rank::world_size]
    loader = test_loader(dataset, groups, workers=workers, pin=device.type == "cuda", stopping=stopping)
    form, total = inference_form(detector), sum(map(len, groups))
    share: dict[int, Arrays] = {}
    with contextlib.closing(loader):
        for number, (group, pixels) in enumerate(zip(groups, loader)):
            found = detect(form, pixels.to(device, non_blocking=True), amp)
            share |= {view.index: Arrays.of(own) for view, own in zip(group, found, strict=True)}
            if progress is not None:
                progress(len(share), total)
            if together is not None and number < everyone_has:
                together()
    shares: list[Any] | None = [share]
    if world_size > 1:
        shares = [None] * world_size if rank == 0 else None
        torch.distributed.gather_object(share, shares, dst=0)
    if shares is None:
        return None
    everything: dict[int, Arrays] = {index: own for part in shares for index, own in part.items()}
    return [
        result
        for index, image in enumerate(images)
        for result in everything.pop(index).results(image.id, dataset.category_ids)
    ]


@torch.inference_mode()
def detect(detector: Face, batch: Batch, amp: str = "off") -> list[Detections]:
    """What a detector finds in a batch on its device, one `Detections` per image, in pixels of the image files."""
    batch = batch.fitted(detector.multiple, detector.native_size)
    with autocast(batch.pixels.device, amp):
        return detector.find(batch.images(detector.pixels), batch.sizes, batch.scales)
