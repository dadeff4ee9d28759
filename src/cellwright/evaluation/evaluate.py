"""`evaluate_pairs` and `evaluate_images`: predictions and ground truth in, a `Report` out.

The masks of one image at a time are in memory.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress
from cellwright.core.scores import ScoreThreshold, check_threshold
from cellwright.core.text import count
from cellwright.evaluation.data import evaluation_data, pair_options, parse_metrics
from cellwright.evaluation.lost_recall import lost_recall
from cellwright.evaluation.matching import ImagePairs, pair_image
from cellwright.evaluation.pairing import LazyInstances, PairedImages, seen_warnings
from cellwright.evaluation.report import Report
from cellwright.evaluation.values import all_values, notes

CONTEST_FORMATS = ("rle_csv", "rle_csv_submission", "dsb2018_csv")


def evaluate_pairs(
    predictions: Sequence[Instances],
    truth: Sequence[Instances],
    *,
    metrics: Iterable[str] | None = None,
    class_names: Sequence[str] | None = None,
    image_ids: Sequence[str] | None = None,
    candidates: Sequence[Instances] | None = None,
    score_threshold: ScoreThreshold = 0.0,
    coco_ids: Sequence[int] | None = None,
) -> Report:
    """Evaluate predictions against the ground truth, image by image.

    predictions, truth: one entry per image. Entries may be read on indexing: each is indexed once. Images,
        objects and predictions may all be absent.
    metrics: names of `METRICS`, None for all; "boundary_iou@5px" sets the width of the boundary band.
    class_names: None names the classes that occur by their numbers.
    image_ids: names for the tables; None numbers the images from 0.
    candidates: what the model proposed for each image before thresholds, suppression and cap, see `lost_recall`; None
        omits the causes of lost recall.
    score_threshold: predictions below it are used for AP and ranking only; one number, or one per class.
    coco_ids: ids of the images, by which the COCO API orders predictions with equal scores; None: in the order given.

    Without scores, AP and ranking are NaN. Raises `InputError` if lengths, image sizes or class ids do not match,
    `UsageError` for an unknown metric or an invalid threshold.
    """
    names = tuple(map(str, range(len(truth)) if image_ids is None else image_ids))
    sides = _Sides(predictions, truth, names, coco_ids, candidates, check_threshold(score_threshold))
    return _evaluate(sides, metrics, class_names)


@dataclass(frozen=True, eq=False)
class _Sides:
    """The arguments of `evaluate_pairs` with one entry per image, checked for equal lengths."""

    predictions: Sequence[Instances]
    truth: Sequence[Instances]
    image_ids: Sequence[str]
    coco_ids: Sequence[int] | None
    candidates: Sequence[Instances] | None
    score_threshold: ScoreThreshold

    def __post_init__(self) -> None:
        if len(self.predictions) != len(self.truth):
            raise InputError(
                "predictions and ground truth have different numbers of images",
                got=f"{len(self.predictions)} predictions",
                expected=f"{len(self.truth)}, one for each image of the ground truth",
            )
        for name in ("image_ids", "coco_ids", "candidates"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.truth):
                raise InputError(f"`{name}` and images differ in number", got=len(values), expected=len(self.truth))


def _evaluate(
    sides: _Sides, metrics: Iterable[str] | None, class_names: Sequence[str] | None, track: Track = no_progress
) -> Report:
    groups, boundary_px = parse_metrics(metrics)
    options = pair_options(groups, boundary_px, sides.score_threshold)
    all_pairs: list[ImagePairs] = []
    lost: Counter[str] | None = None if sides.candidates is None else Counter()
    for k in track(range(len(sides.truth)), "evaluating", len(sides.truth)):
        annotated, predicted = sides.truth[k], sides.predictions[k]
        pairs = pair_image(annotated, predicted, sides.image_ids[k], options)
        if sides.candidates is not None and lost is not None:
            lost.update(lost_recall(annotated, sides.candidates[k], pairs.above(sides.score_threshold)))
        all_pairs.append(pairs)
    data = evaluation_data(all_pairs, groups, _class_names(all_pairs, class_names), options, lost, sides.coco_ids)
    values, reasons = all_values(data)
    return Report(values, reasons, notes(data, values, reasons), data)


def evaluate_images(
    images: PairedImages,
    metrics: Iterable[str] | None = None,
    candidates: Sequence[Instances] | None = None,
    track: Track = no_progress,
) -> Report:
    """Evaluate the predictions of paired images, as `evaluate_pairs`, with notes on how they were paired."""
    sides = _Sides(
        LazyInstances(images.predicted),
        LazyInstances(images.truth),
        [sample.id for sample in images.truth],
        images.coco_ids,
        candidates,
        images.score_threshold,
    )
    report = _evaluate(sides, metrics, images.class_names, track)
    contest = _contest_warning(images, report)
    warnings = [*seen_warnings(images), *_identity_warning(report), *([] if contest is None else [contest])]
    return dataclasses.replace(report, notes=(*warnings, *images.notes, *report.notes))


def _identity_warning(report: Report) -> list[str]:
    """A warning if annotations equal the predictions to the pixel, as where nobody corrected them."""
    n = int((report.per_image["pq"].to_numpy() == 1).sum()) if len(report.per_image) else 0
    if not n:
        return []
    return [
        f"warning: annotations and predictions are the same to the pixel in {n} of "
        f"{count(len(report.per_image), 'image')}: if the annotations were made from these predictions, correct them "
        "first, or evaluate on other images"
    ]


def _contest_warning(images: PairedImages, report: Report) -> str | None:
    """A warning if the masks of a Kaggle table overlap, which the competitions do not accept."""
    if images.predicted_format not in CONTEST_FORMATS:
        return None
    n_images = n_pairs = n_pixels = 0
    for pairs in report.data.all_pairs:
        assert pairs.repeats is not None, "asked for by pair_options"
        shared = pairs.repeats.value[pairs.repeats.truth < pairs.repeats.predicted]
        n_images, n_pairs, n_pixels = n_images + bool(len(shared)), n_pairs + len(shared), n_pixels + int(shared.sum())
    if not n_pairs:
        return None
    return (
        f"warning: masks overlap in {count(n_images, 'image')} ({count(n_pairs, 'pair')} of masks, "
        f"{count(n_pixels, 'pixel')}): the competitions reject such a table; cellwright fuse can resolve the overlaps"
    )


def _class_names(images: Sequence[ImagePairs], class_names: Sequence[str] | None) -> tuple[str, ...]:
    """The names given, checked against the class ids that occur; or the numbers of at least one class."""
    highest = -1
    for pairs in images:
        for kind, facts in (("an annotated object", pairs.truth), ("a prediction", pairs.predicted)):
            class_id = int(facts.class_ids.max(initial=-1))
            if class_names is not None and class_id >= len(class_names):
                raise InputError(
                    f"{kind} has a class id without a name",
                    where=f"image {pairs.image_id}",
                    got=class_id,
                    expected=f"0 to {len(class_names) - 1} ({', '.join(class_names)})",
                    remedy="use the same class ids in predictions and ground truth, and name all classes",
                )
            highest = max(highest, class_id)
    return tuple(class_names) if class_names is not None else tuple(str(k) for k in range(max(highest, 0) + 1))
