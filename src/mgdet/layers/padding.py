"""Targets of a batch side by side, padded to the same number of objects, so that no step loops over images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mgdet.layers.blocks import BlockSize
from mgdet.layers.host import to_device
from mgdet.structures import Target

NEGATIVE, IGNORED = -1, -2
"""What stands in a match where an anchor answers for no object: it is background, or it does not count."""
PAIRS_PER_BLOCK = BlockSize(cpu=2**21, gpu=2**24)
"""How many (object, anchor) pairs of a batch are looked at in one go: 8 or 64 MiB for each number about a pair."""
UNIT_BOX = (0.0, 0.0, 1.0, 1.0)


class PaddedTargets(NamedTuple):
    """The ground truth of B images, each padded to N objects, N at least 1.

    boxes: (B, N, 4) float, xyxy, pixels of the batch images; a unit box where there is no object.
    labels: (B, N) int64; 0 where there is no object.
    exists: (B, N) bool, is there an object?
    limits: (B, 4) float, (w, h, w, h) of each image before padding.
    padded: (B, 2) float, (h, w) of each image with its own padding; infinite where the image fills the batch.
    masks: of each image (N_i, H, W), or None.
    """

    boxes: Tensor
    labels: Tensor
    exists: Tensor
    limits: Tensor
    padded: Tensor
    masks: list[Tensor | None]

    @classmethod
    def of(cls, targets: list[Target]) -> PaddedTargets:
        """Pads the targets of a batch; no wait, as the host knows how many objects there are."""
        device = targets[0].boxes.device
        index = padding_index([len(target.labels) for target in targets], device)
        labels = torch.cat([*(target.labels for target in targets), targets[0].labels.new_zeros(1)])
        padded = [target.padded or (torch.inf, torch.inf) for target in targets]
        return cls(
            boxes=padded_boxes([target.boxes for target in targets], index),
            labels=labels[index],
            exists=index >= 0,
            limits=image_limits([target.size for target in targets], device),
            padded=to_device(padded, device, torch.get_default_dtype()),
            masks=[target.masks for target in targets],
        )

    def blocks(self, num_anchors: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The objects in blocks of n, as many as can be compared with `num_anchors` anchors in bounded memory.

        Yields:
            The number of the block's first object, boxes (B, n, 4), and whether they exist (B, n).
        """
        step = max(1, PAIRS_PER_BLOCK.on(self.boxes.device) // max(1, len(self.boxes) * num_anchors))
        for start in range(0, self.boxes.shape[1], step):
            yield start, self.boxes[:, start : start + step], self.exists[:, start : start + step]

    def labels_of(self, match: Tensor, background: int) -> Tensor:
        """The label (B, A) of each anchor for its match (B, A): `background` for negatives, -1 for ignored ones."""
        own = self.labels.gather(1, match.clamp(min=0))
        return torch.where(match >= 0, own, torch.where(match == IGNORED, -1, background))

    def boxes_of(self, match: Tensor) -> Tensor:
        """The box (B, A, 4) of the object that each anchor matches (B, A); any box of the image where it has none."""
        return self.boxes.gather(1, match.clamp(min=0)[..., None].expand(-1, -1, 4))


def padding_index(counts: Sequence[int], device: torch.device) -> Tensor:
    """(B, N) int64: where each image's objects lie among all of the batch, one after the other; -1 in the padding."""
    longest, rows, start = max(1, *counts), [], 0
    for count in counts:
        rows.append([*range(start, start + count), *[-1] * (longest - count)])
        start += count
    return to_device(rows, device)


def padded_boxes(boxes: Sequence[Tensor], index: Tensor) -> Tensor:
    """B times (N_i, 4) as one (B, N, 4) float by `padding_index`; a unit box in the padding."""
    unit = to_device([UNIT_BOX], index.device, boxes[0].dtype)
    return torch.cat([*boxes, unit])[index].float()  # -1 reads the last


def image_limits(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(B, 4) float, the largest coordinates (w, h, w, h) of a box in images of (h, w)."""
    return to_device([(w, h, w, h) for h, w in sizes], device, torch.get_default_dtype())
