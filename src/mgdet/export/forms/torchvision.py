"""torchvision's detectors: its own backbones, heads, anchors and coders, and its rules of what is kept."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks
from torchvision.models.detection.ssd import SSD

from mgdet.detectors.foreign.torchvision_detector import MASK_THRESHOLD, TorchvisionDetector
from mgdet.export.forms.base import Form, Found, Limits
from mgdet.export.ops import pool, suppress_by_class
from mgdet.layers.boxes import clip
from mgdet.layers.inference import fold_batch_norms
from mgdet.layers.postprocess import best

SMALLEST_BOX, SMALLEST_PROPOSAL = 1e-2, 1e-3
"""Edges in pixels under which a box of the second and of the first stage goes."""
MASK_EDGE = 1
"""Cells of nothing that are laid around a mask before it is stretched over its box."""


def torchvision_form(detector: TorchvisionDetector) -> Form:
    """The form of one of torchvision's detectors."""
    model = detector.library
    if isinstance(model, SSD):
        return SSDForm(detector)
    if isinstance(model, RetinaNet | FCOS):
        return LevelsForm(detector)
    assert isinstance(model, FasterRCNN)  # Mask R-CNN is one, too
    return RegionsForm(detector)


class _TorchvisionForm(Form):
    """What the forms share: the model, and classes of the data for outputs of the head.

    spared: how many outputs are never found: that of the background, where the head has a softmax.
    """

    spared = 1

    def __init__(self, detector: TorchvisionDetector):
        super().__init__()
        self.detector = detector

    @property
    def model(self) -> Any:
        """torchvision's own; its parts are the detector's."""
        return self.detector.library

    @property
    def limits(self) -> Limits:
        """See `Form.limits`."""
        model = self.model
        return Limits(model.score_thresh, model.nms_thresh, model.detections_per_img)

    def anchors(self, images: Tensor, features: list[Tensor], generator: Any) -> Tensor:
        """(A, 4): those of all levels."""
        size = (images.shape[2], images.shape[3])
        (anchors,) = generator(ImageList(images, [size]), features)
        return anchors

    def kept(self, boxes: Tensor, scores: Tensor, columns: Tensor) -> tuple[Tensor, Found]:
        """What is left of scored boxes: the rows, best first, and what they hold, for classes of the data alone.

        Args:
            boxes: (N, 4).
            scores: (N,).
            columns: (N,) int64, outputs of the head.
        """
        outputs = self.detector.outputs
        keep = suppress_by_class(boxes, scores, columns, outputs, *self.limits)
        labels = self.detector.label_of[columns[keep]]
        if self.detector.num_classes < outputs - self.spared:
            own = (labels >= 0).nonzero()[:, 0]
            keep, labels = keep[own], labels[own]
        return keep, Found(boxes[keep], scores[keep], labels)


class LevelsForm(_TorchvisionForm):
    """RetinaNet and FCOS: the best pairs of anchor and class of each level."""

    spared = 0

    def forward(self, images: Tensor, limits: Tensor) -> Found:
        """See `Form.forward`."""
        model = self.model
        features = list(model.backbone(images).values())
        outputs = model.head(features)
        anchors = self.anchors(images, features, model.anchor_generator)
        scores = outputs["cls_logits"][0].sigmoid()
        decode = model.box_coder.decode_single if isinstance(model, RetinaNet) else model.box_coder.decode
        if isinstance(model, FCOS):
            scores = (scores * outputs["bbox_ctrness"][0].sigmoid()).sqrt()
        forms = model.anchor_generator.num_anchors_per_location()[0]
        spans = [level.shape[2] * level.shape[3] * forms for level in features]
        found = []
        levels = (value.split(spans) for value in (scores, outputs["bbox_regression"][0], anchors))
        for own, moves, starts in zip(*levels):
            values, pairs = best(own.reshape(1, -1), model.topk_candidates)
            rows = pairs[0] // own.shape[1]
            boxes = clip(decode(moves[rows], starts[rows]), limits)
            found.append((boxes, values[0], pairs[0] % own.shape[1]))
        boxes, values, columns = (torch.cat(column) for column in zip(*found))
        return self.kept(boxes, values, columns)[1]


class SSDForm(_TorchvisionForm):
    """SSD and SSDlite: the best boxes of each class."""

    def forward(self, images: Tensor, limits: Tensor) -> Found:
        """See `Form.forward`."""
        model = self.model
        features = list(model.backbone(images).values())
        outputs = model.head(features)
        anchors = self.anchors(images, features, model.anchor_generator)
        boxes = clip(model.box_coder.decode_single(outputs["bbox_regression"][0], anchors), limits)
        scores = outputs["cls_logits"][0].softmax(dim=1)[:, 1:].T
        values, rows = scores.topk(min(model.topk_candidates, anchors.shape[0]), dim=1)
        column, place = (values > model.score_thresh).nonzero().unbind(1)
        return self.kept(boxes[rows[column, place]], values[column, place], column + 1)[1]


class RegionsForm(_TorchvisionForm):
    """Faster and Mask R-CNN."""

    chooses_inside = True

    def __init__(self, detector: TorchvisionDetector):
        super().__init__(detector)
        # torch's batch norm asks whether there are regions at all, which no graph knows beforehand.
        self.box_head = without_norms(self.model.roi_heads.box_head)
        self.mask_head = without_norms(self.model.roi_heads.mask_head) if detector.has_masks else None

    @property
    def limits(self) -> Limits:
        """See `Form.limits`."""
        heads = self.model.roi_heads
        return Limits(heads.score_thresh, heads.nms_thresh, heads.detections_per_img)

    def forward(self, images: Tensor, limits: Tensor) -> Found:
        """See `Form.forward`."""
        heads = self.model.roi_heads
        features = self.model.backbone(images)
        proposals = self._proposals(images, list(features.values()), limits)
        logits, moves = heads.box_predictor(self.box_head(_pooled(heads.box_roi_pool, features, proposals)))
        boxes = heads.box_coder.decode_single(moves, proposals).unflatten(1, (-1, 4))
        scores = logits.softmax(dim=1)[:, 1:]
        rows, places = (scores > heads.score_thresh).nonzero().unbind(1)
        columns = places + 1
        picked, values = clip(boxes[rows, columns], limits), scores[rows, places]
        values = torch.where(_larger(picked, SMALLEST_BOX), values, -1.0)
        keep, found = self.kept(picked, values, columns)
        if self.mask_head is None:
            return found
        pooled = self.mask_head(_pooled(heads.mask_roi_pool, features, found.boxes))
        own = columns[keep][:, None, None, None]
        logits = heads.mask_predictor(pooled)
        cells = logits.gather(1, own.expand(-1, 1, *logits.shape[2:]))[:, 0].sigmoid()
        return found._replace(masks=_pasted(cells, found.boxes, (images.shape[2], images.shape[3])))

    def _proposals(self, images: Tensor, features: list[Tensor], limits: Tensor) -> Tensor:
        """(P, 4): what `RegionProposalNetwork.forward` finds."""
        rpn = self.model.rpn
        logits, moves = rpn.head(features)
        forms = rpn.anchor_generator.num_anchors_per_location()
        spans = [level.shape[2] * level.shape[3] * number for level, number in zip(features, forms)]
        anchors = self.anchors(images, features, rpn.anchor_generator).split(spans)
        parts = []
        for level, own in enumerate(anchors):
            flat = logits[level].permute(0, 2, 3, 1).reshape(1, -1)
            values, rows = best(flat, rpn.pre_nms_top_n(), nothing=-torch.inf)
            deltas = moves[level].unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)
            boxes = clip(rpn.box_coder.decode_single(deltas[rows[0]], own[rows[0]]), limits)
            scores = torch.where(values[0] > -torch.inf, values[0].sigmoid(), -1.0)
            parts.append((boxes, scores, torch.full_like(rows[0], level)))
        boxes, scores, levels = (torch.cat(column) for column in zip(*parts))
        usable = _larger(boxes, SMALLEST_PROPOSAL) & (scores >= rpn.score_thresh)
        scores = torch.where(usable, scores, -1.0)
        keep = suppress_by_class(boxes, scores, levels, len(parts), -0.5, rpn.nms_thresh, rpn.post_nms_top_n())
        return boxes[keep]


def without_norms(head: nn.Module) -> nn.Module:
    """The same head in eval mode, its batch norms inside of its convolutions; a copy where it has some."""
    if not any(isinstance(module, _BatchNorm) for module in head.modules()):
        return head
    folded = copy.deepcopy(head).eval()
    fold_batch_norms(folded)
    return folded


def _larger(boxes: Tensor, edge: float) -> Tensor:
    """Which boxes (N, 4) have edges of at least so many pixels, (N,) bool."""
    return (boxes[:, 2:] - boxes[:, :2] >= edge).all(dim=1)


def _pooled(pooler: Any, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """What `MultiScaleRoIAlign` makes of boxes (K, 4) of one image."""
    maps = [features[name] for name in pooler.featmap_names if name in features]
    levels = pooler.map_levels([boxes]) if len(maps) > 1 else torch.zeros_like(boxes[:, 0], dtype=torch.int64)
    return pool(maps, boxes, levels, pooler.scales, pooler.output_size[0], pooler.sampling_ratio, False)


def _pasted(cells: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """What `paste_masks_in_image` draws, of all masks at once.

    Args:
        cells: (N, M, M) probabilities.
        boxes: (N, 4) xyxy, pixels.
        size: (h, w) of the image.

    Returns:
        (N, h, w) bool.
    """
    padded, scale = expand_masks(cells[:, None], MASK_EDGE)
    padded, number = padded[:, 0], padded.shape[2]
    low, high = expand_boxes(boxes, scale).long().split(2, dim=1)
    axes = []
    for axis, pixels in ((1, size[0]), (0, size[1])):
        first, last = low[:, axis, None], high[:, axis, None]
        edge = (last - first + 1).clamp(min=1)
        place = torch.arange(pixels) - first
        # Bilinear without corners aligned, as `interpolate` does it.
        position = ((place + 0.5) * (number / edge) - 0.5).clamp(0, number - 1)
        share = (1 - (position[..., None] - torch.arange(number)).abs()).clamp(min=0)
        axes.append(share * ((place >= 0) & (place < edge))[..., None])
    down, across = axes
    return down @ padded @ across.mT > MASK_THRESHOLD
