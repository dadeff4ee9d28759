"""Metrics that need no scores: one-to-one matching, aggregated overlap, outlines.

Every metric is a function of sums over objects (`Counts`, `Ratio`). It has a value per image, a mean over images, and a
pooled value computed from the sums over all images. Undefined values are NaN. For definitions, papers and differences
between tools see docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from cellwright.evaluation.matching import ALL_CLASSES, ImagePairs, best_assignment, heaviest_matching, one_to_one

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
NAN = float("nan")


@dataclass(frozen=True)
class Counts:
    """Matched pairs, unmatched predictions and unmatched objects at one IoU threshold; sum of IoU of the pairs."""

    tp: int
    fp: int
    fn: int
    iou_sum: float

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum)

    @property
    def accuracy(self) -> float:
        """TP / (TP + FP + FN): StarDist's accuracy, Cellpose's average precision. NaN if all are 0."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); at 0.5 this is the dq of `pq`. NaN if all are 0."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """TP / predictions. NaN without predictions."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """TP / objects. NaN without objects."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def pq(self) -> float:
        """Sum of IoU / (TP + FP / 2 + FN / 2) = sq * dq (Kirillov et al. 2019). NaN if all are 0."""
        return _ratio(self.iou_sum, self.tp + (self.fp + self.fn) / 2)

    @property
    def sq(self) -> float:
        """Mean IoU of the matched pairs. NaN without matches."""
        return _ratio(self.iou_sum, self.tp)

    @property
    def mean_true_iou(self) -> float:
        """Sum of IoU / objects. NaN without objects."""
        return _ratio(self.iou_sum, self.tp + self.fn)


@dataclass(frozen=True)
class Ratio:
    """A metric that is pooled by adding numerators and denominators."""

    numerator: float
    denominator: float

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.numerator + other.numerator, self.denominator + other.denominator)

    @property
    def value(self) -> float:
        """The quotient; NaN if the denominator is 0."""
        return _ratio(self.numerator, self.denominator)


@dataclass(frozen=True)
class Scores:
    """The sums of one image, of one of its classes, or of several images (sums can be added).

    counts: at each t of `THRESHOLDS`, with IoU >= t. strict: with IoU > t, for the Kaggle score. ratios: by name.
    """

    counts: tuple[Counts, ...]
    strict: tuple[Counts, ...]
    ratios: dict[str, Ratio]

    def __add__(self, other: Scores) -> Scores:
        return Scores(
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            tuple(a + b for a, b in zip(self.strict, other.strict, strict=True)),
            {name: ratio + other.ratios[name] for name, ratio in self.ratios.items()},
        )

    def values(self) -> dict[str, float]:
        """Every metric by its full name, including the threshold ("accuracy@0.55")."""
        half = self.counts[0]
        named = {"kaggle_score": float(np.mean([counts.accuracy for counts in self.strict]))}
        for name in ("accuracy", "f1", "precision", "recall"):
            named |= {f"{name}@{t:g}": getattr(c, name) for t, c in zip(THRESHOLDS, self.counts, strict=True)}
        named |= {"pq": half.pq, "sq": half.sq, "dq": half.f1}
        named |= {"mean_matched_iou@0.5": half.sq, "mean_true_iou@0.5": half.mean_true_iou}
        return named | {name: ratio.value for name, ratio in self.ratios.items()}


def score_image(pairs: ImagePairs, families: Collection[str]) -> Scores:
    """The sums of one image, or of one of its classes (``pairs.of_class(k)``), without ignored regions.

    Counts are always computed. families: "overlap" adds aji, aji_plus, aji_cellpose and dice, and needs pairs with
    foreground; "boundary" adds boundary_iou, and needs pairs with a boundary width.
    """
    pairs = pairs.without_ignored()
    counts = tuple(count(pairs, t) for t in THRESHOLDS)
    exact = {t for t in THRESHOLDS if (pairs.iou == t).any()}
    strict = tuple(count(pairs, t, strict=True) if t in exact else c for t, c in zip(THRESHOLDS, counts, strict=True))
    ratios: dict[str, Ratio] = {}
    if "overlap" in families:
        truth_px, predicted_px, both_px = pairs.foreground.get(ALL_CLASSES, (0, 0, 0))
        ratios |= {"aji": aji(pairs), "aji_plus": aji_plus(pairs), "aji_cellpose": aji_cellpose(pairs)}
        ratios["dice"] = Ratio(2 * both_px, truth_px + predicted_px)
    if "boundary" in families:
        ratios[f"boundary_iou@{pairs.boundary_px}px"] = boundary_iou(pairs)
    return Scores(counts, strict, ratios)


def no_scores(families: Collection[str], boundary_px: int | None) -> Scores:
    """The sums of no images."""
    none = tuple(Counts(0, 0, 0, 0.0) for _ in THRESHOLDS)
    names = ("aji", "aji_plus", "aji_cellpose", "dice") if "overlap" in families else ()
    names += (f"boundary_iou@{boundary_px}px",) if "boundary" in families else ()
    return Scores(none, none, {name: Ratio(0, 0) for name in names})


def count(pairs: ImagePairs, threshold: float, *, strict: bool = False) -> Counts:
    """Match one to one at IoU >= ``threshold`` (> if ``strict``), regardless of classes."""
    iou = one_to_one(pairs, threshold, strict=strict).iou
    return Counts(len(iou), len(pairs.predicted) - len(iou), len(pairs.truth) - len(iou), float(iou.sum()))


def aji(pairs: ImagePairs) -> Ratio:
    """Aggregated Jaccard index (Kumar et al. 2017, algorithm 1).

    Each object takes the prediction with the highest IoU (in a tie, the first); several objects may take the same
    one. The result is the sum of intersections over the sum of unions. Objects and predictions without a partner add
    their areas to the denominator.
    """
    truth, predicted, shared = pairs.shared.truth, pairs.shared.predicted, pairs.shared.value
    order = np.lexsort((predicted, -pairs.iou, truth))
    best = order[np.concatenate([[True], truth[order][1:] != truth[order][:-1]])] if len(order) else order
    chosen = np.zeros(len(truth), bool)
    chosen[best] = True
    return _aggregate(pairs, truth[chosen], predicted[chosen], shared[chosen])


def aji_plus(pairs: ImagePairs) -> Ratio:
    """AJI+ (Graham et al. 2019): like `aji`, with the one-to-one matching that has the largest sum of IoU."""
    chosen = heaviest_matching(pairs.shared.truth, pairs.shared.predicted, pairs.iou)
    parts = pairs.shared.truth, pairs.shared.predicted, pairs.shared.value
    return _aggregate(pairs, *(part[chosen] for part in parts))


def aji_cellpose(pairs: ImagePairs) -> Ratio:
    """Cellpose's aggregated Jaccard index: intersections of matched pairs over the union of all foreground.

    Pairs are matched by StarDist's assignment at 0.5, including pairs below 0.5. Needs pairs with foreground.
    """
    shared = pairs.shared.value[best_assignment(pairs, 0.5)]
    truth_px, predicted_px, both_px = pairs.foreground.get(ALL_CLASSES, (0, 0, 0))
    return Ratio(int(shared.sum()), truth_px + predicted_px - both_px)


def boundary_iou(pairs: ImagePairs) -> Ratio:
    """Mean boundary IoU of the pairs matched at IoU >= 0.5. Needs pairs with a boundary width."""
    if pairs.boundary is None:
        raise ValueError("boundary_iou needs pairs made with PairOptions(boundary_px=...)")
    matched = one_to_one(pairs, 0.5)
    n_predicted = max(len(pairs.predicted), 1)
    keys = pairs.boundary.truth * n_predicted + pairs.boundary.predicted
    is_matched = np.isin(keys, matched.truth * n_predicted + matched.predicted)
    return Ratio(float(pairs.boundary.value[is_matched].sum()), len(matched.iou))


def _aggregate(pairs: ImagePairs, truth: np.ndarray, predicted: np.ndarray, shared: np.ndarray) -> Ratio:
    """Sum of intersections over sum of unions, plus the areas of all objects and predictions that are in no pair."""
    truth_areas, predicted_areas = pairs.truth.areas, pairs.predicted.areas
    unions = truth_areas[truth] + predicted_areas[predicted] - shared
    unpaired = np.delete(truth_areas, truth).sum() + np.delete(predicted_areas, predicted).sum()
    return Ratio(int(shared.sum()), int(unions.sum() + unpaired))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else NAN
