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
import torch

import tiny
from mgdet.cli.distill import names_two
from mgdet.config import Config
from mgdet.engine.loop import train
from mgdet.recipes import RECIPES, Recipe
from pages import PAGES, blocks
from test_any_pair import save_tiny, stand_in

SMALL = {
    "hf:PekingU/rtdetr_v2_r50vd": "hf:rtdetr",
    "hf:PekingU/rtdetr_v2_r18vd": "hf:rtdetr",
    "timm:vit_small_patch14_dinov2.lvd142m": "timm:test_vit",
    "torchvision:fasterrcnn_mobilenet_v3_large_fpn": "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn",
    "torchvision:fasterrcnn_resnet50_fpn_v2": "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn",
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
    Path("my_recipes.py").write_text("\n\n".join(recipes))
    for run in ("one", "two"):
        Path("runs", run).mkdir(parents=True)
        records = [{"kind": "train", "step": step, "loss": 1 / step} for step in (1, 2)]
        Path("runs", run, "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def write_read(words: list[str]) -> None:
    """Writes what a command needs to read its arguments: the file that `--config` names, a checkpoint, a graph."""
    if "teacher.pth" in words:
        tiny.write_detector(Path("teacher.pth"), seed=7)
    for option, value in pairwise(words):
        if option == "--config":
            file = Path(value) if Path(value).suffix else Path(value, "config.json")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(RECIPES["pair"].build().to_dict()))
    if words[0] == "test" and words[1].endswith(".onnx"):
        tiny.write_graph(Path(words[1]))


def furnish(commands: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes data, pictures and teachers for some commands in the working folder, and every recipe small."""
    for name in ("cells", "coco"):
        tiny.write_data(Path("data", name))
    tiny.write_detector(Path("teacher.pth"), seed=7)
    if "export" in commands:  # what finds nothing cannot be compared
        tiny.liven(Path("teacher.pth"))
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
    if "=results.json" in commands:
        _furnish_results()


def _furnish_runs(commands: str) -> None:
    """Trains a student alone and one with a teacher, as small as any, and gives them the names that commands take up.

    Those of other seeds are the same students, a little changed.
    """
    taken_up = "\n".join(line for line in commands.splitlines() if re.search(r"compare|export|--config", line))
    made = re.findall(r"--run-dir runs/([\w-]+)", commands)  # by the commands themselves
    for name in dict.fromkeys(re.findall(r"\bruns/([\w-]+)", taken_up)):
        if name in made:
            continue
        kind, _, seed = name.partition("-")
        recipe, trained = ("alone" if kind == "alone" else "distilled"), Path("trained", kind)
        if not trained.exists():
            config = getattr(tiny, recipe)()
            config.data.root, config.schedule.epochs, config.schedule.drops = "data/coco", 1, ()
            if config.teacher is not None:
                config.teacher.weights = "teacher.pth"
            assert train(config, trained, resume=False, world=tiny.ALONE) == 0
            if "export" in commands:
                tiny.liven(trained / "student_best.pth")
        shutil.copytree(trained, Path("runs", name), dirs_exist_ok=True)
        written = Path("runs", name, "config.json")
        settings = json.loads(written.read_text())
        settings["train"]["seed"] = int(seed or 0)
        for student in Path("runs", name).glob("student_*.pth"):
            content = torch.load(student, weights_only=True)
            content["state_dict"]["bbox_head.retina_cls.bias"] += 1e-4 * int(seed or 0)
            torch.save(content, student)
        written.write_text(json.dumps(settings))
        shutil.copy(written, "mine.yaml")  # JSON is YAML


def _furnish_results() -> None:
    """What a perfect tool would find in the validation images."""
    truth = json.loads(Path("data/coco/annotations/val.json").read_text())["annotations"]
    found = [{name: each[name] for name in ("image_id", "category_id", "bbox")} | {"score": 0.9} for each in truth]
    Path("results.json").write_text(json.dumps(found))


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
    if "distill torchvision:" in commands:
        Path("torchvision").mkdir()
        stand_in("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", Path("torchvision"))
    if "timm:vit" in commands:
        Path("vit").mkdir()
        stand_in("timm:test_vit", Path("vit"))


FILES = {
    "timm:test_vit": "vit/teacher.pth",
    "libreyolo:yolox-n": "yolo/teacher.pth",
    "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn": "torchvision/teacher.pth",
}
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
    if words[0] == "compare" and "--out" not in given:  # a page may compare twice
        words += ["--out", f"comparison-{len(list(Path().glob('comparison-*')))}"]
    if words[0] in ("distill", "check") and names_two(words[1:]):
        words += [] if "--student" in given else ["--student", "test_resnet"]
        words += ["--teacher.weights", FILES[words[1]]] if words[1] in FILES else []
        words += ["--student.weights", "random", "--schedule.epochs", "1", "--data.workers", "0"]
        words += ["--seconds", "5"] if words[0] == "check" else []
    return words
