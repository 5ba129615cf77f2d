"""What `mgdet predict` does: a checkpoint over pictures, annotated copies of them and one JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import torch

from mgdet.config import Config
from mgdet.data.batch import collate
from mgdet.data.coco_names import COCO_CLASSES
from mgdet.data.transforms import View, make_example, read_image
from mgdet.errors import UserError
from mgdet.evaluate.coco import coco_results, detect
from mgdet.evaluate.draw import draw_detections
from mgdet.files import atomic_write
from mgdet.interop.weights import Checkpoint, count_classes, read_checkpoint
from mgdet.layers.inference import inference_form
from mgdet.models import detector_from, load_detector
from mgdet.structures import Detections

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
JSON_FILE = "detections.json"


def predict(
    source: str,
    images: Sequence[str],
    *,
    recipe: Config | None,
    out: Path,
    score: float,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Finds objects in pictures; writes an annotated copy of each and `detections.json` into `out`.

    Args:
        source: a checkpoint file, its URL, or a run's folder.
        images: image files, or folders of them.
        recipe: the checkpoint's recipe; None for a checkpoint of mgdet, which holds its config.
        out: a folder without a `detections.json`.
        score: objects with at least this score are written, in [0, 1].
        say: is told what was loaded and written.

    Returns:
        What `detections.json` holds: one dict an image with `file`, `picture`, `width`, `height` and `objects`, each
        with `class`, `label`, `score`, `box` xyxy in pixels of the file and, from mask detectors, `segmentation` RLE.

    Raises:
        UserError: bad input, or `out` holds files of these names already.
    """
    if not 0 <= score <= 1:
        raise UserError(f"--score is {score}; give a score from 0 to 1")
    if (out / JSON_FILE).exists():
        raise UserError(f"{out} already holds {JSON_FILE}; give another --out")
    files = list(_find(images))
    pictures = _picture_names(files)
    for name in pictures:
        if (out / name).exists():
            raise UserError(f"{out} already holds {name}, which would be written over; give another --out")
    for file in files:
        read_image(file)  # one that cannot be read is better found before the first picture is written
    checkpoint = read_checkpoint(source)
    config = _config(checkpoint, recipe)
    classes = _classes(config, checkpoint)
    detector, line = load_detector(config.student, checkpoint, classes)
    say(line)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector = inference_form(detector.to(device))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {out} cannot be made: {error.strerror}") from None
    report = []
    for file, name in zip(files, pictures):
        image = read_image(file)
        view = View(0, config.data.long_edge, config.data.short_edge[1], False)
        found = _above(detect(detector, collate([make_example(image, view, file=str(file))]).to(device))[0], score)
        _, encoded = cv2.imencode(".jpg", draw_detections(image, found, classes, score=score))
        atomic_write(out / name, partial(_write, encoded.tobytes()))
        report.append(
            {"file": str(file), "picture": name, "width": image.shape[1], "height": image.shape[0]}
            | {"objects": _objects(found, classes)}
        )
    atomic_write(out / JSON_FILE, lambda stream: stream.write(json.dumps(report, indent=1).encode()))
    total = sum(len(entry["objects"]) for entry in report)
    say(f"{total:,} objects in {len(report):,} images; pictures and {JSON_FILE} are in {out}")
    return report


def _find(images: Sequence[str]) -> Iterator[Path]:
    if not images:
        raise UserError("no image is given; name image files, or folders of them")
    for name in images:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise UserError(f"the folder {path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            yield from inside
        elif path.is_file():
            yield path
        else:
            raise UserError(f"there is no image or folder '{path}'")


def _config(checkpoint: Checkpoint, recipe: Config | None) -> Config:
    if recipe is not None:
        return recipe
    if checkpoint.config is None:
        raise UserError(f"{checkpoint.path} does not say which detector it holds; name its recipe with --recipe")
    return Config.from_dict(checkpoint.config)


def _classes(config: Config, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The class names: the checkpoint's own, or COCO's for 80 classes, or numbers."""
    if checkpoint.classes is not None:
        return checkpoint.classes
    number = count_classes(detector_from(config.student, len(COCO_CLASSES)), checkpoint) or len(COCO_CLASSES)
    return COCO_CLASSES if number == len(COCO_CLASSES) else tuple(f"class {i}" for i in range(number))


def _above(found: Detections, score: float) -> Detections:
    keep = found.scores >= score
    masks = None if found.masks is None else found.masks[keep].cpu()
    return Detections(found.boxes[keep].cpu(), found.scores[keep].cpu(), found.labels[keep].cpu(), masks)


def _objects(found: Detections, classes: Sequence[str]) -> list[dict[str, Any]]:
    results = coco_results(found, 0, range(len(classes)))
    return [
        {"class": classes[label], "label": label, "score": result["score"], "box": box}
        | ({"segmentation": result["segmentation"]} if "segmentation" in result else {})
        for result, box, label in zip(results, found.boxes.tolist(), found.labels.tolist())
    ]


def _write(content: bytes, stream: BinaryIO) -> None:
    stream.write(content)


def _picture_names(files: Sequence[Path]) -> list[str]:
    """A name for the annotated copy of each file, with a number where two files have the same name."""
    names: list[str] = []
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name in names:
            number += 1
            name = f"{file.stem}_{number}.jpg"
        names.append(name)
    return names
