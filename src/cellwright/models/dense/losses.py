"""The losses of the dense family, as pure functions of predictions and targets.

Shape shorthand: B images.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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
