"""Objects as connected components of the foreground: the simplest way from a U-Net's output to instances.

Touching objects merge, so this is a baseline; where objects do not touch, `decode` is the exact inverse of `encode`.

`decode`: body probability -> threshold -> connected components -> drop small objects, fill holes -> scores.
"""

from __future__ import annotations

import numpy as np

from cellwright.config.model_dense import SemanticTarget
from cellwright.models.dense.labels import (
    checked_labels,
    checked_maps,
    clean_objects,
    connected_components,
    mean_scores,
)

CHANNELS: tuple[str, ...] = ("body",)
_DEFAULT = SemanticTarget()


def encode(labels: np.ndarray) -> np.ndarray:
    """Training target of a label map: 1 on objects, 0 on background.

    Args:
        labels: (H, W) integers, 0 for background.

    Returns:
        Maps (1, H, W) float32, in the order of `CHANNELS`.

    Raises:
        InputError: ``labels`` is not a 2-D array of integers.
    """
    return (checked_labels(labels) != 0).astype(np.float32)[None]


def decode(
    maps: np.ndarray,
    *,
    body_threshold: float = _DEFAULT.body_threshold,
    min_area_px: int = _DEFAULT.min_area_px,
    max_hole_share: float = _DEFAULT.max_hole_share,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of predicted maps.

    Args:
        maps: (1, H, W) float32 body probability.
        body_threshold: minimum body probability of a foreground pixel, in [0, 1]. A ``cellprob_threshold`` of Cellpose
            is a logit: its 0 is 0.5 here.
        min_area_px: objects of fewer pixels are dropped.
        max_hole_share: holes up to this share of the object's area are filled, unless they contain another object.

    Returns:
        Labels (H, W) int32, objects 1..N, and scores (N,) float32 in [0, 1]: the mean body probability of each object,
        filled holes included. N is 0 where there is no foreground.

    Raises:
        InputError: ``maps`` has another shape, or contains NaN or infinity.

    Example:
        >>> import numpy as np
        >>> from cellwright.models.dense import semantic
        >>> body = np.array([[0.9, 0.7, 0.2, 0.8]], np.float32)
        >>> labels, scores = semantic.decode(body[None])
        >>> labels
        array([[1, 1, 0, 2]], dtype=int32)
        >>> scores.round(2)
        array([0.8, 0.8], dtype=float32)
    """
    (body,) = checked_maps(maps, CHANNELS)
    labels, n = connected_components(body >= body_threshold)
    n, _ = clean_objects(labels, n, body, min_area_px=min_area_px, max_hole_share=max_hole_share)
    return labels, mean_scores(labels, n, body)
