"""`evaluate_pairs`: predictions and truth in, a `Report` out. The masks of one image at a time are in memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwright.core.errors import InputError, UsageError, did_you_mean
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress
from cellwright.evaluation.coco import CocoResult, coco_result
from cellwright.evaluation.errors_by_kind import Verdicts, judge_objects
from cellwright.evaluation.label_metrics import Scores, no_scores, score_image
from cellwright.evaluation.lost_recall import lost_recall
from cellwright.evaluation.match import ImagePairs, PairOptions, ScoreThreshold, pair_image

if TYPE_CHECKING:
    import pandas as pd

# What may be asked for, and the group that is computed then. One-to-one counts cost nothing and always come.
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
class Judged:
    """Everything gathered before tables are made: one entry an image.

    images: with the predictions of at least the score threshold. found: with all of them, for AP and ranking.
    nothing: the sums of no images.
    """

    found: tuple[ImagePairs, ...]
    images: tuple[ImagePairs, ...]
    groups: frozenset[str]
    class_names: tuple[str, ...]
    scores: tuple[Scores, ...]
    nothing: Scores
    verdicts: tuple[tuple[Verdicts, Verdicts], ...]
    masks: CocoResult | None
    boxes: CocoResult | None
    lost: Counter[str] | None

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Their names, in the order given."""
        return tuple(pairs.image_id for pairs in self.images)


@dataclass(frozen=True, eq=False)
class Report:
    """What the judge says.

    values: figures of the whole data set by name ("AP@100", "AP@all", "box_AP@100", "AP_ceiling@100", "accuracy@0.5",
    "kaggle_score", "pooled_pq", ...): means over images unless "pooled_" or "class_mean_" stands in front; NaN where
    undefined, and then ``reasons`` says why. All names: docs/metrics.md.
    notes: what a reader should know before quoting a figure. judged: what the tables are made of.
    """

    values: dict[str, float]
    reasons: dict[str, str]
    notes: tuple[str, ...]
    judged: Judged

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """A row an image, in the order given: numbers of objects, every figure but AP, errors by kind."""
        return _tables().per_image(self.judged)

    @cached_property
    def per_class(self) -> pd.DataFrame:
        """A row a class: numbers of objects, AP, and the figures of that class alone, as mean and pooled."""
        return _tables().per_class(self.judged)

    @cached_property
    def objects(self) -> pd.DataFrame:
        """A row an object on either side, with its kind of error; empty unless "errors" was asked for."""
        return _tables().objects(self.judged)

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """ "errors" by kind, "reliability", "lost_recall", as far as they were asked for."""
        return _tables().extra_tables(self.judged)

    def __getitem__(self, name: str) -> float:
        """One figure; `UsageError` with the nearest name where there is none."""
        if name not in self.values:
            raise UsageError("no such figure in this report", got=repr(name), remedy=did_you_mean(name, self.values))
        return self.values[name]

    def headline(self) -> list[tuple[str, float]]:
        """The (at most) six figures to look at first, as (name, value)."""
        return [(name, self.values[name]) for name in HEADLINE if name in self.values]

    def worst_images(self, n: int = 10) -> pd.DataFrame:
        """The rows of ``per_image`` of the lowest accuracy@0.5, worst first; images with nothing in them come last."""
        return self.per_image.sort_values("accuracy@0.5", kind="stable").head(n)

    def save(self, folder: Path | str) -> list[Path]:
        """Write metrics.json, per_image.csv, per_class.csv, objects.csv and report.md; `OutputError` where it fails."""
        from cellwright.evaluation.write import write_report

        return write_report(self, Path(folder))


def evaluate_pairs(
    predictions: Sequence[Instances],
    truths: Sequence[Instances],
    *,
    metrics: Iterable[str] | None = None,
    class_names: Sequence[str] | None = None,
    image_ids: Sequence[str] | None = None,
    track: Track = no_progress,
    candidates: Sequence[Instances] | None = None,
    score_threshold: ScoreThreshold = 0.0,
) -> Report:
    """Judge predictions against truth, image by image.

    predictions, truths: as many of each, of equal image sizes, in ascending order of COCO image id where AP must equal
    the COCO API's to the last digit. They may read their objects when indexed: each is indexed once.
    metrics: names of `METRICS`; None is all of them; "boundary_iou@5px" sets the width of its band.
    class_names: None names the classes that occur by number.
    image_ids: names for the tables; None numbers the images from 0. candidates: what the model proposed before
    thresholds, suppression and cap, as `lost_recall` wants it; None leaves that table out. score_threshold: predictions
    that score less count for AP and ranking only; one number, or one a class.

    Predictions without scores get no AP and no ranking (NaN with a reason). No images, no objects and no predictions
    are legal. Raises `InputError` where lengths, image sizes or class ids do not fit, `UsageError` for unknown metrics.
    """
    groups, boundary_px = _groups(metrics)
    _check_lengths(predictions, truths, image_ids, candidates)
    options = PairOptions(
        boxes="coco" in groups,
        foreground="overlap" in groups,
        boundary_px=boundary_px if "boundary" in groups else None,
        repeats="errors" in groups,
        score_threshold=score_threshold,
    )
    found: list[ImagePairs] = []
    lost: Counter[str] | None = None if candidates is None else Counter()
    for k in track(range(len(truths)), "judging", len(truths)):
        truth, predicted = truths[k], predictions[k]
        pairs = pair_image(truth, predicted, str(k if image_ids is None else image_ids[k]), options)
        if candidates is not None and lost is not None:
            lost.update(lost_recall(truth, candidates[k], pairs.above(score_threshold)))
        found.append(pairs)
    return _report(_judged(found, groups, _class_names(found, class_names), options, lost))


def _judged(
    found: Sequence[ImagePairs],
    groups: frozenset[str],
    class_names: tuple[str, ...],
    options: PairOptions,
    lost: Counter[str] | None,
) -> Judged:
    images = tuple(pairs.above(options.score_threshold) for pairs in found)
    scored = "coco" in groups and all(pairs.predicted.scores is not None for pairs in found)
    return Judged(
        tuple(found),
        images,
        groups,
        class_names,
        tuple(score_image(pairs, groups) for pairs in images),
        no_scores(groups, options.boundary_px),
        tuple(judge_objects(pairs) for pairs in images) if "errors" in groups else (),
        coco_result(found, "mask", len(class_names)) if scored else None,
        coco_result(found, "box", len(class_names)) if scored else None,
        lost,
    )


def _report(judged: Judged) -> Report:
    from cellwright.evaluation import figures

    values, reasons = figures.all_values(judged)
    return Report(values, reasons, figures.notes(judged, values), judged)


def _tables() -> Any:
    from cellwright.evaluation import tables

    return tables


def _groups(metrics: Iterable[str] | None) -> tuple[frozenset[str], int]:
    """The groups to compute and the width of the boundary band in pixels."""
    groups, boundary_px = {"counts"}, BOUNDARY_PX
    for name in METRICS if metrics is None else metrics:
        width = _BOUNDARY.fullmatch(name)
        if name not in METRICS and not width:
            raise UsageError("unknown metric", got=repr(name), remedy=did_you_mean(name, METRICS))
        boundary_px = int(width[1]) if width else boundary_px
        groups.add("boundary" if width else METRICS[name])
    return frozenset(groups), boundary_px


def _check_lengths(
    predictions: Sequence[Instances],
    truths: Sequence[Instances],
    image_ids: Sequence[str] | None,
    candidates: Sequence[Instances] | None,
) -> None:
    for name, given in (("predictions", predictions), ("image_ids", image_ids), ("candidates", candidates)):
        if given is not None and len(given) != len(truths):
            raise InputError(f"{name} and truths differ in number", got=len(given), expected=len(truths))


def _class_names(images: Sequence[ImagePairs], class_names: Sequence[str] | None) -> tuple[str, ...]:
    """The names given, checked against the ids that occur; or numbers, one class at least."""
    highest = -1
    for pairs in images:
        for kind, side in (("truth", pairs.truth), ("prediction", pairs.predicted)):
            found = int(side.class_ids.max(initial=-1))
            if class_names is not None and found >= len(class_names):
                raise InputError(
                    f"a {kind} has a class id without a name",
                    where=f"image {pairs.image_id}",
                    got=found,
                    expected=f"0 to {len(class_names) - 1} ({', '.join(class_names)})",
                    remedy="predictions and truth must count their classes alike: map the classes, or name them all",
                )
            highest = max(highest, found)
    return tuple(class_names) if class_names is not None else tuple(str(k) for k in range(max(highest, 0) + 1))
