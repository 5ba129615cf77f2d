"""Files of MMDetection on the command line, without a recipe: predict, test, transfer, train, and what stops them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mmdet_files as files
from mgdet.cli import main
from mgdet.config import Config
from mgdet.interop.weights import read_checkpoint, save_checkpoint
from mgdet.models import build_models, detector_from, recognise
from mgdet.models.agree import CAFFE_PIXELS
from tiny import CLASSES, alone, distilled

CAFFE = {"style": "caffe", **CAFFE_PIXELS._asdict()}
SCALE = (96, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One caffe Faster R-CNN as MMDetection 2.x and 3.x, as bare weights, and as a checkpoint of ours."""
    folder = tmp_path_factory.mktemp("mmdet")
    config: Config = alone()
    config.student = replace(files.ours("faster_rcnn", channels=32), **CAFFE)
    torch.manual_seed(0)
    state = detector_from(config.student, 3).state_dict()
    state["backbone.conv1.weight"] /= 50  # images are not scaled
    described = files.model("faster_rcnn", files.backbone(50, "caffe"), 3)
    two, three = (files.texts(version, described, files.BGR, SCALE) for version in files.VERSIONS)
    files.checkpoint(state, {"CLASSES": CLASSES, "mmdet_version": "2.19.0"} | two, folder, "two.pth")
    files.checkpoint(state, {"dataset_meta": {"classes": CLASSES}} | three, folder, "three.pth")
    torch.save(state, folder / "faster_rcnn_r50_caffe_fpn.pth")
    save_checkpoint(folder / "ours.pth", state, classes=CLASSES, config=config.to_dict())
    return folder


def predicted(tiny, tmp_path, checkpoint: Path, images: str = "val") -> list[dict]:
    out = tmp_path / f"out_{checkpoint.stem}"
    assert main(["predict", str(checkpoint), str(tiny.root / images), "--out", str(out), "--score", "0"]) == 0
    report: list[dict] = json.loads((out / "detections.json").read_text())
    return report


def test_a_teacher_is_known_by_the_names_in_its_config(tmp_path):
    config = distilled()
    state = detector_from(config.teacher, 3).state_dict()
    settings = files.settings_2(files.model("retinanet", files.backbone(18, "pytorch"), 3), files.RGB, SCALE)
    for names, known in ((CLASSES, CLASSES), (("one", "two"), None)):
        settings["data"]["test"]["classes"] = names
        config.teacher.weights = str(files.checkpoint(state, {"config": files.text_2(settings)}, tmp_path))
        models = build_models(config, CLASSES, fresh=False, say=lambda line: None)
        assert models.teacher_classes == known


@pytest.mark.slow
def test_predict_needs_no_recipe(folder, tiny, tmp_path, capsys):
    ours = predicted(tiny, tmp_path, folder / "ours.pth")
    assert sum(len(entry["objects"]) for entry in ours) > 0
    assert "resnet50" not in capsys.readouterr().out  # our own files say nothing new
    for name in ("two.pth", "three.pth"):
        assert predicted(tiny, tmp_path, folder / name) == ours
        assert f"{name}: faster_rcnn with resnet50 in caffe style, 32 channels, mean 103.53" in capsys.readouterr().out
    bare = predicted(tiny, tmp_path, folder / "faster_rcnn_r50_caffe_fpn.pth", "val/0.jpg")
    said = capsys.readouterr().out
    assert "taken as the name 'faster_rcnn_r50_caffe_fpn.pth' says: caffe style" in said
    assert {entry["class"] for image in bare for entry in image["objects"]} <= {"class 0", "class 1", "class 2"}


def test_a_recipe_that_contradicts_the_file_stops(folder, tiny, refused):
    words = "but the recipe would run it with style pytorch, mean 123.675 116.28 103.53, deviation 58.395 57.12 57.375"
    message = refused("predict", folder / "two.pth", tiny.root / "val", "--recipe", "faster_rcnn_r50")
    assert words in message and message.endswith("; leave --recipe out")
    detector = ("--student.detector", "faster_rcnn", "--student.backbone", "resnet50", "--student.channels", "32")
    command = ("test", "alone", folder / "two.pth", "--data.root", tiny.root, *detector)
    message = refused(*command)
    options = "--student.style caffe --student.mean 103.53 116.28 123.675 --student.std 1 1 1 --student.bgr"
    assert message.endswith(f"; give {options}")
    assert main([*map(str, command), *options.split()]) == 0


@pytest.mark.slow
def test_test_needs_no_recipe(folder, tiny, tmp_path, capsys, refused):
    results = []
    for name in ("two.pth", "three.pth", "ours.pth"):
        out = tmp_path / f"{name}.json"
        assert main(["test", str(folder / name), "--data.root", str(tiny.root), "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert f"{name}: " in said and "average precision, IoU 0.50:0.95" in said
        results.append(json.loads(out.read_text()))
    assert results[0] == results[1] == results[2] != []
    message = refused("test", folder / "two.pth", "--data.root", tiny.root, "--student.style", "pytorch")
    assert message.endswith("; give --student.style caffe")
    assert "the checkpoint nowhere.pth does not exist" in refused("test", "nowhere.pth")
    assert "there is no recipe 'nowhere'" in refused("test", "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_transfer_keeps_the_config_and_says_what_it_read(suffix, folder, tmp_path, capsys):
    for name in ("two.pth", "three.pth"):
        out = tmp_path / f"{name}{suffix}"
        assert main(["transfer", str(folder / name), str(out)]) == 0
        assert "faster_rcnn with resnet50 in caffe style" in capsys.readouterr().out
        before, after = recognise(str(folder / name)), recognise(str(out))
        assert read_checkpoint(out).texts == read_checkpoint(folder / name).texts
        assert replace(after.model, weights="") == replace(before.model, weights="")
        assert (after.classes, after.long_edge, after.short_edge) == (CLASSES, *SCALE)


def test_transfer_says_how_mmdetection_must_build_a_caffe_student(folder, tmp_path, capsys):
    assert main(["transfer", str(folder / "ours.pth"), str(tmp_path / "out.pth")]) == 0
    assert (
        "MMDetection must build its backbone with style='caffe' and normalise with mean=[103.53, 116.28, 123.675], "
        "std=[1.0, 1.0, 1.0] and to_rgb=False (bgr_to_rgb=False in 3.x)"
    ) in capsys.readouterr().out


def test_transfer_still_writes_what_only_mmdetection_can_run(tmp_path, capsys):
    state = {f"bbox_head.atss_{part}.weight": torch.ones(1) for part in ("cls", "reg")}
    torch.save({"state_dict": state | {"backbone.conv1.weight": torch.ones(1)}}, tmp_path / "atss.pth")
    assert main(["transfer", str(tmp_path / "atss.pth"), str(tmp_path / "out.pth")]) == 0
    said = capsys.readouterr().out
    assert "mgdet cannot run it: " in said and "holds an ATSS head" in said and "3 tensors" in said


@pytest.mark.slow
def test_a_caffe_student_learns_from_a_caffe_teacher_and_is_what_its_checkpoint_says(folder, tiny, tmp_path, capsys):
    run = tmp_path / "run"
    sides = [
        option
        for role in ("teacher", "student")
        for option in (
            f"--{role}.detector faster_rcnn --{role}.backbone resnet50 --{role}.channels 32 --{role}.style caffe "
            f"--{role}.mean 103.53 116.28 123.675 --{role}.std 1 1 1 --{role}.bgr --{role}.weights {folder / 'two.pth'}"
        ).split()
    ]
    common = ["--data.root", str(tiny.root), "--data.long-edge", "96", "--data.short-edge", "64", "64"]
    common += ["--data.workers", "0", "--train.batch", "2", "--train.stop-after", "2", "--schedule.epochs", "1"]
    assert main(["train", "pair", "--run-dir", str(run), *common, *sides]) == 0
    found = recognise(str(run))
    assert (found.model.style, found.model.bgr, found.model.std) == ("caffe", True, (1.0, 1.0, 1.0))
    assert main(["test", str(run), "--data.root", str(tiny.root)]) == 0
    predicted(tiny, tmp_path, run / "student_last.pth")
