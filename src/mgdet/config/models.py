"""The section that describes one detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mgdet.sections import Section, require

ROIS_PER_IMAGE = 512
PROPOSALS_PER_LEVEL = 2000
SOLO_LEVELS = 5


@dataclass(kw_only=True, slots=True)
class ModelConfig(Section):
    """One detector: its architecture and the weights it starts from."""

    detector: str
    """One of ours, e.g. retinanet, or SOURCE:NAME of another library: torchvision:NAME, hf:NAME, libreyolo:NAME, and
    timm:NAME for a teacher."""
    backbone: str = ""
    """Any timm backbone with four feature stages, e.g. resnet50 or resnext101_64x4d; only for our detectors."""
    deformable: bool = False
    """Deformable 3x3 convolutions (version 1) in stages c3 to c5 of a ResNet with bottlenecks."""
    style: Literal["pytorch", "caffe"] = "pytorch"
    """Where a ResNet's bottlenecks have their stride: pytorch, in the 3x3 convolution; caffe, in the first 1x1."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """What is subtracted from each channel, of values in 0 to 255, in the order that the backbone takes; ImageNet's."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """What each channel is divided by then. Caffe's backbones take 103.53 116.28 123.675 and 1 1 1, in BGR."""
    bgr: bool = False
    """The backbone takes channels in the order blue, green, red."""
    channels: int = 256
    """Width of the neck and of the heads."""
    frozen_stages: int = 1
    """How many backbone stages, counted with the stem, do not train: 1 is the stem and the first stage."""
    norm_eval: bool = True
    """Keep the backbone's batch norm statistics fixed in training. Turn off only to train from random weights."""
    rois_per_image: int = ROIS_PER_IMAGE
    """Regions of an image that the second stage trains on; only Faster, Mask and Cascade Mask R-CNN have one."""
    proposals_per_level: int = PROPOSALS_PER_LEVEL
    """Boxes of a pyramid level that compete to become such regions in training. Small images need fewer, which saves
    time on a CPU."""
    grids: tuple[int, ...] = ()
    """Cells along each edge of the image at the five levels of a SOLO; empty: 40 36 24 16 12, as published. Images of a
    few hundred pixels need fewer: each cell predicts its own mask, which it learns from objects in its place alone."""
    weights: str = "random"
    """Where training starts: random, timm:NAME for a backbone, a checkpoint file, or its URL. Detectors of other
    libraries also know pretrained, backbone, and the library's own names of weights."""
    canvas: tuple[int, int] = (0, 0)
    """Height and width of the images that a teacher sees, squashed to them; 0 0: those of the student, rounded to what
    the teacher takes."""
    precision: Literal["step", "fp32", "bf16"] = "step"
    """The precision that a teacher runs in. step: that of `train.amp`; fp32 or bf16, whatever that says."""

    def check_values(self) -> None:
        require(
            self.channels > 0 and self.channels % 32 == 0,
            f"channels is {self.channels}; give a multiple of 32",
        )
        require(min(self.std) > 0, f"std is {' '.join(f'{value:g}' for value in self.std)}; give positive numbers")
        require(0 <= self.frozen_stages <= 4, f"frozen_stages is {self.frozen_stages}; give 0 to 4")
        for name in ("rois_per_image", "proposals_per_level"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; give 1 or more")
        require(
            not self.grids or (len(self.grids) == SOLO_LEVELS and min(self.grids) > 0),
            f"grids is {' '.join(map(str, self.grids))}; give {SOLO_LEVELS} numbers of 1 or more, one per level",
        )
        require(
            min(self.canvas) > 0 or self.canvas == (0, 0),
            f"canvas is {self.canvas[0]} {self.canvas[1]}; give a height and a width in pixels, or 0 0",
        )

    @property
    def source(self) -> str:
        """The library that the detector comes from; empty for ours."""
        source, colon, _ = self.detector.partition(":")
        return source if colon else ""
