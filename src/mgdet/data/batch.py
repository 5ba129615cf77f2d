"""Examples become a batch: uint8 pixels side by side, padded, and normalised once they are on the device.

Letters in shapes: B images, H x W the height and width of the padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mgdet.data.transforms import Example, padded_size
from mgdet.structures import Target

MEAN = (123.675, 116.28, 103.53)
"""Mean of ImageNet's red, green and blue, as 0 .. 255."""
STD = (58.395, 57.12, 57.375)
"""Standard deviation of ImageNet's red, green and blue, as 0 .. 255."""


@dataclass(slots=True)
class Batch:
    """B images and what is known about them.

    pixels: (B, H, W, 3) uint8, BGR; H and W are multiples of 32, and each image lies in the upper left corner. What
        lies beside it is undefined.
    targets: one an image, in pixels of the batch images; `size` is the image without its padding.
    files: paths of the image files.
    image_ids: ids in the annotation file.
    originals: (h, w) of the image files.
    scales: (x, y) resize factors from the files to the batch images.
    """

    pixels: Tensor
    targets: list[Target]
    files: list[str]
    image_ids: list[int | str]
    originals: list[tuple[int, int]]
    scales: list[tuple[float, float]]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(h, w) of each image without its padding, in pixels of the batch."""
        return [target.size for target in self.targets]

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return replace(self, pixels=self.pixels.pin_memory(), targets=[target.pin_memory() for target in self.targets])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            pixels=self.pixels.to(device, non_blocking=non_blocking),
            targets=[target.to(device, non_blocking) for target in self.targets],
        )

    def images(self) -> Tensor:
        """The images as detectors take them, on the device of `pixels`.

        Returns:
            (B, 3, H, W) float32, RGB, normalised with `MEAN` and `STD`; zero in the padding.
        """
        rgb = self.pixels.permute(0, 3, 1, 2).flip(1)
        images = rgb.to(torch.float32, memory_format=torch.contiguous_format)
        images -= images.new_tensor(MEAN).view(3, 1, 1)
        images /= images.new_tensor(STD).view(3, 1, 1)
        for image, (height, width) in zip(images, self.sizes):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return images

    def __reduce__(self) -> tuple[object, ...]:
        # Between processes a tensor costs an open file and a round trip, whatever its size: boxes and labels go as
        # arrays, by value.
        objects = [(t.boxes.numpy(), t.labels.numpy(), t.masks, t.size, t.padded) for t in self.targets]
        return _unpack, (self.pixels, objects, self.files, self.image_ids, self.originals, self.scales)


def _unpack(pixels: Tensor, objects: list[tuple], *rest: list) -> Batch:
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
    for place, (h, w), example in zip(pixels, sizes, examples):
        place[:h, :w] = torch.from_numpy(example.image)
    return Batch(
        pixels,
        [example.target for example in examples],
        [example.file for example in examples],
        [example.image_id for example in examples],
        [example.original for example in examples],
        [example.scale for example in examples],
    )
