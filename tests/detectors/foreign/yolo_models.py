"""Models of LibreYOLO whose random weights find something, and batches in the library's own form."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mgdet.detectors.foreign.libreyolo import MODELS, build, rebuild
from mgdet.detectors.foreign.libreyolo_detector import LibreYolo

CLASSES = ("cat", "dog", "owl")
NANO, TINY = "yolox-n", "yolov9-t"
SIZES = [(64, 96), (50, 70)]
CANVAS = (64, 96)
GREY = 114


def silent(line: str) -> None:
    """Nobody listens."""


def lively(model: nn.Module) -> Any:
    """Random statistics and predictors: nothing stays near the prior, and no two scores are equal."""
    torch.manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    for name, value in model.named_parameters():
        if "_preds." in name or name.split(".")[1:2] in (["cv2"], ["cv3"]):
            scale = 0.5 if name.endswith("bias") else 3 * float(value.detach().std())
            if scale:  # a norm's weights are all 1, and stay so
                nn.init.normal_(value, std=scale)
    return model


def detector_of(name: str, classes: tuple[str, ...] = CLASSES) -> LibreYolo:
    torch.manual_seed(3)
    return lively(build(name, classes=classes, weights="random", say=silent))


def library_of(ours: LibreYolo) -> nn.Module:
    """The library's own model with the same weights, made by the library alone."""
    if ours.name.startswith("yolox"):
        from libreyolo.models.yolox.nn import LibreYOLOXModel

        model = LibreYOLOXModel(ours.size, nb_classes=len(ours.names))
    else:
        from libreyolo.models.yolo9.nn import LibreYOLO9Model

        model = LibreYOLO9Model(ours.size, nb_classes=len(ours.names))
    model.load_state_dict(ours.weights(), strict=True)
    return model


def photos() -> torch.Tensor:
    """Two images (2, H, W, 3) of 0 .. 255, R, G, B, with the library's grey in the padding."""
    generator = torch.Generator().manual_seed(5)
    images = torch.full((2, *CANVAS, 3), GREY, dtype=torch.uint8)
    for image, (height, width) in zip(images, SIZES):
        image[:height, :width] = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return images


def ours_of(pixels: torch.Tensor, detector: LibreYolo) -> torch.Tensor:
    """The images as our loader gives them: normalised, and zero in the padding."""
    mean, std = (torch.tensor(values) for values in detector.pixels[:2])
    images = ((pixels.float() - mean) / std).permute(0, 3, 1, 2).contiguous()
    for image, (height, width) in zip(images, SIZES):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images


__all__ = ["CANVAS", "CLASSES", "MODELS", "NANO", "SIZES", "TINY", "rebuild"]
