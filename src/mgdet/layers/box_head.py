"""What a two-stage detector says about a region: its class and a better box."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdet.layers.boxes import decode, encode
from mgdet.layers.host import to_device
from mgdet.layers.padding import PaddedTargets
from mgdet.layers.postprocess import class_nms, top_pairs
from mgdet.layers.roi import pool_rois
from mgdet.layers.sampling import NO_LABEL, RoISample
from mgdet.structures import Detections

POOL_SIZE = 7
BOX_STD = (0.1, 0.1, 0.2, 0.2)


class BoxHead(nn.Module):
    """Two fully connected layers over a region's 7 x 7 cells, then class logits and box deltas.

    Args:
        channels: width of the pyramid; the layers are four times as wide.
        num_classes: classes without background.
        class_agnostic: one box per region instead of one for each class.
        std: what the deltas are divided by in training.
        smooth_l1_beta: where the box loss turns from square to linear; 0 is the plain L1 loss.
    """

    std: Tensor

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        class_agnostic: bool = False,
        std: tuple[float, float, float, float] = BOX_STD,
        smooth_l1_beta: float = 0.0,
    ):
        super().__init__()
        self.num_classes, self.smooth_l1_beta = num_classes, smooth_l1_beta
        self.register_buffer("std", torch.tensor(std), persistent=False)
        width = 4 * channels
        shared = [nn.Linear(channels * POOL_SIZE * POOL_SIZE, width), nn.Linear(width, width)]
        self.shared_fcs = nn.ModuleList(shared)
        self.fc_cls = nn.Linear(width, num_classes + 1)
        self.fc_reg = nn.Linear(width, 4 if class_agnostic else 4 * num_classes)
        for layer in shared:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        for layer in (*shared, self.fc_cls, self.fc_reg):
            nn.init.zeros_(layer.bias)

    def forward(self, maps: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and deltas in float32 for each region.

        Args:
            maps: pyramid levels (B, C, H_l, W_l), strides 4, 8, 16, 32.
            rois: (K, 5), image number and xyxy box.

        Returns:
            logits (K, num_classes + 1), background last, and deltas (K, num_classes or 1, 4).
        """
        return self.predict(pool_rois(maps, rois, POOL_SIZE))

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` returns, from the regions' features (K, C, 7, 7)."""
        x = pooled.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x).float(), self.fc_reg(x).float().unflatten(1, (-1, 4))

    def losses(self, logits: Tensor, deltas: Tensor, sample: RoISample, targets: PaddedTargets) -> dict[str, Tensor]:
        """Cross entropy `loss_cls` and box loss `loss_bbox` of the positives, both divided by the number of regions.

        Args:
            logits: (B * K, num_classes + 1) of the sample's regions, image after image.
            deltas: (B * K, num_classes or 1, 4).
            sample: K regions of each image.
            targets: of B images.
        """
        labels = sample.labels.flatten()
        num = (labels != NO_LABEL).sum().clamp(min=1)
        positive = (labels != NO_LABEL) & (labels < self.num_classes)
        objects = targets.boxes_of(sample.objects).flatten(0, 1)
        # What no loss reads starts at its goal, so that no logarithm of an empty box comes near a gradient.
        starts = torch.where(positive[:, None], sample.boxes.flatten(0, 1), objects)
        column = labels.clamp(0, deltas.shape[1] - 1)
        own = deltas.gather(1, column[:, None, None].expand(-1, 1, 4))[:, 0]
        wanted = encode(starts, objects, self.std)
        errors = F.smooth_l1_loss(own, wanted, reduction="none", beta=self.smooth_l1_beta).sum(dim=1)
        return {
            "loss_cls": F.cross_entropy(logits, labels, reduction="sum", ignore_index=NO_LABEL) / num,
            "loss_bbox": torch.where(positive, errors, 0.0).sum() / num,
        }

    def decode(self, boxes: Tensor, deltas: Tensor, limits: Tensor) -> Tensor:
        """Boxes moved by their deltas within their images.

        Args:
            boxes: (B, K, 4) xyxy.
            deltas: (B * K, num_classes or 1, 4) from `forward`.
            limits: (B, 4), (w, h, w, h) of each image without its padding.

        Returns:
            (B, K, num_classes or 1, 4) xyxy.
        """
        moves = deltas.unflatten(0, boxes.shape[:2])
        return decode(boxes[:, :, None], moves, limits[:, None, None], self.std)


def detect_boxes(
    boxes: Tensor,
    logits: Tensor,
    usable: Tensor,
    scales: list[tuple[float, float]] | None,
    *,
    score_threshold: float,
    nms_threshold: float,
    limit: int,
) -> list[Detections]:
    """From the box head's answers to detections: all (region, class) pairs above a score, less the overlapping ones.

    Args:
        boxes: (B, K, num_classes or 1, 4) xyxy.
        logits: (B, K, num_classes + 1), background last.
        usable: (B, K) bool; other regions are padding.
        scales: (x, y) factors that the boxes are divided by first.
        score_threshold: exclusive lower bound, at least 0.
        nms_threshold: IoU of two boxes of a class from which on the worse one goes.
        limit: how many detections of an image are kept at most.

    Returns:
        One `Detections` without masks per image.
    """
    if scales is not None:
        boxes = boxes / to_device([factor * 2 for factor in scales], boxes.device, boxes.dtype)[:, None, None]
    scores = torch.where(usable[..., None], logits.softmax(dim=2)[..., :-1], 0.0)
    results = []
    for found, own in zip(boxes, scores):
        values, rows, labels = top_pairs(own, threshold=score_threshold, limit=own.numel())
        picked = found[rows, labels if found.shape[1] > 1 else 0]
        keep = class_nms(picked, values, labels, threshold=nms_threshold, limit=limit)
        results.append(Detections(picked[keep], values[keep], labels[keep]))
    return results
