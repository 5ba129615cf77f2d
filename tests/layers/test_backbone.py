"""Which of timm's networks are backbones: maps by shape, frozen stages, gradients, and sentences for the others."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from mgdet.config import Config
from mgdet.errors import UserError
from mgdet.layers.backbone import STRIDES, Fitted, build_backbone
from mgdet.models import build_models
from mgdet.structures import Target
from tiny import CLASSES, alone

STUDENTS = [
    "convnext_tiny",
    "efficientnet_b0",
    "fastvit_t8",
    "hgnetv2_b0",
    "mobilenetv3_large_100",
    "repvit_m1",
    "swin_tiny_patch4_window7_224",
]
FAMILIES = Path(__file__).with_name("timm_backbones.txt")
SAYS = {
    "works": "works",
    "one-size": "fails at others, a detector",
    "other-stages": "cannot give|has stages of strides",
}


def check_maps(backbone: nn.Module, height: int, width: int) -> None:
    maps = backbone(torch.randn(1, 3, height, width))
    widths = backbone.feature_info.channels()
    expected = [(1, c, height // stride, width // stride) for c, stride in zip(widths, STRIDES, strict=True)]
    assert [tuple(x.shape) for x in maps] == expected
    assert all(x.isfinite().all() for x in maps)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_on_it_trains_two_steps(name):
    config: Config = alone()
    config.student = replace(config.student, backbone=name, frozen_stages=1)
    torch.manual_seed(0)
    student = build_models(config, CLASSES, fresh=True, say=lambda _: None).student.student.train()
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    frozen = {name: p.clone() for name, p in student.named_parameters() if not p.requires_grad}
    assert any(name.startswith("backbone.") for name in trained)
    assert any(name.startswith("backbone.") for name in frozen)
    start = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
    targets = [Target(torch.tensor([[4.0, 4.0, 50.0, 60.0]]), torch.tensor([i]), size=(64, 64)) for i in range(2)]
    for _ in range(2):
        loss = sum(student.losses(student.pyramid(torch.randn(2, 3, 64, 64)).maps, targets).values())
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, p in trained.items() if p.grad is None] == []
        optimizer.step()
    moved = [name for name, p in trained.items() if not torch.equal(p, start[name])]
    assert len(moved) > 0.5 * len(trained)
    assert all(torch.equal(p, frozen[name]) for name, p in student.named_parameters() if name in frozen)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_what_needs_nothing_is_timms_own(name):
    plain = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1))
    assert type(build_backbone(name, frozen_stages=0)) is type(plain)


@pytest.mark.parametrize(("name", "tile"), [("test_mambaout", (32, 32)), ("test_maxvit", (160, 160))])
def test_maps_are_channels_first_at_every_multiple_of_32(name, tile):
    """MambaOut gives (B, H, W, C); MaxViT's windows take multiples of the size that it was made for."""
    torch.manual_seed(0)
    backbone = build_backbone(name, frozen_stages=0)
    assert isinstance(backbone, Fitted)
    assert backbone.tile == tile
    plain = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1))
    assert list(backbone.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(backbone.state_dict())
    images = torch.randn(1, 3, *tile)
    for ours, theirs, channels in zip(backbone.eval()(images), plain.eval()(images), plain.feature_info.channels()):
        assert torch.equal(ours, theirs if theirs.shape[1] == channels else theirs.permute(0, 3, 1, 2))
    for size in ((32, 32), (64, 96), (224, 160)):
        check_maps(backbone, *size)


def test_padding_changes_nothing_but_the_size():
    backbone = build_backbone("test_maxvit", frozen_stages=0).eval()
    images = torch.randn(1, 3, 96, 160)
    padded = nn.functional.pad(images, (0, 0, 0, 64))
    for small, large in zip(backbone(images), backbone(padded)):
        assert torch.equal(small, large[:, :, : small.shape[2]])


def test_a_fitted_backbone_is_a_module_like_any_other():
    backbone = build_backbone("test_mambaout", frozen_stages=1)
    twin = copy.deepcopy(backbone)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter.detach())
    images = torch.randn(1, 3, 64, 64)
    assert not torch.equal(backbone.eval()(images)[3], twin.eval()(images)[3])
    assert not any(module.training for module in (backbone.network, *backbone.modules()))
    assert all(module.training for module in (backbone.train().network, *backbone.modules()))
    assert {p.dtype for p in backbone.double().parameters()} == {torch.float64}
    assert backbone(images.double())[0].dtype == torch.float64
    gradients = [p.requires_grad for p in backbone.parameters()]
    assert 0 < sum(gradients) < len(gradients)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224"])
def test_windows_shift_in_the_last_stage_too(name):
    """At 224 pixels timm's last stage is one window, which does not shift; at a detector's sizes it is many."""
    backbone = build_backbone(name, frozen_stages=0)
    assert backbone.layers_3.blocks[1].shift_size == (3, 3)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (
            "test_coatnet",
            "is made for images of 160 x 160 pixels and fails at others, but a detector needs every multiple of 32",
        ),
        ("efficientvit_m0", "cannot give four feature stages; try resnet50"),
        ("test_vit", r"stages of strides \[16, 16, 16, 16\], not \[4, 8, 16, 32\]; try resnet50"),
        ("resnet5", "timm has no backbone 'resnet5'; did you mean resnet5"),
    ],
)
def test_what_cannot_work_is_a_sentence(name, part):
    with pytest.raises(UserError, match=part):
        build_backbone(name, frozen_stages=1)


@pytest.mark.long
def test_all_families_of_timm_work_or_say_why_not(capsys):
    """Builds nearly a hundred networks; run with -s to see what works."""
    expected = [line.split() for line in FAMILIES.read_text().splitlines() if not line.startswith("#")]
    lines, wrong = [], []
    for outcome, name in expected:
        try:
            backbone = build_backbone(name, frozen_stages=1)
            for size in ((64, 64), (160, 352)):
                check_maps(backbone.eval(), *size)
            sum(x.sum() for x in backbone.train()(torch.randn(2, 3, 64, 96))).backward()
            gradients = [p.grad is not None for p in backbone.parameters() if p.requires_grad]
            said = (
                "works" if 0 < sum(gradients) == len(gradients) < len(list(backbone.parameters())) else "no gradients"
            )
        except UserError as error:
            said = str(error)
        lines.append(f"{name:<32}{said}")
        if not re.search(SAYS[outcome], said):
            wrong.append(lines[-1])
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert len(lines) >= 90
    assert wrong == []
