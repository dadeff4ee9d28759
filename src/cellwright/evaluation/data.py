"""The metrics that can be requested, and everything that is computed before their values: pairs, sums, errors, AP."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from cellwright.core.errors import UsageError, did_you_mean
from cellwright.core.scores import ScoreThreshold
from cellwright.evaluation.coco import CocoResult, coco_result
from cellwright.evaluation.errors_by_kind import ErrorKinds, classify_objects
from cellwright.evaluation.label_metrics import Scores, no_scores, score_image
from cellwright.evaluation.matching import ImagePairs, PairOptions

# Metric names, and the group of metrics that is computed for each. One-to-one counts are cheap and always computed.
METRICS = {
    "coco_ap": "coco",
    "kaggle_score": "counts",
    "accuracy": "counts",
    "f1": "counts",
    "precision": "counts",
    "recall": "counts",
    "pq": "counts",
    "sq": "counts",
    "dq": "counts",
    "mean_matched_iou": "counts",
    "aji": "overlap",
    "aji_plus": "overlap",
    "aji_cellpose": "overlap",
    "dice": "overlap",
    "boundary_iou": "boundary",
    "errors": "errors",
    "ranking": "ranking",
}
HEADLINE = ("AP@all", "AP50@all", "kaggle_score", "accuracy@0.5", "pq", "aji")
BOUNDARY_PX = 2
_BOUNDARY = re.compile(r"boundary_iou@(\d+)px")


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """What the values and tables of a report are computed from; sequences have one entry per image.

    all_pairs: with all predictions, for AP and ranking. pairs: with the predictions that reach the score threshold.
    groups: the metric groups requested. scores: the sums of each image. zero: the sums of no images.
    masks, boxes: average precision, or None if not requested or without scores. lost: lost objects by cause, or None.
    score_threshold: that of ``pairs``.
    """

    all_pairs: tuple[ImagePairs, ...]
    pairs: tuple[ImagePairs, ...]
    groups: frozenset[str]
    class_names: tuple[str, ...]
    scores: tuple[Scores, ...]
    zero: Scores
    masks: CocoResult | None
    boxes: CocoResult | None
    lost: Counter[str] | None
    score_threshold: ScoreThreshold = 0.0

    @cached_property
    def errors(self) -> tuple[tuple[ErrorKinds, ErrorKinds], ...]:
        """Kinds of the annotated and the predicted objects of each image, computed on first use."""
        return tuple(classify_objects(pairs) for pairs in self.pairs)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The names of the images, in the order given."""
        return tuple(pairs.image_id for pairs in self.pairs)


def parse_metrics(metrics: Iterable[str] | None) -> tuple[frozenset[str], int]:
    """The groups to compute (None: all), and the width of the boundary band in pixels.

    ``"boundary_iou@5px"`` sets the width. Raises `UsageError` for an unknown metric.

    >>> sorted(parse_metrics(["aji", "boundary_iou@5px"])[0]), parse_metrics(["boundary_iou@5px"])[1]
    (['boundary', 'counts', 'overlap'], 5)
    """
    groups, boundary_px = {"counts"}, BOUNDARY_PX
    for name in METRICS if metrics is None else metrics:
        width = _BOUNDARY.fullmatch(name)
        if name not in METRICS and not width:
            raise UsageError("unknown metric", got=repr(name), remedy=did_you_mean(name, METRICS))
        boundary_px = int(width[1]) if width else boundary_px
        groups.add("boundary" if width else METRICS[name])
    return frozenset(groups), boundary_px


def pair_options(groups: frozenset[str], boundary_px: int, score_threshold: float | tuple[float, ...]) -> PairOptions:
    """What these metric groups need to know about each image."""
    return PairOptions(
        boxes="coco" in groups,
        foreground="overlap" in groups,
        boundary_px=boundary_px if "boundary" in groups else None,
        repeats=True,
        score_threshold=score_threshold,
    )


def evaluation_data(
    all_pairs: Sequence[ImagePairs],
    groups: frozenset[str],
    class_names: tuple[str, ...],
    options: PairOptions,
    lost: Counter[str] | None = None,
    coco_ids: Sequence[int] | None = None,
) -> EvaluationData:
    """Everything that these metric groups need, from the pairs of every image; coco_ids: see `coco_result`."""
    pairs = tuple(image.above(options.score_threshold) for image in all_pairs)
    has_ap = "coco" in groups and all(image.predicted.scores is not None for image in all_pairs)
    return EvaluationData(
        all_pairs=tuple(all_pairs),
        pairs=pairs,
        groups=groups,
        class_names=class_names,
        scores=tuple(score_image(image, groups) for image in pairs),
        zero=no_scores(groups, options.boundary_px),
        masks=coco_result(all_pairs, "mask", len(class_names), coco_ids) if has_ap else None,
        boxes=coco_result(all_pairs, "box", len(class_names), coco_ids) if has_ap else None,
        lost=lost,
        score_threshold=options.score_threshold,
    )
