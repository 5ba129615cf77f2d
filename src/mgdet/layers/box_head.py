"""What a two-stage detector says about a region: its class and a better box."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdet.layers.boxes import decode, encode
from mgdet.layers.postprocess import class_nms, top_pairs
from mgdet.layers.roi import pool_rois
from mgdet.layers.sampling import RoISample
from mgdet.structures import Detections, Target

POOL_SIZE = 7
BOX_STD = (0.1, 0.1, 0.2, 0.2)


class BoxHead(nn.Module):
    """Two fully connected layers over a region's 7 x 7 cells, then class logits and box deltas.

    Args:
        channels: width of the pyramid; the layers are four times as wide.
        num_classes: classes without background.
        class_agnostic: one box a region instead of one for each class.
        std: what the deltas are divided by in training.
        smooth_l1_beta: where the box loss turns from square to linear; 0 is the plain L1 loss.
    """

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
        self.num_classes, self.std, self.smooth_l1_beta = num_classes, std, smooth_l1_beta
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
        x = pool_rois(maps, rois, POOL_SIZE).flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x).float(), self.fc_reg(x).float().unflatten(1, (-1, 4))

    def losses(
        self, logits: Tensor, deltas: Tensor, samples: list[RoISample], targets: list[Target]
    ) -> dict[str, Tensor]:
        """Cross entropy `loss_cls` and box loss `loss_bbox` of the positives, both divided by the number of regions.

        Args:
            logits: (K, num_classes + 1) of the samples' regions, image after image.
            deltas: (K, num_classes or 1, 4).
            samples: one of each image.
            targets: one of each image.
        """
        num = max(len(logits), 1)
        labels = torch.cat([sample.labels for sample in samples])
        rows = (labels < self.num_classes).nonzero()[:, 0]
        boxes = torch.cat([sample.boxes[: len(sample.objects)] for sample in samples])
        objects = torch.cat([target.boxes.float()[sample.objects] for sample, target in zip(samples, targets)])
        own = deltas[rows, labels[rows] if deltas.shape[1] > 1 else 0]
        wanted = encode(boxes, objects, self.std)
        return {
            "loss_cls": F.cross_entropy(logits, labels, reduction="sum") / num,
            "loss_bbox": F.smooth_l1_loss(own, wanted, reduction="sum", beta=self.smooth_l1_beta) / num,
        }

    def decode(self, boxes: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes (N, num_classes or 1, 4) xyxy in an image of `size` (h, w), from boxes (N, 4) and their deltas."""
        return decode(boxes[:, None], deltas, size, self.std)


def detect_boxes(
    boxes: list[Tensor],
    logits: list[Tensor],
    scales: list[tuple[float, float]] | None,
    *,
    score_threshold: float,
    nms_threshold: float,
    limit: int,
) -> list[Detections]:
    """From the box head's answers to detections: all (region, class) pairs above a score, less the overlapping ones.

    Args:
        boxes: for each image (N, num_classes or 1, 4) xyxy.
        logits: for each image (N, num_classes + 1), background last.
        scales: (x, y) factors that the boxes are divided by first.
        score_threshold: exclusive lower bound.
        nms_threshold: IoU of two boxes of a class from which on the worse one goes.
        limit: how many detections of an image are kept at most.

    Returns:
        One `Detections` without masks an image.
    """
    results = []
    for i, (own_boxes, own_logits) in enumerate(zip(boxes, logits)):
        found = own_boxes if scales is None else own_boxes / own_boxes.new_tensor(scales[i] * 2)
        scores = own_logits.softmax(dim=1)[:, :-1]
        scores, rows, labels = top_pairs(scores, threshold=score_threshold, limit=scores.numel())
        found = found[rows, labels if found.shape[1] > 1 else 0]
        keep = class_nms(found, scores, labels, threshold=nms_threshold, limit=limit)
        results.append(Detections(found[keep], scores[keep], labels[keep]))
    return results
