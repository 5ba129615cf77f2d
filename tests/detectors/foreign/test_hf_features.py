"""Backbones of Hugging Face as teachers: each map is in its place, and nothing else is asked of them."""

from __future__ import annotations

import json

import pytest
import torch
from hf_tiny import shake
from transformers import CONFIG_MAPPING, AutoBackbone, AutoModel, BitImageProcessor

from mgdet.detectors.foreign.hf_features import BACKBONES, WHOLE
from mgdet.detectors.foreign.huggingface import build, rebuild
from mgdet.errors import UserError

STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
WINDOWS = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}
SMALL = {
    "bit": {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1], "num_groups": 4},
    "convnext": STAGES,
    "convnextv2": STAGES,
    "dinov3_convnext": STAGES,
    "focalnet": {"embed_dim": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
    "hgnet_v2": {
        "embedding_size": 8,
        "stem_channels": [3, 4, 8],
        "stage_in_channels": [8, 16, 16, 24],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [16, 16, 24, 32],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [1, 1, 1, 1],
    },
    "hiera": WINDOWS,
    "pvt_v2": {"hidden_sizes": [8, 16, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]},
    "resnet": STAGES | {"embedding_size": 8},
    "rt_detr_resnet": STAGES | {"embedding_size": 8, "layer_type": "basic"},
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "dinov2": PLAIN,
    "dinov2_with_registers": PLAIN | {"patch_size": 14},
    "dinov3_vit": PLAIN | {"intermediate_size": 32},
    "vitdet": PLAIN | {"image_size": 64, "pretrain_image_size": 64},
    "siglip_vision_model": PLAIN | {"image_size": 64, "intermediate_size": 32},
}
"""A small config of every backbone."""


def silent(line):
    """Takes a note and does nothing with it."""


def teacher_of(tmp_path, kind):
    config = CONFIG_MAPPING[kind](**SMALL[kind])
    torch.manual_seed(0)
    library = (AutoModel if kind == "siglip_vision_model" else AutoBackbone).from_config(config)
    shake(library)
    library.save_pretrained(tmp_path / "saved")
    BitImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.25, 0.2, 0.1]).save_pretrained(tmp_path / "saved")
    return build(str(tmp_path / "saved"), classes=["cat"], weights="pretrained", say=silent)


def test_every_backbone_is_tried():
    assert {*SMALL, *WHOLE} == set(BACKBONES)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_each_map_is_in_its_place(tmp_path, kind):
    teacher = teacher_of(tmp_path, kind)
    assert not teacher.trains
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    height, width = teacher.native_size or (4 * teacher.multiple, 6 * teacher.multiple)
    images = torch.zeros(2, 3, height, width)
    step = round(teacher.levels[0].stride)
    images[1, :, -step:, -2 * step : -step] = 3
    taps = teacher.see(images, [(height, width)] * 2).taps
    for tap, level in zip(taps, teacher.levels):
        assert tap.shape == (2, level.channels, height / level.stride, width / level.stride)
    change = (taps[0][1] - taps[0][0]).abs().sum(0)
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert row >= change.shape[0] * 3 // 4 - 1
    assert column >= change.shape[1] * 3 // 4 - 1
    assert teacher.pixels.mean == pytest.approx((127.5, 102.0, 76.5))
    assert teacher.pixels.std == pytest.approx((63.75, 51.0, 25.5))


def test_a_rebuilt_backbone_is_the_same(tmp_path):
    teacher = teacher_of(tmp_path, "dinov2")
    again = rebuild(json.loads(json.dumps(teacher.description())), [])
    again.backbone.load_state_dict(teacher.weights())
    images = torch.randn(1, 3, 56, 28)
    (ours,), (theirs,) = teacher.see(images, [(56, 28)]).taps, again.see(images, [(56, 28)]).taps
    assert torch.equal(ours, theirs)
    assert again.pixels == teacher.pixels


def test_a_backbone_is_no_student(tmp_path):
    teacher = teacher_of(tmp_path, "dinov2")
    for ask in (
        lambda: teacher.learn(torch.zeros(1, 3, 56, 56), []),
        lambda: teacher.find(torch.zeros(1, 3, 56, 56), [(56, 56)]),
        lambda: teacher.export(tmp_path / "out"),
    ):
        with pytest.raises(UserError, match="is a backbone: it can teach, and nothing else"):
            ask()


def test_the_vision_half_of_siglip(tmp_path):
    small = {key: value for key, value in SMALL["siglip_vision_model"].items() if key != "image_size"}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = CONFIG_MAPPING["siglip"](vision_config=small | {"image_size": 64}, text_config=text | {"vocab_size": 50})
    library = AutoModel.from_config(config)
    library.save_pretrained(tmp_path / "saved")
    said = []
    teacher = build(str(tmp_path / "saved"), classes=None, weights="pretrained", say=said.append)
    expected = library.vision_model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in teacher.weights().items())
    assert teacher.see(torch.zeros(1, 3, 64, 96), [(64, 96)]).taps[0].shape == (1, 32, 4, 6)
    assert said == [
        f"hf:{tmp_path / 'saved'} came without preprocessor_config.json, so its pixels are taken as ImageNet's"
    ]
