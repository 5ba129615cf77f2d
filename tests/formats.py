"""One small data set, written in every layout that is found by looking."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import tiny
from mgdet.config import Config

CLASSES = ("cat", "dog", "owl")  # by alphabet, as Pascal VOC has them
NUM_TRAIN, NUM_VAL = 6, 3


class Thing(NamedTuple):
    """An object: its class, its box x, y, width, height, and its outline x, y, x, y, ..., in whole pixels."""

    label: int
    box: tuple[int, int, int, int]
    outline: list[int]


class Picture(NamedTuple):
    """A picture and what is on it; the second of each split has nothing on it."""

    name: str
    pixels: np.ndarray
    things: list[Thing]


def pictures(split: str) -> list[Picture]:
    """The pictures of a split; their pixels never change."""
    rng = np.random.default_rng(0 if split == "train" else 1)
    result = []
    for i in range(NUM_TRAIN if split == "train" else NUM_VAL):
        height, width = ((64, 96), (96, 64))[i % 2]
        pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
        things = []
        for k in range(0 if i == 1 else 2):
            label = (i + k) % len(CLASSES)
            x, y, w, h = 4 + 30 * k, int(rng.integers(2, 20)), 24, 20 + 2 * i
            pixels[y : y + h, x : x + w] = rng.integers(140, 256, 3)
            things.append(Thing(label, (x, y, w, h), [x, y, x + w, y, x + w, y + h, x + w // 2, y + h // 2, x, y + h]))
        result.append(Picture(f"{split}_{i}.png", pixels, things))
    return result


def write_images(folder: Path, split: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures(split):
        cv2.imwrite(str(folder / picture.name), picture.pixels)


def write_coco(file: Path, folder: Path, split: str) -> None:
    """A COCO file and its images."""
    write_images(folder, split)
    images, annotations = [], []
    for i, picture in enumerate(pictures(split)):
        height, width = picture.pixels.shape[:2]
        images.append({"id": i, "file_name": picture.name, "height": height, "width": width})
        for thing in picture.things:
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": thing.label + 1, "bbox": list(thing.box)}
                | {"area": thing.box[2] * thing.box[3], "iscrowd": 0, "segmentation": [thing.outline]}
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def coco(root: Path) -> None:
    for split in ("train", "val"):
        write_coco(root / f"annotations/instances_{split}2017.json", root / f"{split}2017", split)


def simple(root: Path) -> None:
    for split in ("train", "val"):
        write_coco(root / f"annotations/{split}.json", root / split, split)


def beside(root: Path) -> None:
    """COCO files beside the folders of images."""
    for split in ("train", "val"):
        write_coco(root / f"{split}.json", root / split, split)


def roboflow(root: Path) -> None:
    for split, name in (("train", "train"), ("val", "valid"), ("val", "test")):
        write_coco(root / name / "_annotations.coco.json", root / name, split)


def cvat(root: Path) -> None:
    for split, name in (("train", "Train"), ("val", "Validation")):
        write_coco(root / f"annotations/instances_{name}.json", root / "images" / name, split)


def datumaro(root: Path) -> None:
    """All images in one folder."""
    for split in ("train", "val"):
        write_coco(root / f"annotations/instances_{split}.json", root / "images", split)


def default(root: Path) -> None:
    """One split that is not named for what it is."""
    write_coco(root / "annotations/instances_default.json", root / "images/default", "train")


def yolo_line(thing: Thing, size: tuple[int, ...], *, outline: bool) -> str:
    height, width = size[:2]
    if outline:
        shares = [v / (height if i % 2 else width) for i, v in enumerate(thing.outline)]
    else:
        x, y, w, h = thing.box
        shares = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    return " ".join([str(thing.label), *(f"{share:.12g}" for share in shares)])


def write_labels(folder: Path, split: str, *, outline: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures(split):
        lines = [yolo_line(thing, picture.pixels.shape, outline=outline) for thing in picture.things]
        if lines:  # a picture without objects has no file
            (folder / f"{picture.name[:-4]}.txt").write_text("\n".join(lines) + "\n")


def yolo(root: Path, *, outline: bool = False, text: str | None = None) -> None:
    """Folders `images/train` and `labels/train`, as Ultralytics has them."""
    for split in ("train", "val"):
        write_images(root / "images" / split, split)
        write_labels(root / "labels" / split, split, outline=outline)
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    (root / "data.yaml").write_text(text or f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")


def yolo_polygons(root: Path) -> None:
    yolo(root, outline=True)


def yolo_roboflow(root: Path) -> None:
    """Folders `train/images` and `train/labels`, and paths that start one folder too high."""
    for split, name in (("train", "train"), ("val", "valid")):
        write_images(root / name / "images", split)
        write_labels(root / name / "labels", split)
    (root / "data.yaml").write_text(
        f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 3\nnames: {list(CLASSES)}\n"
    )


def voc_xml(picture: Picture, *, database: str = "Unknown", first_pixel: int = 0) -> str:
    height, width = picture.pixels.shape[:2]
    things = ""
    for thing in picture.things:
        x, y, w, h = thing.box
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (x + first_pixel, y + first_pixel, x + w, y + h))
        box = "".join(f"<{side}>{value}</{side}>" for side, value in corners)
        things += f"<object><name>{CLASSES[thing.label]}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    source = f"<source><database>{database}</database></source>"
    return f"<annotation><filename>{picture.name}</filename>{source}{size}{things}</annotation>\n"


def voc(root: Path, **options: object) -> None:
    """The original's folders, with lists of images."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    for split in ("train", "val"):
        write_images(root / "JPEGImages", split)
        for picture in pictures(split):
            xml = voc_xml(picture, **options)  # type: ignore[arg-type]
            (root / f"Annotations/{picture.name[:-4]}.xml").write_text(xml)
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{p.name[:-4]}\n" for p in pictures(split)))


def voc_original(root: Path) -> None:
    """Boxes that count pixels from 1, as in the original's files."""
    voc(root, database="The VOC2007 Database", first_pixel=1)


def voc_roboflow(root: Path) -> None:
    """XML files beside the images of each split."""
    for split, name in (("train", "train"), ("val", "valid")):
        write_images(root / name, split)
        for picture in pictures(split):
            (root / name / f"{picture.name[:-4]}.xml").write_text(voc_xml(picture))


LAYOUTS = {
    function.__name__: function
    for function in (
        *(coco, simple, beside, roboflow, cvat, datumaro),
        *(yolo, yolo_polygons, yolo_roboflow, voc, voc_original, voc_roboflow),
    )
}
"""Every layout with two splits."""


def looking() -> Config:
    """A recipe that leaves the data set to be found."""
    config = tiny.alone()
    names = dict.fromkeys(("train_annotations", "train_images", "val_annotations", "val_images"), "")
    config.data = replace(config.data, **names)
    return config
