"""What every detector promises.

Letters in shapes: B images, L pyramid levels, level l of H_l x W_l cells with C channels, N objects in one image.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from mgdet.detectors.face import Face, Learned
from mgdet.layers.norms import enough_values, fix_norms
from mgdet.structures import Detections, Pyramid, Seen, Target


class Detector(Face):
    """A detector as three plain functions: images to pyramid, pyramid to losses, pyramid to detections.

    No method changes what it returns with the training flag; `train()` only decides what the norm layers do, and with
    `norm_eval` the backbone's batch norms keep their statistics permanently. A subclass adds the neck and its head, and
    sets the attributes below.

    neck: stages to a `Pyramid`.
    num_taps: levels that can be distilled.
    class_predictors: prefixes of the state-dict entries whose shape depends on the number of classes.
    has_masks: does it learn and find masks?
    rois_per_image: regions of an image that train the second stage at most; 0 where there is none.
    proposals_per_level: boxes of a pyramid level that enter the suppression of proposals in training at most.
    grids: cells along each edge of the image that predict one mask each, for each level; empty where there are none.

    Args:
        backbone: images (B, 3, H, W) to four maps of strides 4 to 32, as `build_backbone` makes it;
            `feature_info.channels()` are their widths.
        num_classes: classes without background.
        channels: width of the levels that can be distilled, `tap_channels`.
        norm_eval: do the backbone's batch norms keep their statistics also in training?
    """

    neck: Any
    num_taps: int
    class_predictors: tuple[str, ...]
    has_masks: bool = False
    rois_per_image: int = 0
    proposals_per_level: int = 0
    grids: tuple[int, ...] = ()

    def __init__(self, backbone: nn.Module, *, num_classes: int, channels: int, norm_eval: bool):
        super().__init__()
        self.backbone: Any = backbone
        self.num_classes, self.tap_channels, self.norm_eval = num_classes, channels, norm_eval
        self.train()  # so that `norm_eval` holds from the start, also for who never calls `train()`

    def train(self, mode: bool = True) -> Detector:
        """Sets the training flag everywhere but on the backbone's batch norms: with `norm_eval` all of them keep their
        statistics, else those of frozen stages."""
        super().train(mode)
        fix_norms(self.backbone, all_of_them=self.norm_eval)
        return self

    def see(self, images: Tensor, sizes: list[tuple[int, int]], *, outputs: bool = False) -> Seen:
        """See `Face.see`."""
        maps, taps = self.pyramid(images)
        return Seen(taps, maps, self.head(maps) if outputs else None)

    def learn(self, images: Tensor, targets: list[Target], *, outputs: bool = False) -> Learned:
        """See `Face.learn`.

        Raises:
            UserError: a batch norm sees one value per channel.
        """
        with enough_values(type(self).__name__, images):
            maps, taps = self.pyramid(images)
        raw = self.head(maps)
        return Learned(self.losses(maps, targets, raw), Seen(taps, maps, raw if outputs else None))

    def find(
        self, images: Tensor, sizes: list[tuple[int, int]], scales: list[tuple[float, float]] | None = None
    ) -> list[Detections]:
        """See `Face.find`; under autocast the heads still compute in float32."""
        maps = self.pyramid(images).maps
        with torch.autocast(images.device.type, enabled=False):
            return self.detect([level.float() for level in maps], sizes, scales)

    def pyramid(self, images: Tensor) -> Pyramid:
        """Runs backbone and neck.

        Args:
            images: (B, 3, H, W) float, normalised with `pixels`; H and W multiples of 32.
        """
        pyramid: Pyramid = self.neck(self.backbone(images))
        return pyramid

    @abstractmethod
    def head(self, maps: list[Tensor]) -> Any:
        """The raw predictions of the first head that reads the pyramid, in the form that this detector gives them.

        Args:
            maps: L tensors (B, C, H_l, W_l), `Pyramid.maps`.
        """

    @abstractmethod
    def loss_parts(self, maps: list[Tensor], targets: list[Target], outputs: Any = None) -> dict[str, Tensor]:
        """Like `losses`, but a value may be (L,): one part per pyramid level."""

    def losses(self, maps: list[Tensor], targets: list[Target], outputs: Any = None) -> dict[str, Tensor]:
        """The detector's own training losses.

        Args:
            maps: L tensors (B, C, H_l, W_l), `Pyramid.maps`.
            targets: B targets, boxes xyxy in pixels of the batch images.
            outputs: what `head(maps)` returned, where it has run already.

        Returns:
            Scalars, already weighted, named as in the original.
        """
        return {name: value.sum() for name, value in self.loss_parts(maps, targets, outputs).items()}

    @abstractmethod
    def detect(
        self,
        maps: list[Tensor],
        sizes: list[tuple[int, int]],
        scales: list[tuple[float, float]] | None = None,
    ) -> list[Detections]:
        """Finds objects.

        Args:
            maps: L tensors (B, C, H_l, W_l), `Pyramid.maps`.
            sizes: (h, w) of each image without its padding, in pixels of the batch images.
            scales: (x, y) resize factor of each image. Without it detections are in pixels of the batch images,
                with it in pixels of the image files; the boxes are scaled before NMS, as in the original.

        Returns:
            One `Detections` per image.
        """
