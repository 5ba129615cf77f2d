"""What a student takes over from its teacher."""

from __future__ import annotations

import pytest
import torch

from mgdet import build_detector
from mgdet.methods.inherit import inherit


def build(backbone: str, detector: str = "retinanet", channels: int = 32):
    return build_detector(detector, backbone=backbone, num_classes=3, channels=channels)


def test_everything_outside_the_backbone_is_copied():
    student, teacher = build("resnet10t"), build("resnet18")
    backbone = {key: value.clone() for key, value in student.state_dict().items() if key.startswith("backbone.")}
    inherited = inherit(student, teacher)
    assert len(inherited.copied) == 36 and inherited.kept == inherited.own == []
    theirs, ours = teacher.state_dict(), student.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in inherited.copied)
    assert all(torch.equal(ours[key], value) for key, value in backbone.items())


def test_a_backbone_of_other_widths_keeps_what_reads_it():
    student, teacher = build("test_resnet"), build("resnet18")
    inherited = inherit(student, teacher)
    assert inherited.kept == [
        *(f"neck.lateral_convs.{level}.conv.weight" for level in range(3)),
        "neck.fpn_convs.3.conv.weight",
    ]
    assert len(inherited.copied) == 32


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_a_cascade_gives_its_neck_and_first_stage(name):
    student, teacher = build("test_resnet", name), build("resnet18", "cascade_mask_rcnn")
    before = {key: value.clone() for key, value in student.roi_head.state_dict().items()}
    inherited = inherit(student, teacher)
    assert inherited.own == ["roi_head"]
    assert inherited.kept == [f"neck.lateral_convs.{level}.conv.weight" for level in range(4)]
    theirs, ours = teacher.state_dict(), student.state_dict()
    assert {key.partition(".")[0] for key in inherited.copied} == {"neck", "rpn_head"}
    assert all(torch.equal(ours[key], theirs[key]) for key in inherited.copied)
    assert all(torch.equal(value, before[key]) for key, value in student.roi_head.state_dict().items())


@pytest.mark.parametrize(
    "other, reason",
    [
        ({"channels": 64}, "entries differ"),
        ({"detector": "reppoints"}, "a RetinaNet and a RepPoints share too little of them"),
        ({"detector": "faster_rcnn"}, "share too little of them"),
    ],
)
def test_another_neck_or_head_is_refused_and_nothing_is_copied(other, reason):
    student, teacher = build("resnet10t"), build("resnet10t", **other)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=reason):
        inherit(student, teacher)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
