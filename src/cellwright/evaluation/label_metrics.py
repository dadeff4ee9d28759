"""Metrics of one-to-one matching, of aggregated overlap and of outlines; no scores needed.

Every figure is a function of sums over images (`Counts`, `Ratio`), so each has a value for an image, a mean over
images, and a pooled value. Definitions, papers and what differs between tools: docs/metrics.md. Undefined is NaN.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from cellwright.evaluation.match import ALL_CLASSES, ImagePairs, assign, heaviest_matching, one_to_one

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
NAN = float("nan")


@dataclass(frozen=True)
class Counts:
    """Matched pairs, predictions and objects left over at one IoU threshold, and the matched pairs' sum of IoU."""

    tp: int
    fp: int
    fn: int
    iou_sum: float

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum)

    @property
    def accuracy(self) -> float:
        """TP / (TP + FP + FN): StarDist's accuracy, Cellpose's average precision. NaN with nothing on either side."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), the dq of `pq` at .5. NaN with nothing on either side."""
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
        """Sum of matched IoU / (TP + FP / 2 + FN / 2) = sq * dq (Kirillov et al. 2019). NaN with nothing anywhere."""
        return _ratio(self.iou_sum, self.tp + (self.fp + self.fn) / 2)

    @property
    def sq(self) -> float:
        """Mean IoU of the matched pairs. NaN without a match."""
        return _ratio(self.iou_sum, self.tp)

    @property
    def mean_true_iou(self) -> float:
        """Sum of matched IoU / objects. NaN without objects."""
        return _ratio(self.iou_sum, self.tp + self.fn)


@dataclass(frozen=True)
class Ratio:
    """A figure that is pooled by adding numerators and denominators; NaN over 0."""

    over: float
    under: float

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.over + other.over, self.under + other.under)

    @property
    def value(self) -> float:
        """The quotient."""
        return _ratio(self.over, self.under)


@dataclass(frozen=True)
class Scores:
    """All sums of one image, of one class in it, or of many images (they add up).

    counts, strict: at `THRESHOLDS`, IoU >= t and, for the Kaggle score, IoU > t. ratios: by name.
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
        """Every figure by its full name; thresholds stand in the name ("accuracy@0.55")."""
        half = self.counts[0]
        named = {"kaggle_score": float(np.mean([counts.accuracy for counts in self.strict]))}
        for name in ("accuracy", "f1", "precision", "recall"):
            named |= {f"{name}@{t:g}": getattr(c, name) for t, c in zip(THRESHOLDS, self.counts, strict=True)}
        named |= {"pq": half.pq, "sq": half.sq, "dq": half.f1}
        named |= {"mean_matched_iou@0.5": half.sq, "mean_true_iou@0.5": half.mean_true_iou}
        return named | {name: ratio.value for name, ratio in self.ratios.items()}


def score_image(pairs: ImagePairs, families: Collection[str]) -> Scores:
    """The sums of one image (or of one class of it: ``pairs.of_class(k)``); ignored regions are taken out first.

    The counts always come. families: "overlap" adds aji, aji_plus, aji_cellpose and dice and needs pairs made with
    foreground; "boundary" adds boundary_iou and needs pairs made with a boundary width.
    """
    pairs = pairs.judged()
    counts = tuple(count(pairs, t) for t in THRESHOLDS)
    exact = {t for t in THRESHOLDS if (pairs.iou == t).any()}
    strict = tuple(count(pairs, t, above=True) if t in exact else c for t, c in zip(THRESHOLDS, counts, strict=True))
    ratios: dict[str, Ratio] = {}
    if "overlap" in families:
        truth_px, predicted_px, both_px = pairs.foreground.get(ALL_CLASSES, (0, 0, 0))
        ratios |= {"aji": aji(pairs), "aji_plus": aji_plus(pairs), "aji_cellpose": aji_cellpose(pairs)}
        ratios["dice"] = Ratio(2 * both_px, truth_px + predicted_px)
    if "boundary" in families:
        ratios[f"boundary_iou@{pairs.boundary_px}px"] = boundary_iou(pairs)
    return Scores(counts, strict, ratios)


def no_scores(families: Collection[str], boundary_px: int | None) -> Scores:
    """The sums of no images at all."""
    none = tuple(Counts(0, 0, 0, 0.0) for _ in THRESHOLDS)
    names = ("aji", "aji_plus", "aji_cellpose", "dice") if "overlap" in families else ()
    names += (f"boundary_iou@{boundary_px}px",) if "boundary" in families else ()
    return Scores(none, none, {name: Ratio(0, 0) for name in names})


def count(pairs: ImagePairs, threshold: float, *, above: bool = False) -> Counts:
    """Matches one to one at IoU >= ``threshold`` (> with ``above``), whatever the classes."""
    iou = one_to_one(pairs, threshold, above=above).iou
    return Counts(len(iou), len(pairs.predicted) - len(iou), len(pairs.truth) - len(iou), float(iou.sum()))


def aji(pairs: ImagePairs) -> Ratio:
    """Aggregated Jaccard index (Kumar et al. 2017, algorithm 1).

    Each object takes the prediction of the highest IoU (of equal ones the first), and several objects may take the same
    one; intersections are summed over unions, and what is left over on either side adds its area to the unions.
    """
    truth, predicted, shared = pairs.pairs.truth, pairs.pairs.predicted, pairs.pairs.value
    order = np.lexsort((predicted, -pairs.iou, truth))
    best = order[np.concatenate([[True], truth[order][1:] != truth[order][:-1]])] if len(order) else order
    chosen = np.zeros(len(truth), bool)
    chosen[best] = True
    return _aggregate(pairs, truth[chosen], predicted[chosen], shared[chosen])


def aji_plus(pairs: ImagePairs) -> Ratio:
    """AJI+ (Graham et al. 2019): as `aji`, with the one-to-one matching of the largest sum of IoU."""
    chosen = heaviest_matching(pairs.pairs.truth, pairs.pairs.predicted, pairs.iou)
    parts = pairs.pairs.truth, pairs.pairs.predicted, pairs.pairs.value
    return _aggregate(pairs, *(part[chosen] for part in parts))


def aji_cellpose(pairs: ImagePairs) -> Ratio:
    """What Cellpose calls the aggregated Jaccard index: matched intersections over the union of all foreground.

    Matched by StarDist's assignment at .5, pairs below .5 included. Needs the pairs' foreground.
    """
    shared = pairs.pairs.value[assign(pairs, 0.5)]
    truth_px, predicted_px, both_px = pairs.foreground.get(ALL_CLASSES, (0, 0, 0))
    return Ratio(int(shared.sum()), truth_px + predicted_px - both_px)


def boundary_iou(pairs: ImagePairs) -> Ratio:
    """Mean boundary IoU of the pairs matched at IoU >= .5; needs pairs made with a boundary width."""
    if pairs.boundary is None:
        raise ValueError("boundary_iou needs pairs made with PairOptions(boundary_px=...)")
    matched = one_to_one(pairs, 0.5)
    n_predicted = max(len(pairs.predicted), 1)
    known = pairs.boundary.truth * n_predicted + pairs.boundary.predicted
    found = np.isin(known, matched.truth * n_predicted + matched.predicted)
    return Ratio(float(pairs.boundary.value[found].sum()), len(matched.iou))


def _aggregate(pairs: ImagePairs, truth: np.ndarray, predicted: np.ndarray, shared: np.ndarray) -> Ratio:
    """Sum of intersections over sum of unions of these pairs and of the areas of what is in none of them."""
    truth_areas, predicted_areas = pairs.truth.areas, pairs.predicted.areas
    unions = truth_areas[truth] + predicted_areas[predicted] - shared
    left = np.delete(truth_areas, truth).sum() + np.delete(predicted_areas, predicted).sum()
    return Ratio(int(shared.sum()), int(unions.sum() + left))


def _ratio(over: float, under: float) -> float:
    return over / under if under else NAN
