"""Objects as sinks of a flow field: Cellpose's heat-diffusion gradients, and how flows become labels.

Source: Stringer, Wang, Michaelos and Pachitariu, "Cellpose: a generalist algorithm for cellular segmentation", Nature
Methods 2021. The field is that of Cellpose 3.1 (source at the pixel nearest to the mean, no logarithm).

`decode`: maps -> follow the flow from every body pixel -> group pixels by sink -> drop small objects, fill holes ->
compare with the flow of the outline -> scores. It inverts `encode`: from the maps of a perfect network, it recovers the
labels.
"""

from __future__ import annotations

import numpy as np

from cellwright.config.model_dense import FlowTarget
from cellwright.models.dense.labels import checked_labels, checked_maps, clean_objects, connected_components

CHANNELS: tuple[str, ...] = ("flow_y", "flow_x", "body")
TOLERANCE_PX = 1e-4
_DEFAULT = FlowTarget()


def encode(labels: np.ndarray) -> np.ndarray:
    """Training targets of a label map: a unit flow towards the centre of each object, and body.

    In each object heat spreads from the pixel nearest to the mean position; the flow points in the direction in which
    heat increases. Components of one label that do not touch, not even at a corner, are separate objects, each with its
    own source. The flow is 0 in an object of a single pixel and where no heat arrives (beyond about 300 px along a
    thread one pixel wide).

    Args:
        labels: (H, W) integers, 0 for background.

    Returns:
        Maps (3, H, W) float32, in the order of `CHANNELS`; body is 0 or 1.

    Raises:
        InputError: ``labels`` is not a 2-D array of integers.
    """
    from cellwright.core import _kernels as core_kernels
    from cellwright.models.dense import _flow_kernels

    labels = checked_labels(labels)
    components, n = connected_components(labels)
    boxes, _ = core_kernels.label_extents(components, n)
    maps = np.zeros((3, *labels.shape), np.float32)
    maps[2] = labels != 0
    _flow_kernels.heat_flows(components, boxes, maps[:2])
    return maps


def decode(
    maps: np.ndarray,
    *,
    body_threshold: float = _DEFAULT.body_threshold,
    steps: int = _DEFAULT.steps,
    tolerance_px: float = TOLERANCE_PX,
    outline_share: float = _DEFAULT.outline_share,
    max_error: float | None = _DEFAULT.max_error,
    min_area_px: int = _DEFAULT.min_area_px,
    max_hole_share: float = _DEFAULT.max_hole_share,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of predicted maps.

    Every body pixel follows the flow; connected pixels that end at one sink are an object. Where the flow of an object
    differs too much from that of its outline, two sinks may have been merged: its pixels are grouped again at a finer
    resolution, and the objects that agree then are kept.

    Args:
        maps: (3, H, W) float32: y and x components of the flow, and body probability.
        body_threshold: minimum body probability of a pixel that is followed, in [0, 1]. Cellpose's
            ``cellprob_threshold`` is a logit: its 0 is 0.5 here.
        steps: number of Euler steps (Cellpose's ``niter``). A step is at most 1 px long, so pixels further than this
            from their sink are lost.
        tolerance_px: following a pixel stops once two steps bring it back to within this distance; a negative value
            always takes all steps.
        outline_share: the outline of an object is where the body probability falls to this share of the object's
            maximum, so that dim objects are not cut down to their middle. No effect unless ``body_threshold`` is lower.
        max_error: objects whose flow differs more from the flow that `encode` gives for their outline are dropped: the
            mean squared length of the difference, 0 to 4. None keeps all. Cellpose's ``flow_threshold``.
        min_area_px: objects of fewer pixels are dropped (Cellpose's ``min_size``).
        max_hole_share: holes up to this share of the object's area are filled, unless they contain another object; so
            are holes of any size that consist of body pixels.

    Returns:
        Labels (H, W) int32, objects 1..N, and scores (N,) float32 in [0, 1]: mean body probability x (1 - error / 2).
        For unit flows the second factor is the mean cosine between the two fields. N is 0 where there is no body.

    Raises:
        InputError: ``maps`` has another shape, or contains NaN or infinity.

    Example:
        >>> import numpy as np
        >>> from cellwright.models.dense import flow
        >>> touching = np.repeat([[1, 1, 1, 1, 2, 2, 2, 2]], 4, axis=0)
        >>> labels, scores = flow.decode(flow.encode(touching), max_error=0.4)
        >>> labels[0], scores.round(2)
        (array([1, 1, 1, 1, 2, 2, 2, 2], dtype=int32), array([1., 1.], dtype=float32))
    """
    maps = checked_maps(maps, CHANNELS)
    body = maps[2]

    def objects_at(
        moves: np.ndarray, pixels: np.ndarray, *, reach_px: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels, n = _group_by_sink(moves, pixels, body.shape, reach_px)
        if body_threshold < outline_share:  # otherwise no object has a pixel to lose
            labels, n = _cut_outlines(labels, n, body, outline_share)
        _, boxes = clean_objects(
            labels,
            n,
            body,
            min_area_px=min_area_px,
            max_hole_share=max_hole_share,
            solid_threshold=body_threshold,
        )
        return _drop_inconsistent(labels, boxes, maps, max_error)

    moves, pixels = _follow(maps, body_threshold, steps, tolerance_px)
    labels, scores, dropped = objects_at(moves, pixels, reach_px=2)
    if dropped.any():
        again = dropped[pixels]
        finer, more_scores, _ = objects_at(moves[again], pixels[again], reach_px=1)
        labels = np.where((labels == 0) & (finer > 0), finer + len(scores), labels).astype(np.int32)
        scores = np.concatenate([scores, more_scores])
    return labels, scores


def follow(
    maps: np.ndarray,
    *,
    body_threshold: float = _DEFAULT.body_threshold,
    steps: int = _DEFAULT.steps,
    tolerance_px: float = TOLERANCE_PX,
) -> tuple[np.ndarray, np.ndarray]:
    """Where the P body pixels end up when they follow the flow.

    Returns:
        End positions (P, 2) float32, y and x in px, and the flat indices (P,) int64 of the pixels.

    Arguments and errors as in `decode`.
    """
    moves, pixels = _follow(checked_maps(maps, CHANNELS), body_threshold, steps, tolerance_px)
    return moves + np.stack(np.unravel_index(pixels, maps.shape[1:]), axis=1).astype(np.float32), pixels


def _follow(maps: np.ndarray, body_threshold: float, steps: int, tolerance_px: float) -> tuple[np.ndarray, np.ndarray]:
    """How far each body pixel moves, (P, 2) float32, and the flat indices (P,) int64 of the pixels."""
    from cellwright.models.dense import _flow_kernels

    field, pixels = _flow_kernels.masked_field(maps[0], maps[1], maps[2], body_threshold)
    moves, _ = _flow_kernels.follow(field, pixels, steps, tolerance_px)
    return moves, pixels


def _group_by_sink(
    moves: np.ndarray, pixels: np.ndarray, image_hw: tuple[int, ...], reach_px: int
) -> tuple[np.ndarray, int]:
    """Labels 1..n (H, W) int32 of connected pixels that end at one sink; sinks within ``reach_px`` are merged."""
    from cellwright.models.dense import _flow_kernels

    return connected_components(_flow_kernels.sinks(moves, pixels, image_hw[0], image_hw[1], reach_px))


def _cut_outlines(labels: np.ndarray, n: int, body: np.ndarray, outline_share: float) -> tuple[np.ndarray, int]:
    """Remove the pixels below ``outline_share`` of the object's highest body probability."""
    from cellwright.models.dense import _label_kernels

    return connected_components(_label_kernels.cut_outlines(labels, n, body, outline_share))


def _drop_inconsistent(
    labels: np.ndarray, boxes: np.ndarray, maps: np.ndarray, max_error: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels 1..N of the objects whose flow agrees with their outline, scores (N,), and the dropped pixels (H * W,)."""
    from cellwright.models.dense import _flow_kernels, _label_kernels

    flow_y, flow_x, body = maps
    n = len(boxes) - 1
    own_flow = np.zeros((2, *body.shape), np.float32)
    _flow_kernels.heat_flows(labels, boxes, own_flow)
    errors, bodies, counts = _flow_kernels.agreement(labels, n, own_flow, flow_y, flow_x, body)
    errors, bodies = errors[1:] / counts[1:], bodies[1:] / counts[1:]
    keep = np.concatenate([[True], errors <= (np.inf if max_error is None else max_error)])
    dropped = ~keep[labels.ravel()]
    _label_kernels.relabel(labels, keep)
    scores = (bodies * (1 - errors / 2))[keep[1:]]
    return labels, scores.clip(0, 1).astype(np.float32), dropped
