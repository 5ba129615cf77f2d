"""The three splits of each data set: to train on, to choose on (`val`), and to report on (`test`).

    ROOT/data/NAME/choose   train and val, all that training and every choice see
    ROOT/data/NAME/test     the test images, as the evaluation split of a data set of their own

Both are in COCO's format and appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from filelock import FileLock

from evidence.pairs import Bccd, Shapes
from mgdet.config import DataConfig
from mgdet.data.open import open_splits
from mgdet.data.records import Records
from mgdet.demo.shapes import write_shapes
from mgdet.errors import UserError

CHOOSE_SEED, TEST_SEED = 31_001, 31_005
"""Seeds of what is drawn: training and validation images from one, test images from the other. No demo has them.
Test images of 31,002 have been looked at."""
BCCD_SEED = 0
"""Of the training photographs that become validation images, and of those that are trained on."""
STAMP_FILE = "splits.json"


def choose_root(root: Path, images: Shapes | Bccd) -> Path:
    """Folder of the training and validation images."""
    return root / "data" / images.name / "choose"


def test_root(root: Path, images: Shapes | Bccd) -> Path:
    """Folder of the test images."""
    return root / "data" / images.name / "test"


def is_there(root: Path, images: Shapes | Bccd) -> bool:
    """Have the splits been made?"""
    return all((where(root, images) / "annotations/val.json").exists() for where in (choose_root, test_root))


def data_config(folder: Path, size: tuple[int, int]) -> DataConfig:
    """The section of a config that opens a split's folder, with images of (h, w) as they are."""
    return DataConfig(
        root=str(folder),
        train_annotations="annotations/train.json",
        train_images="train",
        val_annotations="annotations/val.json",
        val_images="val",
        long_edge=max(size),
        short_edge=(min(size), min(size)),
        workers=0,
    )


def make(root: Path, images: Shapes | Bccd, photographs: Path | None) -> None:
    """Makes the splits of a data set, where they are not there.

    Args:
        root: of everything.
        images: which ones.
        photographs: the folder of BCCD, in any format that mgdet reads; shapes need none.

    Raises:
        UserError: BCCD is wanted and not given or has too few images, or a folder holds something else.
    """
    folder = root / "data" / images.name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # several processes may begin at once
        _make(root, images, photographs)


def _make(root: Path, images: Shapes | Bccd, photographs: Path | None) -> None:
    if isinstance(images, Shapes):
        common: dict[str, Any] = {"size": images.size, "smallest": images.smallest}
        choose = choose_root(root, images)
        write_shapes(choose, num_train=images.num_train, num_val=images.num_val, seed=CHOOSE_SEED, **common)
        write_shapes(test_root(root, images), num_train=1, num_val=images.num_test, seed=TEST_SEED, **common)
        return
    stamp, file = json.dumps({"images": asdict(images), "seed": BCCD_SEED}), root / "data" / images.name / STAMP_FILE
    written = file.read_text() if file.exists() else None
    if written != stamp and (written or is_there(root, images)):
        raise UserError(f"{file.parent} holds other splits than are wanted now; move it away")
    if is_there(root, images):
        return
    if photographs is None:
        raise UserError("this pair needs photographs of blood cells; give the folder of BCCD with --bccd")
    records = open_splits(DataConfig(root=str(photographs))).records
    order = sorted(range(len(records["train"])), key=lambda i: records["train"].files[i])
    needed = images.num_val + images.num_train
    if len(order) < needed:
        raise UserError(f"{photographs} has {len(order)} training images; {needed} are needed")
    file.write_text(stamp)
    drawn = [order[i] for i in np.random.default_rng(BCCD_SEED).permutation(len(order))[:needed]]
    val, train = sorted(drawn[: images.num_val]), sorted(drawn[images.num_val :])
    _write(choose_root(root, images), images.size, {"train": (records["train"], train), "val": (records["train"], val)})
    _write(test_root(root, images), images.size, {"val": (records["val"], list(range(len(records["val"]))))})


def _write(folder: Path, size: tuple[int, int], splits: dict[str, tuple[Records, list[int]]]) -> None:
    """Writes some images of records, resized once, as COCO data; as PNG, which loses nothing more."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / "whole"
        (whole / "annotations").mkdir(parents=True)
        for split, (records, chosen) in splits.items():
            (whole / split).mkdir()
            content = _resized(records, chosen, whole / split, size)
            (whole / "annotations" / f"{split}.json").write_text(json.dumps(content))
        os.replace(whole, folder)


def _resized(records: Records, chosen: list[int], folder: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Writes images no larger than `size` either way up, and returns their annotations."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, index in enumerate(chosen, 1):
        pixels = cv2.imread(str(records.folder / records.files[index]))
        if pixels is None:
            raise UserError(f"{records.folder / records.files[index]} cannot be read")
        height, width = pixels.shape[:2]
        scale = min(1.0, max(size) / max(height, width), min(size) / min(height, width))
        new_height, new_width = round(height * scale), round(width * scale)
        small = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_AREA)
        name = f"{Path(records.files[index]).stem}.png"
        cv2.imwrite(str(folder / name), small)
        images.append({"id": number, "file_name": name, "height": new_height, "width": new_width})
        factors = np.array([new_width / width, new_height / height] * 2)
        for row in range(*records.rows(index).indices(len(records.labels))):
            box = (records.boxes[row] * factors).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(records.labels[row]) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(records.crowd[row]),
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(records.classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def fingerprint(folder: Path) -> str:
    """A short hash of the evaluation split's annotations."""
    return hashlib.sha256((folder / "annotations/val.json").read_bytes()).hexdigest()[:8]
