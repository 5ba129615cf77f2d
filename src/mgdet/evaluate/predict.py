"""What `mgdet predict` does: a checkpoint over pictures, annotated copies of them and one JSON."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from mgdet.config import Config
from mgdet.data.pictures import depth_notes
from mgdet.data.transforms import View, check_readable, read_image
from mgdet.detectors.face import Face
from mgdet.distributed import usual_device
from mgdet.errors import UserError
from mgdet.evaluate.coco import IMAGES_AT_ONCE, coco_results
from mgdet.evaluate.draw import draw_detections
from mgdet.evaluate.fonts import can_write
from mgdet.evaluate.sources import Picture, find_pictures, listed
from mgdet.evaluate.stream import find_in
from mgdet.files import atomic_write, make_folder
from mgdet.layers.inference import inference_form
from mgdet.models.opened import open_detector
from mgdet.precision import set_float32
from mgdet.structures import Detections

JSON_FILE = "detections.json"
LONGEST_JPEG = 65_500
"""JPEG's writer takes no longer edge, in pixels."""


def predict(
    source: str,
    images: Sequence[str],
    *,
    recipe: Config | None,
    out: Path,
    score: float,
    batch: int = IMAGES_AT_ONCE,
    say: Callable[[str], None],
    ema: bool = False,
) -> list[dict[str, Any]]:
    """Finds objects in pictures; writes an annotated copy of each and `detections.json` into `out`.

    Folders are searched recursively, and the copies lie in `out` as the pictures lie in their folder; one with an edge
    over `LONGEST_JPEG` is smaller than its picture. Each picture is decoded once.

    Args:
        source: a checkpoint file, its URL, a run's folder, or an exported graph.
        images: image files, or folders of them.
        recipe: the checkpoint's recipe; None to recognise it.
        out: a folder without a `detections.json`.
        score: objects with at least this score are written, in [0, 1].
        batch: images per forward pass.
        say: is told what was loaded, left out and written.
        ema: as `read_checkpoint` takes it.

    Returns:
        What `detections.json` holds: one dict per image with `file`, `picture`, `width`, `height` and `objects`, each
        with `class`, `label`, `score`, `box` xyxy in pixels of the file and, from mask detectors, `segmentation` RLE.

    Raises:
        UserError: bad input, or `out` holds files of these names already. Then nothing is left in `out`.
    """
    if not 0 <= score <= 1:
        raise UserError(f"--score is {score}; give a score from 0 to 1")
    if batch < 1:
        raise UserError(f"--batch is {batch}; give 1 or more")
    if (out / JSON_FILE).exists():
        raise UserError(f"{out} already holds {JSON_FILE}; give another --out")
    pictures, skipped = find_pictures(images)
    for picture in pictures:
        if (out / picture.copy).exists():
            raise UserError(f"{out} already holds {picture.copy}, which would be written over; give another --out")
    for picture in pictures:
        check_readable(picture.file)  # what is found now is found before the first picture is written
    opened = open_detector(source, recipe=recipe, ema=ema)
    classes = opened.classes
    notes = [*opened.lines, *depth_notes([picture.file for picture in pictures])]
    if skipped:
        files = "other files were" if skipped.total() > 1 else "other file was"
        notes.append(f"{skipped.total():,} {files} left out: {listed(skipped)}")
    if legend := [f"#{i} {name}" for i, name in enumerate(classes) if not can_write(name)]:
        notes.append(f"no font here can write these classes, so the pictures show numbers: {', '.join(legend)}")
    for note in notes:
        say(note)
    device = usual_device()
    set_float32(device, exact=True)
    detector = inference_form(opened.detector.to(device))
    report = _predict_all(detector, pictures, opened.view, classes, out=out, score=score, batch=batch)
    total = sum(len(entry["objects"]) for entry in report)
    objects, images_ = "object" if total == 1 else "objects", "image" if len(report) == 1 else "images"
    say(f"{total:,} {objects} in {len(report):,} {images_}; pictures and {JSON_FILE} are in {out}")
    return report


def _predict_all(
    detector: Face,
    pictures: Sequence[Picture],
    view: View,
    classes: Sequence[str],
    *,
    out: Path,
    score: float,
    batch: int,
) -> list[dict[str, Any]]:
    """Writes every picture and then the report, which it returns; or, where something fails, nothing."""
    report: list[dict[str, Any]] = [{} for _ in pictures]
    read = ((read_image(picture.file), str(picture.file)) for picture in pictures)
    written: list[Path] = []
    was_there = out.exists()
    make_folder(out)
    try:
        for index, image, found in find_in(detector, read, view, score=score, batch=batch):
            file, copy = pictures[index]
            encoded = _jpeg(draw_detections(image, found, classes, score=score))
            make_folder((out / copy).parent)
            atomic_write(out / copy, partial(_write, encoded))
            written.append(out / copy)
            height, width = image.shape[:2]
            entry = {"file": str(file), "picture": copy.as_posix(), "width": width, "height": height}
            report[index] = entry | {"objects": _objects(found, classes)}
        atomic_write(out / JSON_FILE, lambda stream: stream.write(json.dumps(report, indent=1).encode()))
    except BaseException:  # also Ctrl-C: what is left would be in the way of the next try
        for path in written:
            path.unlink(missing_ok=True)
        for folder, _, _ in [] if was_there else os.walk(out, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise
    return report


def _jpeg(image: np.ndarray) -> bytes:
    """A picture as JPEG, made smaller where it is larger than JPEG can be."""
    longest = max(image.shape[:2])
    if longest > LONGEST_JPEG:
        height, width = (max(1, edge * LONGEST_JPEG // longest) for edge in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image)
    return encoded.tobytes()


def _objects(found: Detections, classes: Sequence[str]) -> list[dict[str, Any]]:
    results = coco_results(found, 0, range(len(classes)))
    return [
        {"class": classes[label], "label": label, "score": result["score"], "box": box}
        | ({"segmentation": result["segmentation"]} if "segmentation" in result else {})
        for result, box, label in zip(results, found.boxes.tolist(), found.labels.tolist())
    ]


def _write(content: bytes, stream: BinaryIO) -> None:
    stream.write(content)
