"""Weights that a config would run otherwise than they were trained: what is said, and which options fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mmdet_files as files
from mgdet.config import ModelConfig
from mgdet.data.batch import Batch
from mgdet.engine.step import Step
from mgdet.errors import UserError
from mgdet.interop.weights import Checkpoint, read_checkpoint, save_checkpoint
from mgdet.models import build_models, check_agrees, detector_from, load_detector
from mgdet.models.agree import CAFFE_PIXELS
from mgdet.structures import IMAGENET, Pixels, Target
from refusals import refusal
from tiny import ALONE, CLASSES, alone

CAFFE_OPTIONS = "--{0}.style caffe --{0}.mean 103.53 116.28 123.675 --{0}.std 1 1 1 --{0}.bgr"
CAFFE = {"style": "caffe", **CAFFE_PIXELS._asdict()}


def retinanet(**options) -> ModelConfig:
    return files.ours("retinanet", channels=32, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of one RetinaNet: as MMDetection's caffe and pytorch ones, as ours in caffe style, and without a word."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    state = detector_from(retinanet(), 3).state_dict()
    for style, pixels in (("caffe", files.BGR), ("pytorch", files.RGB)):
        described = files.model("retinanet", files.backbone(50, style), 3)
        meta = {"CLASSES": CLASSES} | files.texts("2.x", described, pixels)
        files.checkpoint(state, meta, folder, f"said_{style[0]}.pth")
    config = alone()
    config.student = retinanet(**CAFFE)
    save_checkpoint(folder / "ours.pth", state, classes=CLASSES, config=config.to_dict())
    for name in ("silent.pth", "retinanet_r50_caffe_fpn.pth"):
        files.checkpoint(state, {"CLASSES": CLASSES}, folder, name)
    return folder


def start_of(config) -> str:
    return refusal(build_models, config, CLASSES, fresh=True, say=lambda line: None)


@pytest.mark.parametrize("name", ["said_c.pth", "ours.pth"])
def test_a_caffe_teacher_under_a_config_of_pytorchs(name, folder, tiny):
    config = tiny.config()
    config.teacher, config.inherit = replace(retinanet(), weights=str(folder / name)), False
    assert start_of(config) == (
        f"{folder / name} was trained with style caffe, mean 103.53 116.28 123.675, deviation 1 1 1, BGR, but teacher "
        "would run it with style pytorch, mean 123.675 116.28 103.53, deviation 58.395 57.12 57.375, RGB; give "
        + CAFFE_OPTIONS.format("teacher")
    )
    config.teacher = replace(config.teacher, **CAFFE)
    build_models(config, CLASSES, fresh=True, say=lambda line: None)


def test_a_pytorch_teacher_under_a_config_of_caffes(folder, tiny):
    config = tiny.config()
    config.teacher, config.inherit = replace(retinanet(**CAFFE), weights=str(folder / "said_p.pth")), False
    assert start_of(config).endswith(
        "give --teacher.style pytorch --teacher.mean 123.675 116.28 103.53 --teacher.std 58.395 57.12 57.375 "
        "--teacher.no-bgr"
    )


def test_only_what_differs_is_asked_for(folder):
    config = retinanet(**CAFFE | {"bgr": False})
    message = refusal(check_agrees, config, read_checkpoint(folder / "said_c.pth"), role="student")
    assert message.endswith("; give --student.bgr")


def test_a_name_that_says_caffe(folder, tiny):
    config = tiny.config()
    path = folder / "retinanet_r50_caffe_fpn.pth"
    config.teacher, config.inherit = replace(retinanet(), weights=str(path)), False
    assert start_of(config) == (
        f"{path} says caffe in its name, but teacher would run it with style pytorch, and no weight shows which is "
        f"right; give {CAFFE_OPTIONS.format('teacher')}, or rename the file"
    )
    config.teacher = replace(config.teacher, **CAFFE)
    build_models(config, CLASSES, fresh=True, say=lambda line: None)


def test_what_a_file_does_not_say_is_not_checked(folder):
    for config in (retinanet(), retinanet(**CAFFE)):
        check_agrees(config, read_checkpoint(folder / "silent.pth"), role="student")
    checkpoint = read_checkpoint(folder / "said_c.pth")
    for text in (
        "model = dict(",
        "a = 1",
        files.text_2({"model": files.model("retinanet", files.backbone(101, "caffe"))}),
    ):
        checkpoint.texts = {"config": text}
        check_agrees(retinanet(), checkpoint, role="student")


def test_the_style_of_a_resnet_without_bottlenecks_does_not_matter():
    config = ModelConfig(detector="retinanet", backbone="resnet18", **CAFFE_PIXELS._asdict())
    described = files.model("retinanet", files.backbone(18, "caffe"))
    checkpoint = files.in_memory({}, "retinanet_r18_caffe.pth", **files.texts("2.x", described, files.BGR))
    check_agrees(config, checkpoint, role="student")


@pytest.mark.parametrize("name", ["said_c.pth", "ours.pth"])
def test_testing_and_starting(name, folder, tiny):
    path = folder / name
    checkpoint: Checkpoint = read_checkpoint(path)
    assert CAFFE_OPTIONS.format("student") in refusal(load_detector, retinanet(), checkpoint, CLASSES)
    config = tiny.config(distil=False)
    config.student = replace(retinanet(), weights=str(path))
    assert CAFFE_OPTIONS.format("student") in start_of(config)
    config.student = replace(config.student, **CAFFE)
    student = build_models(config, CLASSES, fresh=True, say=lambda line: None).student.student
    assert student.pixels == CAFFE_PIXELS


def test_timms_weights_are_no_start_in_caffe_style(tiny):
    config = tiny.config(distil=False)
    config.student = replace(retinanet(**CAFFE), weights="timm:resnet50.tv_in1k")
    assert "whose strides are as in style pytorch, but student.style is caffe" in start_of(config)


def test_other_anchors_matter_to_a_head_alone(folder, tiny):
    described = files.model("retinanet", files.backbone(50, "pytorch"), 3)
    described["bbox_head"]["anchor_generator"]["octave_base_scale"] = 2
    checkpoint = read_checkpoint(folder / "silent.pth")
    checkpoint.texts = files.texts("3.x", described)
    message = refusal(load_detector, retinanet(), checkpoint, CLASSES)
    assert "was trained with bbox_head.anchor_generator.octave_base_scale 2 in place of 4" in message
    path = files.checkpoint(checkpoint.state_dict, {"CLASSES": CLASSES} | checkpoint.texts, folder, "anchors.pth")
    config = tiny.config()
    config.teacher = replace(retinanet(), weights=str(path))
    config.inherit = True
    assert "octave_base_scale 2" in start_of(config)
    config.inherit = False
    build_models(config, CLASSES, fresh=True, say=lambda line: None)
    described["backbone"]["dilations"] = (1, 1, 1, 2)
    checkpoint.texts = files.texts("3.x", described)
    files.checkpoint(checkpoint.state_dict, {"CLASSES": CLASSES} | checkpoint.texts, folder, "anchors.pth")
    assert "backbone.dilations 1 1 1 2 in place of 1 1 1 1, which" in start_of(config)


def test_the_config_has_imagenets_normalisation():
    model = ModelConfig(detector="retinanet")
    assert Pixels(model.mean, model.std, model.bgr) == IMAGENET
    with pytest.raises(UserError, match="std is 1 0 1; give positive numbers"):
        model.std = (1.0, 0.0, 1.0)


def test_settings_of_ours_are_no_settings_of_another_library(tiny):
    config = tiny.config()
    config.teacher = ModelConfig(detector="torchvision:fasterrcnn_resnet50_fpn", weights="pretrained", style="caffe")
    assert re.search(r"teacher\.style does not apply to torchvision:", start_of(config))


def test_in_a_step_teacher_and_student_see_their_own_pixels(folder, tiny):
    config = tiny.config()
    config.teacher, config.inherit = replace(retinanet(**CAFFE), weights=str(folder / "said_c.pth")), False
    models = build_models(config, CLASSES, fresh=True, say=lambda line: None)
    step = Step(models.student, models.teacher, config, ALONE)
    pixels = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    target = Target(torch.tensor([[4.0, 4.0, 40.0, 40.0]]), torch.tensor([1]), size=(64, 64))
    batch = Batch(pixels, [target], ["a"], [0], [(64, 64)], [(1.0, 1.0)])
    images = batch.images(step.student.student.pixels)
    blue_first = pixels.flip(-1).permute(0, 3, 1, 2).float() - torch.tensor(CAFFE_PIXELS.mean)[:, None, None]
    shown = step.show(batch, images)
    for one, other in zip(shown.taps, models.teacher(blue_first), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(shown.taps[0], models.teacher(images)[0], rtol=1e-2, atol=1e-2)
    assert step.take([batch], number=0, lr=1e-4).finite
