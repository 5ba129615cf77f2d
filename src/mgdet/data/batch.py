"""Examples become a batch: uint8 pixels side by side, padded, and normalised once they are on the device.

Letters in shapes: B images, H x W the height and width of the padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgdet.data.transforms import SIZE_DIVISOR, Example, padded_size
from mgdet.errors import UserError
from mgdet.structures import IMAGENET, Pixels, Target


@dataclass(slots=True)
class Batch:
    """B images and what is known about them.

    pixels: (B, H, W, 3) uint8, RGB; H and W are multiples of 32, and each image lies in the upper left corner. What
        lies beside it is undefined.
    targets: one per image, in pixels of the batch images; `size` is the image without its padding.
    files: paths of the image files.
    image_ids: ids in the annotation file.
    originals: (h, w) of the image files.
    scales: (x, y) resize factors from the files to the batch images.
    packed_masks: B tensors (N, H, W / 8) uint8, the masks of the targets while they travel, see `packed`; empty: the
        targets hold their masks themselves.
    """

    pixels: Tensor
    targets: list[Target]
    files: list[str]
    image_ids: list[int | str]
    originals: list[tuple[int, int]]
    scales: list[tuple[float, float]]
    packed_masks: list[Tensor] = field(default_factory=list)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(h, w) of each image without its padding, in pixels of the batch."""
        return [target.size for target in self.targets]

    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        own = [(target.boxes, target.labels, target.masks) for target in self.targets]
        return [self.pixels, *(tensor for parts in own for tensor in parts if tensor is not None), *self.packed_masks]

    def packed(self) -> Batch:
        """The same batch with eight cells of a mask in each byte, as it travels; `to` unpacks it where it arrives."""
        masks = [target.masks for target in self.targets if target.masks is not None]
        if len(masks) < len(self.targets):
            return self
        bits = [torch.from_numpy(np.packbits(own.numpy(), axis=2)) for own in masks]
        return replace(self, targets=[replace(target, masks=None) for target in self.targets], packed_masks=bits)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return replace(
            self,
            pixels=self.pixels.pin_memory(),
            targets=[target.pin_memory() for target in self.targets],
            packed_masks=[bits.pin_memory() for bits in self.packed_masks],
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`, where its targets hold their masks again."""
        targets = [target.to(device, non_blocking) for target in self.targets]
        if self.packed_masks:
            masks = [_unpack_bits(bits.to(device, non_blocking=non_blocking)) for bits in self.packed_masks]
            targets = [replace(target, masks=own) for target, own in zip(targets, masks)]
        pixels = self.pixels.to(device, non_blocking=non_blocking)
        return replace(self, pixels=pixels, targets=targets, packed_masks=[])

    def fitted(self, multiple: int, native: tuple[int, int] | None = None) -> Batch:
        """The same batch as a detector takes it: H and W multiples of `multiple`, or exactly its native (h, w).

        Only padding is added or taken away: an image of 560 x 560 in a batch of 576 x 576 stays 560 x 560 for multiples
        of 56.

        Raises:
            UserError: an image is larger than the native size.
        """
        height, width = self.pixels.shape[1:3]
        if native is None:
            fits = SIZE_DIVISOR % multiple == 0
            largest = max(h for h, _ in self.sizes), max(w for _, w in self.sizes)
            canvas = (height, width) if fits else padded_size(largest, multiple)
            below, beside = canvas[0] - height, canvas[1] - width
        else:
            below, beside = native[0] - height, native[1] - width
            if any(h > native[0] or w > native[1] for h, w in self.sizes):
                only = f"the detector takes images of {native[0]} x {native[1]} pixels only"
                raise UserError(f"{only}; give --data.square {native[0]}")
        return replace(self, pixels=F.pad(self.pixels, (0, 0, 0, beside, 0, below))) if below or beside else self

    def images(self, pixels: Pixels = IMAGENET) -> Tensor:
        """The images as detectors take them, on the device of the batch.

        Args:
            pixels: the normalisation that the detector expects.

        Returns:
            (B, 3, H, W) float32, in the detector's order of channels, channels last in memory, normalised; zero in
            the padding.
        """
        batch, height, width, channels = self.pixels.shape
        # Whole rows at a time, each with as many copies of the constants as it has pixels: three numbers a pixel alone
        # are too short for vector instructions.
        ordered = self.pixels.flip(-1) if pixels.bgr else self.pixels
        rows = _float_copy(ordered.flatten(2))
        rows -= _repeated(pixels.mean, width, rows.device)
        rows /= _repeated(pixels.std, width, rows.device)
        images = rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
        for image, (own_height, own_width) in zip(images, self.sizes):
            image[:, own_height:] = 0
            image[:, :, own_width:] = 0
        return images

    def images_on(self, canvas: tuple[int, int], pixels: Pixels = IMAGENET) -> tuple[Tensor, list[tuple[int, int]]]:
        """The images squashed to another canvas, padding included, and the size of each image there.

        Args:
            canvas: (h, w) of the whole batch.
            pixels: as in `images`.

        Returns:
            (B, 3, *canvas) float32, resized bilinearly with antialiasing, and B sizes (h, w).
        """
        images, (height, width) = self.images(pixels), self.pixels.shape[1:3]
        if canvas == (height, width):
            return images, self.sizes
        resized = F.interpolate(images, canvas, mode="bilinear", align_corners=False, antialias=True)
        y, x = canvas[0] / height, canvas[1] / width
        return resized, [(max(1, round(h * y)), max(1, round(w * x))) for h, w in self.sizes]

    def __reduce__(self) -> tuple[object, ...]:
        # Between processes a tensor costs an open file and a round trip, whatever its size: boxes and labels go as
        # arrays, by value.
        objects = [(t.boxes.numpy(), t.labels.numpy(), t.masks, t.size, t.padded) for t in self.targets]
        rest = (self.files, self.image_ids, self.originals, self.scales, self.packed_masks)
        return _rebuild, (self.pixels, objects, *rest)


def _float_copy(pixels: Tensor) -> Tensor:
    """The same numbers as float32; on a CPU in memory from numpy, which asks for large pages: a tenth of the faults."""
    if pixels.device.type != "cpu":
        return pixels.float()
    return torch.from_numpy(np.empty(pixels.shape, np.float32)).copy_(pixels)


def _repeated(values: tuple[float, ...], times: int, device: torch.device) -> Tensor:
    """The values over and over as float32; made on the device, so that no copy keeps it waiting."""
    if device.type == "cpu":
        return torch.from_numpy(_repeated_once(values, times))
    return torch.cat([torch.full((1,), value, device=device) for value in values]).repeat(times)


@lru_cache(maxsize=64)
def _repeated_once(values: tuple[float, ...], times: int) -> np.ndarray:
    return np.tile(np.array(values, np.float32), times)


def _unpack_bits(bits: Tensor) -> Tensor:
    """Masks (N, H, W) of zeros and ones from (N, H, W / 8), the first cell in the highest bit."""
    shifts = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
    return (bits[..., None] >> shifts).bitwise_and_(1).flatten(2)


def _rebuild(pixels: Tensor, objects: list[tuple], *rest: list) -> Batch:
    targets = [
        Target(torch.from_numpy(boxes), torch.from_numpy(labels), masks, size=size, padded=padded)
        for boxes, labels, masks, size, padded in objects
    ]
    return Batch(pixels, targets, *rest)


def collate(examples: Sequence[Example]) -> Batch:
    """Puts examples into one batch, as large as the largest of them, rounded up to multiples of 32."""
    sizes = [example.target.size for example in examples]
    height, width = padded_size((max(h for h, _ in sizes), max(w for _, w in sizes)))
    pixels = torch.empty((len(examples), height, width, 3), dtype=torch.uint8)
    for place, (h, w), example in zip(pixels.numpy(), sizes, examples):
        cv2.cvtColor(example.image, cv2.COLOR_BGR2RGB, dst=place[:h, :w])
    return Batch(
        pixels,
        [example.target for example in examples],
        [example.file for example in examples],
        [example.image_id for example in examples],
        [example.original for example in examples],
        [example.scale for example in examples],
    )
