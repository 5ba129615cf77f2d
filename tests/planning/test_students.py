"""Names of students: backbones, detectors, both, and other libraries' detectors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mgdet.config import ModelConfig
from mgdet.errors import UserError
from mgdet.planning.students import choose_student, settled
from mgdet.structures import IMAGENET

RETINANET = ModelConfig(detector="retinanet", backbone="resnext101_64x4d", channels=128, deformable=True, weights="x")
MASK = ModelConfig(
    detector="cascade_mask_rcnn", backbone="resnet50", rois_per_image=64, proposals_per_level=500, weights="x"
)
FOREIGN = ModelConfig(detector="hf:PekingU/rtdetr_v2_r50vd", weights="pretrained")


def chosen(name: str, teacher: ModelConfig = RETINANET, *, masks: bool = True) -> tuple[str, str, str]:
    model = choose_student(name, teacher, masks=masks).model
    return model.detector, model.backbone, model.weights


@pytest.mark.parametrize(
    "name, expected",
    [
        ("", ("retinanet", "resnet18", "timm:resnet18.tv_in1k")),
        ("resnet50", ("retinanet", "resnet50", "timm:resnet50.tv_in1k")),
        ("resnet50.a1_in1k", ("retinanet", "resnet50", "timm:resnet50.a1_in1k")),
        ("mobilenetv3_large_100", ("retinanet", "mobilenetv3_large_100", "timm:mobilenetv3_large_100.ra_in1k")),
        ("convnext_tiny", ("retinanet", "convnext_tiny", "timm:convnext_tiny.in12k_ft_in1k")),
        ("faster_rcnn", ("faster_rcnn", "resnet18", "timm:resnet18.tv_in1k")),
        ("solo:resnet34", ("solo", "resnet34", "timm:resnet34.tv_in1k")),
        ("torchvision:ssd300_vgg16", ("torchvision:ssd300_vgg16", "", "pretrained")),
        ("libreyolo:yolox-n", ("libreyolo:yolox-n", "", "pretrained")),
        ("hf:PekingU/rtdetr_v2_r18vd", ("hf:PekingU/rtdetr_v2_r18vd", "", "pretrained")),
        ("hf:rt_detr_v2", ("hf:rt_detr_v2", "", "random")),
    ],
)
def test_a_name_is_a_student(name, expected):
    assert chosen(name) == expected


def test_a_backbone_without_weights_starts_at_random():
    assert chosen("botnet50ts_256")[2] == "random"


def test_the_teachers_width_and_regions_are_kept_and_its_deformable_convolutions_are_not():
    model = choose_student("", RETINANET, masks=True).model
    assert (model.channels, model.deformable, model.frozen_stages, model.norm_eval) == (128, False, 1, True)
    model = choose_student("", MASK, masks=True).model
    assert (model.rois_per_image, model.proposals_per_level) == (64, 500)
    assert choose_student("retinanet", MASK, masks=True).model.rois_per_image == 512
    solo = ModelConfig(detector="solo", backbone="resnet50", grids=(20, 18, 12, 8, 6), weights="x")
    assert choose_student("", solo, masks=True).model.grids == solo.grids


@pytest.mark.parametrize(
    "teacher, masks, detector",
    [
        (MASK, True, "cascade_mask_rcnn"),
        (MASK, False, "faster_rcnn"),
        (ModelConfig(detector="solo", backbone="resnet50"), False, "retinanet"),
        (FOREIGN, True, "retinanet"),
        (ModelConfig(detector="libreyolo:yolox-x"), True, "retinanet"),
        (ModelConfig(detector="torchvision:retinanet_resnet50_fpn"), True, "retinanet"),
        (ModelConfig(detector="torchvision:fasterrcnn_resnet50_fpn_v2"), True, "faster_rcnn"),
        (ModelConfig(detector="torchvision:maskrcnn_resnet50_fpn"), True, "mask_rcnn"),
        (ModelConfig(detector="torchvision:maskrcnn_resnet50_fpn"), False, "faster_rcnn"),
        (ModelConfig(detector="timm:vit_small_patch14_dinov2.lvd142m"), True, "retinanet"),
    ],
)
def test_the_nearest_of_our_detectors_is_taken_and_said(teacher, masks, detector):
    student = choose_student("resnet18", teacher, masks=masks)
    assert student.model.detector == detector
    assert student.why


@pytest.mark.parametrize(
    "name, words",
    [
        ("resent50", "no student 'resent50'; did you mean 'resnet50'?"),
        ("yolox-s", "did you mean 'libreyolo:yolox-s'?"),
        ("fasterrcnn", "did you mean 'faster_rcnn'?"),
        ("retinanett:resnet18", "no detector 'retinanett' for the student 'retinanett:resnet18'; did you mean"),
        ("retinanet:resnett18", "timm has no backbone 'resnett18'; did you mean 'resnet18'?"),
        ("resnet50.tv_in2k", "timm has no weights 'tv_in2k' of resnet50; did you mean 'tv_in1k'?"),
        ("timm:resnet18", "only teaches; --student resnet18 is a detector on it"),
        ("torchvision:fcos_resnet50", "did you mean 'fcos_resnet50_fpn'?"),
        ("hf:", "has no name; give one, e.g. hf:PekingU/rtdetr_r50vd"),
        ("?!", "give a timm backbone such as resnet18, one of cascade_mask_rcnn"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, words):
    with pytest.raises(UserError) as error:
        choose_student(name, RETINANET, masks=True)
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["mask_rcnn", "solo:resnet50", "torchvision:maskrcnn_resnet50_fpn"])
def test_a_student_of_masks_needs_masks(name):
    assert choose_student(name, RETINANET, masks=True).model
    with pytest.raises(UserError, match="learns masks, and the data has none for it; give"):
        choose_student(name, RETINANET, masks=False)


def test_everything_trains_from_random_weights_unless_the_user_says_otherwise():
    model = ModelConfig(detector="retinanet", backbone="resnet18", weights="random")
    assert (settled(model, set()).frozen_stages, settled(model, set()).norm_eval) == (0, False)
    assert settled(model, {"student.frozen_stages"}).frozen_stages == 1
    pretrained = ModelConfig(detector="retinanet", backbone="resnet18", weights="timm:resnet18.tv_in1k")
    assert settled(pretrained, set()) == pretrained


def test_weights_bring_their_normalisation():
    usual = ModelConfig(detector="retinanet", backbone="tf_efficientnet_b0", weights="timm:tf_efficientnet_b0.in1k")
    assert settled(usual, set()).mean == IMAGENET.mean
    other = replace(usual, weights="timm:tf_efficientnet_b0.ap_in1k")
    assert (settled(other, set()).mean, settled(other, set()).std) == ((127.5,) * 3, (127.5,) * 3)
    assert settled(other, {"student.mean"}).mean == IMAGENET.mean
