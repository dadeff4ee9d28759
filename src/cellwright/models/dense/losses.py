"""Losses of predicted maps, as pure functions.

Shape shorthand: B images, H and W of the maps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cellwright.ops.ranks import ALONE, Ranks


def masked_mean(values: Tensor, counted: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean of FloatTensor[B,H,W] over the pixels of all ranks where ``counted`` is 1; 0 if there are none."""
    return ranks.total((values * counted).sum()) / ranks.total(counted.sum()).clamp(min=1)


def soft_dice_loss(probs: Tensor, targets: Tensor, counted: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum(p^2) + sum(t^2) + 1) over the counted pixels (Milletari et al. 2016).

    All arguments are FloatTensor[B,H,W]; the sums are over the images of all ranks.
    """
    overlap = ranks.total((probs * targets * counted).sum())
    size = ranks.total(((probs**2 + targets**2) * counted).sum())
    return 1 - (2 * overlap + 1) / (size + 1)


def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float, alpha: float | None) -> Tensor:
    """-a (1 - q)^gamma log q per pixel, where q is the probability of the correct class (Lin et al. 2017, eq. 5).

    Args:
        logits: a float tensor of any shape.
        targets: 0 or 1, of the same shape.
        gamma: how strongly pixels that are already classified with confidence are down-weighted; 0 is cross-entropy.
        alpha: a where the target is 1; it is 1 - alpha where the target is 0. None: 1 everywhere.

    Returns:
        The loss of each pixel, of the same shape.
    """
    correct = logits * (2 * targets - 1)
    # The power is written as exp(gamma * log(...)), whose gradient is finite for every gamma and any confidence.
    loss = -torch.exp(gamma * F.logsigmoid(-correct)) * F.logsigmoid(correct)
    return loss if alpha is None else loss * (alpha * targets + (1 - alpha) * (1 - targets))


def border_weights(labels: np.ndarray, *, weight: float, sigma_px: float) -> np.ndarray:
    """1 + weight exp(-(d1 + d2)^2 / (2 sigma^2)) per pixel (Ronneberger et al. 2015, equation 2).

    d1 and d2 are the distances, px, to the nearest and second nearest object; d1 is 0 on an object. The class-balancing
    weight w_c of the paper is 1.

    Args:
        labels: (H, W) int, 0 for background.
        weight: w_0 of the paper, which uses 10.
        sigma_px: width of the falloff, px; 5 in the paper.

    Returns:
        (H, W) float32; 1 everywhere if there are fewer than two objects.
    """
    from cellwright.models.dense import _label_kernels

    # Beyond six sigma the exponential is too small to change a float32 of 1.
    nearest = _label_kernels.two_nearest(np.ascontiguousarray(labels, np.int32), math.ceil(6 * sigma_px))
    return 1 + np.float32(weight) * np.exp(-(nearest.sum(axis=0) ** 2) / np.float32(2 * sigma_px**2))
