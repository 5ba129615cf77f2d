"""Matrix NMS: overlapping masks lose score instead of going."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def matrix_nms(masks: Tensor, scores: Tensor, labels: Tensor, *, sigma: float) -> Tensor:
    """Lowers the score of every mask by its overlap with better masks of its class (SOLOv2, arXiv 2003.10152).

    The decay by each better mask is Gaussian in their IoU, and is eased by how much that mask itself is suppressed.

    Args:
        masks: (N, H, W) bool, best first, none of them empty.
        scores: (N,) float, best first.
        labels: (N,) int64.
        sigma: how fast the score falls with the square of the IoU.

    Returns:
        (N,) float, the new scores in the given order.
    """
    flat = masks.flatten(1).to(scores.dtype)
    shared, areas = flat @ flat.T, flat.sum(dim=1)
    overlap = (shared / (areas + areas[:, None] - shared)).triu(diagonal=1) * (labels == labels[:, None])
    # A row that overlaps nothing changes no minimum, and lets there be no mask at all.
    overlap = torch.cat((overlap.new_zeros(1, overlap.shape[1]), overlap))  # torch 2.9 cannot pad what is empty
    suppressed = F.pad(overlap.max(dim=0).values, (1, 0))[:, None]
    decay = torch.exp(-sigma * overlap**2) / torch.exp(-sigma * suppressed**2)
    return scores * decay.min(dim=0).values
