"""Objects as the connected parts of the foreground: the plainest way from a U-Net to instances.

Touching objects merge, so this is a baseline, exact only where objects stand apart. `encode` and `decode` are inverse
to each other there. What it does after its parts are found (holes, small objects, scores, classes) is written here for
`watershed` too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet

CHANNELS: tuple[str, ...] = ("body",)


@dataclass(frozen=True)
class SemanticRules:
    """How maps become objects.

    body_threshold: probability from which a pixel is foreground, in [0, 1].
    min_area_px: smaller objects are dropped.
    max_hole_share: holes up to this share of the object's area are filled, unless another object lies in them.
    """

    body_threshold: float = 0.5
    min_area_px: int = 1
    max_hole_share: float = 0.1


def encode(labels: np.ndarray) -> np.ndarray:
    """Maps (1, H, W) float32 (`CHANNELS`) of labels (H, W) int, 0 being background: 1 on objects, 0 elsewhere.

    Raises `InputError` for labels that are not a 2-D array of integers.
    """
    return (checked_labels(labels) != 0).astype(np.float32)[None]


def decode(maps: np.ndarray, rules: SemanticRules | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H, W) int32 counted 1..N and scores (N,) float32 in [0, 1] of maps (1, H, W) float32 (`CHANNELS`).

    Each part of the foreground, pixels that meet at a corner being one part, is an object; its score is its mean body
    probability, filled holes included. No foreground gives no objects. Raises `InputError` for maps of another shape,
    or with a value that is not finite.
    """
    rules = SemanticRules() if rules is None else rules
    (body,) = checked_maps(maps, CHANNELS)
    return finished(*parts_of(body >= rules.body_threshold), body, rules)


def encode_instances(instances: Instances) -> np.ndarray:
    """Maps (1, H, W) float32 of the objects of an image."""
    return encode(instances.masks.to_label_map())


def decode_instances(
    maps: np.ndarray, rules: SemanticRules | None = None, class_probs: np.ndarray | None = None
) -> Instances:
    """The objects of maps (1, H, W), highest score first, ids 1..N; ``class_probs`` as in `to_instances`."""
    return to_instances(*decode(maps, rules), class_probs)


# --- shared with `watershed` ----------------------------------------------------------------------------------------


def checked_labels(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W), contiguous. Raises `InputError` for another shape and for values that are not integers."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise InputError(
            "a label map needs two axes of integers",
            got=f"shape {labels.shape}, {labels.dtype}",
            remedy="give an (H, W) array of integers, 0 for background",
        )
    return np.ascontiguousarray(labels)


def checked_maps(maps: np.ndarray, channels: tuple[str, ...]) -> np.ndarray:
    """Maps (C, H, W) as contiguous float32. Raises `InputError` for another shape, and for NaN and infinity."""
    if maps.ndim != 3 or len(maps) != len(channels):
        expected = f"({len(channels)}, H, W): {', '.join(channels)}"
        raise InputError("maps do not fit the decoder", got=f"shape {maps.shape}", expected=expected)
    for name, one in zip(channels, maps, strict=True):
        # A NaN is the minimum and the maximum of whatever holds it.
        if one.size and not (np.isfinite(one.min()) and np.isfinite(one.max())):
            remedy = "train again with a lower learning rate, or predict without mixed precision"
            raise InputError("the network's output is not finite", where=f"map {name!r}", remedy=remedy)
    return np.ascontiguousarray(maps, np.float32)


def parts_of(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Parts (H, W) int32 counted 1..K in C order of their first pixels, and K: equal labels, not 0, that touch, corners
    too. Labels are integers, or bool for a mask."""
    if labels.dtype == bool:
        from scipy import ndimage

        parts = np.empty(labels.shape, np.int32)
        return parts, int(ndimage.label(labels, np.ones((3, 3)), output=parts))  # type: ignore[arg-type]
    from cellwright.models.dense import _label_kernels

    return _label_kernels.parts_of(labels)


def finished(labels: np.ndarray, n: int, body: np.ndarray, rules: SemanticRules) -> tuple[np.ndarray, np.ndarray]:
    """Labels 1..n (H, W) int32, changed in place: no small objects, holes filled; and their scores (N,) float32."""
    from cellwright.core import _kernels as core_kernels
    from cellwright.models.dense import _label_kernels

    _, areas = core_kernels.label_extents(labels, n)
    n = _label_kernels.relabel(labels, areas >= max(rules.min_area_px, 1))
    boxes, areas = core_kernels.label_extents(labels, n)
    # No pixel is at least infinity: the rule for holes that are body, which following a flow leaves, never applies.
    _label_kernels.fill_holes(labels, boxes, areas, body, np.inf, rules.max_hole_share)
    return labels, _label_kernels.means_inside(labels, n, body).clip(0, 1).astype(np.float32)


def to_instances(labels: np.ndarray, scores: np.ndarray, class_probs: np.ndarray | None = None) -> Instances:
    """Objects of labels 1..N (H, W), highest score first, ids 1..N.

    class_probs: (K, H, W) probability of each class, or None for one class; an object's class is the one with the
    largest sum over its pixels.
    """
    masks, _ = MaskSet.from_label_map(labels)
    class_ids = np.zeros(len(scores), np.int64)
    if class_probs is not None and len(scores):
        sums = [np.bincount(labels.ravel(), weights=one.ravel(), minlength=len(scores) + 1)[1:] for one in class_probs]
        class_ids = np.argmax(sums, axis=0).astype(np.int64)
    found = Instances.from_masks(masks, class_ids=class_ids, scores=scores).by_score()
    return replace(found, ids=np.arange(1, len(found) + 1))
