"""The smallest config of every Hugging Face detector that still has all its parts, and weights that break ties."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

RESNET = {
    "model_type": "rt_detr_resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
PLAIN_RESNET = RESNET | {"model_type": "resnet", "out_features": ["stage4"]}
HGNET = {
    "model_type": "hgnet_v2",
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 24, 32],
    "stem_channels": [3, 4, 8],
    "stage_in_channels": [8, 16, 16, 24],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 24, 32],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
RT = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 24, 32],
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "d_model": 32,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 32,
    "decoder_attention_heads": 2,
    "decoder_layers": 2,
    "num_queries": 12,
    "num_denoising": 10,
}
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 12,
    "backbone_config": PLAIN_RESNET,
    "auxiliary_loss": True,
}
DEFORMABLE = DETR | {"backbone_config": PLAIN_RESNET | {"out_features": ["stage2", "stage3", "stage4"]}}
LW = {
    "d_model": 32,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "num_queries": 8,
    "group_detr": 3,
}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}

TINY: dict[str, dict[str, Any]] = {
    "rt_detr": RT | {"backbone_config": RESNET},
    "rt_detr_v2": RT | {"backbone_config": RESNET},
    "d_fine": RT | {"backbone_config": HGNET, "depth_mult": 0.34, "lqe_hidden_dim": 8},
    "deimv2": RT | {"backbone_config": HGNET, "depth_mult": 0.34, "lqe_hidden_dim": 8},
    "deformable_detr": DEFORMABLE,
    "lw_detr": LW
    | {
        "backbone_config": {
            **VIT,
            "model_type": "lw_detr_vit",
            "num_windows": 4,
            "pretrain_image_size": 64,
            "patch_size": 16,
            "window_block_indices": [0],
            "out_indices": [1],
        },
        "projector_scale_factors": [2.0, 0.5],
        "num_feature_levels": 2,
    },
    "rf_detr": LW
    | {
        "backbone_config": {
            **VIT,
            "model_type": "rf_detr_dinov2",
            "num_windows": 2,
            "image_size": 56,
            "patch_size": 8,
            "out_features": ["stage1", "stage2"],
        },
    },
    "detr": DETR,
    "conditional_detr": DETR,
    "dab-detr": {("hidden_size" if key == "d_model" else key): value for key, value in DETR.items()},
    "yolos": VIT | {"intermediate_size": 32, "image_size": [64, 96], "num_detection_tokens": 10},
}


OF_56 = TINY["rf_detr"]["backbone_config"] | {"num_windows": 4, "patch_size": 14}
"""A backbone of RF-DETR that takes multiples of 56, as the published ones."""
DINO = VIT | {"model_type": "dinov3_vit", "intermediate_size": 32, "num_hidden_layers": 3, "patch_size": 16}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rt_detr, one layer of losses": ("rt_detr", {"auxiliary_loss": False}),
    "d_fine, no denoising": ("d_fine", {"num_denoising": 0}),
    "deimv2, DINOv3": (
        "deimv2",
        {
            "backbone_config": DINO | {"out_features": ["stage1", "stage2", "stage3"]},
            "encoder_in_channels": [32, 32, 32],
            "spatial_tuning_adapter_inplanes": 4,
            "encoder_has_trailing_conv": False,
        },
    ),
    "deformable_detr, two stages": (
        "deformable_detr",
        {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 12},
    ),
    "detr, one layer of losses": ("detr", {"auxiliary_loss": False}),
}
"""Settings that change what a detector's losses are made of."""


def tiny_config(model_type: str, names: tuple[str, ...] = ("cat", "dog", "cell"), **changes: Any) -> Any:
    """The tiny config of a model type, its classes `names`."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type](**{**TINY[model_type], **changes})
    config.id2label = dict(enumerate(names))
    config.label2id = {name: place for place, name in config.id2label.items()}
    return config


@torch.no_grad()
def shake(module: nn.Module, seed: int = 0, scale: float = 0.05) -> None:
    """Adds noise to every parameter: fresh models of the library give equal scores, and equal scores have no order."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        more = 10 if "class" in name else 1
        parameter.add_(torch.randn(parameter.shape, generator=generator) * scale * more)
