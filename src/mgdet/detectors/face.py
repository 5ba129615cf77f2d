"""The outer face of a detector: all that distillation, training and evaluation know of ours and of other libraries'.

Letters in shapes: B images, L tapped levels, level l of H_l x W_l cells with C channels, N objects in one image.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mgdet.structures import IMAGENET, Detections, Level, Pixels, Seen, Target


class Learned(NamedTuple):
    """One training forward: the losses, scalars that are already weighted, and what the detector showed meanwhile."""

    losses: dict[str, Tensor]
    seen: Seen


class Face(nn.Module):
    """A detector seen from outside. Images come normalised with its own `pixels`, zero in the padding.

    num_classes: classes of the data, without background; labels are 0 .. num_classes - 1 on every side of this face.
    has_masks: does it learn and find masks?
    trains: can it be a student? Backbones of other libraries only teach.
    pixels: the normalisation that it expects.
    native_size: the one (h, w) that it takes, or None for any.
    multiple: what heights and widths of the padded batch must be multiples of.
    backbone_prefixes: what the names of the backbone's parameters start with.
    """

    num_classes: int
    has_masks: bool = False
    trains: bool = True
    pixels: Pixels = IMAGENET
    native_size: tuple[int, int] | None = None
    multiple: int = 32
    backbone_prefixes: tuple[str, ...] = ("backbone.",)

    @property
    def levels(self) -> list[Level]:
        """Stride and width of each tap, measured once on an empty image."""
        if not hasattr(self, "_levels"):
            self._levels = measure_levels(self)
        return self._levels

    @property
    def smallest_side(self) -> int:
        """The smallest square canvas that it takes, in pixels."""
        return self.multiple

    @abstractmethod
    def see(self, images: Tensor, sizes: list[tuple[int, int]], *, outputs: bool = False) -> Seen:
        """What a teacher shows; it runs no further than it must.

        Args:
            images: (B, 3, H, W) float, normalised with `pixels`.
            sizes: (h, w) of each image without its padding, in pixels of the batch images.
            outputs: also run the head and show its raw predictions.
        """

    @abstractmethod
    def learn(self, images: Tensor, targets: list[Target], *, outputs: bool = False) -> Learned:
        """The detector's own training losses and what it shows, from one forward.

        Args:
            images: (B, 3, H, W) float, normalised with `pixels`.
            targets: B targets, boxes xyxy in pixels of the batch images.
            outputs: also show the head's raw predictions.
        """

    @abstractmethod
    def find(
        self, images: Tensor, sizes: list[tuple[int, int]], scales: list[tuple[float, float]] | None = None
    ) -> list[Detections]:
        """Finds objects; arguments as in `see` and `mgdet.detectors.base.Detector.detect`.

        Returns:
            One `Detections` per image: in pixels of the batch images, or with `scales` of the image files.
        """

    def weights(self) -> dict[str, Tensor]:
        """The state dict under the names of the library that the detector comes from."""
        return self.state_dict()


@torch.no_grad()
def measure_levels(face: Face) -> list[Level]:
    """Stride and width of each tap of `face`, from one empty image; its training flags are left as they are."""
    flags = {module: module.training for module in face.modules()}
    face.eval()
    edge = -(-256 // face.multiple) * face.multiple
    height, width = face.native_size or (edge, edge)
    device = next(face.parameters()).device
    taps = face.see(torch.zeros(1, 3, height, width, device=device), [(height, width)]).taps
    for module, training in flags.items():
        module.training = training
    return [Level(height / tap.shape[2], tap.shape[1]) for tap in taps]
