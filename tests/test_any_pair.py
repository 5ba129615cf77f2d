"""Teachers and students of any library through train, resume, test, predict and transfer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import cv2
import pytest
import torch

from mgdet.cli import main
from mgdet.interop.weights import read_checkpoint
from mgdet.recipes import load_recipe
from tiny import CLASSES, assert_same_state, records

TORCHVISION = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, and what is printed about them.

    levels: how many levels are distilled.
    said: a part of the log.
    """

    teacher: str
    student: str
    levels: int
    said: str = ""


PAIRS = {
    "ours to torchvision": Pair("ours", TORCHVISION, 1, "student level"),
    "torchvision to ours": Pair(TORCHVISION, "retinanet", 1, "knows other classes than the data (90)"),
    "timm to ours": Pair("timm:test_vit", "retinanet", 1, "stride 16, 64 channels"),
    "hf to torchvision": Pair("hf", TORCHVISION, 1),
    "torchvision to hf": Pair(TORCHVISION, "hf", 1),
    "timm to hf": Pair("timm:test_vit", "hf", 1),
}


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory):
    """An RT-DETRv2 as `save_pretrained` leaves it."""
    from transformers import AutoModelForObjectDetection

    from detectors.foreign.hf_tiny import shake, tiny_config

    folder = tmp_path_factory.mktemp("hf") / "rtdetr"
    torch.manual_seed(0)
    model = AutoModelForObjectDetection.from_config(tiny_config("rt_detr_v2"))
    shake(model)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(tiny, hf_folder, tmp_path):
    """What `mgdet train` takes for a pair."""

    def make(pair: Pair, run: str) -> list[str]:
        sides = {"teacher": pair.teacher, "student": pair.student}
        options = []
        for side, wanted in sides.items():
            name, weights = wanted, {"teacher": "pretrained", "student": "random"}[side]
            if name == "ours":
                name, weights = "retinanet", str(tiny.teacher)
                options += [f"--{side}.backbone", "test_resnet", f"--{side}.channels", "32"]
                options += [f"--{side}.frozen-stages", "0", f"--{side}.no-norm-eval"]
            elif name == "hf":
                name = f"hf:{hf_folder}"
            elif name == "retinanet":
                options += [f"--{side}.backbone", "test_resnet", f"--{side}.channels", "32"]
            elif side == "teacher":
                weights = str(stand_in(name, tmp_path))
            options += [f"--{side}.detector", name, f"--{side}.weights", weights]
        return [
            *("train", "pair", "--run-dir", str(tmp_path / run), "--data.root", str(tiny.root), *options),
            *("--data.long-edge", "128", "--data.short-edge", "96", "128", "--data.workers", "0"),
            *("--train.batch", "2", "--train.log-every", "1", "--train.save-every", "1", "--schedule.epochs", "1"),
            *("--schedule.warmup-steps", "0", "--train.eval-every", "0"),
        ]

    return make


def stand_in(name: str, folder):
    """A file of random weights of a teacher of another library."""
    from mgdet.detectors.foreign import library

    source, _, rest = name.partition(":")
    torch.manual_seed(5)
    model = library(source).build(rest, classes=None, weights="random", say=lambda line: None)
    path = folder / "teacher.pth"
    state = model.model.state_dict() if source == "timm" else model.weights()
    torch.save({name: value.clone() for name, value in state.items()}, path)
    return path


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_trains_and_resumes_to_the_bit(name, arguments, tmp_path, capsys):
    pair = PAIRS[name]
    assert main([*arguments(pair, "whole"), "--train.stop-after", "2"]) == 0
    text = capsys.readouterr().out
    assert pair.said in text
    assert "<- teacher level" in text
    for line in records(tmp_path / "whole"):
        losses = {key: value for key, value in line.items() if "loss" in key}
        assert all(math.isfinite(value) for value in losses.values()), losses
        assert sum(key.startswith("loss_mgd_fpn_") for key in losses) >= pair.levels
    halves = arguments(pair, "halves")
    assert main([*halves, "--train.stop-after", "1"]) == 0
    assert main([*halves, "--train.stop-after", "2", "--resume"]) == 0
    assert_same_state(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.parametrize("name", ["ours to torchvision", "timm to hf"])
def test_a_foreign_student_is_tested_predicts_and_returns(name, arguments, tiny, tmp_path, capsys):
    assert main([*arguments(PAIRS[name], "run"), "--train.stop-after", "1"]) == 0
    run = str(tmp_path / "run")
    checkpoint = read_checkpoint(tmp_path / "run" / "student_last.pth")
    assert checkpoint.classes == CLASSES and checkpoint.description is not None
    sizes = ["--data.long-edge", "128", "--data.short-edge", "96", "128", "--data.workers", "0"]
    student = json.loads((tmp_path / "run" / "config.json").read_text())["student"]["detector"]
    detector = ["--student.detector", student, "--data.root", str(tiny.root)]
    assert main(["test", "pair", run, *detector, *sizes, "--out", str(tmp_path / "results.json")]) == 0
    assert "0 missing, 0 unexpected" in capsys.readouterr().out
    picture = tiny.root / "val" / "0.jpg"
    assert cv2.imread(str(picture)) is not None
    assert main(["predict", run, str(picture), "--out", str(tmp_path / "seen"), "--score", "0"]) == 0
    assert json.loads((tmp_path / "seen" / "detections.json").read_text())[0]["objects"]
    out = tmp_path / ("folder" if student.startswith("hf:") else "student.pth")
    capsys.readouterr()
    assert main(["transfer", run, str(out)]) == 0
    assert str(out) in capsys.readouterr().out.splitlines()[-1]
    assert out.is_dir() == student.startswith("hf:")


def test_settings_of_ours_are_refused_for_other_libraries(arguments, capsys):
    pair = PAIRS["torchvision to ours"]
    assert main([*arguments(pair, "run"), "--teacher.channels", "64"]) == 2
    assert "teacher.channels does not apply to torchvision:" in capsys.readouterr().err


def test_a_backbone_is_no_student(arguments, capsys):
    assert main([*arguments(Pair("ours", "timm:test_vit", 1), "run")]) == 2
    assert "timm:test_vit only teaches" in capsys.readouterr().err


def test_the_recipe_of_any_pair_is_one_that_can_be_started():
    config = load_recipe("pair")
    config.check_together()
    assert config.teacher is not None and config.teacher.source and config.student.source
