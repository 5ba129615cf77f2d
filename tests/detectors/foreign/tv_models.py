"""What tests of torchvision's detectors share: small models, small images."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torchvision.models import get_model_builder

from mgdet.detectors.foreign.torchvision_detector import TorchvisionDetector

MASK, RETINA, MOBILE = "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"
SSDLITE = "ssdlite320_mobilenet_v3_large"
CLASSES = ("person", "cell", "tv")


def silent(line: str) -> None:
    """What is told to a user who does not listen."""


def reference(name: str, **settings) -> nn.Module:
    """torchvision's own, with scores that pass its thresholds; images of 96 pixels' shorter edge keep their size."""
    torch.manual_seed(3)
    if "rcnn" in name:
        settings |= {"box_batch_size_per_image": 32, "rpn_post_nms_top_n_train": 60, "rpn_post_nms_top_n_test": 40}
    if not name.startswith("ssd"):
        settings |= {"min_size": 96, "max_size": 1000, "_skip_resize": True}
    model = get_model_builder(name)(weights=None, weights_backbone=None, num_classes=4, **settings)
    for entry, value in model.named_parameters():
        if "cls_logits.bias" in entry or entry.endswith("bbox_ctrness.bias"):
            nn.init.normal_(value, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def detector_of(model: nn.Module, name: str, columns=(1, 2, 3)) -> TorchvisionDetector:
    return TorchvisionDetector(
        copy.deepcopy(model), name=name, outputs=4, columns=columns, classes=CLASSES[: len(columns)]
    )


def small_images(detector: TorchvisionDetector, number: int = 2) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    height, width = detector.native_size or (64, 96)
    generator = torch.Generator().manual_seed(9)
    return torch.randn(number, 3, height, width, generator=generator), [(height, width)] * number
