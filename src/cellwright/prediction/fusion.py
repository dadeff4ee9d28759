"""Fuse several predictions of one image: non-maximum suppression, Weighted Boxes Fusion, a vote of masks.

Fusion needs only the objects, no image and no network. Scores are compared as they are; those of different model
families are comparable only if they are calibrated. The cost grows with the pixels of the objects and with the number
of overlapping pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import numpy as np

from cellwright.core.errors import InputError, UsageError, did_you_mean
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, SoftMasks
from cellwright.core.masks import concat as concat_masks
from cellwright.core.scores import ScoreThreshold
from cellwright.core.text import count
from cellwright.ops.weighted_boxes import weighted_boxes
from cellwright.prediction.suppression import (
    Pairs,
    box_pairs,
    gaussian_decay,
    hard_nms,
    linear_decay,
    mask_pairs,
    soft_nms,
)

Method = Literal["wbf", "nms", "soft_nms", "mask_nms", "mask_vote"]
Decay = Literal["linear", "gaussian"]


@dataclass(frozen=True)
class FusionOptions:
    """How predictions are fused.

    method: ``wbf`` Weighted Boxes Fusion, ``nms`` and ``soft_nms`` by boxes, ``mask_nms`` and ``mask_vote`` by masks.
    iou: overlap above which two objects are treated as one.
    score: objects with a lower score are omitted, before weights are applied.
    weights: one per member, above 0; None: all 1.
    class_agnostic: objects of different classes compete too.
    decay: for soft_nms: ``linear`` above ``iou``, or ``gaussian`` of width ``sigma``, which does not use ``iou``.
    over_smaller: mask_nms uses the intersection over the smaller mask, which also removes fragments inside an object.

    Raises `UsageError` for a value out of range.
    """

    method: Method = "wbf"
    iou: float = 0.5
    score: float = 0.05
    weights: tuple[float, ...] | None = None
    class_agnostic: bool = False
    decay: Decay = "gaussian"
    sigma: float = 0.5
    over_smaller: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("method", self.method, get_args(Method)), ("decay", self.decay, get_args(Decay))):
            if value not in known:
                raise UsageError(f"unknown `{name}`", got=repr(value), remedy=did_you_mean(str(value), known))
        weights = () if self.weights is None else self.weights
        limits = (
            ("iou", self.iou, 0 <= self.iou < 1, "0 to 1, below 1"),
            ("score", self.score, 0 <= self.score <= 1, "0 to 1"),
            ("sigma", self.sigma, 0 < self.sigma < math.inf, "above 0"),
            ("weights", weights, all(0 < weight < math.inf for weight in weights), "numbers above 0"),
        )
        for name, value, fits, expected in limits:
            if not fits:
                raise UsageError(f"`{name}` is out of range", got=value, expected=expected)

    def weights_of(self, n_members: int) -> np.ndarray:
        """Weights (M,) float64; `UsageError` if the numbers of weights and members differ."""
        if self.weights is not None and len(self.weights) != n_members:
            raise UsageError(
                "different numbers of weights and predictions",
                got=f"{count(len(self.weights), 'weight')}: {', '.join(f'{weight:g}' for weight in self.weights)}",
                expected=f"{n_members}, one per prediction, in their order",
            )
        return np.ones(n_members) if self.weights is None else np.array(self.weights, np.float64)

    def as_values(self, n_members: int) -> dict[str, object]:
        """As plain values for files, with all weights."""
        return {**asdict(self), "weights": self.weights_of(n_members).tolist()}


def fuse(members: Sequence[Instances], options: FusionOptions | None = None) -> Instances:
    """Fuse the predictions of several members for one image; objects best first, ids 1..N.

    Objects without scores (label images) count with score 1; regions to ignore are omitted. ``wbf`` returns fused boxes
    and masks, ``mask_vote`` fused masks and their tight boxes. The other methods return objects of the members as they
    are, with their score times the weight over the largest weight. Scores above 1 become 1. An empty result is
    valid. The methods that use masks omit objects without a pixel; the others keep them, so boxes alone give boxes.

    Raises `UsageError` without members or with another number of weights, `InputError` for images of different sizes.
    """
    options = FusionOptions() if options is None else options
    if not members:
        raise UsageError("no predictions to fuse", got="an empty list", expected="at least one prediction")
    sizes = [member.image_hw for member in members]
    if len(set(sizes)) > 1:
        got = ", ".join(f"{height} x {width}" for height, width in sizes)
        remedy = "give predictions of the same image at the same size"
        raise InputError("the predictions are for images of different sizes (height x width)", got=got, remedy=remedy)
    pool = _Pool.of(members, options)
    if not len(pool.objects):
        return Instances.empty(sizes[0], scored=True)
    match options.method:
        case "wbf":
            return _weighted_boxes_fusion(pool, options.iou)
        case "mask_vote":
            return _mask_vote(pool, options.iou)
        case _:
            return _suppressed(pool, options)


def mean_threshold(thresholds: Sequence[ScoreThreshold], weights: np.ndarray) -> ScoreThreshold:
    """The weighted mean of the members' score thresholds: one number, or one per class if a member has these.

    >>> mean_threshold([0.25, (0.5, 0.75)], np.array([1.0, 1.0]))
    (0.375, 0.5)
    """
    n_classes = max((len(own) for own in thresholds if isinstance(own, tuple)), default=1)
    per_class = np.stack([np.broadcast_to(np.array(own, np.float64), n_classes) for own in thresholds])
    mean = np.average(per_class, axis=0, weights=weights)
    return tuple(mean.tolist()) if any(isinstance(own, tuple) for own in thresholds) else float(mean[0])


@dataclass(frozen=True, eq=False)
class _Pool:
    """The objects of all members in order of decreasing share; ties in the order of the members.

    objects: with the scores of their members. member: (N,) int64. shares: (N,) float64, score x weight. groups: (N,)
    int64, objects of different groups are never fused. soft: probabilities of the masks' pixels, None if all are 1.
    weights: (M,) float64.
    """

    objects: Instances
    member: np.ndarray
    shares: np.ndarray
    groups: np.ndarray
    soft: SoftMasks | None
    weights: np.ndarray

    @staticmethod
    def of(members: Sequence[Instances], options: FusionOptions) -> _Pool:
        weights = options.weights_of(len(members))
        kept = []
        for own in members:
            scores = np.ones(len(own), np.float32) if own.scores is None else own.scores
            kept.append(replace(own, scores=scores)[(scores >= np.float32(options.score)) & ~own.ignore])
        objects = Instances.from_masks(
            concat_masks([own.masks for own in kept]),
            class_ids=np.concatenate([own.class_ids for own in kept]),
            scores=np.concatenate([own.scores for own in kept if own.scores is not None]),
            boxes_xyxy=np.concatenate([own.boxes_xyxy for own in kept]),
        )
        member = np.repeat(np.arange(len(kept)), [len(own) for own in kept])
        shares = _scores(objects) * weights[member]
        order = np.argsort(-shares, kind="stable")
        if options.method.startswith("mask_"):
            order = order[objects.masks.areas[order] > 0]
        objects = objects[order]
        groups = np.zeros(len(objects), np.int64) if options.class_agnostic else objects.class_ids
        soft = _joined_soft(kept)
        return _Pool(objects, member[order], shares[order], groups, None if soft is None else soft[order], weights)


def _suppressed(pool: _Pool, options: FusionOptions) -> Instances:
    """The objects that remain after hard or soft non-maximum suppression."""
    objects, scores = pool.objects, pool.shares / pool.weights.max()
    if options.method == "mask_nms":
        pairs = mask_pairs(objects.masks, pool.groups, over_smaller=options.over_smaller)
    else:
        pairs = box_pairs(objects.boxes_xyxy, pool.groups)
    if options.method == "soft_nms":
        order, scores = soft_nms(scores, pairs, _decay(pairs, options))
        order = order[scores[order] >= options.score]
    else:
        order = hard_nms(scores, pairs, options.iou)
    return _result(objects.masks[order], objects.class_ids[order], scores[order], objects.boxes_xyxy[order])


def _decay(pairs: Pairs, options: FusionOptions) -> np.ndarray:
    if options.decay == "linear":
        return linear_decay(pairs.overlap, options.iou)
    return gaussian_decay(pairs.overlap, options.sigma)


def _weighted_boxes_fusion(pool: _Pool, limit: float) -> Instances:
    """Weighted Boxes Fusion; the masks of a cluster are averaged with the same weights as its boxes."""
    cluster, boxes, scores = weighted_boxes(pool.objects.boxes_xyxy, pool.shares, pool.groups, pool.weights, limit)
    soft = _solid(pool.objects.masks) if pool.soft is None else pool.soft
    masks = _blended(soft, cluster, pool.shares)
    return _result(masks, _classes(pool, cluster), scores, boxes)


def _mask_vote(pool: _Pool, limit: float) -> Instances:
    """Greedy clusters by mask IoU; in each, one object per member votes on every pixel.

    As in non-maximum suppression, the best remaining object represents all objects that it overlaps by more than
    ``limit``. Of these, the one of each other member that overlaps most votes with it. A pixel belongs to the mask if
    more than half of the voters' weight contains it; at exactly half the best object decides. The score is the weighted
    mean over all members; a member without an object counts as 0.
    """
    pairs = mask_pairs(pool.objects.masks, pool.groups)
    cluster = np.full(len(pool.objects), -1, np.int64)
    taken = np.zeros(len(cluster), bool)
    seeds = []
    for k in range(len(cluster)):
        if taken[k]:
            continue
        others, overlap = pairs.of(k)
        free = (overlap > limit) & ~taken[others]
        others = others[free][np.argsort(-overlap[free], kind="stable")]
        first = np.unique(pool.member[others], return_index=True)[1]
        voters = [k, *(m for m in others[first].tolist() if pool.member[m] != pool.member[k])]
        taken[[k, *others.tolist()]] = True
        cluster[voters] = len(seeds)
        seeds.append(k)
    votes = pool.weights[pool.member]
    votes[seeds] *= 1 + 1e-6  # breaks ties but makes no majority
    masks = _blended(_solid(pool.objects.masks), cluster, votes)
    voting = cluster >= 0
    scores = np.bincount(cluster[voting], pool.shares[voting]) / pool.weights.sum()
    return _result(masks, _classes(pool, cluster), scores, masks.boxes)


def _blended(soft: SoftMasks, cluster: np.ndarray, shares: np.ndarray) -> MaskSet:
    """One mask per cluster: where the mean probability of its members, weighted by ``shares`` (N,), is at least 0.5.

    cluster: (N,) int64, -1 for objects that are in none.
    """
    from cellwright.prediction._fusion_kernels import blend

    order = np.argsort(cluster, kind="stable")
    starts = np.searchsorted(cluster[order], np.arange(cluster.max(initial=-1) + 2))
    # Members that all have score 0 count equally.
    counted = np.maximum(shares, 1e-12)
    return MaskSet.from_flat(soft.image_hw, *blend(order, starts, counted, soft.boxes, soft.offsets, soft.probs))


def _classes(pool: _Pool, cluster: np.ndarray) -> np.ndarray:
    """The class (C,) int64 with the largest share in each cluster; of equal ones the lower."""
    n_clusters = int(cluster.max(initial=-1)) + 1
    inside, classes = cluster >= 0, pool.objects.class_ids
    pairs, where = np.unique(np.stack([cluster[inside], classes[inside]], 1), axis=0, return_inverse=True)
    total = np.bincount(where.reshape(-1), pool.shares[inside], minlength=len(pairs))
    order = np.lexsort((pairs[:, 1], -total, pairs[:, 0]))
    return pairs[order[np.searchsorted(pairs[order, 0], np.arange(n_clusters))], 1]


def _joined_soft(members: Sequence[Instances]) -> SoftMasks | None:
    """The probabilities of all members' objects, 0 or 1 for a member without; None if no member has any."""
    if all(own.soft_masks is None for own in members):
        return None
    parts = [_solid(own.masks) if own.soft_masks is None else own.soft_masks for own in members]
    ends = np.cumsum([len(part.probs) for part in parts])
    offsets = [part.offsets[:-1] + end - len(part.probs) for part, end in zip(parts, ends, strict=True)]
    return SoftMasks(
        parts[0].image_hw,
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([*offsets, ends[-1:]]),
        np.concatenate([part.probs for part in parts]),
    )


def _solid(masks: MaskSet) -> SoftMasks:
    return SoftMasks(masks.image_hw, masks.boxes, masks.offsets, masks.crops * np.uint8(255))


def _result(masks: MaskSet, class_ids: np.ndarray, scores: np.ndarray, boxes: np.ndarray) -> Instances:
    ranked = np.argsort(-scores, kind="stable")
    return Instances.from_masks(
        masks[ranked],
        class_ids=class_ids[ranked],
        scores=np.minimum(scores[ranked], 1.0),
        boxes_xyxy=boxes[ranked],
    )


def _scores(objects: Instances) -> np.ndarray:
    assert objects.scores is not None  # the pool gives every object a score
    return objects.scores.astype(np.float64)
