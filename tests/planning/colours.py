"""Pictures whose classes are colours, and a teacher that has learned them: the smallest one that is worth something."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

import mgdet.engine.loop as loop
from mgdet.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from tiny import ALONE

CLASSES = ("red", "green", "blue")
NUM_TRAIN, NUM_VAL = 64, 24


def write_colours(root: Path) -> None:
    """Plain rectangles on dark noise, two in each picture of 96 x 64 pixels."""
    (root / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(5)
    for split, number in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(number):
            pixels = rng.integers(0, 60, (64, 96, 3), dtype=np.uint8)
            for left in (0, 48):
                width, height = rng.integers(24, 40, 2).tolist()
                x, y = left + int(rng.integers(48 - width)), int(rng.integers(64 - height))
                label = int(rng.integers(3))
                pixels[y : y + height, x : x + width] = 20
                pixels[y : y + height, x : x + width, 2 - label] = 230  # OpenCV writes B, G, R
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": label + 1,
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
            images.append({"id": i + 1, "file_name": f"{split}{i}.png", "height": 64, "width": 96})
            cv2.imwrite(str(root / split / f"{split}{i}.png"), pixels)
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def model(**changes) -> ModelConfig:
    settings = {"backbone": "test_resnet", "channels": 32, "frozen_stages": 0, "norm_eval": False} | changes
    return ModelConfig(detector="retinanet", **settings)


def alone(root: Path, epochs: int) -> Config:
    return Config(
        student=model(),
        data=DataConfig(root=str(root), long_edge=96, short_edge=(64, 64), workers=0),
        optimizer=OptimizerConfig(name="adamw", lr=0.009, weight_decay=0.01, clip_norm=5.0),
        schedule=ScheduleConfig(epochs=epochs, drops=(epochs - 2,) if epochs > 2 else (), warmup_steps=20),
        train=TrainConfig(batch=8, log_every=50, eval_every=0),
    )


def train_teacher(root: Path, folder: Path, epochs: int = 32) -> Path:
    """Learns the colours; returns the teacher's file."""
    assert loop.train(alone(root, epochs), folder, resume=False, world=ALONE) == 0
    return folder / "student_last.pth"
