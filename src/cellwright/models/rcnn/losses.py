"""The losses of the R-CNN family, as pure functions of predictions and targets.

Shape shorthand: S sampled boxes, P positives among them, K classes, M side of a mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cellwright.ops.ranks import ALONE, Ranks


def smooth_l1_sum(predictions: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Smooth L1 (Girshick 2015) summed over FloatTensor[P,4]: quadratic below ``beta``, linear above; 0: plain L1."""
    if beta == 0:
        return (predictions - targets).abs().sum()
    return F.smooth_l1_loss(predictions, targets, beta=beta, reduction="sum")


def objectness_loss(logits: Tensor, labels: Tensor, normaliser: float) -> Tensor:
    """Binary cross-entropy of logits FloatTensor[S] with labels 0 or 1 [S], summed and divided by ``normaliser``."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum") / normaliser


def class_loss(logits: Tensor, class_ids: Tensor, weights: Tensor | None = None, ranks: Ranks = ALONE) -> Tensor:
    """Mean softmax cross-entropy of FloatTensor[S,K+1] with LongTensor[S], where K is background; 0 for S = 0.

    ``weights``: FloatTensor[K+1]; the mean is then weighted by the class of each sample. ``ranks``: the mean is over
    the samples of all of them.
    """
    if weights is None:
        total = ranks.total(F.cross_entropy(logits, class_ids, reduction="sum"))
        return total / max(ranks.count(len(class_ids)), 1)
    weights = weights.to(logits.dtype)
    total = ranks.total(F.cross_entropy(logits, class_ids, weight=weights, reduction="sum"))
    return total / ranks.total(weights[class_ids].sum()).clamp(min=torch.finfo(weights.dtype).tiny)


def box_loss(
    deltas: Tensor, class_ids: Tensor, targets: Tensor, *, n_classes: int, beta: float, ranks: Ranks = ALONE
) -> Tensor:
    """Smooth L1 of the deltas of foreground boxes, divided by the number of all S boxes (Girshick 2015, equation 1).

    Args:
        deltas: FloatTensor[S,K*4], more if background has a box, or FloatTensor[S,4] if class-agnostic.
        class_ids: LongTensor[S], 0..K; K is background.
        targets: FloatTensor[S,4]; rows of background are ignored.
        n_classes: K.
        beta: see `smooth_l1_sum`.
        ranks: the processes that share the batch; S is the number of boxes of all of them.
    """
    foreground = torch.nonzero(class_ids < n_classes).squeeze(1)
    per_box = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
    column = class_ids[foreground] if per_box.shape[1] > 1 else torch.zeros_like(foreground)
    total = ranks.total(smooth_l1_sum(per_box[foreground, column], targets[foreground], beta))
    return total / max(ranks.count(len(class_ids)), 1)


def mask_loss(
    logits: Tensor, class_ids: Tensor, targets: Tensor, counted: Tensor | None = None, ranks: Ranks = ALONE
) -> Tensor:
    """Mean binary cross-entropy over the cells of the masks of the boxes' own classes (He et al. 2017); 0 for P = 0.

    Args:
        logits: FloatTensor[P,K,M,M], more if background has a mask, or FloatTensor[P,1,M,M] if class-agnostic. At
            points (PointRend): [P,K,N] with targets [P,N].
        class_ids: LongTensor[P], 0..K-1.
        targets: FloatTensor[P,M,M] in [0, 1].
        counted: BoolTensor[P,M,M], the cells that count; None: all.
        ranks: the processes that share the batch; the mean is over the masks of all of them.
    """
    chosen = of_class(logits, class_ids)
    if counted is not None:
        chosen, targets = chosen[counted], targets[counted]
    total = ranks.total(F.binary_cross_entropy_with_logits(chosen, targets, reduction="sum"))
    return total / max(ranks.count(targets.numel()), 1)


def of_class(values: Tensor, class_ids: Tensor) -> Tensor:
    """[P,K,...] and LongTensor[P] -> [P,...]: the own class of each row, or the only column if K is 1."""
    column = class_ids if values.shape[1] > 1 else torch.zeros_like(class_ids)
    return values[torch.arange(len(values), device=values.device), column]
