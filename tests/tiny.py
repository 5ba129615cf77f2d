"""The smallest runs that are real ones: a COCO data set of seventeen pictures, two recipes, and a teacher's file.

`tiny:distilled` and `tiny:alone` are recipes of their own, as a user would write them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from mgdet.config import Config, DataConfig, MGDConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from mgdet.distributed import World
from mgdet.engine.checkpoint import State
from mgdet.interop.weights import save_checkpoint
from mgdet.models import detector_from

CLASSES = ("square", "tall", "wide")
CATEGORY_IDS = (2, 5, 9)
NUM_TRAIN, NUM_VAL = 12, 5
STEPS_PER_EPOCH, STEPS = 6, 12
TIMES = ("seconds", "data_seconds", "images_per_second", "memory_gib")
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def model(backbone: str = "test_resnet") -> ModelConfig:
    """Everything trains, also the statistics of the batch norms: a teacher that is touched would show it."""
    return ModelConfig(detector="retinanet", backbone=backbone, channels=32, frozen_stages=0, norm_eval=False)


def alone() -> Config:
    return Config(
        student=model(),
        data=DataConfig(
            root="no such folder",
            train_annotations="annotations/train.json",
            train_images="train",
            val_annotations="annotations/val.json",
            val_images="val",
            long_edge=96,
            short_edge=(56, 64),
            workers=0,
        ),
        optimizer=OptimizerConfig(lr=0.08),
        schedule=ScheduleConfig(epochs=2, drops=(1,), warmup_steps=4),
        train=TrainConfig(batch=2, log_every=4, save_every=5),
    )


def distilled() -> Config:
    config = alone()
    config.teacher, config.mgd, config.inherit = model(), MGDConfig(weight=2e-3, mask_ratio=0.65), True
    config.teacher.weights = "no such file"
    return config


class Tiny:
    """The data set and the teacher's file in one folder; tests only read it.

    root: the data set.
    teacher: a checkpoint for `tiny:distilled`.
    """

    def __init__(self, folder: Path):
        self.root, self.teacher = folder / "data", folder / "teacher.pth"
        write_data(self.root)
        write_detector(self.teacher, seed=7)

    def config(self, *, distil: bool = True) -> Config:
        config = distilled() if distil else alone()
        config.data.root = str(self.root)
        if config.teacher is not None:
            config.teacher.weights = str(self.teacher)
        return config

    def arguments(self, command: str, *, distil: bool = True) -> list[str]:
        """What `mgdet` takes to train or test on this data set."""
        recipe = [command, f"tiny:{'distilled' if distil else 'alone'}", "--data.root", str(self.root)]
        return [*recipe, "--teacher.weights", str(self.teacher)] if distil else recipe


def write_data(root: Path, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL) -> None:
    """Bright rectangles on noise, half of the pictures upright; the odd ones of `val` are grey and hold none."""
    (root / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(3)
    for split, number in (("train", num_train), ("val", num_val)):
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(number):
            height, width = ((64, 96), (96, 64))[i // 2 % 2]
            pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
            images.append({"id": 100 + i, "file_name": f"{i}.jpg", "height": height, "width": width})
            if split == "val" and i % 2:
                pixels[:] = 116
            else:
                annotations += [_paint(pixels, 100 + i, rng) for _ in range(2)]
            cv2.imwrite(str(root / split / f"{i}.jpg"), pixels)
        for i, annotation in enumerate(annotations):
            annotation["id"] = i + 1
        categories = [{"id": c, "name": name} for c, name in zip(CATEGORY_IDS, CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def _paint(pixels: np.ndarray, image_id: int, rng: np.random.Generator) -> dict:
    label = int(rng.integers(3))
    w, h = ((30, 30), (18, 44), (44, 18))[label]
    x, y = int(rng.integers(pixels.shape[1] - w)), int(rng.integers(pixels.shape[0] - h))
    pixels[y : y + h, x : x + w] = rng.integers(140, 256, 3)
    return {
        "image_id": image_id,
        "category_id": CATEGORY_IDS[label],
        "bbox": [x, y, w, h],
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }


def write_detector(
    path: Path, *, seed: int, classes: tuple[str, ...] = CLASSES, backbone: str = "test_resnet", **changes: Any
) -> None:
    """The checkpoint of a detector with random weights, as a run would leave it; `changes` to its section."""
    config = alone()
    config.student = replace(model(backbone), **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        detector = detector_from(config.student, len(classes))
    save_checkpoint(path, detector.state_dict(), classes=classes, config=config.to_dict())


def liven(path: Path) -> None:
    """Gives the detector of a file scores of all heights, so that it finds much."""
    content = torch.load(path, weights_only=True)
    head = content["state_dict"]
    torch.nn.init.normal_(head["bbox_head.retina_cls.bias"], -1.5, 1.0, generator=torch.Generator().manual_seed(0))
    head["bbox_head.retina_cls.weight"].mul_(10)
    torch.save(content, path)


def write_graph(path: Path, size: tuple[int, int] = (0, 0)) -> None:
    """What `mgdet export` would leave of a detector that never finds anything; `size`: (h, w) of all images, 0: any."""
    from onnx import TensorProto, helper

    from mgdet.detectors.exported import Preprocessing
    from mgdet.export.metadata import Notes

    outputs = {
        "boxes": (TensorProto.FLOAT, [0, 4]),
        "scores": (TensorProto.FLOAT, [0]),
        "labels": (TensorProto.INT64, [0]),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], [name], value=helper.make_tensor(name, kind, shape, []))
            for name, (kind, shape) in outputs.items()
        ],
        "nothing",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, size[0] or "height", size[1] or "width", 3])],
        [helper.make_tensor_value_info(name, *kind_and_shape) for name, kind_and_shape in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    zero = (0.0, 0.0, 0.0)
    how = Preprocessing("letterbox" if size[0] else "scale", *size, 96, 64, 0, (0, 0, 0), zero, (1.0, 1.0, 1.0))
    path.write_bytes(Notes(CLASSES, how, "nothing", "").file_of(model, "fp32"))


def records(folder: Path) -> list[dict]:
    """`metrics.jsonl` without what clocks and memory say."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def state_of(folder: Path) -> State:
    state = State.load(folder)
    assert state is not None
    return state


def tensors_in(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor inside of dicts and lists, with the way to it."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors_in(inner, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from tensors_in(inner, f"{name}/{i}")


def assert_same_tensors(mine: object, theirs: object) -> None:
    a, b = dict(tensors_in(mine)), dict(tensors_in(theirs))
    assert a.keys() == b.keys()
    assert a
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert not differing, f"{len(differing)} of {len(a)} tensors differ: {differing[:3]}"


def assert_same_state(mine: Path, theirs: Path) -> None:
    """Two runs stand at the same point, to the bit: model, optimizer and all that goes on from there."""
    a, b = state_of(mine), state_of(theirs)
    assert (a.step, a.evaluated, a.best, a.sums, a.scaler) == (b.step, b.evaluated, b.best, b.sums, b.scaler)
    assert (a.teacher_sha256, a.stale) == (b.teacher_sha256, b.stale)
    assert (a.ema is None) == (b.ema is None)
    if a.ema is not None and b.ema is not None:
        assert a.ema["updates"] == b.ema["updates"]
        assert_same_tensors(a.ema["model"], b.ema["model"])
    assert_same_tensors(a.model, b.model)
    assert_same_tensors(a.optimizer["state"], b.optimizer["state"])
    assert a.optimizer["param_groups"] == b.optimizer["param_groups"]


def assert_same_run(mine: Path, theirs: Path, *, best: bool = True) -> None:
    """Two folders hold the same run, to the bit: state, checkpoints, and all that was measured."""
    assert_same_state(mine, theirs)
    for name in ("student_last.pth", "student_best.pth")[: 1 + best]:
        assert_same_tensors(*(torch.load(folder / name, weights_only=True) for folder in (mine, theirs)))
    assert records(mine) == records(theirs)


def start(arguments: list[str], **options: object) -> subprocess.Popen[str]:
    """`python -m mgdet arguments` in a process group of its own, with the recipes of this module."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "mgdet", *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Waits until something is so, while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)
