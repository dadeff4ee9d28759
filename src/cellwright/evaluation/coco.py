"""COCO average precision from sparse pairs: the numbers of the COCO API, at any number of detections.

Lin et al. 2014, and the API's own matching and interpolation to the last rounding. What is -1 there is NaN here. Order
decides ties as it does there: predictions of equal score count in the order of images and of objects, so images go in
ascending COCO id and objects in the file's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellwright.evaluation.match import ImagePairs, Overlaps, Side

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
CAP = 100
CAPS = {str(CAP): CAP, "all": np.iinfo(np.int64).max}
ALL_SIZES = (0.0, 1e10)
COCO_BANDS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
THIRDS = ("smallest_third", "middle_third", "largest_third")


@dataclass(frozen=True, eq=False)
class Detections:
    """Every prediction of the data set, in the order of images and objects.

    image: (D,) position of its image. class_ids, rank: (D,), the rank among those of its image and class by score.
    scores: (D,) float64. codes: (A, T, D) uint8: 0 false, 1 true positive, 2 ignored, in size band a at threshold t.
    """

    image: np.ndarray
    class_ids: np.ndarray
    rank: np.ndarray
    scores: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True, eq=False)
class CocoResult:
    """What the COCO API calls ``eval``, for one kind of overlap ("mask" or "box").

    precision: (T, R, K, A, M) at T IoU thresholds, R recall points, K classes, A size bands, M caps; recall: (T, K, A,
    M). NaN where a class has no object that counts in that band. bands: names and limits in pixels, both included.
    n_truth: (images, K, A) objects that count.
    """

    precision: np.ndarray
    recall: np.ndarray
    bands: dict[str, tuple[float, float]]
    n_truth: np.ndarray
    detections: Detections

    def ap(
        self, *, cap: str = "all", band: str = "any", threshold: float | None = None, class_id: int | None = None
    ) -> float:
        """Mean precision over recall points, thresholds (or the one given) and classes (or the one given)."""
        return _mean(self._slice(self.precision, cap, band, threshold, class_id))

    def ar(
        self, *, cap: str = "all", band: str = "any", threshold: float | None = None, class_id: int | None = None
    ) -> float:
        """Mean of the recall finally reached, over thresholds and classes."""
        return _mean(self._slice(self.recall, cap, band, threshold, class_id))

    def ceiling(self, cap: int = CAP, class_id: int | None = None) -> float:
        """The best AP that ``cap`` detections for an image and class allow: those of perfect masks and scores."""
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


def coco_result(images: Sequence[ImagePairs], kind: str, n_classes: int) -> CocoResult:
    """Match every image, then accumulate class by class.

    images: in ascending order of image id, predictions with scores. kind: "mask", or "box" for pairs made with
    ``PairOptions(boxes=True)``. No images, and images without objects, give NaN. Ignored truth is COCO's crowd.
    """
    bands = {"any": ALL_SIZES, **COCO_BANDS, **size_thirds(images)}
    limits = np.array(list(bands.values()))
    matched = [_match_image(pairs, kind, limits) for pairs in images]
    detections = _joined([found for found, _ in matched], len(bands))
    n_truth = np.zeros((len(images), n_classes, len(bands)), np.int64)
    for i, (_, counted) in enumerate(matched):
        for a in range(len(bands)):
            n_truth[i, :, a] = np.bincount(images[i].truth.class_ids[counted[a]], minlength=n_classes)[:n_classes]
    caps = np.array(list(CAPS.values()))
    precision = np.full((len(IOU_THRESHOLDS), len(RECALL_POINTS), n_classes, len(bands), len(caps)), np.nan)
    recall = np.full((len(IOU_THRESHOLDS), n_classes, len(bands), len(caps)), np.nan)
    for k in range(n_classes):
        chosen = ranked(detections, k)
        table, reached = _kernels().precision_recall(
            detections.codes[:, :, chosen], detections.rank[chosen], caps, n_truth[:, k].sum(0), RECALL_POINTS
        )
        precision[:, :, k], recall[:, k] = table.transpose(2, 3, 0, 1), reached.transpose(2, 0, 1)
    return CocoResult(precision, recall, bands, n_truth, detections)


def ranked(detections: Detections, class_id: int) -> np.ndarray:
    """Indices (D,) of the predictions of a class, highest score first; ties by image, then by place in the image."""
    members = np.flatnonzero(detections.class_ids == class_id)
    # Two stable sorts, as the API does: inside each image first, then over all of them.
    members = members[np.lexsort((detections.rank[members], detections.image[members]))]
    return members[np.argsort(-detections.scores[members], kind="stable")]


def size_thirds(images: Sequence[ImagePairs]) -> dict[str, tuple[float, float]]:
    """Three size bands that hold about a third of the objects each; a border belongs to both sides, as in COCO."""
    sizes = [pairs.truth.sizes[~pairs.truth.ignore] for pairs in images]
    sizes = np.concatenate(sizes) if sizes else np.zeros(0)
    lower, upper = np.quantile(sizes, [1 / 3, 2 / 3]) if len(sizes) else (0.0, 0.0)
    limits = (0.0, float(lower)), (float(lower), float(upper)), (float(upper), ALL_SIZES[1])
    return dict(zip(THIRDS, limits, strict=True))


def _match_image(pairs: ImagePairs, kind: str, limits: np.ndarray) -> tuple[Detections, np.ndarray]:
    """Codes of one image's predictions, and which truth (A, G) bool counts in each size band."""
    truth, predicted = pairs.truth, pairs.predicted
    if predicted.scores is None:
        raise ValueError("coco_result needs predictions with scores")
    overlaps, predicted_sizes = _overlaps_and_sizes(pairs, kind)
    counted = ~truth.ignore & (truth.sizes >= limits[:, :1]) & (truth.sizes <= limits[:, 1:])
    outside = (predicted_sizes < limits[:, :1]) | (predicted_sizes > limits[:, 1:])
    keep = truth.class_ids[overlaps.truth] == predicted.class_ids[overlaps.predicted]
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
    image = np.zeros(len(predicted), np.int64)
    return Detections(image, predicted.class_ids, _class_ranks(predicted, order), predicted.scores, codes), counted


def _overlaps_and_sizes(pairs: ImagePairs, kind: str) -> tuple[Overlaps, np.ndarray]:
    if kind == "mask":
        return pairs.coco_iou, pairs.predicted.sizes
    if pairs.boxes is None:
        raise ValueError("box AP needs pairs made with PairOptions(boxes=True)")
    boxes = pairs.predicted.boxes
    return pairs.boxes, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _class_ranks(predicted: Side, order: np.ndarray) -> np.ndarray:
    """Rank (N,) of each prediction among those of its class, 0 for the highest score; ``order`` is by score."""
    rank = np.empty(len(predicted), np.int64)
    for class_id in np.unique(predicted.class_ids):
        members = order[predicted.class_ids[order] == class_id]
        rank[members] = np.arange(len(members))
    return rank


def _joined(images: Sequence[Detections], n_bands: int) -> Detections:
    counts = [len(found.scores) for found in images]
    if not counts:
        none = np.zeros(0, np.int64)
        return Detections(none, none, none, np.zeros(0), np.zeros((n_bands, len(IOU_THRESHOLDS), 0), np.uint8))
    return Detections(
        np.repeat(np.arange(len(images)), counts),
        np.concatenate([found.class_ids for found in images]),
        np.concatenate([found.rank for found in images]),
        np.concatenate([found.scores for found in images]),
        np.concatenate([found.codes for found in images], axis=2),
    )


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _kernels() -> Any:
    from cellwright.evaluation import _kernels

    return _kernels
