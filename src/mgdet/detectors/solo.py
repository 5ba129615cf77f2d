"""SOLO (Segmenting Objects by Locations, arXiv 1912.04488)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mgdet.detectors.base import Detector
from mgdet.detectors.solo_targets import (
    GRIDS,
    SIZE_RANGES,
    STRIDES,
    Cells,
    Objects,
    assign_cells,
    cell_blocks,
    gather_objects,
)
from mgdet.layers.conv import ConvBlock, head_std, init_bias, init_normal
from mgdet.layers.fpn import FPN
from mgdet.layers.host import to_host
from mgdet.layers.losses import sigmoid_focal_sum
from mgdet.layers.matrix_nms import matrix_nms
from mgdet.structures import Detections, Target

STACKED_CONVS = 7
MASK_WEIGHT = 3.0
FINEST = 4
"""Stride of the finest level's masks."""
NUMBERS_PER_BLOCK = 2**20
"""How many numbers of an image's masks are drawn at a time; 16 MiB once they are upsampled."""
PASTE_PIXELS = 2**26


class SOLOHead(nn.Module):
    """Two towers over every pyramid level: class logits and one mask for each cell of a grid over the image."""

    def __init__(self, num_classes: int, channels: int, grids: tuple[int, ...]):
        super().__init__()
        self.grids = grids
        widths = [channels] * STACKED_CONVS
        self.mask_convs = nn.ModuleList(
            ConvBlock(width + 2 * (i == 0), width, 3, group_norm=True) for i, width in enumerate(widths)
        )
        self.cls_convs = nn.ModuleList(ConvBlock(width, width, 3, group_norm=True) for width in widths)
        self.conv_mask_list = nn.ModuleList(nn.Conv2d(channels, grid**2, 1) for grid in grids)
        self.conv_cls = nn.Conv2d(channels, num_classes, 3, padding=1)
        init_normal(self, std=head_std(channels // 2))
        for predictor in (*self.conv_mask_list, self.conv_cls):
            init_bias(predictor, probability=0.01)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Five maps (B, C, H_l, W_l), strides 4 to 64, to mask features and class logits.

        Returns:
            Features (B, C, H / s, W / s) with s of `STRIDES`, which `masks` reads, and logits (B, num_classes, G, G)
            with G of `grids`.
        """
        finest = F.interpolate(maps[0], size=maps[1].shape[-2:], mode="bilinear")
        coarsest = F.interpolate(maps[-1], size=maps[-2].shape[-2:], mode="bilinear")
        features, logits = [], []
        for level, grid in zip([finest, *maps[1:-1], coarsest], self.grids):
            mask = torch.cat([level, coordinates(level)], dim=1)
            for block in self.mask_convs:
                mask = block(mask)
            features.append(mask)
            cls = F.interpolate(level, size=(grid, grid), mode="bilinear")
            for block in self.cls_convs:
                cls = block(cls)
            logits.append(self.conv_cls(cls))
        return features, logits

    def masks(self, level: int, features: Tensor, cells: Tensor, rows: Tensor) -> Tensor:
        """The masks of chosen cells of one level.

        The original upsamples the features and predicts the masks of all cells. A 1x1 convolution commutes with
        bilinear upsampling, so only the chosen masks are predicted and upsampled.

        Args:
            level: index of the level.
            features: (B, C, h, w) of that level.
            cells: (B, M) int64, row * G + column in the grid.
            rows: (P,) int64, which of the B * M cells to take: images may have different numbers of them.

        Returns:
            (P, 2h, 2w) float32 logits.
        """
        weight, bias = self.conv_mask_list[level].parameters()
        logits = weight[cells].flatten(2) @ features.flatten(2) + bias[cells, None]
        chosen = logits.flatten(0, 1)[rows].float().unflatten(1, features.shape[-2:])
        return F.interpolate(chosen[:, None], scale_factor=2, mode="bilinear")[:, 0]


def coordinates(level: Tensor) -> Tensor:
    """Two channels, x and y from -1 to 1, for a map (B, C, H, W): (B, 2, H, W)."""
    batch, _, height, width = level.shape
    y = torch.linspace(-1, 1, height, device=level.device, dtype=level.dtype)
    x = torch.linspace(-1, 1, width, device=level.device, dtype=level.dtype)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y]).expand(batch, -1, -1, -1)


def dice_losses(masks: Tensor, wanted: Tensor, *, eps: float = 1e-3) -> Tensor:
    """One minus the dice coefficient (arXiv 1606.04797) of probabilities (P, h, w) and bool masks (P, h, w): (P,)."""
    masks, wanted = masks.flatten(1), wanted.flatten(1).to(masks.dtype)
    shared = (masks * wanted).sum(dim=1)
    return 1 - 2 * shared / (masks.square().sum(dim=1) + wanted.sum(dim=1) + 2 * eps)


def resize_masks(masks: Tensor, size: tuple[int, int], out: tuple[int, int], *, threshold: float) -> Tensor:
    """Brings masks to the size of an image, a few at a time so that large images fit into memory.

    Args:
        masks: (N, H / 4, W / 4) float probabilities over the padded image.
        size: (h, w) of the image without padding.
        out: (h, w) of the result.
        threshold: exclusive lower bound of a mask's probability.

    Returns:
        (N, *out) bool.
    """
    pasted = torch.zeros((len(masks), *out), dtype=torch.bool, device=masks.device)
    full = [FINEST * edge for edge in masks.shape[-2:]]
    chunk = max(1, PASTE_PIXELS // max(math.prod(full), math.prod(out)))
    for start in range(0, len(masks), chunk):
        part = F.interpolate(masks[start : start + chunk, None], size=full, mode="bilinear")
        part = F.interpolate(part[:, :, : size[0], : size[1]], size=out, mode="bilinear")
        pasted[start : start + chunk] = part[:, 0] > threshold
    return pasted


def mask_boxes(masks: Tensor) -> Tensor:
    """The tight box of each mask (N, H, W) bool: (N, 4) float xyxy, right and bottom one beyond the last pixel.

    The box of an empty mask is all zeros.
    """
    edges = []
    for hit in (masks.any(dim=1).byte(), masks.any(dim=2).byte()):
        last = hit.shape[1] - hit.flip(1).argmax(dim=1)
        edges.append(torch.stack([hit.argmax(dim=1), last]) * hit.amax(dim=1))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1).float()


class SOLO(Detector):
    """One-stage instance segmentation on pyramid levels P2 to P6; its boxes are those of its masks.

    Args:
        backbone: see `Detector`.
        num_classes: classes without background.
        channels: width of neck and head.
        norm_eval: keep the backbone's batch norm statistics fixed.
        grids: G of each level: cells along each edge of the image.
    """

    num_taps = 4
    class_predictors = ("mask_head.conv_cls.",)
    has_masks = True
    grids = GRIDS

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_classes: int,
        channels: int = 256,
        norm_eval: bool = True,
        grids: tuple[int, ...] = GRIDS,
    ):
        super().__init__(backbone, num_classes=num_classes, channels=channels, norm_eval=norm_eval)
        self.grids = grids
        self.score_threshold, self.mask_threshold, self.filter_threshold = 0.1, 0.5, 0.05
        self.nms_sigma, self.nms_candidates, self.max_detections = 2.0, 500, 100
        self.neck = FPN(self.backbone.feature_info.channels(), channels, num_levels=5, extra="pool")
        self.mask_head = SOLOHead(num_classes, channels, grids)

    def head(self, maps: list[Tensor]) -> Any:
        """Mask features and class logits of each level, see `SOLOHead`."""
        return self.mask_head(maps)

    def loss_parts(self, maps: list[Tensor], targets: list[Target], outputs: Any = None) -> dict[str, Tensor]:
        """Dice loss `loss_mask`, a mean over positive cells, and focal loss `loss_cls`, scalars.

        The focal loss is divided by the number of positive cells of the batch plus one. Targets need masks.
        """
        features, logits = self.head(maps) if outputs is None else outputs
        height, width = maps[0].shape[-2:]
        objects = gather_objects(targets, (FINEST * height, FINEST * width))
        owners = [assign_cells(objects, *level, len(targets)) for level in zip(self.grids, SIZE_RANGES)]
        counts = to_host(torch.stack([(owner >= 0).sum(dim=1) for owner in owners]))
        num_positive = sum(map(sum, counts))
        dice = [self._dice(level, features[level], objects, owner, counts[level]) for level, owner in enumerate(owners)]
        own_labels = F.pad(objects.labels, (0, 1), value=self.num_classes)
        labels = [own_labels[owner].flatten() for owner in owners]  # -1 reads the last, background
        flat_logits = torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in logits]).float()
        return {
            "loss_mask": MASK_WEIGHT * torch.stack(dice).sum() / max(num_positive, 1),
            "loss_cls": sigmoid_focal_sum(flat_logits, torch.cat(labels)) / (num_positive + 1),
        }

    def _dice(self, level: int, features: Tensor, objects: Objects, owner: Tensor, counts: list[int]) -> Tensor:
        """The sum of the dice losses of one level's positive cells, a scalar.

        Args:
            level: index of the level.
            features: (B, C, h, w) of the level.
            objects: of the whole batch.
            owner: (B, G * G), see `assign_cells`.
            counts: how many cells of each image are positive.
        """

        def block_loss(features: Tensor, block: Cells) -> Tensor:
            masks = self.mask_head.masks(level, features, block.cells, block.rows).sigmoid()
            return dice_losses(masks, objects.masks[STRIDES[level] // 2][block.owners]).sum()

        blocks = cell_blocks(owner, counts, max(1, NUMBERS_PER_BLOCK // features[0, 0].numel()))
        if len(blocks) == 1:
            return block_loss(features, blocks[0])
        # Many masks at once do not fit: each block is forgotten and drawn again when its gradient is due.
        losses = [checkpoint(block_loss, features, b, use_reentrant=False, preserve_rng_state=False) for b in blocks]
        return torch.stack(losses).sum()

    def detect(
        self,
        maps: list[Tensor],
        sizes: list[tuple[int, int]],
        scales: list[tuple[float, float]] | None = None,
    ) -> list[Detections]:
        """See `Detector.detect`. The score of a mask is that of its class times its mean probability inside."""
        features, scores = self.scored(maps)
        results = []
        for i, (height, width) in enumerate(sizes):
            masks, values, labels = self.candidates(features, scores, i)
            values = matrix_nms(masks > self.mask_threshold, values, labels, sigma=self.nms_sigma)
            values, order = values.sort(descending=True)
            num = min(int((values >= self.filter_threshold).sum()), self.max_detections)
            values, order = values[:num], order[:num]
            x, y = (1.0, 1.0) if scales is None else scales[i]
            out = round(height / y), round(width / x)
            pasted = resize_masks(masks[order], (height, width), out, threshold=self.mask_threshold)
            results.append(Detections(mask_boxes(pasted), values, labels[order], pasted))
        return results

    def scored(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Mask features of each level, and the scores (B, G * G, num_classes) of its cells."""
        features, logits = self.head(maps)
        return features, [self._peaks(level).permute(0, 2, 3, 1).flatten(1, 2) for level in logits]

    @staticmethod
    def _peaks(logits: Tensor) -> Tensor:
        """Class probabilities of (B, num_classes, G, G) logits, zero where a neighbour has a higher one.

        Neighbours are the cells to the left, above, and above left.
        """
        scores = logits.float().sigmoid()
        highest = F.max_pool2d(scores, kernel_size=2, stride=1, padding=1)[:, :, :-1, :-1]
        return scores * (highest == scores)

    def candidates(self, features: list[Tensor], scores: list[Tensor], i: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best (cell, class) pairs of image `i` before NMS, from scores (B, G * G, num_classes) of each level.

        Returns:
            Mask probabilities (K, H / 4, W / 4), scores (K,) and labels (K,), best first.
        """
        finest = [2 * edge for edge in features[0].shape[-2:]]
        parts, num_masks = [], 0
        for level, level_scores in enumerate(scores):
            cell = (level_scores[i] > self.score_threshold).any(dim=1).nonzero()[:, 0]
            every = torch.arange(cell.shape[0], device=cell.device)
            masks = self.mask_head.masks(level, features[level][i : i + 1], cell[None], every).sigmoid()
            masks = F.interpolate(masks[:, None], size=finest, mode="bilinear")[:, 0]
            inside = masks > self.mask_threshold
            area = inside.sum(dim=(1, 2))
            certainty = (masks * inside).sum(dim=(1, 2)) / area
            own = level_scores[i, cell]
            usable = (own > self.score_threshold) & (area > STRIDES[level])[:, None]
            row, label = usable.nonzero(as_tuple=True)
            parts.append((masks, own[row, label] * certainty[row], label, row + num_masks))
            num_masks += masks.shape[0]
        all_masks, all_scores, labels, rows = (torch.cat(column) for column in zip(*parts))
        best, order = all_scores.sort(descending=True)
        best, order = best[: self.nms_candidates], order[: self.nms_candidates]
        return all_masks[rows[order]], best, labels[order]
