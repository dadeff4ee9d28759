"""Objects as Cellpose 3 finds them in its maps: the same labels from the same maps, with its thresholds and its limits.

Source: Stringer and Pachitariu, "Cellpose3: one-click image restoration for improved cellular segmentation", Nature
Methods 2025; the behaviour is that of Cellpose 3.1 on a CPU. `flow` has our own decoder of such maps, and the encoder.

`decode`: maps -> where each pixel ends -> seeds, where many end -> objects -> drop those whose flow differs from that
of their outline -> fill holes -> drop small objects.
"""

from __future__ import annotations

import numpy as np

from cellwright.config.model_dense import CellposeTarget
from cellwright.models.dense.labels import Place, checked_maps, mean_scores

CHANNELS: tuple[str, ...] = ("flow_y", "flow_x", "cellprob")
STEPS = 200
_DEFAULT = CellposeTarget()
# Pixels may end anywhere; seeds need space around them.
_MARGIN_PX = 20


def decode(
    maps: np.ndarray,
    *,
    cellprob_threshold: float = _DEFAULT.cellprob_threshold,
    flow_threshold: float | None = _DEFAULT.flow_threshold,
    niter: int | None = _DEFAULT.niter,
    min_size: int = _DEFAULT.min_size,
    max_size_fraction: float = _DEFAULT.max_size_fraction,
    place: Place | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of predicted maps.

    Args:
        maps: (3, H, W) float32: y and x components of the flow, 1 px per step at most, and cellprob, a logit. The maps
            that `flow.encode` gives are valid too.
        cellprob_threshold: pixels of objects have a higher cellprob.
        flow_threshold: objects are dropped whose flow differs more from that of their outline, mean squared
            difference; None and 0 drop none.
        niter: steps for which pixels follow the flow; None: 200 times ``place.zoom``.
        min_size: objects of fewer pixels are dropped.
        max_size_fraction: objects of a larger share of the image are dropped, before holes are filled.
        place: where the maps lie; None: they are the whole image.

    Returns:
        Labels (H, W) int32, objects 1..N, and scores (N,) float32 in [0, 1], as in `flow.decode`: mean probability x
        (1 - error / 2). Cellpose has no scores.

    Raises:
        InputError: ``maps`` has another shape, or contains NaN or infinity.

    Example:
        >>> import numpy as np
        >>> from cellwright.models.dense import cellpose, flow
        >>> touching = np.repeat([[1, 1, 1, 1, 1, 2, 2, 2, 2, 2]], 5, axis=0)
        >>> labels, scores = cellpose.decode(flow.encode(touching), max_size_fraction=0.5)
        >>> labels[0], len(scores)
        (array([1, 1, 1, 1, 1, 2, 2, 2, 2, 2], dtype=int32), 2)
    """
    from cellwright.core import _kernels as core_kernels
    from cellwright.models.dense import _cellpose_kernels

    maps = checked_maps(maps, CHANNELS)
    place = Place.whole(maps.shape[1:]) if place is None else place
    inside = maps[2] > cellprob_threshold
    labels = _gather(maps, inside, int(STEPS * place.zoom) if niter is None else niter, place)
    labels, order = _kept(labels, _sizes(labels) <= place.area * max_size_fraction)
    boxes, _ = core_kernels.label_extents(labels, len(order) - 1)
    errors = _cellpose_kernels.flow_errors(labels, boxes, maps[0], maps[1])
    keep = errors <= (flow_threshold or np.inf)
    labels, order = _without_small(np.where(keep[labels], labels, 0), min_size)
    errors = errors[order]
    probability = 1 / (1 + np.exp(-maps[2].clip(-80, 80)))
    scores = mean_scores(labels, len(errors) - 1, probability) * (1 - errors[1:] / 2)
    return labels, scores.clip(0, 1).astype(np.float32)


def _gather(maps: np.ndarray, inside: np.ndarray, steps: int, place: Place) -> np.ndarray:
    """Labels (H, W) int32 of the pixels ``inside`` that end at one seed; 0 for those that end nowhere in particular."""
    from scipy import ndimage

    from cellwright.models.dense import _cellpose_kernels

    height, width = inside.shape
    labels, pixels = np.zeros(inside.shape, np.int32), np.flatnonzero(inside)
    flow_y, flow_x = (np.where(inside, flow, np.float32(0)) for flow in maps[:2])
    y0, x0 = place.origin_yx
    ends = _cellpose_kernels.ends(flow_y, flow_x, pixels, steps, y0, x0) + _MARGIN_PX
    counts = np.zeros((height + 2 * _MARGIN_PX, width + 2 * _MARGIN_PX), np.int32)
    np.add.at(counts, (ends[:, 0], ends[:, 1]), 1)
    peaks = ndimage.maximum_filter(counts, 5, mode="constant")
    seeds = np.argwhere((counts == peaks) & (counts > _cellpose_kernels.SEED_COUNT))
    seeds = seeds[np.argsort(counts[seeds[:, 0], seeds[:, 1]], kind="stable")]  # where places overlap, more pixels win
    labels.ravel()[pixels] = _cellpose_kernels.grow(counts, seeds)[ends[:, 0], ends[:, 1]]
    return labels


def _kept(labels: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels (H, W) int32 that ``keep`` (n + 1,) selects, as 1..N in the order of their first pixels; and which
    they were, (N + 1,) int64, with 0 first."""
    labels = np.where(keep[labels], labels, 0)
    first = np.full(len(keep), labels.size)
    first[labels.ravel()[::-1]] = np.arange(labels.size)[::-1]  # the last assignment counts
    first[0] = -1
    order = np.argsort(first, kind="stable")[: int((first < labels.size).sum())]
    new = np.zeros(len(keep), np.int32)
    new[order] = np.arange(len(order))
    return new[labels], order


def _without_small(labels: np.ndarray, min_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The objects with their holes filled, without those of fewer pixels than ``min_size`` before or after it.

    Returns as `_kept`. A hole that holds another object takes its pixels, where that comes first in the image.
    """
    from scipy import ndimage

    labels, order = _kept(labels, _sizes(labels) >= min_size)
    for k, box in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[box]
        part[np.asarray(ndimage.binary_fill_holes(part == k), bool)] = k
    labels, again = _kept(labels, _sizes(labels) >= min_size)
    return labels, order[again]


def _sizes(labels: np.ndarray) -> np.ndarray:
    """Numbers of pixels (n + 1,)."""
    return np.bincount(labels.ravel(), minlength=1)
