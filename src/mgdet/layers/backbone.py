"""Backbones from timm, whose ResNets and ResNeXts carry the names and the arithmetic of the original's."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from torch import nn

from mgdet.errors import UserError
from mgdet.layers.dcn import deform_stages

STRIDES = [4, 8, 16, 32]


def build_backbone(name: str, *, frozen_stages: int, deformable: bool = False, pretrained: bool = False) -> nn.Module:
    """A backbone with four feature stages.

    Its forward takes images (B, 3, H, W) and returns four maps of strides 4, 8, 16, 32;
    `backbone.feature_info.channels()` are their widths.

    Args:
        name: any timm model whose last four stages have strides 4, 8, 16 and 32.
        frozen_stages: how many stages, counted with the stem, get no gradient.
        deformable: deformable 3x3 convolutions in stages 2 to 4 (c3 to c5) of a ResNet with bottlenecks.
        pretrained: timm's weights of that name, downloaded once, instead of random ones.

    Raises:
        UserError: timm does not know the name, or the model has no such four stages.
    """
    if not timm.is_model(name):
        base = name.split(".", maxsplit=1)[0]
        close = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise UserError(f"timm has no backbone '{name}'; {hint}")
    try:
        backbone: Any = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1), pretrained=pretrained)
        strides = backbone.feature_info.reduction()
    except (RuntimeError, AssertionError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"timm's '{name}' cannot give four feature stages; try resnet50 or convnext_tiny") from error
    if strides != STRIDES:
        raise UserError(
            f"timm's '{name}' has stages of strides {strides}, not {STRIDES}; try resnet50 or convnext_tiny"
        )
    if deformable:
        deform_stages(backbone, name)
    freeze_stages(backbone, frozen_stages)
    return backbone


def freeze_stages(backbone: nn.Module, num_stages: int) -> None:
    """Takes the gradient from every parameter that the output of the first `num_stages` stages depends on."""
    if num_stages == 0:
        return
    training = backbone.training
    backbone.eval()
    parameters = list(backbone.parameters())
    with torch.enable_grad():
        features = backbone(torch.zeros(1, 3, 64, 64, device=parameters[0].device))
        gradients = torch.autograd.grad(features[num_stages - 1].sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients):
        parameter.requires_grad_(gradient is None)
    backbone.train(training)
