"""What the commands of the documentation find when a test types them: small data, teachers, runs and recipes.

A page may name what takes a download or hours; here is what stands for it, of the same kind and small.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny
from mgdet.config import Config
from mgdet.engine.loop import train
from mgdet.recipes import RECIPES, Recipe, load_recipe
from pages import PAGES, blocks
from test_any_pair import save_tiny, stand_in

SMALL = {
    "hf:PekingU/rtdetr_v2_r50vd": "hf:rtdetr",
    "hf:PekingU/rtdetr_v2_r18vd": "hf:rtdetr",
    "timm:vit_small_patch14_dinov2.lvd142m": "timm:test_vit",
    "torchvision:fasterrcnn_mobilenet_v3_large_fpn": "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn",
    "libreyolo:yolox-l": "libreyolo:yolox-n",
    "resnet50": "test_resnet",
    "resnext101_64x4d": "test_resnet",
    "timm:resnet50.tv_in1k": "random",
    "backbone": "random",
    "DATA": "data/cells",
    "OUT": "out.pth",
}
"""What pages name and no test can download, and what is small of the same kind."""


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder the working folder, with the runs and the recipes that the pages speak of."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_recipes", raising=False)
    recipes = [block.text for page in PAGES for block in blocks(page, "python") if "-> Config" in block.text]
    config = json.dumps(load_recipe("pair").to_dict())
    Path("mine.yaml").write_text(config)  # JSON is YAML
    tiny.write_detector(Path("teacher.pth"), seed=7)
    Path("my_recipes.py").write_text("\n\n".join(recipes))
    for run in ("one", "two", "pair"):
        Path("runs", run).mkdir(parents=True)
        Path("runs", run, "config.json").write_text(config)
        records = [{"kind": "train", "step": step, "loss": 1 / step} for step in (1, 2)]
        Path("runs", run, "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def furnish(commands: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes data, pictures and teachers for some commands in the working folder, and every recipe small."""
    for name in ("cells", "coco"):
        tiny.write_data(Path("data", name))
    for file in ("retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth", "IN"):
        Path(file).write_bytes(Path("teacher.pth").read_bytes())
    Path("photos").mkdir()
    cv2.imwrite("photos/one.jpg", np.full((60, 90, 3), 99, np.uint8))
    _own_names(Path("data/cells"))
    for name, recipe in RECIPES.items():
        small = _shrunk(recipe)
        monkeypatch.setitem(RECIPES, name, replace(recipe, build=small))
        if hasattr(recipe.build, "__name__"):  # what a recipe of one's own starts from
            monkeypatch.setattr(sys.modules[recipe.build.__module__], recipe.build.__name__, small)
    _furnish_libraries(commands)
    _furnish_runs(commands)


def _furnish_runs(commands: str) -> None:
    """Trains a student alone and one with a teacher, as small as any, and gives them the names that commands take up.

    Those of other seeds are the same students once more.
    """
    taken_up = "\n".join(line for line in commands.splitlines() if re.search(r"compare|--config", line))
    for name in dict.fromkeys(re.findall(r"\bruns/([\w-]+)", taken_up)):
        kind, _, seed = name.partition("-")
        recipe, trained = ("alone" if kind == "alone" else "distilled"), Path("trained", kind)
        if not trained.exists():
            config = getattr(tiny, recipe)()
            config.data.root, config.schedule.epochs, config.schedule.drops = "data/coco", 1, ()
            if config.teacher is not None:
                config.teacher.weights = "teacher.pth"
            assert train(config, trained, resume=False, world=tiny.ALONE) == 0
        shutil.copytree(trained, Path("runs", name), dirs_exist_ok=True)
        written = Path("runs", name, "config.json")
        settings = json.loads(written.read_text())
        settings["train"]["seed"] = int(seed or 0)
        written.write_text(json.dumps(settings))
        shutil.copy(written, "mine.yaml")


def _own_names(root: Path) -> None:
    """The same images and annotations once more, where no tool would look for them."""
    (root / "lists").mkdir()
    (root / "photos").mkdir()
    for name, split in (("a", "train"), ("b", "val")):
        content = json.loads((root / "annotations" / f"{split}.json").read_text())
        for image in content["images"]:
            file = f"{split}-{image['file_name']}"
            (root / "photos" / file).write_bytes((root / split / image["file_name"]).read_bytes())
            image["file_name"] = file
        (root / "lists" / f"{name}.json").write_text(json.dumps(content))


def _shrunk(recipe: Recipe) -> Callable[[], Config]:
    """The recipe in small: with detectors of its own if it names some, with those of `tiny.py` if it is published."""
    build: Callable[[], Config] = {
        "distillation": tiny.distilled,
        "student": tiny.alone,
        "teacher": tiny.alone,
    }.get(recipe.kind, recipe.build)

    def small() -> Config:
        config = build()
        if config.teacher is not None and config.teacher.weights == "no such file":
            config.teacher.weights = "teacher.pth"
        data = config.data
        data.root, data.workers, data.short_edge, data.long_edge = "data/coco", 0, (96, 128), 192
        data.train_annotations = data.train_images = data.val_annotations = data.val_images = ""
        config.schedule.epochs, config.schedule.drops, config.schedule.warmup_steps = 1, (), 1
        config.train.batch, config.train.stop_after = 2, 1
        return config

    return small


def _furnish_libraries(commands: str) -> None:
    """What commands of other libraries' models need beside, in the working folder."""
    if "libreyolo:" in commands:
        pytest.importorskip("libreyolo")
        Path("yolo").mkdir()
        stand_in("libreyolo:yolox-n", Path("yolo"))
    if "hf:" in commands:
        save_tiny("rt_detr_v2", Path("rtdetr"))
    if "timm:vit" in commands:
        Path("vit").mkdir()
        stand_in("timm:test_vit", Path("vit"))


FILES = {"timm:test_vit": "vit/teacher.pth", "libreyolo:yolox-n": "yolo/teacher.pth"}
"""The weights of teachers that stand for others."""


def smaller(arguments: list[str]) -> list[str]:
    """A command's arguments with what is small in the place of what takes long."""
    words = [SMALL.get(word, word) for word in arguments]
    given = dict(pairwise(words))

    def put(option: str, value: str) -> None:
        words[words.index(option) + 1] = value

    if "--devices" in given:  # many processes are the concern of tests/test_distributed.py
        put("--devices", "1")
    if given.get("--teacher.detector") in FILES:
        put("--teacher.weights", FILES[given["--teacher.detector"]])
    if given.get("--student.detector", "").startswith("libreyolo:"):
        put("--student.weights", "random")
    for side in ("teacher", "student"):
        if given.get(f"--{side}.backbone") == "test_resnet":
            words += [f"--{side}.channels", "32"]
    return words
