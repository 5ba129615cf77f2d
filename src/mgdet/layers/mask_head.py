"""What a two-stage detector says about a region's pixels: a mask of the object in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from mgdet.layers.blocks import BlockSize
from mgdet.layers.conv import ConvBlock
from mgdet.layers.host import to_device
from mgdet.layers.padding import PaddedTargets
from mgdet.layers.roi import join_rois, pool_rois
from mgdet.layers.sampling import RoISample
from mgdet.structures import Detections

POOL_SIZE = 14
MASK_SIZE = 28
STACKED_CONVS = 4
PIXELS_PER_BLOCK = BlockSize(cpu=2**24, gpu=2**25)
"""How many pixels of masks become floats at a time: 64 or 128 MiB."""


class MaskHead(nn.Module):
    """Four convolutions over a region's 14 x 14 cells, doubled to 28 x 28, and one mask for each class.

    Args:
        channels: width of the pyramid and of every layer.
        num_classes: classes without background.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.convs = nn.ModuleList(ConvBlock(channels, channels, 3) for _ in range(STACKED_CONVS))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, maps: list[Tensor], rois: Tensor) -> Tensor:
        """Logits (K, num_classes, 28, 28), float32, of regions (K, 5) on pyramid levels (B, C, H_l, W_l)."""
        return self.predict(pool_rois(maps, rois, POOL_SIZE))

    def predict(self, pooled: Tensor) -> Tensor:
        """What `forward` returns, from the regions' features (K, C, 14, 14)."""
        x = pooled
        for block in self.convs:
            x = block(x)
        logits: Tensor = self.conv_logits(F.relu(self.upsample(x), inplace=True))
        return logits.float()

    def loss(self, maps: list[Tensor], sample: RoISample, counts: list[int], targets: PaddedTargets) -> Tensor:
        """Binary cross entropy of the positive regions' own class, averaged over regions and cells; a scalar.

        Args:
            maps: pyramid levels (B, C, H_l, W_l).
            sample: regions of each image, positives first.
            counts: how many are positive in each image.
            targets: of B images, with masks.

        Raises:
            ValueError: a target has no masks.
        """
        boxes = [own[:count] for own, count in zip(sample.boxes, counts)]
        objects = [own[:count] for own, count in zip(sample.objects, counts)]
        wanted = crop_masks(targets.masks, boxes, objects)
        logits = self(maps, join_rois(boxes))
        if len(logits) == 0:
            return logits.sum()
        labels = torch.cat([own[:count] for own, count in zip(sample.labels, counts)])
        own = logits[torch.arange(len(logits), device=logits.device), labels]
        return F.binary_cross_entropy_with_logits(own, wanted.float())


def crop_masks(masks: Sequence[Tensor | None], boxes: Sequence[Tensor], objects: Sequence[Tensor]) -> Tensor:
    """The part of an object's mask inside a box, averaged to 28 x 28 cells, at least one half.

    Args:
        masks: of each image, (N_i, H, W) of its objects.
        boxes: of each image, (P_i, 4) xyxy, pixels of the batch image.
        objects: of each image, (P_i,) int64, whose mask to cut for each box.

    Returns:
        (sum P_i, 28, 28) bool.

    Raises:
        ValueError: an image has no masks.
    """
    joined = torch.cat([*boxes])
    rois = torch.cat([torch.cat([*objects])[:, None].to(joined), joined], dim=1)
    cells = []
    for own, part in zip(masks, rois.split([len(found) for found in boxes])):
        if own is None:
            raise ValueError("a detector with a mask head trains on targets with masks; this target has none")
        cells.append(_crop(own, part))
    return torch.cat(cells)[:, 0] >= 0.5


def _crop(masks: Tensor, rois: Tensor) -> Tensor:
    """RoIAlign (P, 1, 28, 28) of regions (P, 5) in masks (N, H, W), of which few become floats at a time."""
    step = max(1, PIXELS_PER_BLOCK.on(masks.device) // max(1, masks[0:1].numel()))
    blocks = masks[:, None].split(step)
    parts = []
    for i, block in enumerate(blocks):
        own = rois
        if len(blocks) > 1:
            number = rois[:, :1] - i * step
            # As in `pool_rois`, a region without extent adds zero.
            own = torch.where((number >= 0) & (number < step), torch.cat([number, rois[:, 1:]], dim=1), 0.0)
        parts.append(roi_align(block.float(), own, MASK_SIZE, 1.0, sampling_ratio=0, aligned=True))
    return reduce(torch.add, parts)


def detect_masks(
    heads: Sequence[MaskHead],
    maps: list[Tensor],
    found: list[Detections],
    sizes: list[tuple[int, int]],
    scales: list[tuple[float, float]] | None,
    *,
    threshold: float,
) -> list[Detections]:
    """The same detections with masks; the probabilities of several heads are averaged.

    Args:
        heads: one or more.
        maps: pyramid levels (B, C, H_l, W_l).
        found: detections of each image, in pixels of the image files where `scales` is given.
        sizes: (h, w) of each image without its padding, in pixels of the batch images.
        scales: (x, y) resize factor of each image; None for detections in pixels of the batch images.
        threshold: probability from which a pixel belongs to the object.
    """
    factors = scales or [(1.0, 1.0)] * len(found)
    zoom = to_device([factor * 2 for factor in factors], maps[0].device, found[0].boxes.dtype)
    rois = join_rois([own.boxes * factor for own, factor in zip(found, zoom)])
    rows, labels = torch.arange(len(rois), device=rois.device), torch.cat([own.labels for own in found])
    masks = torch.stack([head(maps, rois)[rows, labels].sigmoid() for head in heads]).mean(dim=0)
    results = []
    for own, cells, (height, width), (x, y) in zip(found, masks.split([len(f.labels) for f in found]), sizes, factors):
        size = round(height / y), round(width / x)
        results.append(own._replace(masks=paste_masks(cells, own.boxes, size, threshold=threshold)))
    return results


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], *, threshold: float) -> Tensor:
    """Masks stretched over their boxes in an image, true from `threshold` on.

    One mask at a time, and only the pixels around its box, so that memory stays close to that of the result.

    Args:
        masks: (N, M, M) float in [0, 1].
        boxes: (N, 4) xyxy, pixels of the image.
        size: (h, w) of the image.

    Returns:
        (N, h, w) bool.
    """
    height, width = size
    pasted = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    low = (boxes[:, :2].floor() - 1).clamp(min=0).int().tolist()
    high = (boxes[:, 2:].ceil() + 1).int().tolist()
    with torch.autocast(masks.device.type, enabled=False):
        for i, ((left, top), (right, bottom)) in enumerate(zip(low, high)):
            columns = torch.arange(left, max(left, min(right, width)), device=masks.device)
            rows = torch.arange(top, max(top, min(bottom, height)), device=masks.device)
            across = _stretch(masks.shape[2], columns, boxes[i, 0], boxes[i, 2])
            down = _stretch(masks.shape[1], rows, boxes[i, 1], boxes[i, 3])
            values = down @ masks[i].float() @ across.T
            pasted[i, top : top + len(down), left : left + len(across)] = values >= threshold
    return pasted


def paste_all(masks: Tensor, boxes: Tensor, size: tuple[int, int], *, threshold: float) -> Tensor:
    """What `paste_masks` does, of all masks at once and without a look at a value: for a graph that is exported."""
    axes = []
    for cells, pixels, low, high in zip(masks.shape[1:], size, boxes[:, :2].flip(1).T, boxes[:, 2:].flip(1).T):
        numbers = torch.arange(pixels, device=masks.device)
        reached = (numbers >= low[:, None].floor() - 1) & (numbers < high[:, None].ceil() + 1)
        axes.append(_stretch(cells, numbers, low, high) * reached[..., None])
    down, across = axes
    return down @ masks.float() @ across.mT >= threshold


def _stretch(cells: int, pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Bilinear weights (..., P, cells) of a row of cells from `low` (...,) to `high` (...,) at P pixels, by number."""
    position = (pixels + 0.5 - low[..., None]) / (high - low)[..., None].clamp(min=1e-6) * cells - 0.5
    return (1 - (position[..., None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)
