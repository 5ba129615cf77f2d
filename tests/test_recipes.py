"""Every recipe: what it says, the detectors it builds, and one step of it at a tiny size."""

import json
import math
from dataclasses import dataclass, replace
from urllib.parse import unquote

import pytest
import torch

from mgdet.cli import main
from mgdet.config import Config, MGDConfig, ModelConfig
from mgdet.data.batch import collate
from mgdet.data.transforms import View
from mgdet.detectors.build import DETECTORS
from mgdet.engine.feed import open_data
from mgdet.engine.loop import train
from mgdet.errors import UserError
from mgdet.interop.weights import save_checkpoint
from mgdet.models import build_models, detector_from
from mgdet.recipes import (
    RECIPES,
    cascade_mask_rcnn,
    demo,
    faster_rcnn,
    load_recipe,
    mask_rcnn,
    pair,
    reppoints,
    retinanet,
    solo,
)
from recorded import record
from tiny import ALONE, CLASSES, Tiny, records

MODULES = (demo, cascade_mask_rcnn, faster_rcnn, mask_rcnn, pair, reppoints, retinanet, solo)
MMDETECTION = "https://download.openmmlab.com/mmdetection/v2.0/"


@dataclass(frozen=True)
class Pair:
    """A row of the published table."""

    student: str
    teacher: str
    levels: int
    weight: float
    ratio: float
    inherit: bool
    lr: float
    drops: tuple[int, ...]
    baseline: str
    distilled: str


CASCADE = "cascade_mask_rcnn_x101_32x4d_dcn"
PAIRS = {
    "retinanet_x101_to_r50": Pair(
        "retinanet_r50", "retinanet_x101_64x4d", 5, 2e-5, 0.65, True, 0.01, (16, 22), "box 37.4", "box 41.0"
    ),
    "retinanet_x101_1x_to_r50": Pair(
        "retinanet_r50", "retinanet_x101_64x4d_1x", 5, 2e-5, 0.65, True, 0.01, (16, 22), "box 37.4", "box 41.0"
    ),
    "cascade_mask_rcnn_x101_dcn_to_faster_rcnn_r50": Pair(
        "faster_rcnn_r50", CASCADE, 4, 5e-7, 0.45, False, 0.02, (16, 22), "box 38.4", "box 42.1"
    ),
    "cascade_mask_rcnn_x101_dcn_to_mask_rcnn_r50": Pair(
        "mask_rcnn_r50", CASCADE, 4, 5e-7, 0.45, False, 0.02, (16, 22), "mask 35.4", "mask 38.1"
    ),
    "reppoints_x101_dcn_to_r50": Pair(
        "reppoints_r50", "reppoints_x101_32x4d_dcn", 5, 2e-5, 0.65, True, 0.01, (16, 22), "box 38.6", "box 42.3"
    ),
    "solo_r101_to_r50": Pair("solo_r50", "solo_r101", 4, 2e-5, 0.65, True, 0.01, (8, 11), "mask 33.1", "mask 36.2"),
}
OURS = {name for name in RECIPES if "mobilenetv3" in name or RECIPES[name].kind in ("any", "demo")}
LEVELS = {name: pair.levels for name, pair in PAIRS.items()} | {"retinanet_x101_to_mobilenetv3": 5}
LEVELS |= {f"demo_{pair}_distilled": 5 if pair in ("retinanet", "reppoints") else 4 for pair in demo.PAIRS}
RECORDED = {
    ("retinanet", "resnet50"): "retinanet_r50",
    ("faster_rcnn", "resnet50"): "faster_rcnn_r50",
    ("mask_rcnn", "resnet50"): "mask_rcnn_r50",
    ("reppoints", "resnet50"): "reppoints_r50",
    ("solo", "resnet50"): "solo_r50",
    ("retinanet", "resnext101_64x4d"): "retinanet_x101_64x4d",
    ("cascade_mask_rcnn", "resnext101_32x4d"): "cascade_mask_x101_32x4d_dcn",
    ("reppoints", "resnext101_32x4d"): "reppoints_x101_32x4d_dcn",
    ("solo", "resnet101"): "solo_r101",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_survives_json(name):
    config = load_recipe(name)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.train.seed += 1
    assert load_recipe(name) != config, "each call gives a fresh config"


def test_names():
    assert sum(len(module.RECIPES) for module in MODULES) == len(RECIPES), "two modules use one name"
    assert all(recipe.build.__name__ == name for name, recipe in RECIPES.items() if recipe.kind != "demo")
    assert {name for name, recipe in RECIPES.items() if recipe.kind == "distillation"} - OURS == PAIRS.keys()


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - OURS))
def test_what_is_published_is_said(name):
    recipe = RECIPES[name]
    assert recipe.student
    assert recipe.baseline
    assert recipe.original
    assert recipe.checkpoint
    assert bool(recipe.teacher) == bool(recipe.distilled) == (recipe.kind == "distillation")


def without_teacher(config: Config) -> Config:
    return replace(config, teacher=None, mgd=MGDConfig(), inherit=False)


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_the_published_one(name):
    recipe, config, pair = RECIPES[name], load_recipe(name), PAIRS[name]
    assert (config.mgd.weight, config.mgd.mask_ratio, config.inherit) == (pair.weight, pair.ratio, pair.inherit)
    assert (config.optimizer.lr, config.schedule.drops) == (pair.lr, pair.drops)
    assert (recipe.baseline, recipe.distilled) == (pair.baseline, pair.distilled)
    assert pair.baseline in RECIPES[pair.student].baseline
    assert without_teacher(config) == load_recipe(pair.student), "the baseline differs by more than MGD"

    trained = load_recipe(pair.teacher)
    assert replace(config.teacher, weights=trained.student.weights) == trained.student
    assert recipe.teacher == f"{RECIPES[pair.teacher].student} ({RECIPES[pair.teacher].baseline})"
    assert recipe.checkpoint == RECIPES[pair.teacher].checkpoint == unquote(config.teacher.weights.rsplit("/", 1)[-1])
    assert config.teacher.weights.startswith(MMDETECTION) or name == "solo_r101_to_r50"


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - OURS))
def test_epochs_are_those_of_the_name(name):
    times = int(RECIPES[name].student[-2])
    config = load_recipe(name)
    assert config.schedule.epochs == 12 * times
    assert config.schedule.drops == {1: (8, 11), 2: (16, 22), 3: (27, 33)}[times]
    assert config.data.short_edge == ((640, 800) if times == 3 else (800, 800))
    assert config.data.short_edge_step == (32 if times == 3 and config.student.detector == "solo" else 1)
    assert config.schedule.warmup_ratio == (1 / 3 if times == 3 and config.student.detector == "solo" else 0.001)


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].kind != "demo"])
def test_masks_are_measured_where_there_are_masks(name):
    config = load_recipe(name)
    expected = {"solo": ("segm", "bbox"), "mask_rcnn": ("bbox", "segm"), "cascade_mask_rcnn": ("bbox", "segm")}
    assert config.train.metrics == expected.get(config.student.detector, ("bbox",))


def full_size_models() -> dict[tuple[str, str], ModelConfig]:
    configs = [load_recipe(name) for name in RECIPES.keys() - OURS]
    models = [config.student for config in configs] + [config.teacher for config in configs if config.teacher]
    return {(model.detector, model.backbone): model for model in models}


def test_every_model_of_the_table_is_recorded():
    assert full_size_models().keys() == RECORDED.keys()


@pytest.mark.parametrize("key", RECORDED, ids=RECORDED.values())
def test_a_full_size_detector_has_the_recorded_entries(key):
    model = replace(full_size_models()[key], frozen_stages=0)  # finding what to freeze would need real tensors
    with torch.device("meta"):
        detector = detector_from(model, 80)
    entries = {name: list(value.shape) for name, value in detector.state_dict().items()}
    assert entries == record(RECORDED[key])["state_dict"]


def shrink(config: Config, tiny: Tiny, teacher_file) -> Config:
    """The same recipe with small backbones of the same kind, 32 channels and the tiny data set."""
    models = [config.student] if config.teacher is None else [config.student, config.teacher]
    backbone = "resnet14t" if any(model.deformable for model in models) else "test_resnet"
    for model in models:
        model.backbone = "mobilenetv3_small_050" if model.backbone.startswith("mobilenet") else backbone
        model.channels, model.weights = 32, "random"
    on_tiny_data(config, tiny)
    if config.teacher is not None:
        save_random_teacher(config.teacher, teacher_file)
    return config


def on_tiny_data(config: Config, tiny: Tiny) -> None:
    """One step on two images, without an evaluation."""
    config.data = replace(tiny.config().data, root=str(tiny.root), short_edge=(64, 64))
    config.train = replace(config.train, batch=2, stop_after=1, log_every=1, eval_every=0)


def save_random_teacher(model: ModelConfig, path) -> None:
    torch.manual_seed(1)
    save_checkpoint(path, detector_from(model, len(CLASSES)).state_dict(), classes=CLASSES, config=None)
    model.weights = str(path)


def losses_of_one_step(config: Config, folder) -> dict[str, float]:
    assert train(config, folder, resume=False, world=ALONE) == 0
    (line,) = records(folder)
    assert line["step"] == 1
    losses = {name: value for name, value in line.items() if "loss" in name}
    assert all(math.isfinite(value) for value in losses.values()), losses
    assert math.isfinite(line["grad_norm"])
    assert line["grad_norm"] > 0
    return losses


def mgd_levels(losses: dict[str, float]) -> int:
    return sum(name.startswith("loss_mgd_fpn_") and value > 0 for name, value in losses.items())


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].kind != "any"])
def test_a_recipe_trains(name, tiny, tmp_path):
    config = shrink(load_recipe(name), tiny, tmp_path / "teacher.pth")
    losses = losses_of_one_step(config, tmp_path / "run")
    assert mgd_levels(losses) == LEVELS.get(name, 0)
    masks = DETECTORS[config.student.detector].has_masks
    assert any(key.endswith("loss_mask") and value > 0 for key, value in losses.items()) == masks


@pytest.mark.parametrize("backbone", ["mobilenetv3_large_100", "convnext_tiny"])
def test_any_timm_backbone_learns(backbone, tiny, tmp_path):
    config = shrink(load_recipe("retinanet_x101_to_mobilenetv3"), tiny, tmp_path / "teacher.pth")
    config.student.backbone = backbone
    assert mgd_levels(losses_of_one_step(config, tmp_path / "run")) == 5


def test_a_narrower_student_is_aligned_by_a_1x1_convolution_that_learns(tiny, tmp_path):
    config = load_recipe("cascade_mask_rcnn_x101_dcn_to_faster_rcnn_r50")
    config.student = replace(config.student, backbone="mobilenetv3_small_050", channels=32, weights="random")
    config.teacher = replace(config.teacher, backbone="resnet14t", channels=64)
    save_random_teacher(config.teacher, tmp_path / "teacher.pth")
    on_tiny_data(config, tiny)
    _, data, _ = open_data(config)
    models = build_models(config, data.classes, fresh=True, say=lambda line: None)

    batch = collate([data[View(index=0, long_edge=96, short_edge=64, flip=False)]])
    images = batch.images()
    losses = models.student(images, batch.targets, models.teacher(images))
    sum(losses.values()).backward()
    levels = list(models.student.distill_losses.values())
    assert len(levels) == 4
    for level in levels:
        assert level.align.weight.shape == (64, 32, 1, 1)
        assert level.align.weight.grad.abs().sum() > 0


def test_a_student_of_other_widths_inherits_all_but_what_reads_its_backbone(tiny, tmp_path):
    config = shrink(load_recipe("retinanet_x101_to_r50"), tiny, tmp_path / "teacher.pth")
    config.student.backbone = "mobilenetv3_small_050"
    said: list[str] = []
    build_models(config, CLASSES, fresh=True, say=said.append)
    (line,) = [line for line in said if "inherits" in line]
    assert "student inherits 32 tensors" in line and "neck.lateral_convs.0.conv.weight" in line


def test_a_student_with_another_head_cannot_inherit(tiny, tmp_path):
    config = shrink(load_recipe("retinanet_x101_to_r50"), tiny, tmp_path / "teacher.pth")
    config.student.channels = 64
    with pytest.raises(UserError, match=r"turn that off with --no-inherit"):
        build_models(config, CLASSES, fresh=True, say=lambda line: None)


def test_a_deformable_detector_starts_from_a_backbone_without_offsets(tmp_path):
    config = load_recipe("reppoints_x101_32x4d_dcn")
    config.student = replace(config.student, backbone="resnet14t", channels=32, weights=str(tmp_path / "backbone.pth"))
    plain = detector_from(replace(config.student, deformable=False), len(CLASSES)).backbone.state_dict()
    torch.save(dict(plain), tmp_path / "backbone.pth")
    student = build_models(config, CLASSES, fresh=True, say=lambda line: None).student.student
    started = student.backbone.state_dict()
    assert all(torch.equal(started[name], value) for name, value in plain.items())
    assert not any(value.any() for name, value in started.items() if ".conv_offset." in name)


def test_the_list_shows_each_recipe_once_and_fits_a_terminal(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.split() and line.split()[0] in RECIPES] == sorted(
        RECIPES, key=lambda name: ["distillation", "student", "teacher", "any", "demo"].index(RECIPES[name].kind)
    )
    assert max(map(len, lines)) <= 104
    text = "\n".join(lines)
    for recipe in RECIPES.values():
        assert recipe.checkpoint in text
        assert recipe.original in text
        assert recipe.distilled in text
