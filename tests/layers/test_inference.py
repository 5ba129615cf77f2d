"""The form for inference: the same numbers within rounding, fewer modules, and an original that nobody touched."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import recorded
from mgdet import build_detector
from mgdet.layers.inference import fold_batch_norms, inference_form


def detector_with(backbone: str, *, deformable: bool = False):
    detector = build_detector("retinanet", backbone=backbone, num_classes=3, channels=32, deformable=deformable)
    recorded.fill(detector)
    return detector.train()


def norms(module: nn.Module) -> int:
    return sum(isinstance(child, _BatchNorm) for child in module.modules())


@pytest.mark.parametrize("backbone", ["resnet26", "test_resnet", "test_efficientnet"])
def test_it_computes_the_same_without_batch_norms(backbone):
    detector = detector_with(backbone)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    form = inference_form(detector)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, maps = detector.eval().pyramid(images).maps, form.pyramid(images).maps
    for own, other in zip(maps, expected):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-4 * other.std().item())
    assert norms(detector) > 0
    assert norms(form) == 0
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_it_trains_nothing_and_leaves_the_original_able_to():
    detector = detector_with("test_resnet")
    form = inference_form(detector)
    assert not any(p.requires_grad for p in form.parameters())
    assert any(p.requires_grad for p in detector.parameters())
    assert not any(module.training for module in form.modules())
    assert detector.training
    kernels = [p for p in form.parameters() if p.dim() == 4]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_it_shares_what_it_does_not_change():
    detector = detector_with("test_resnet").to(memory_format=torch.channels_last)
    form = inference_form(detector)
    assert form.neck.fpn_convs[0].conv.weight.data_ptr() == detector.neck.fpn_convs[0].conv.weight.data_ptr()
    assert form.backbone.conv1[0].weight.data_ptr() != detector.backbone.conv1[0].weight.data_ptr()


@pytest.mark.parametrize("backbone", ["resnet26", "resnext50_32x4d"])
def test_deformable_convolutions_keep_their_norms(backbone):
    detector = detector_with(backbone, deformable=True)
    form, images = inference_form(detector), torch.randn(1, 3, 64, 64)
    assert norms(form) == sum(hasattr(module, "conv_offset") for module in detector.modules()) > 0
    with torch.no_grad():
        for own, other in zip(form.pyramid(images).maps, detector.eval().pyramid(images).maps):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-4 * other.std().item())


class Twice(nn.Module):
    """Reads the convolution's output beside the norm, or uses one norm for two convolutions."""

    def __init__(self, *, shared: bool):
        super().__init__()
        self.shared = shared
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.norm(self.second(self.norm(x))) if self.shared else x + self.norm(x)


class Branching(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    "network",
    [
        Twice(shared=False),
        Twice(shared=True),
        Branching(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)),
    ],
    ids=["another reader", "shared norm", "control flow", "something between"],
)
def test_what_cannot_be_folded_stays(network):
    recorded.fill(network)
    images = torch.randn(2, 3, 5, 5)
    expected = network.eval()(images)
    assert fold_batch_norms(network) == 0
    torch.testing.assert_close(network(images), expected, rtol=0, atol=0)


def test_norms_with_an_activation_keep_the_activation():
    network = timm.create_model("test_efficientnet", features_only=True).eval()
    recorded.fill(network)
    images = torch.randn(1, 3, 64, 64)
    expected = network(images)
    assert fold_batch_norms(network) > 0
    for own, other in zip(network(images), expected):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-4 * other.std().item())
