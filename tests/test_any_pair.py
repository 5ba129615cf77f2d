"""Teachers and students of any library through train, resume, test, predict and transfer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import cv2
import pytest
import torch
import torch.distributed
import torch.multiprocessing

import mgdet.engine.loop as loop
import mgdet.engine.prepare as prepare
from mgdet.cli import main
from mgdet.config import ModelConfig
from mgdet.distributed import World
from mgdet.interop.weights import read_checkpoint
from mgdet.recipes import load_recipe
from tiny import CLASSES, assert_same_state, assert_same_tensors, records

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
    "ours to libreyolo": Pair("ours", "libreyolo:yolox-n", 3),
}


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory):
    """An RT-DETRv2 as `save_pretrained` leaves it."""
    return save_tiny("rt_detr_v2", tmp_path_factory.mktemp("hf") / "rtdetr")


def save_tiny(model_type, folder, **settings):
    from transformers import AutoModelForObjectDetection

    from detectors.foreign.hf_tiny import shake, tiny_config

    torch.manual_seed(0)
    model = AutoModelForObjectDetection.from_config(tiny_config(model_type, **settings))
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
    if "libreyolo" in name:
        pytest.importorskip("libreyolo")
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


def test_a_detector_of_one_size_asks_for_it_and_gets_it(arguments, tmp_path, capsys):
    pair = Pair("ours", "torchvision:ssdlite320_mobilenet_v3_large", 1)
    assert main([*arguments(pair, "run"), "--train.stop-after", "1"]) == 2
    assert "takes images of 320 x 320 pixels only; give --data.square 320" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments(pair, "run"), "--train.stop-after", "1", "--data.square", "320"]) == 0


def test_a_backbone_is_no_student(arguments, capsys):
    assert main([*arguments(Pair("ours", "timm:test_vit", 1), "run")]) == 2
    assert "timm:test_vit only teaches" in capsys.readouterr().err


def test_the_recipe_of_any_pair_is_one_that_can_be_started():
    config = load_recipe("pair")
    config.check_together()
    assert config.teacher is not None and config.teacher.source and config.student.source


MASK_RCNN = "mask_rcnn"
TOGETHER = {
    "rf_detr": {},
    "rt_detr_v2": {},
    "deformable_detr": {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 12},
    MASK_RCNN: None,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_end_with_equal_weights(name, tiny, tmp_path):
    """Also where parameters reach no loss, and where one process has no object in its batch."""
    if TOGETHER[name] is not None:
        save_tiny(name, tmp_path / "student", **TOGETHER[name])
    torch.multiprocessing.spawn(_one_of_two, (name, str(tiny.root), str(tiny.teacher), tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert_same_tensors(first, second)
    start = torch.load(tmp_path / "start.pth")
    assert sum(not torch.equal(start[key], value) for key, value in first.items()) > len(first) / 3


def _one_of_two(rank, name, root, teacher, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    config = load_recipe("pair")
    config.data.root, config.data.long_edge, config.data.short_edge, config.data.workers = root, 128, (112, 112), 0
    config.teacher = ModelConfig(
        detector="retinanet", backbone="test_resnet", channels=32, frozen_stages=0, norm_eval=False, weights=teacher
    )
    if name == MASK_RCNN:
        config.student = ModelConfig(detector=name, backbone="test_resnet", channels=32)
    else:
        config.student = ModelConfig(detector=f"hf:{folder}/student", weights="random")
    config.train.batch, config.train.stop_after, config.train.eval_every = 1, 2, 0
    config.schedule.warmup_steps = 0
    build = prepare.build_models

    def watched(*arguments, **options):
        models = build(*arguments, **options)
        if rank == 0:
            torch.save({k: v.clone() for k, v in models.student.state_dict().items()}, folder / "start.pth")
        found.append(models.student)
        return models

    found = []
    prepare.build_models = watched
    world = World(rank=rank, size=2, device=torch.device("cpu"))
    assert loop.train(config, folder / "run", resume=False, world=world) == 0
    torch.save(found[0].state_dict(), folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()
