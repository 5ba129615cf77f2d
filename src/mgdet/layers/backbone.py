"""Backbones from timm, whose ResNets and ResNeXts carry the names and the arithmetic of the original's."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from textwrap import shorten
from typing import Any, Literal

import timm
import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from mgdet.errors import UserError
from mgdet.layers.dcn import deform_stages

STRIDES = [4, 8, 16, 32]
TILE = (32, 32)
PROBES = ((64, 96), (96, 160))
"""Image sizes (H, W) that every backbone is tried at: not square, and odd in the last stage, where windows must pad."""
LONG_PROBES = ((32, 1344), (1344, 32))
"""As long as a detector's images are, for what may have a table of positions that ends before."""
SIZELESS = (nn.Conv2d, nn.GroupNorm, nn.modules.batchnorm._NormBase)
ANY_SIZE: dict[str, Any] = {"strict_img_size": False, "always_partition": True}
"""Timm's window transformers then take images of any size, with the windows and shifts of large ones."""
ADVICE = "try resnet50 or convnext_tiny"


class Fitted(nn.Module):
    """A timm network that takes every multiple of 32 and gives (B, C, H, W), under the names that timm gives.

    It shares the network's tables of modules and parameters, because a module around them would prefix every name.
    """

    def __init__(self, network: Any, tile: tuple[int, int], channels_last: list[bool]):
        """Takes over a network.

        Args:
            network: images to four maps, as timm makes it.
            tile: (H, W) in pixels; images are padded with zeros to multiples of it, and the maps are cropped again.
            channels_last: for each map, is it (B, H, W, C)?
        """
        super().__init__()
        self.network: Any
        self._modules, self._parameters, self._buffers = network._modules, network._parameters, network._buffers
        self.__dict__["network"] = network
        self.feature_info = network.feature_info
        self.tile, self.channels_last = tile, channels_last

    def train(self, mode: bool = True) -> Fitted:
        """Sets the training flag, also that of the network itself, which is nobody's child."""
        self.network.training = mode
        super().train(mode)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to four maps (B, C_l, H / stride, W / stride)."""
        height, width = images.shape[-2:]
        padding = (0, -width % self.tile[1], 0, -height % self.tile[0])
        maps = self.network(nn.functional.pad(images, padding) if any(padding) else images)
        return [
            (x.permute(0, 3, 1, 2) if last else x)[..., : height // stride, : width // stride].contiguous()
            for x, last, stride in zip(maps, self.channels_last, STRIDES)
        ]


def build_backbone(
    name: str,
    *,
    frozen_stages: int,
    deformable: bool = False,
    style: Literal["pytorch", "caffe"] = "pytorch",
    pretrained: bool = False,
) -> nn.Module:
    """A backbone with four feature stages.

    Its forward takes images (B, 3, H, W) and returns four maps (B, C_l, H / stride, W / stride) of strides 4, 8, 16,
    32, for all H and W that are multiples of 32; `backbone.feature_info.channels()` are their widths.

    Args:
        name: any timm model whose last four stages have strides 4, 8, 16 and 32, and that takes images of any size.
        frozen_stages: how many stages, counted with the stem, get no gradient.
        deformable: deformable 3x3 convolutions in stages 2 to 4 (c3 to c5) of a ResNet with bottlenecks.
        style: where a ResNet's bottlenecks have their stride: `pytorch`, in the 3x3 convolution, or `caffe`, in the
            first 1x1, as in the networks that came with the ResNet paper (arXiv 1512.03385).
        pretrained: timm's weights of that name, downloaded once, instead of random ones.

    Raises:
        UserError: timm does not know the name, the model has no such four stages, or no bottlenecks for what needs
            them.
    """
    if not timm.is_model(name):
        base = name.split(".", maxsplit=1)[0]
        close = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise UserError(f"timm has no backbone '{name}'; {hint}")
    network = features_of(name, pretrained)
    strides = network.feature_info.reduction()
    if strides != STRIDES:
        raise UserError(f"timm's '{name}' has stages of strides {strides}, not {STRIDES}; {ADVICE}")
    backbone = _fit(network, name)
    if style == "caffe":
        stride_first(backbone, name)
    if deformable:
        deform_stages(backbone, name)
    freeze_stages(backbone, frozen_stages)
    return backbone


def stride_first(backbone: nn.Module, name: str) -> None:
    """Moves the stride of every bottleneck of a timm ResNet from the 3x3 to the first 1x1 convolution, in place.

    Raises:
        UserError: the backbone is no ResNet or ResNeXt with bottlenecks.
    """
    first: list[Any] = [next(iter(getattr(backbone, stage, [])), None) for stage in ("layer2", "layer3", "layer4")]
    # Where a blur follows the 3x3 convolution, that has no stride to give.
    if not all(isinstance(block, Bottleneck) and block.conv2.stride == (2, 2) for block in first):
        raise UserError(f"style caffe needs a ResNet or ResNeXt with bottlenecks, not '{name}'; try resnet50")
    for block in first:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def freeze_stages(backbone: nn.Module, num_stages: int) -> None:
    """Freezes every parameter that the output of the first `num_stages` stages depends on."""
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


def features_of(name: str, pretrained: bool = False) -> Any:
    """Timm's model as an extractor of features; where it fixes the size of its images, without that if it can.

    Raises:
        UserError: it has no four feature stages.
    """
    settings = timm.get_pretrained_cfg(name)
    fixed = settings is not None and settings.fixed_input_size
    attempts: list[dict[str, Any]] = [ANY_SIZE, {}] if fixed else [{}]
    for options in attempts:
        try:
            return timm.create_model(
                name, features_only=True, out_indices=(-4, -3, -2, -1), pretrained=pretrained, **options
            )
        except (RuntimeError, AssertionError, IndexError, AttributeError, TypeError, ValueError, KeyError) as error:
            reason = error
    raise UserError(f"timm's '{name}' cannot give four feature stages; {ADVICE}") from reason


def _fit(network: Any, name: str) -> nn.Module:
    """The network itself where its maps are as promised, else `Fitted`, which makes them so.

    What attends within windows of a fixed number for each side takes multiples of its own image size, if not of 32.

    Raises:
        UserError: the network takes no such images, or gives maps of other shapes.
    """
    height, width = native = tuple(network.pretrained_cfg.get("input_size", (3, 224, 224))[1:])
    sizeless = all(isinstance(module, SIZELESS) for module in network.modules() if _holds_parameters(module))
    layout, reason = _layout(network, PROBES if sizeless else PROBES + LONG_PROBES)
    if layout is not None:
        return Fitted(network, TILE, layout) if any(layout) else network
    layout, _ = _layout(network, ((height, 2 * width), (2 * height, width))) if _tiles(native) else (None, "")
    if layout is not None:
        return Fitted(network, native, layout)
    if _layout(network, (native,))[0] is not None:
        raise UserError(
            f"timm's '{name}' is made for images of {height} x {width} pixels and fails at others, but a detector "
            f"needs every multiple of 32; {ADVICE}"
        )
    raise UserError(f"timm's '{name}' cannot give maps of strides {STRIDES} for every image size ({reason}); {ADVICE}")


def _holds_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _tiles(size: tuple[int, int]) -> bool:
    return all(side % tile == 0 for side, tile in zip(size, TILE))


def _layout(network: nn.Module, sizes: Sequence[tuple[int, int]]) -> tuple[list[bool] | None, str]:
    """Tries a network at image sizes (H, W).

    Returns:
        Which of the maps are (B, H, W, C); None where the network fails or gives maps of other shapes, and why.
    """
    training = network.training
    network.eval()
    try:
        layouts = [_layout_at(network, size) for size in sizes]
    except Exception as error:  # whatever a network of others raises at a size that it does not take
        return None, shorten(str(error).partition("\n")[0], 100, placeholder=" ...") or type(error).__name__
    finally:
        network.train(training)
    return layouts[0], ""


@torch.no_grad()
def _layout_at(network: Any, size: tuple[int, int]) -> list[bool]:
    maps = network(torch.zeros(1, 3, *size, device=next(network.parameters()).device))
    layout = []
    for x, channels, stride in zip(maps, network.feature_info.channels(), STRIDES, strict=True):
        height, width = size[0] // stride, size[1] // stride
        if x.shape not in ((1, channels, height, width), (1, height, width, channels)):
            raise ValueError(f"stride {stride} of an image of {size[0]} x {size[1]} has the shape {tuple(x.shape)}")
        layout.append(x.shape != (1, channels, height, width))
    return layout
