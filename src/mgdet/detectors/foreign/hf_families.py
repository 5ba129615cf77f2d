"""What is particular to each detector of Hugging Face transformers: where it is tapped, what it reads, how it loses.

One line per model type. Everything else (forward, losses, matching, detections) is the library's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KINDS = {
    "ce": "loss_cls",
    "vfl": "loss_cls",
    "mal": "loss_cls",
    "bbox": "loss_bbox",
    "giou": "loss_giou",
    "fgl": "loss_local",
    "ddf": "loss_local",
}
"""What each loss of the library is about; denoising queries are a kind of their own, `loss_denoising`."""

TERM = re.compile(r"loss_([a-z]+)((?:_aux|_dn|_enc)?)(?:_\d+)?$")

Reader = Callable[[Any, dict[str, Any], "tuple[int, int] | None"], list[Tensor]]
"""From the tapped module's output, its keyword arguments and the height and width of the grid to maps."""
Writer = Callable[[Any, list[Tensor]], Any]
"""From the tapped module's output and the maps that were read of it to an output that is made of these maps."""


@dataclass(frozen=True)
class Family:
    """One model type of the library.

    tap: the module whose output is tapped.
    read: makes maps (B, C, H_l, W_l) of that output.
    write: makes the output of the maps again, with the same values, where `read` rearranges it: so the library's own
        losses have a gradient on the maps. None where the maps are what the library goes on with, and for YOLOS, whose
        heads read other tokens.
    grid: the module whose output has the height and width of the tapped tokens; empty where the output itself shows it.
    backbone: prefixes of the backbone's parameters.
    processor: the library's image processor for this type; it also makes detections of the raw outputs.
    reads_padding: does it read which pixels are padding? Its boxes are then relative to the image, else to the canvas.
    weighted: do its loss terms come multiplied with their coefficients?
    local: has it losses on the distribution of box edges?
    queries: the setting of how many cells become queries; empty where queries are learned. It needs as many cells.
    multiple: what heights and widths must be multiples of.
    """

    tap: str
    read: Reader
    backbone: tuple[str, ...]
    processor: str
    grid: str = ""
    reads_padding: bool = True
    weighted: bool = False
    local: bool = False
    queries: str = ""
    multiple: Callable[[Any], int] = lambda config: 32
    write: Writer | None = None


def _as_maps(output: Any, arguments: dict[str, Any], grid: tuple[int, int] | None) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, list | tuple):
        return list(output)
    maps = output.feature_maps if "feature_maps" in output else output.last_hidden_state
    return list(maps)


def _as_levels(output: Any, arguments: dict[str, Any], grid: tuple[int, int] | None) -> list[Tensor]:
    """Tokens of several levels, one after the other."""
    shapes = [(int(height), int(width)) for height, width in arguments["spatial_shapes_list"]]
    levels = output.last_hidden_state.split([height * width for height, width in shapes], dim=1)
    return [to_map(level, shape) for level, shape in zip(levels, shapes)]


def _as_grid(output: Any, arguments: dict[str, Any], grid: tuple[int, int] | None) -> list[Tensor]:
    """Tokens of one level."""
    assert grid is not None
    return [to_map(output[0], grid)]


def _as_patches(output: Any, arguments: dict[str, Any], grid: tuple[int, int] | None) -> list[Tensor]:
    """A class token, the patches, then tokens of detections."""
    assert grid is not None
    return [to_map(output[:, 1 : 1 + grid[0] * grid[1]], grid)]


def _of_levels(output: Any, maps: list[Tensor]) -> Any:
    """The output that `_as_levels` reads."""
    output.last_hidden_state = torch.cat([to_tokens(level) for level in maps], dim=1)
    return output


def _of_grid(output: Any, maps: list[Tensor]) -> Any:
    """The output that `_as_grid` reads."""
    output.last_hidden_state = to_tokens(maps[0])
    return output


def to_tokens(level: Tensor) -> Tensor:
    """A map (B, C, H, W) as tokens (B, H * W, C)."""
    return level.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    """Tokens (B, H * W, C) as a map (B, C, H, W)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *shape)


def _windows(config: Any) -> int:
    backbone = config.backbone_config
    side = backbone.num_windows_side if hasattr(backbone, "num_windows_side") else backbone.num_windows
    return int(backbone.patch_size) * int(side)


def _rt_detr(*, backbone: tuple[str, ...] = ("model.backbone.",), local: bool = False) -> Family:
    return Family(
        tap="model.encoder",
        read=_as_maps,
        backbone=backbone,
        processor="RTDetrImageProcessor",
        reads_padding=False,
        weighted=True,
        local=local,
        queries="num_queries",
    )


def _lw_detr(processor: str) -> Family:
    return Family(
        tap="model.backbone.projector",
        read=_as_maps,
        backbone=("model.backbone.backbone.",),
        processor=processor,
        queries="num_queries",
        multiple=_windows,
    )


def _detr(processor: str) -> Family:
    return Family(
        tap="model.encoder",
        read=_as_grid,
        write=_of_grid,
        backbone=("model.backbone.",),
        processor=processor,
        grid="model.input_projection",
    )


FAMILIES: dict[str, Family] = {
    "rt_detr": _rt_detr(),
    "rt_detr_v2": _rt_detr(),
    "d_fine": _rt_detr(local=True),
    "deimv2": _rt_detr(local=True, backbone=("model.conv_encoder.model.", "model.conv_encoder.backbone.")),
    "deformable_detr": Family(
        tap="model.encoder",
        read=_as_levels,
        write=_of_levels,
        backbone=("model.backbone.",),
        processor="DeformableDetrImageProcessor",
        queries="two_stage_num_proposals",
    ),
    "lw_detr": _lw_detr("DeformableDetrImageProcessor"),
    "rf_detr": _lw_detr("RfDetrImageProcessor"),
    "detr": _detr("DetrImageProcessor"),
    "conditional_detr": _detr("ConditionalDetrImageProcessor"),
    "dab-detr": _detr("ConditionalDetrImageProcessor"),
    "yolos": Family(
        tap="vit.layernorm",
        read=_as_patches,
        backbone=("vit.",),
        processor="YolosImageProcessor",
        grid="vit.embeddings.patch_embeddings.projection",
        reads_padding=False,
        multiple=lambda config: int(config.patch_size),
    ),
}
"""Every detector of the library that can teach and learn, by its `model_type`."""


def loss_kinds(family: Family, config: Any) -> list[str]:
    """The names of the losses that a detector gives in every step, whatever the batch holds."""
    denoising = config.auxiliary_loss and getattr(config, "num_denoising", 0) > 0
    extra = (["loss_local"] if family.local and config.auxiliary_loss else []) + ["loss_denoising"] * denoising
    return ["loss_cls", "loss_bbox", "loss_giou", *extra]


def group_losses(family: Family, config: Any, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The library's terms of one step (each layer's, the encoder's, the denoising queries') summed by kind.

    What is not a loss (the library counts errors of cardinality too) is left out.

    Returns:
        Weighted scalars, whose sum is the library's total.
    """
    coefficients = {} if family.weighted else _coefficients(config)
    sums: dict[str, Tensor] = {}
    for name, value in terms.items():
        parts = TERM.match(name)
        if parts is None:
            continue
        kind = "loss_denoising" if parts[2] == "_dn" else KINDS[parts[1]]
        weighted = value * coefficients.get(parts[1], 1.0)
        sums[kind] = sums[kind] + weighted if kind in sums else weighted
    return sums


def _coefficients(config: Any) -> dict[str, float]:
    return {
        "ce": getattr(config, "class_loss_coefficient", 1.0),
        "bbox": config.bbox_loss_coefficient,
        "giou": config.giou_loss_coefficient,
    }


def cells_needed(family: Family, config: Any) -> int:
    """How many cells the levels must have together, so that each query finds one; 0 where queries are learned."""
    if not family.queries or (hasattr(config, "two_stage") and not config.two_stage):
        return 0
    return int(getattr(config, family.queries))
