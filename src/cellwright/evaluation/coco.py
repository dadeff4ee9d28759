"""COCO average precision (Lin et al. 2014) from sparse pairs, for any number of predictions per image.

The results equal those of the COCO API, including its matching, interpolation and rounding; where the API returns -1,
the result is NaN. Ties are resolved as in the API: predictions with equal scores are ordered by the COCO id of their
image, then by position within the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.evaluation.matching import ImagePairs, ObjectFacts, Overlaps

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
CAP = 100
CAPS = {str(CAP): CAP, "all": np.iinfo(np.int64).max}
ALL_SIZES = (0.0, 1e10)
COCO_BANDS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
THIRDS = ("smallest_third", "middle_third", "largest_third")


@dataclass(frozen=True, eq=False)
class RankedPredictions:
    """All D predictions of a dataset, in the order of images and objects.

    image: (D,) index of the image. place: (D,) place of the image in ascending order of COCO ids. class_ids: (D,).
    rank: (D,) rank by score among the predictions of the same image and class, from 0. scores: (D,) float64. codes:
    (A, T, D) uint8, for size band a and IoU threshold t: 0 false positive, 1 true positive, 2 ignored.
    """

    image: np.ndarray
    place: np.ndarray
    class_ids: np.ndarray
    rank: np.ndarray
    scores: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True, eq=False)
class CocoResult:
    """What the COCO API calls ``eval``, for one kind of overlap ("mask" or "box").

    precision: (T, R, K, A, M) at T IoU thresholds, R recall points, K classes, A size bands, M caps.
    recall: (T, K, A, M). Both are NaN where a class has no object that counts in a size band.
    bands: name -> lower and upper limit in pixels, both inclusive. n_truth: (images, K, A) objects that count.
    """

    precision: np.ndarray
    recall: np.ndarray
    bands: dict[str, tuple[float, float]]
    n_truth: np.ndarray
    predictions: RankedPredictions

    def ap(
        self, *, cap: str = "all", band: str = "any", threshold: float | None = None, class_id: int | None = None
    ) -> float:
        """Mean precision over recall points, IoU thresholds and classes, or for one threshold or one class."""
        return _mean(self._slice(self.precision, cap, band, threshold, class_id))

    def ar(
        self, *, cap: str = "all", band: str = "any", threshold: float | None = None, class_id: int | None = None
    ) -> float:
        """Mean final recall over IoU thresholds and classes, or for one threshold or one class."""
        return _mean(self._slice(self.recall, cap, band, threshold, class_id))

    def ceiling(self, cap: int = CAP, class_id: int | None = None) -> float:
        """The highest AP possible with ``cap`` predictions per image and class: that of perfect masks and scores."""
        total = self.n_truth[:, :, 0].sum(0)
        reachable = np.minimum(self.n_truth[:, :, 0], cap).sum(0)
        chosen = np.arange(len(total)) if class_id is None else np.array([class_id])
        scored = [k for k in chosen if total[k]]
        if not scored:
            return float("nan")
        return float(np.mean([np.mean(reachable[k] / total[k] >= RECALL_POINTS) for k in scored]))

    def _slice(
        self, values: np.ndarray, cap: str, band: str, threshold: float | None, class_id: int | None
    ) -> np.ndarray:
        if threshold is not None:
            values = values[np.isclose(IOU_THRESHOLDS, threshold)]
        values = values[..., list(self.bands).index(band), list(CAPS).index(cap)]
        return values if class_id is None else values[..., class_id]


def coco_result(
    images: Sequence[ImagePairs], kind: str, n_classes: int, coco_ids: Sequence[int] | None = None
) -> CocoResult:
    """Match every image, then accumulate precision and recall class by class.

    images: predictions must have scores. kind: "mask", or "box" (needs pairs made with ``PairOptions(boxes=True)``).
    coco_ids: of the images, by which predictions with equal scores are ordered; None: in the order given. Without
    images or objects, all results are NaN. Ignored objects are COCO's crowds; those of no class are of every class.
    """
    bands = {"any": ALL_SIZES, **COCO_BANDS, **size_thirds(images)}
    limits = np.array(list(bands.values()))
    matched = [_match_image(pairs, kind, limits) for pairs in images]
    places = np.arange(len(images)) if coco_ids is None else np.argsort(np.argsort(coco_ids, kind="stable"))
    predictions = _concatenate([ranked_predictions for ranked_predictions, _ in matched], places, len(bands))
    n_truth = np.zeros((len(images), n_classes, len(bands)), np.int64)
    for i, (_, counted) in enumerate(matched):
        for a in range(len(bands)):
            n_truth[i, :, a] = np.bincount(images[i].coco.truth.class_ids[counted[a]], minlength=n_classes)[:n_classes]
    caps = np.array(list(CAPS.values()))
    precision = np.full((len(IOU_THRESHOLDS), len(RECALL_POINTS), n_classes, len(bands), len(caps)), np.nan)
    recall = np.full((len(IOU_THRESHOLDS), n_classes, len(bands), len(caps)), np.nan)
    for k in range(n_classes):
        chosen = ranked(predictions, k)
        table, reached = _kernels().precision_recall(
            predictions.codes[:, :, chosen], predictions.rank[chosen], caps, n_truth[:, k].sum(0), RECALL_POINTS
        )
        precision[:, :, k], recall[:, k] = table.transpose(2, 3, 0, 1), reached.transpose(2, 0, 1)
    return CocoResult(precision, recall, bands, n_truth, predictions)


def ranked(predictions: RankedPredictions, class_id: int) -> np.ndarray:
    """Indices (D,) of the predictions of a class, highest score first; ties by COCO id, then by rank in the image."""
    members = np.flatnonzero(predictions.class_ids == class_id)
    # Two stable sorts, as in the API: within each image first, then over all images.
    members = members[np.lexsort((predictions.rank[members], predictions.place[members]))]
    return members[np.argsort(-predictions.scores[members], kind="stable")]


def size_thirds(images: Sequence[ImagePairs]) -> dict[str, tuple[float, float]]:
    """Three size bands with about a third of the objects each; as in COCO, a limit belongs to both adjacent bands."""
    sizes = [pairs.coco.truth.sizes[~pairs.coco.truth.ignore] for pairs in images]
    sizes = np.concatenate(sizes) if sizes else np.zeros(0)
    lower, upper = np.quantile(sizes, [1 / 3, 2 / 3]) if len(sizes) else (0.0, 0.0)
    limits = (0.0, float(lower)), (float(lower), float(upper)), (float(upper), ALL_SIZES[1])
    return dict(zip(THIRDS, limits, strict=True))


def _match_image(pairs: ImagePairs, kind: str, limits: np.ndarray) -> tuple[RankedPredictions, np.ndarray]:
    """The predictions of one image, and which annotated objects (A, G) bool count in each size band."""
    truth, predicted = pairs.coco.truth, pairs.predicted
    if predicted.scores is None:
        raise ValueError("coco_result needs predictions with scores")
    overlaps, predicted_sizes = _overlaps_and_sizes(pairs, kind)
    counted = ~truth.ignore & (truth.sizes >= limits[:, :1]) & (truth.sizes <= limits[:, 1:])
    outside = (predicted_sizes < limits[:, :1]) | (predicted_sizes > limits[:, 1:])
    own_class = truth.class_ids[overlaps.truth]
    keep = (own_class == NO_CLASS) | (own_class == predicted.class_ids[overlaps.predicted])
    keep &= overlaps.value >= IOU_THRESHOLDS[0]
    truth_index, predicted_index, iou = overlaps.truth[keep], overlaps.predicted[keep], overlaps.value[keep]
    by_prediction = np.argsort(predicted_index, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(predicted_index, minlength=len(predicted)))]).astype(np.int64)
    order = np.argsort(-predicted.scores, kind="stable")
    codes = _kernels().greedy_codes(
        order,
        start,
        truth_index[by_prediction],
        iou[by_prediction],
        ~counted,
        truth.ignore,
        outside,
        np.minimum(IOU_THRESHOLDS, 1 - 1e-10),
    )
    zero = np.zeros(len(predicted), np.int64)
    ranks = _class_ranks(predicted, order)
    return RankedPredictions(zero, zero, predicted.class_ids, ranks, predicted.scores, codes), counted


def _overlaps_and_sizes(pairs: ImagePairs, kind: str) -> tuple[Overlaps, np.ndarray]:
    if kind == "mask":
        return pairs.coco.masks, pairs.predicted.sizes
    if pairs.coco.boxes is None:
        raise ValueError("box AP needs pairs made with PairOptions(boxes=True)")
    boxes = pairs.predicted.boxes
    return pairs.coco.boxes, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _class_ranks(predicted: ObjectFacts, order: np.ndarray) -> np.ndarray:
    """Rank (N,) of each prediction within its class, 0 for the highest score; ``order`` sorts predictions by score."""
    rank = np.empty(len(predicted), np.int64)
    for class_id in np.unique(predicted.class_ids):
        members = order[predicted.class_ids[order] == class_id]
        rank[members] = np.arange(len(members))
    return rank


def _concatenate(images: Sequence[RankedPredictions], places: np.ndarray, n_bands: int) -> RankedPredictions:
    counts = [len(image.scores) for image in images]
    if not counts:
        none, codes = np.zeros(0, np.int64), np.zeros((n_bands, len(IOU_THRESHOLDS), 0), np.uint8)
        return RankedPredictions(none, none, none, none, np.zeros(0), codes)
    return RankedPredictions(
        np.repeat(np.arange(len(images)), counts),
        np.repeat(places, counts),
        np.concatenate([image.class_ids for image in images]),
        np.concatenate([image.rank for image in images]),
        np.concatenate([image.scores for image in images]),
        np.concatenate([image.codes for image in images], axis=2),
    )


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _kernels() -> Any:
    from cellwright.evaluation import _kernels

    return _kernels
