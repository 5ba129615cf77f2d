"""What a run starts from, and what it refuses to start from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from mgdet.engine.feed import open_data
from mgdet.errors import UserError
from mgdet.interop.weights import read_checkpoint
from mgdet.models import build_models, detector_from
from tiny import CLASSES, model, write_detector


def start(config, *, said: list[str] | None = None):
    return build_models(config, CLASSES, fresh=True, say=(said if said is not None else []).append)


def test_masks_that_are_measured_must_be_in_the_evaluation_file(tiny, tmp_path):
    shutil.copytree(tiny.root, tmp_path / "data")
    path = tmp_path / "data/annotations/val.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    path.write_text(json.dumps(content))
    config = tiny.config(distil=False)
    config.data.root, config.student.detector = str(tmp_path / "data"), "mask_rcnn"
    open_data(config)
    config.train.metrics = ("segm",)
    with pytest.raises(UserError, match="segm needs masks"):
        open_data(config)


def test_imagenet_weights_of_another_backbone_are_refused_before_a_download(tiny):
    config = tiny.config(distil=False)
    config.student.weights = "timm:resnet50.tv_in1k"
    with pytest.raises(UserError, match=r"give --student\.weights timm:test_resnet"):
        start(config)


def test_a_backbone_file_fills_the_backbone_and_names_the_rest(tiny, tmp_path):
    backbone = detector_from(model(), 3).backbone.state_dict()
    torch.save(dict(backbone), tmp_path / "backbone.pth")
    config, said = tiny.config(distil=False), []
    config.student.weights = str(tmp_path / "backbone.pth")
    student = start(config, said=said).student.student
    assert all(torch.equal(student.backbone.state_dict()[name], value) for name, value in backbone.items())
    rest = [name for name in student.state_dict() if not name.startswith("backbone.")]
    assert f"{len(backbone)} tensors loaded, {len(rest)} missing ({rest[0]}, " in said[0]


def test_a_classifier_with_prefixes_is_a_start_for_the_backbone(tiny, tmp_path):
    backbone = detector_from(model(), 3).backbone.state_dict()
    weights = {f"backbone.{name}": value for name, value in backbone.items()} | {"head.fc.weight": torch.zeros(10, 4)}
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "a.pth")
    config, said = tiny.config(distil=False), []
    config.student.weights = str(tmp_path / "a.pth")
    student = start(config, said=said).student.student
    assert all(torch.equal(student.backbone.state_dict()[name], value) for name, value in backbone.items())
    assert "1 unexpected (head.fc.weight)" in said[-1]


def test_a_backbone_file_of_another_backbone_says_so(tiny, tmp_path):
    torch.save(dict(detector_from(model("resnet10t"), 3).backbone.state_dict()), tmp_path / "backbone.pth")
    config = tiny.config(distil=False)
    config.student.weights = str(tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="it holds another backbone than this detector's"):
        start(config)


@pytest.mark.parametrize("classes", [CLASSES[:2], (*CLASSES[:2], "other"), CLASSES[::-1]])
def test_a_start_that_knows_other_classes_lends_all_but_what_predicts_them(classes, tiny, tmp_path):
    write_detector(tmp_path / "other.pth", seed=4, classes=classes)
    config, said = tiny.config(distil=False), []
    config.student.weights = str(tmp_path / "other.pth")
    theirs = read_checkpoint(tmp_path / "other.pth").state_dict
    ours = start(config, said=said).student.student.state_dict()
    lent = {
        name for name, value in theirs.items() if value.shape == ours[name].shape and torch.equal(value, ours[name])
    }
    bias = "bbox_head.retina_cls.bias"  # starts alike everywhere
    assert theirs.keys() - lent - {bias} == {"bbox_head.retina_cls.weight"}
    assert "knows other classes than the data" in said[0]
    assert "2 missing (bbox_head.retina_cls.weight, bbox_head.retina_cls.bias)" in said[1]


def test_what_no_level_reads_does_not_train(tiny):
    """RetinaNet reads three stages of HRNet; what only the first one depends on would never get a gradient."""
    config, said = tiny.config(distil=False), []
    config.student.backbone = "hrnet_w18_small"
    student = start(config, said=said).student.student.train()
    assert said[0].startswith("21 tensors of the student's backbone reach no pyramid level and do not train: stage4.")
    sum(level.sum() for level in student.pyramid(torch.randn(2, 3, 64, 64)).maps).backward()
    for name, parameter in student.backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("name", ["rois_per_image", "proposals_per_level"])
def test_how_many_regions_train_is_for_a_second_stage_alone(name, tiny):
    config = tiny.config(distil=False)
    setattr(config.student, name, 64)
    with pytest.raises(UserError, match=f"{name} does not apply to retinanet, which has no second stage"):
        start(config)
    config.student.detector = "faster_rcnn"
    assert getattr(start(config).student.student, name) == 64


@pytest.mark.parametrize("weights", ["random", "timm:test_resnet", "no such file.pth"])
def test_a_teacher_without_a_checkpoint_is_refused(weights, tiny):
    config = tiny.config()
    config.teacher = replace(config.teacher, weights=weights)
    with pytest.raises(UserError, match=r"needs the checkpoint of a trained detector|--teacher\.weights"):
        start(config)


@pytest.mark.parametrize("named", [True, False])
def test_a_teacher_of_other_classes_teaches_by_its_maps(named, tiny, tmp_path):
    classes = tuple(f"thing {i}" for i in range(7))
    write_detector(tmp_path / "other.pth", seed=4, classes=classes)
    if not named:
        content = torch.load(tmp_path / "other.pth", weights_only=True)
        torch.save(content["state_dict"], tmp_path / "other.pth")
    config, said = tiny.config(), []
    config.teacher.weights = str(tmp_path / "other.pth")
    config.inherit = False
    models = start(config, said=said)
    assert models.teacher.detector.num_classes == 7
    assert models.student.student.num_classes == len(CLASSES)
    assert "the teacher knows other classes than the data (7); only its maps are used" in said
    config.inherit = True
    with pytest.raises(UserError, match="--no-inherit"):
        start(config)


def test_inheriting_alone_runs_no_teacher(tiny):
    config, said = tiny.config(), []
    config.mgd.weight = 0.0
    models = start(config, said=said)
    assert models.teacher is None and not models.student.distill_losses
    assert "the student only inherits, so the teacher is not run" in said


def test_methods_add_up(tiny):
    config = tiny.config()
    config.pkd.weight, config.fgd.weight = 6.0, 1.0
    names = start(config).student.distill_losses.keys()
    assert names == {
        *(f"loss_mgd_fpn_{i}" for i in range(5)),
        *(f"loss_pkd_fpn_{i}" for i in range(4)),
        *(f"loss_fgd_fpn_{i}" for i in range(5)),
    }
