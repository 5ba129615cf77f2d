"""Losses that several detectors share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_sum(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sum of the focal loss (arXiv 1708.02002, equation 5) over all samples and classes.

    Args:
        logits: (N, num_classes) float.
        labels: (N,) int64; num_classes is background, a negative label leaves the sample out.

    Returns:
        A scalar.
    """
    background = logits.shape[1]
    # Every class of every counted sample as a negative, in one pass over the logits; positives are then corrected.
    counted = (labels >= 0).to(logits.dtype)
    negatives = (_focal_negative(logits, alpha, gamma).sum(dim=1) * counted).sum()
    positive = ((labels >= 0) & (labels < background)).to(logits.dtype)
    own = logits.gather(1, labels.clamp(0, background - 1)[:, None])[:, 0]
    as_positive = alpha * torch.sigmoid(-own) ** gamma * F.softplus(-own)
    return negatives + (positive * (as_positive - _focal_negative(own, alpha, gamma))).sum()


def _focal_negative(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    return (1 - alpha) * torch.sigmoid(logits) ** gamma * F.softplus(logits)
