"""Backbones of timm as teachers, held to timm itself."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from mgdet.detectors.foreign.features import MODELS, TimmTeacher, build, rebuild
from mgdet.errors import UserError
from mgdet.structures import Level


def silent(line: str) -> None:
    """What is told to a user who does not listen."""


def teacher_of(name: str, lines: list[str] | None = None) -> TimmTeacher:
    torch.manual_seed(0)
    say = silent if lines is None else lines.append
    return build(name, classes=("a", "b"), weights="random", say=say).eval()


def twin(teacher: TimmTeacher, **settings) -> torch.nn.Module:
    """timm's own model with the same weights; one that only shows features writes stages.0 as stages_0."""
    model = timm.create_model(teacher.name, **settings).eval()
    state = teacher.model.state_dict()
    model.load_state_dict({name: state[re.sub(r"^([a-z]+)_(\d)\.", r"\1.\2.", name)] for name in model.state_dict()})
    return model


@torch.no_grad()
def test_a_plain_transformer_shows_its_last_block_normalised():
    teacher = teacher_of("test_vit")
    images = torch.randn(2, 3, 160, 160)
    (tap,) = teacher.see(images, [(160, 160)] * 2).taps
    tokens = twin(teacher).forward_features(images)[:, teacher.model.num_prefix_tokens :]
    assert torch.equal(tap, tokens.transpose(1, 2).reshape(2, -1, 10, 10))
    assert teacher.levels == [Level(16.0, 64)]
    assert (teacher.multiple, teacher.native_size, teacher.trains) == (16, None, False)
    (wide,) = teacher.see(images[:, :, :96], [(96, 160)] * 2).taps
    assert wide.shape == (2, 64, 6, 10)
    with pytest.raises(UserError, match="timm:test_vit takes images of multiples of 16 pixels, not of 90 x 160"):
        teacher.see(images[:, :, :90], [(90, 160)] * 2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_stages_of_strides_8_to_32_are_timms_own(name):
    teacher = teacher_of(name)
    images = torch.randn(2, 3, 96, 128)
    taps = teacher.see(images, [(96, 128)] * 2).taps
    own = twin(teacher, features_only=True, out_indices=(-3, -2, -1))(images)
    assert all(torch.equal(tap, level) for tap, level in zip(taps, own, strict=True))
    assert [level.stride for level in teacher.levels] == [8, 16, 32]
    assert [level.channels for level in teacher.levels] == [tap.shape[1] for tap in own]


@torch.no_grad()
def test_maps_with_channels_last_are_permuted():
    teacher = teacher_of("test_mambaout")
    images = torch.randn(1, 3, 96, 128)
    taps = teacher.see(images, [(96, 128)]).taps
    own = twin(teacher, features_only=True, out_indices=(1, 2, 3))(images)
    widths = teacher.model.feature_info
    assert [tap.shape[1] for tap in taps] == [stage["num_chs"] for stage in widths][1:]
    for tap, level in zip(taps, own, strict=True):
        assert torch.equal(tap, level if level.shape == tap.shape else level.permute(0, 3, 1, 2))


def test_a_model_of_one_size_says_so():
    teacher = teacher_of("levit_128s")
    assert teacher.native_size == (224, 224)
    assert [level.stride for level in teacher.levels] == [16, 32]
    with pytest.raises(UserError, match="timm:levit_128s takes images of 224 x 224 pixels only, not of 256 x 256"):
        teacher.see(torch.randn(1, 3, 256, 256), [(256, 256)])


def test_pixels_are_timms():
    teacher = teacher_of("test_vit")
    settings = teacher.model.pretrained_cfg
    assert teacher.pixels.mean == pytest.approx([255 * value for value in settings["mean"]])
    assert teacher.pixels.std == pytest.approx([255 * value for value in settings["std"]])


def test_it_only_teaches(tmp_path):
    lines: list[str] = []
    teacher = teacher_of("test_vit", lines)
    assert lines == ["timm:test_vit starts from random weights"]
    images, sizes = torch.randn(1, 3, 160, 160), [(160, 160)]
    for refused in (
        lambda: teacher.learn(images, []),
        lambda: teacher.find(images, sizes),
        lambda: teacher.export(tmp_path / "a.pth"),
    ):
        with pytest.raises(UserError, match="timm:test_vit is a backbone that only teaches; it cannot "):
            refused()
    again = rebuild(teacher.description(), ("a",))
    again.load_state_dict(teacher.state_dict())
    assert torch.equal(again.eval().see(images, sizes).taps[0], teacher.see(images, sizes).taps[0])


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub's, and no network behind it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    return tmp_path


def test_pretrained_weights_come_from_the_hubs_cache(hub):
    torch.manual_seed(7)
    own = timm.create_model("test_vit").eval()
    folder = hub / "models--timm--test_vit.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    file = folder / "snapshots" / "abc" / "model.safetensors"
    save_file(own.state_dict(), file)
    lines: list[str] = []
    teacher = build("test_vit.r160_in1k", classes=None, weights="pretrained", say=lines.append).eval()
    assert lines == [f"timm:test_vit.r160_in1k: all its tensors loaded from {file}"]
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        expected = own.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
        assert torch.equal(teacher.see(images, [(160, 160)]).taps[0], expected)

    by_file = build("test_vit", classes=None, weights=str(file), say=silent)
    assert all(torch.equal(a, b) for a, b in zip(by_file.state_dict().values(), own.state_dict().values()))
    with pytest.raises(UserError, match=r"model\.safetensors does not fit timm:test_resnet"):
        build("test_resnet", classes=None, weights=str(file), say=silent)


def test_without_a_network_one_sentence_names_the_file_to_bring(hub):
    start = time.monotonic()
    with pytest.raises(
        UserError, match=r"timm:test_vit cannot be downloaded .*; bring model\.safetensors of \S+test_vit"
    ):
        build("test_vit", classes=None, weights="pretrained", say=silent)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("vit_small_patch14_dino2", "random", "did you mean vit_small_patch14_dinov2"),
        ("test_vit.nobody", "pretrained", "timm has no weights 'timm:test_vit.nobody'; there are test_vit.r160_in1k"),
        ("test_vit", "no such file", "weights of timm:test_vit are 'no such file'; give pretrained, random, or a file"),
    ],
)
def test_wrong_names_get_the_nearest(name, weights, message):
    with pytest.raises(UserError, match=message):
        build(name, classes=None, weights=weights, say=silent)


ONE_SIZE = ("maxvit", "hiera", "efficientformerv2", "coat", "gcvit", "mvitv2")


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_backbone_teaches(name):
    teacher = teacher_of(name)
    strides = [level.stride for level in teacher.levels]
    patch = 14 if "patch14" in name else 16
    assert strides == ([patch] if teacher.is_plain else [8, 16, 32])
    assert (teacher.native_size is not None) == name.startswith(ONE_SIZE)
    height, width = teacher.native_size or (6 * teacher.multiple, 8 * teacher.multiple)
    with torch.no_grad():
        taps = teacher.see(torch.randn(1, 3, height, width), [(height, width)]).taps
    for tap, level in zip(taps, teacher.levels, strict=True):
        assert tap.shape == (1, level.channels, height / level.stride, width / level.stride)
        assert tap.isfinite().all()
