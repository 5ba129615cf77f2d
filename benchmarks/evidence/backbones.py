"""Backbones that have classified crops of single shapes before a detector trains on a few hundred pictures.

    ROOT/backbones/NAME-STEPS.pth    the weights, under timm's names
    ROOT/backbones/NAME-STEPS.json   how they were trained, on how many crops of other pictures they are right, and what
                                     training took

Every student and every teacher of a pair starts from them. In practice backbones come with more labels than a detector
gets, too, if of other classes. From random weights twice the length, 16,000 images in place of 8,000, still gained the
small Faster R-CNN 16 AP.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from evidence.pairs import Pair
from evidence.work import Say
from mgdet.demo.painting import paint
from mgdet.demo.scene import CLASSES, annotate, layout
from mgdet.errors import UserError
from mgdet.files import atomic_write
from mgdet.structures import IMAGENET

PICTURES, OTHER_PICTURES = 10_000, 500
SEEDS = (31_003, 31_004)
"""Of the pictures to learn from and of the other ones; no split has them."""
PICTURE_SIZE = (128, 160)
CROP, MARGIN = 64, 8
"""Edge of a crop in pixels, and how much more is cut out, for shifts of the crop."""
OBJECT_EDGES = (14.0, 60.0)
"""The longer edge of an object in its crop, in pixels: drawn evenly on a logarithmic scale."""
BATCH, RATE, DECAY = 64, 2e-3, 0.01


def path_of(root: Path, pair: Pair, backbone: str) -> Path:
    """The file of a backbone's weights."""
    return root / "backbones" / f"{backbone}-{pair.pretraining}.pth"


def make(root: Path, pair: Pair, say: Say) -> None:
    """Trains the backbones of a pair, where they are not there."""
    if not pair.pretraining:
        return
    for backbone in (pair.student_backbone, pair.teacher_backbone):
        path = path_of(root, pair, backbone)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _train(backbone, pair, path, say)
            elif read_note(root, pair, backbone).get("trained") != _stamp(pair):
                raise UserError(f"{path} was trained in another way than is wanted now; move it away")


def _stamp(pair: Pair) -> dict[str, Any]:
    """How a backbone is trained."""
    return {
        "steps": pair.pretraining,
        "batch": BATCH,
        "pictures": PICTURES,
        "seeds": list(SEEDS),
        "rate": RATE,
        "precision": pair.amp,
    }


def _train(backbone: str, pair: Pair, path: Path, say: Say) -> None:
    say(f"==> {path}")
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    crops, labels = _crops(SEEDS[0], PICTURES)
    network = timm.create_model(backbone, num_classes=len(CLASSES)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=pair.pretraining, pct_start=0.1)
    for step in range(1, pair.pretraining + 1):
        chosen = rng.choice(len(labels), BATCH, replace=False)
        top, left = rng.integers(0, MARGIN + 1, 2)
        images = crops[chosen, top : top + CROP, left : left + CROP]
        images = images[:, :, ::-1] if rng.random() < 0.5 else images
        images = images.transpose(0, 2, 1, 3) if rng.random() < 0.5 else images
        with torch.autocast("cpu", torch.bfloat16, enabled=pair.amp == "bf16"):
            loss = functional.cross_entropy(network(_normalized(images)).float(), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if step % 100 == 0:
            say(f"{backbone}: step {step:,} of {pair.pretraining:,}, loss {loss.item():.3f}")
    accuracy = _accuracy(network.eval())
    seconds = time.perf_counter() - start
    say(f"{backbone}: {100 * accuracy:.1f} % of other crops are right, {seconds:.0f} s")
    note = json.dumps({"trained": _stamp(pair), "accuracy": accuracy, "seconds": round(seconds)})
    atomic_write(path.with_suffix(".json"), lambda file: file.write(note.encode()))
    atomic_write(path, lambda file: torch.save({"state_dict": network.state_dict()}, file))


def read_note(root: Path, pair: Pair, backbone: str) -> dict[str, Any]:
    """How well a backbone does, and what its training took."""
    note: dict[str, Any] = json.loads(path_of(root, pair, backbone).with_suffix(".json").read_text())
    return note


@torch.no_grad()
def _accuracy(network: torch.nn.Module) -> float:
    crops, labels = _crops(SEEDS[1], OTHER_PICTURES)
    middle = slice(MARGIN // 2, MARGIN // 2 + CROP)
    right = 0
    for first in range(0, len(labels), BATCH):
        scores = network(_normalized(crops[first : first + BATCH, middle, middle]))
        right += int((scores.argmax(1).numpy() == labels[first : first + BATCH]).sum())
    return right / len(labels)


def _normalized(images: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 BGR to (B, 3, H, W), as detectors see them."""
    pixels = torch.from_numpy(np.ascontiguousarray(images[..., ::-1])).float()
    return ((pixels - torch.tensor(IMAGENET.mean)) / torch.tensor(IMAGENET.std)).permute(0, 3, 1, 2)


def _crops(seed: int, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Every object of some pictures in the middle of a crop (N, CROP + MARGIN, CROP + MARGIN, 3), and labels (N,)."""
    crops, labels = list[np.ndarray](), list[int]()
    for index in range(pictures):
        rng = np.random.default_rng((seed, index))
        height, width = PICTURE_SIZE if rng.random() < 0.5 else PICTURE_SIZE[::-1]
        shapes = layout(height, width, rng)
        picture = paint(shapes, height, width, rng)
        for found in annotate(shapes, height, width):
            crops.append(_crop(picture, found["bbox"], rng))
            labels.append(found["category_id"] - 1)
    return np.stack(crops), np.array(labels)


def _crop(picture: np.ndarray, box: list[float], rng: np.random.Generator) -> np.ndarray:
    """The surroundings of a box xywh, scaled so that the object has one of the edges that are wanted."""
    x, y, width, height = box
    edge = np.exp(rng.uniform(*np.log(OBJECT_EDGES)))
    scale = min(edge / max(width, height), 2.5)
    centre = np.array([x + width / 2, y + height / 2]) + rng.uniform(-4, 4, 2) / scale
    side = CROP + MARGIN
    moved = np.column_stack([scale * np.eye(2), side / 2 - scale * centre])
    smooth = cv2.GaussianBlur(picture, (0, 0), 0.4 / scale) if scale < 0.7 else picture
    return cv2.warpAffine(smooth, moved, (side, side), borderMode=cv2.BORDER_REFLECT_101)
