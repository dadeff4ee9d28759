"""Weighted Boxes Fusion (Solovyev et al. 2021): overlapping boxes become their weighted mean. NumPy only, no torch."""

from __future__ import annotations

import numpy as np


def weighted_boxes(
    boxes: np.ndarray, shares: np.ndarray, groups: np.ndarray, weights: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fuse the boxes of several members (models or views) that show the same object.

    In the given order, each box joins the cluster of its group whose fused box it overlaps most, with an IoU above
    ``limit``, or starts a new cluster. A fused box is the mean of the T boxes of its cluster, weighted by their shares.
    Its score is the mean share times min(T, M) / sum of weights: objects that only a few members detect score less.

    Args:
        boxes: (N, 4) ``x0 y0 x1 y1`` px, sorted by decreasing share; N >= 1.
        shares: (N,) score times the weight of the member that detected the box.
        groups: (N,) int64; boxes of different groups (usually classes) are never fused.
        weights: (M,), one weight per member.
        limit: IoU, 0 to 1.

    Returns:
        The cluster (N,) int64 of every box, the fused boxes (C, 4) float64 and their scores (C,) float64. A score can
        exceed 1 where a member with a large weight has several boxes in one cluster.
    """
    from cellwright.ops._weighted_boxes_kernels import weighted_clusters

    exact = np.ascontiguousarray(boxes, np.float64)
    cluster, fused = weighted_clusters(exact, shares.astype(np.float64), groups.astype(np.int64), float(limit))
    counts = np.bincount(cluster, minlength=len(fused))
    mean_shares = np.bincount(cluster, shares, minlength=len(fused)) / counts
    return cluster, fused, mean_shares * np.minimum(counts, len(weights)) / weights.sum()
