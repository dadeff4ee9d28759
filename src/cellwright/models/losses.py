"""The losses of Mask R-CNN, and after them those of the dense family, as pure functions of predictions and targets.

Shape shorthand: S sampled boxes, P positives among them, K classes, M side of a mask, B images.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_l1_sum(predictions: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Sum of smooth L1 (Girshick 2015) over FloatTensor[P,4]: quadratic below ``beta``, linear above; 0 is plain L1."""
    if beta == 0:
        return (predictions - targets).abs().sum()
    return F.smooth_l1_loss(predictions, targets, beta=beta, reduction="sum")


def objectness_loss(logits: Tensor, labels: Tensor, normaliser: float) -> Tensor:
    """Binary cross-entropy of FloatTensor[S] logits with labels 0/1 [S], summed, over ``normaliser``."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum") / normaliser


def class_loss(logits: Tensor, class_ids: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean softmax cross-entropy of FloatTensor[S,K+1] with LongTensor[S] (background is K); 0 for S = 0.

    ``weights``: FloatTensor[K+1]; the mean is then weighted by each sample's class.
    """
    if weights is None:
        return F.cross_entropy(logits, class_ids, reduction="sum") / max(len(class_ids), 1)
    weights = weights.to(logits.dtype)
    total = weights[class_ids].sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return F.cross_entropy(logits, class_ids, weight=weights, reduction="sum") / total


def box_loss(deltas: Tensor, class_ids: Tensor, targets: Tensor, *, n_classes: int, beta: float) -> Tensor:
    """Smooth L1 of the foreground boxes' deltas, over the number of all S boxes (Girshick 2015, equation 1).

    Args:
        deltas: FloatTensor[S,K*4], or more where background has a box, or class-agnostic FloatTensor[S,4].
        class_ids: LongTensor[S], 0..K; K is background.
        targets: FloatTensor[S,4]; rows of background are not looked at.
        n_classes: K.
        beta: see ``smooth_l1_sum``.
    """
    foreground = torch.nonzero(class_ids < n_classes).squeeze(1)
    per_box = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
    column = class_ids[foreground] if per_box.shape[1] > 1 else torch.zeros_like(foreground)
    return smooth_l1_sum(per_box[foreground, column], targets[foreground], beta) / max(len(class_ids), 1)


def mask_loss(logits: Tensor, class_ids: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over the pixels of each box's own class's mask (He et al. 2017); 0 for P = 0.

    Args:
        logits: FloatTensor[P,K,M,M], or more where background has a mask, or class-agnostic FloatTensor[P,1,M,M].
        class_ids: LongTensor[P], 0..K-1.
        targets: FloatTensor[P,M,M] in [0, 1].
    """
    chosen = of_class(logits, class_ids)
    return F.binary_cross_entropy_with_logits(chosen, targets, reduction="sum") / max(targets.numel(), 1)


def of_class(values: Tensor, class_ids: Tensor) -> Tensor:
    """[P,K,...] and LongTensor[P] -> [P,...]: each row's own class, or its only column where it is class-agnostic."""
    column = class_ids if values.shape[1] > 1 else torch.zeros_like(class_ids)
    return values[torch.arange(len(values), device=values.device), column]


# --- maps -----------------------------------------------------------------------------------------------------------


def soft_dice_loss(probs: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """1 - 2 PT / (P^2 + T^2), summed over the pixels that count (Milletari et al. 2016); FloatTensor[B,H,W] each."""
    overlap = (probs * targets * counted).sum()
    size = ((probs**2 + targets**2) * counted).sum()
    return 1 - (2 * overlap + 1) / (size + 1)


def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float, alpha: float | None) -> Tensor:
    """-a (1 - p)^gamma log p of each pixel, p being the probability of what is true there (Lin et al. 2017, eq. 5).

    Args:
        logits: a float tensor of any shape.
        targets: of the same shape, 0 or 1.
        gamma: how much less a pixel counts that is sure already; 0 is cross-entropy.
        alpha: a where the target is 1; elsewhere it is 1 - alpha. None: 1 everywhere.
    """
    right = logits * (2 * targets - 1)
    # The power as an exponential of a logarithm: its gradient is finite for every gamma and however sure the network.
    loss = -torch.exp(gamma * F.logsigmoid(-right)) * F.logsigmoid(right)
    return loss if alpha is None else loss * (alpha * targets + (1 - alpha) * (1 - targets))


def border_weights(labels: np.ndarray, *, weight: float, sigma_px: float) -> np.ndarray:
    """1 + weight exp(-(d1 + d2)^2 / (2 sigma^2)) of each pixel, (H, W) float32 (Ronneberger et al. 2015, equation 2).

    d1 and d2 are the distances, px, to the nearest pixels of the nearest and of the second nearest object; d1 is 0 on
    an object. The paper's w_c, which balances classes, is 1. Fewer than two objects give 1 everywhere.

    Args:
        labels: (H, W) int, 0 being background.
        weight: the paper's w_0, 10 there.
        sigma_px: how far it reaches, px; 5 in the paper.
    """
    from cellwright.models.dense import _label_kernels

    # At six sigma the exponential is less than float32 can add to 1.
    nearest = _label_kernels.two_nearest(np.ascontiguousarray(labels, np.int32), math.ceil(6 * sigma_px))
    return 1 + np.float32(weight) * np.exp(-(nearest.sum(axis=0) ** 2) / np.float32(2 * sigma_px**2))
