"""Objects as the sinks of a flow: the heat-diffusion gradient field of Cellpose, and the way back.

Source: Stringer, Wang, Michaelos and Pachitariu, "Cellpose: a generalist algorithm for cellular segmentation", Nature
Methods 2021; the field is that of version 3.1 (source at the pixel nearest to the mean, no logarithm). `encode` and
`decode` are inverse to each other: a perfect network's maps give the labels back.

The flow of `decode`: body -> follow every pixel -> sinks -> parts -> holes -> agreement with the field -> score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cellwright.core.instances import Instances
from cellwright.models.dense.semantic import checked_labels, checked_maps, parts_of, to_instances

CHANNELS: tuple[str, ...] = ("flow_y", "flow_x", "body")


@dataclass(frozen=True)
class FlowRules:
    """How maps become objects.

    body_threshold: probability from which a pixel is followed, in [0, 1].
    steps: Euler steps, each as long as the field is there, so at most 1 px: a pixel further from its sink is lost.
    tolerance_px: a pixel that a step, or two, would bring back to within this distance has arrived. 0 takes every step
        that could still change a bit of the result.
    outline_share: an object's outline lies where the body falls to this share of the object's own highest, so that a
        dim object is not cut down to its middle. It tells only where ``body_threshold`` is lower.
    max_error: objects whose field differs more from the one that their outline would have are dropped: the mean over
        the object of the squared length of the difference, 0 to 4; `None` keeps all. Cellpose's threshold.
    min_area_px: smaller objects are dropped.
    max_hole_share: holes up to this share of the object's area are filled; so are holes that are body, of any size.
    """

    body_threshold: float = 0.5
    steps: int = 200
    tolerance_px: float = 1e-4
    outline_share: float = 0.5
    max_error: float | None = 0.4
    min_area_px: int = 1
    max_hole_share: float = 0.1


def encode(labels: np.ndarray) -> np.ndarray:
    """Maps (3, H, W) float32 (`CHANNELS`) of labels (H, W) int, 0 being background: unit flow, and body of 0 and 1.

    In each object heat flows from the pixel nearest to its mean; the flow is the direction in which heat grows. Parts
    of one label that do not touch, not even at corners, are objects of their own: each has its own source. A single
    pixel, like a pixel that no heat reaches (beyond some 300 px of a thread one pixel wide), has flow 0.
    Raises `InputError` for labels that are not a 2-D array of integers.
    """
    labels = checked_labels(labels)
    parts, n = parts_of(labels)
    maps = np.zeros((3, *labels.shape), np.float32)
    maps[2] = labels != 0
    _kernels().heat_flows(parts, _extents(parts, n)[0], maps[:2])
    return maps


def decode(maps: np.ndarray, rules: FlowRules | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H, W) int32 counted 1..N and scores (N,) float32 in [0, 1] of maps (3, H, W) float32 (`CHANNELS`).

    Every pixel of the body follows the flow; pixels that end at one sink and touch are one object, so an object is
    always in one part. Where an object disagrees with the field too much, two sinks may have been taken for one: its
    pixels get a second look with a finer eye, and what agrees then is kept. The score is the mean body probability
    times how far the object's own field agrees with the maps: 1 - error / 2, which for unit flows is the mean cosine
    between the two. No body gives no objects.
    Raises `InputError` for maps of another shape, or with a value that is not finite.
    """
    rules = FlowRules() if rules is None else rules
    maps = checked_maps(maps, CHANNELS)
    ends, pixels = _follow(maps, rules)
    labels, n, scores, again = _objects(ends, pixels, maps, rules, reach_px=2)
    if again.any():
        again = again[pixels]
        finer, _, more, _ = _objects(ends[again], pixels[again], maps, rules, reach_px=1)
        labels = np.where((labels == 0) & (finer > 0), finer + n, labels).astype(np.int32)
        scores = np.concatenate([scores, more])
    return labels, scores


def _objects(
    ends: np.ndarray, pixels: np.ndarray, maps: np.ndarray, rules: FlowRules, *, reach_px: int
) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
    """Labels 1..n (H, W) int32 of pixels that have been followed, n, scores (n,), and where others failed (H * W,)."""
    flow_y, flow_x, body = maps
    labels, n = parts_of(_kernels().sinks(ends, pixels, *body.shape, reach_px))
    if rules.body_threshold < rules.outline_share:  # else no object has a pixel to lose
        labels, n = parts_of(_label_kernels().cut_outlines(labels, n, body, rules.outline_share))
    boxes, areas = _extents(labels, n)
    n = _label_kernels().relabel(labels, areas >= max(rules.min_area_px, 1))
    boxes, areas = _extents(labels, n)
    _label_kernels().fill_holes(labels, boxes, areas, body, rules.body_threshold, rules.max_hole_share)
    own = np.zeros((2, *body.shape), np.float32)
    _kernels().heat_flows(labels, boxes, own)
    errors, bodies, counts = _kernels().agreement(labels, n, own, flow_y, flow_x, body)
    errors, bodies = errors[1:] / counts[1:], bodies[1:] / counts[1:]
    keep = np.concatenate([[True], errors <= (np.inf if rules.max_error is None else rules.max_error)])
    failed = ~keep[labels.ravel()]
    n = _label_kernels().relabel(labels, keep)
    scores = (bodies * (1 - errors / 2))[keep[1:]]
    return labels, n, scores.clip(0, 1).astype(np.float32), failed


def follow(maps: np.ndarray, rules: FlowRules | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Where the P pixels of the body end, (P, 2) float32 y, x, and which they are: flat indices (P,) int64.

    Raises `InputError` as `decode` does.
    """
    return _follow(checked_maps(maps, CHANNELS), FlowRules() if rules is None else rules)


def encode_instances(instances: Instances) -> np.ndarray:
    """Maps (3, H, W) float32 of the objects of an image; where objects overlap the first in order wins."""
    return encode(instances.masks.to_label_map())


def decode_instances(
    maps: np.ndarray, rules: FlowRules | None = None, class_probs: np.ndarray | None = None
) -> Instances:
    """The objects of maps (3, H, W), highest score first, ids 1..N; ``class_probs`` as in `semantic.to_instances`."""
    return to_instances(*decode(maps, rules), class_probs)


def _follow(maps: np.ndarray, rules: FlowRules) -> tuple[np.ndarray, np.ndarray]:
    field, pixels = _kernels().masked_field(*maps, rules.body_threshold)
    ends, _ = _kernels().follow(field, pixels, rules.steps, rules.tolerance_px)
    return ends, pixels


def _extents(labels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n + 1, 4) int32 and areas (n + 1,) int64 of labels 1..n; row 0 means nothing, its area is 0."""
    from cellwright.core import _kernels

    return _kernels.label_extents(labels, n)


def _kernels() -> Any:
    from cellwright.models.dense import _flow_kernels

    return _flow_kernels


def _label_kernels() -> Any:
    from cellwright.models.dense import _label_kernels

    return _label_kernels
