"""ResNets in caffe style against a network that is written down here, and pixels in the order B, G, R."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

import recorded
from mgdet import build_detector
from mgdet.data.batch import collate
from mgdet.data.transforms import View, make_example
from mgdet.detectors.build import DETECTORS
from mgdet.errors import UserError
from mgdet.layers.backbone import build_backbone
from mgdet.layers.inference import inference_form
from mgdet.structures import Pixels

CAFFE = Pixels((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), bgr=True)
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnext50_32x4d": (3, 4, 6, 3)}


def caffe_resnet(state: dict[str, Tensor], x: Tensor, blocks: tuple[int, ...], groups: int = 1) -> list[Tensor]:
    """Four maps of a ResNet whose stages begin with a strided 1x1 convolution, from its weights alone."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def spatial(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        if f"{name}.conv_offset.weight" not in state:
            return F.conv2d(x, weight, padding=1, groups=groups)
        offsets = F.conv2d(x, state[f"{name}.conv_offset.weight"], state[f"{name}.conv_offset.bias"], padding=1)
        return deform_conv2d(x, offsets, weight, padding=1)

    x = norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage, number in enumerate(blocks, 1):
        for i in range(number):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = norm(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride), f"{name}.bn1").relu()
            y = norm(spatial(y, f"{name}.conv2"), f"{name}.bn2").relu()
            y = norm(F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if i == 0:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
            x = (x + y).relu()
        maps.append(x)
    return maps


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize(
    ("name", "groups", "deformable"), [("resnet50", 1, False), ("resnext50_32x4d", 32, False), ("resnet50", 1, True)]
)
def test_maps_are_those_of_a_caffe_resnet_written_by_hand(name, groups, deformable):
    backbone = build_backbone(name, frozen_stages=1, deformable=deformable, style="caffe").eval()
    recorded.fill(backbone, "backbone.")
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = backbone(images)
        expected = caffe_resnet(backbone.state_dict(), images, BLOCKS[name], groups)
        other = build_backbone(name, frozen_stages=1, deformable=deformable).eval()
        other.load_state_dict(backbone.state_dict())
        plain = other(images)
    assert all(close(one, two) for one, two in zip(found, expected, strict=True))
    assert [tuple(one.shape) for one in plain] == [tuple(one.shape) for one in found]
    assert close(found[0], plain[0]) and not any(close(one, two) for one, two in zip(found[1:], plain[1:]))


def test_a_caffe_checkpoint_of_mmdetection_gives_the_right_maps_from_a_picture():
    """As `open-mmlab://detectron2/resnet50_caffe` is read: B, G, R as OpenCV gives them, less the mean, unscaled."""
    detector = build_detector("retinanet", backbone="resnet50", num_classes=3, style="caffe", pixels=CAFFE).eval()
    recorded.fill(detector)
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    batch = collate([make_example(image, View(0, 90, 60, False), file="a.png")])
    expected = torch.zeros(1, 3, 64, 96)
    expected[0, :, :60, :90] = torch.from_numpy((image - np.array(CAFFE.mean)).transpose(2, 0, 1))
    images = batch.images(detector.pixels)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
    weights = {name.removeprefix("backbone."): value for name, value in detector.state_dict().items()}
    with torch.no_grad():
        maps = detector.pyramid(images).maps
        by_hand = detector.neck(caffe_resnet(weights, expected, BLOCKS["resnet50"])).maps
        folded = inference_form(detector).pyramid(images).maps
    assert all(close(one, two) and close(three, two) for one, two, three in zip(maps, by_hand, folded, strict=True))


@pytest.mark.parametrize("name", list(DETECTORS))
def test_every_detector_takes_either_style_under_the_same_names(name):
    with torch.device("meta"):
        one, two = (
            build_detector(name, backbone="resnet50", num_classes=3, channels=32, frozen_stages=0, **options)
            for options in ({}, {"style": "caffe", "pixels": CAFFE})
        )
    assert {n: v.shape for n, v in one.state_dict().items()} == {n: v.shape for n, v in two.state_dict().items()}
    strides = [block.conv1.stride for block in (two.backbone.layer1[0], two.backbone.layer2[0], two.backbone.layer2[1])]
    assert strides == [(1, 1), (2, 2), (1, 1)]
    assert (one.pixels.bgr, two.pixels) == (False, CAFFE)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "resnetblur50"])
def test_style_needs_bottlenecks_with_a_stride_to_move(name):
    with pytest.raises(UserError, match=rf"style caffe needs a ResNet .* not '{name}'; try resnet50"):
        build_backbone(name, frozen_stages=0, style="caffe")
