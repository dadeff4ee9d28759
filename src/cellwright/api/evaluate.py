"""``evaluate``: predictions against ground truth; metrics, tables and pictures of errors."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from cyclopts import Parameter

from cellwright.api.evaluated_part import find_part
from cellwright.api.inputs import OBJECT_TYPES, ObjectsLike, as_instances_list
from cellwright.api.models import Model, load_model
from cellwright.api.outputs import FolderOutput, earlier_output
from cellwright.api.paths import HowToRead, content_of, is_model, read_ground_truth, read_objects, short_names
from cellwright.api.read import is_label_image
from cellwright.api.shared_options import Channel, FormatName, Planes, Series, TimePoint, reading_of
from cellwright.core.candidates import missing_candidates
from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError, UsageError
from cellwright.core.events import plain
from cellwright.core.files import write_text
from cellwright.core.instances import Instances
from cellwright.core.notes import summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.result_folders import REPORT
from cellwright.core.scores import check_threshold
from cellwright.core.table import frame_csv
from cellwright.core.text import count
from cellwright.core.versions import versions
from cellwright.data.formats.contract import Prefer
from cellwright.data.images.reading import Reading
from cellwright.data.views import parse_views
from cellwright.prediction.backends import Backend

if TYPE_CHECKING:
    import pandas as pd

    from cellwright.data.images.channels import ChannelChoice
    from cellwright.evaluation.pairing import PairedImages
    from cellwright.evaluation.report import Report

MARKER = "report.md"
MOST_CHANGES = 6  # images of two predictions that are drawn side by side
# What evaluations of earlier versions without a record consist of.
_EARLIER = (
    "metrics.json", "per_image.csv", "per_class.csv", "objects.csv", "comparison.csv", "pr_curve.png", "confusion.png",
    "errors/*.png",
)  # fmt: skip


@Parameter(name="*")
@dataclass(frozen=True)
class EvaluatePlan:
    """Evaluate predictions against ground truth, or compare two predictions."""

    predictions: tuple[Path, ...]
    """A prediction folder, label images, a COCO results file, a Kaggle table or anything else that `data convert`
    reads, from any tool; or a model or run, which predicts first. Give two for a paired comparison."""
    _: KW_ONLY
    data: Path
    """Ground truth: a dataset folder, or anything else that `data convert` reads."""
    format: FormatName = None
    split: str | None = None
    """Only this split of the ground truth."""
    channel: Channel = ()
    z: Planes = None
    t: TimePoint = None
    series: Series = None
    prediction_format: str | None = None
    """Format of the predictions; detected by default."""
    metrics: tuple[str, ...] = ()
    """Metrics to compute, such as coco_ap, pq or aji (default: all)."""
    pictures: int | Literal["all"] = 12
    """Number of images to draw with their errors, worst first; 0 for no pictures and figures."""
    ignore_classes: bool = False
    """Treat all objects as one class."""
    remove_border: bool = False
    """Leave out objects at the border of the image: annotated ones are neither missed nor found, and predicted ones
    count only where they match an annotated object inside."""
    roi: tuple[str, ...] = ()
    """Leave out objects elsewhere in the image: y0,x0,height,width in pixels, or a GeoJSON file of polygons; repeat for
    several. For one image."""
    prefer: Prefer | None = None
    """Which file of an image to read if several in a prediction folder were edited differently."""
    score: float | None = None
    """Use predictions with a lower score for average precision and ranking only, 0 to 1 (default: the threshold of the
    model or prediction folder)."""
    views: str | None = None
    """Views for test-time augmentation, as for `predict`, for a model that predicts first."""
    device: str = "auto"
    """auto, cpu, cuda:N or mps, for a model that predicts first."""
    backend: Backend = "auto"
    """What runs its network, as for `predict`: openvino, openvino-int8, openvino-bf16, torch or auto."""
    out: Path = Path("work/evaluation")
    """Folder to write."""
    overwrite: bool = False
    """Replace an existing evaluation."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The evaluation of one prediction: its name, the report, and 95 % intervals of the headline metrics."""

    name: str
    report: Report
    intervals: pd.DataFrame


@dataclass(frozen=True, eq=False)
class EvaluateResult:
    """One evaluation per prediction (none if they were complete before).

    comparison: of two predictions, one row per metric, otherwise None. failures: why images were not evaluated.
    """

    evaluations: tuple[Evaluation, ...]
    comparison: pd.DataFrame | None
    failures: tuple[InputError, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What to know before quoting the values; notes on one of two predictions start with its name."""
        each = [evaluation.report.notes for evaluation in self.evaluations]
        if not each:
            return []
        shared = [note for note in each[0] if all(note in notes for notes in each)]
        own = [
            _named(evaluation.name, note)
            for evaluation in self.evaluations
            for note in evaluation.report.notes
            if note not in shared
        ]
        p_note = None if self.comparison is None else _p_note(len(self.evaluations[0].report.data.pairs))
        return [*([] if p_note is None else [p_note]), *own, *shared]


def _named(name: str, note: str) -> str:
    """A note on one of two predictions; a warning stays one."""
    is_warning, text = note.startswith("warning: "), note.removeprefix("warning: ")
    return f"{'warning: ' * is_warning}{name}: {text}"


def run(plan: EvaluatePlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> EvaluateResult | None:
    """Carry out a plan and write the results to ``plan.out``; returns None after a dry run, or if they are complete.

    Raises `OutputError` if the output exists, `InputError` if predictions or annotations of an image are missing,
    `UsageError` for an unknown metric or classes that do not match.
    """
    from cellwright.evaluation.data import parse_metrics
    from cellwright.prediction.evaluate import candidates_of
    from cellwright.prediction.tiling.regions import roi_words

    if not 1 <= len(plan.predictions) <= 2:
        got = count(len(plan.predictions), "prediction")
        raise UsageError("invalid number of predictions", got=got, expected="one, or two to compare")
    parse_metrics(plan.metrics or None)
    _check_options(plan)
    inputs, earlier = (*plan.predictions, plan.data), earlier_output("evaluate", MARKER, *_EARLIER)
    output = FolderOutput(plan.out, "evaluate", inputs=inputs, overwrite=plan.overwrite, earlier=earlier)
    truth = read_ground_truth(plan.data, plan.predictions, _how(plan, screen, format=plan.format))
    truth = reading_of(plan).recorded_in(truth)
    opened = [_open(path, truth, plan, screen) for path in plan.predictions]
    truth, opened, failures = _without_conflicts(truth, opened)
    part = truth if plan.split is None else truth.with_split(plan.split)
    sources = [_paired(path, one, truth, part, plan) for path, one in zip(plan.predictions, opened, strict=True)]
    evaluated, notes = find_part(plan.predictions, roi_words(plan.roi), [sample.image_hw for sample in part])
    missing = {missing_candidates(one.info) for one in opened if isinstance(one, Dataset)}
    for line in (*summarise(notes), *filter(None, missing)):
        screen.note(line)
    request = _request(plan, part, screen)
    request["options"]["roi"] = [] if evaluated is None else evaluated.words
    if output.answers(request):
        screen.note(f"{output.text}: see {plan.out / MARKER}")
        return EvaluateResult((), None, failures) if failures else None
    pictures = "tables" if plan.pictures == 0 else "tables, figures and pictures of errors"
    screen.note(f"will write {plan.out}/ (metrics.json, report.md, {pictures})")
    if dry_run:
        return None
    names = short_names(plan.predictions)
    evaluations, evaluated_images = [], []
    with output.write(request) as out:
        for source, name in zip(sources, names, strict=True):
            folder = out if len(names) == 1 else out / name
            images = source if not isinstance(source, Model) else _predict(source, truth, part, plan, screen)
            images = images.without_border() if plan.remove_border else images
            images = images if evaluated is None else evaluated.of(images)
            candidates = None
            if not plan.metrics:
                predictor = source.filtered if isinstance(source, Model) else None
                candidates = candidates_of(images, predictor, Reading.recorded(truth.info))
            about = _made_by(name, source, plan, part)
            evaluations.append(_evaluate_images(name, images, candidates, plan, folder, about, screen))
            evaluated_images.append(images)
        comparison = _write_comparison(evaluations, evaluated_images, plan, out) if len(evaluations) == 2 else None
    return EvaluateResult(tuple(evaluations), comparison, failures)


def _request(plan: EvaluatePlan, part: Dataset, screen: ProgressReporter) -> dict[str, Any]:
    """What identifies the evaluation: the content of predictions and ground truth, and the options."""
    from cellwright.data.identity import Identity

    elsewhere = ("predictions", "data", "format", "device", "out", "overwrite")
    options = {
        field.name: getattr(plan, field.name) for field in dataclasses.fields(plan) if field.name not in elsewhere
    }
    return {
        "the predictions": [content_of(path) for path in plan.predictions],
        "the names of the predictions": short_names(plan.predictions),
        "the ground truth": Identity.of(part, track=screen.track).digest,
        "options": plain(options),
    }


def _how(
    plan: EvaluatePlan,
    screen: ProgressReporter,
    format: str | None,  # noqa: A002
    option: str = "format",
) -> HowToRead:
    return HowToRead(plan.prefer, format, option, plan.series, screen.track)


def _check_options(plan: EvaluatePlan) -> None:
    if plan.score is not None:
        check_threshold(plan.score, name="score")
    if plan.views is not None:
        parse_views(plan.views)
        if not any(map(is_model, plan.predictions)):
            got, remedy = ", ".join(map(str, plan.predictions)), "omit `views`, or predict with these views first"
            raise UsageError("`views` needs a model that predicts", got=got, remedy=remedy)


def _open(path: Path, truth: Dataset, plan: EvaluatePlan, screen: ProgressReporter) -> Model | Dataset:
    """The model to predict with, or the predictions."""
    from cellwright.evaluation.pairing import with_threshold

    if is_model(path):
        from cellwright.api.predict import model_notes

        model = load_model(path, device=plan.device, backend=plan.backend)
        model = model.with_options(views=plan.views, score=plan.score)
        for note in model_notes(model, [model], plan.views):
            screen.note(note)
        return model
    predicted = read_objects(path, _how(plan, screen, format=plan.prediction_format, option="prediction_format"), truth)
    return predicted if plan.score is None else with_threshold(predicted, plan.score)


def _without_conflicts(
    truth: Dataset, opened: Sequence[Model | Dataset]
) -> tuple[Dataset, list[Model | Dataset], tuple[InputError, ...]]:
    """Ground truth and predictions without the images that one of them cannot be read for, and why.

    Raises the first error if no image is left.
    """
    from cellwright.data.formats.predictions import images_in_conflict, without_conflicts
    from cellwright.evaluation.pairing import partners

    errors: list[InputError] = []
    failing: set[str] = set()  # ids of the ground truth
    readable: list[Model | Dataset] = []
    for one in (truth, *opened):
        if isinstance(one, Dataset):
            conflicting = images_in_conflict(one)
            lost = one.with_samples([sample for sample in one if sample.id in conflicting])
            failing |= {sample.id for sample in partners(lost, truth) if sample is not None}
            one, more = without_conflicts(one)  # noqa: PLW2901
            errors += more
        readable.append(one)
    if not failing:
        return truth, list(opened), tuple(errors)
    kept: list[Model | Dataset] = []
    for one in readable:
        if isinstance(one, Dataset):
            pairs = zip(one, partners(one, truth), strict=True)
            kept.append(one.with_samples([sample for sample, of in pairs if of is None or of.id not in failing]))
        else:
            kept.append(one)
    first = kept[0]
    assert isinstance(first, Dataset)
    if not len(first):
        raise errors[0]
    return first, kept[1:], tuple(errors)


def _paired(
    path: Path, opened: Model | Dataset, truth: Dataset, part: Dataset, plan: EvaluatePlan
) -> Model | PairedImages:
    """Predictions paired with the ground truth; a model as it is."""
    from cellwright.evaluation.pairing import pair_datasets

    if not isinstance(opened, Dataset):
        return opened
    return pair_datasets(str(path), opened, truth, part, ignore_classes=plan.ignore_classes)


def _predict(model: Model, truth: Dataset, part: Dataset, plan: EvaluatePlan, screen: ProgressReporter) -> PairedImages:
    from cellwright.evaluation.pairing import pair_datasets
    from cellwright.prediction.evaluate import predict_dataset

    predicted = predict_dataset(model.filtered, part, model.class_names, seen=model.seen, track=screen.track)
    for line in summarise(predicted.notes):
        screen.note(line)
    return pair_datasets(model.name, predicted, truth, part, ignore_classes=plan.ignore_classes)


def _evaluate_images(
    name: str,
    images: PairedImages,
    candidates: Sequence[Instances] | None,
    plan: EvaluatePlan,
    folder: Path,
    about: Mapping[str, Any],
    screen: ProgressReporter,
) -> Evaluation:
    """Evaluate one prediction and write its folder. candidates: see `candidates_of`. about: see `_made_by`."""
    from cellwright.evaluation.bootstrap import intervals
    from cellwright.evaluation.evaluate import evaluate_images
    from cellwright.evaluation.report import write_report
    from cellwright.report.error_picture import pictures_section, write_error_pictures
    from cellwright.report.evaluation_figures import figures_section, write_figures
    from cellwright.report.evaluation_report import evaluation_page

    report = evaluate_images(images, plan.metrics or None, candidates, screen.track)
    report = dataclasses.replace(report, notes=(*_reliability_notes(report, plan.score), *report.notes))
    limits = intervals(report)
    n_pictures = len(images.truth) if plan.pictures == "all" else plan.pictures
    pictures = write_error_pictures(images, report, folder / "errors", n_pictures, screen)
    figures = write_figures(report, folder) if n_pictures else []
    sections = [*figures_section(figures, folder), *pictures_section(pictures, folder)]
    write_report(report, folder, limits=limits, sections=sections, made_by=about)
    write_text(folder / REPORT, evaluation_page(folder).html())
    return Evaluation(name, report, limits)


def _made_by(name: str, source: Model | PairedImages, plan: EvaluatePlan, truth: Dataset) -> dict[str, Any]:
    """What reports say about what was evaluated, and how. No paths: names only."""
    from cellwright.prediction.backends.load import backend_of

    elsewhere = ("predictions", "data", "device", "out", "overwrite")
    ran_with = backend_of(source.predictor) if isinstance(source, Model) else None
    fields = [field for field in dataclasses.fields(plan) if field.name not in elsewhere]
    chosen = {field.name: getattr(plan, field.name) for field in fields}
    return {
        "predictions": [name],
        "data": plan.data.name,
        "split": plan.split,
        "classes": list(truth.class_names),
        "sources": sorted({sample.source for sample in truth if sample.source})[:10],
        "licence": truth.licence,
        "options": plain({f.name: chosen[f.name] for f in fields if chosen[f.name] != f.default}),
        **({} if ran_with is None else {"backend": ran_with}),
        "versions": versions(),
    }


def _reliability_notes(report: Report, score: float | None) -> list[str]:
    """What to know about the intervals, and about a score threshold that has no effect."""
    from cellwright.evaluation.bootstrap import MIN_IMAGES

    notes, n_images = [], len(report.data.pairs)
    if 1 < n_images < MIN_IMAGES:
        notes.append(f"95 % intervals from n = {n_images} images are too narrow")
    if score is not None and any(pairs.predicted.scores is None for pairs in report.data.all_pairs):
        notes.append("warning: the predictions have no scores, so `score` has no effect")
    return notes


def _p_note(n_images: int) -> str | None:
    """That there are too few images for a p value; None if there are enough."""
    from cellwright.evaluation.bootstrap import MIN_IMAGES

    if n_images >= MIN_IMAGES:
        return None
    return f"n = {count(n_images, 'image')} is too small for a p value, which needs at least {MIN_IMAGES}"


def _write_comparison(
    evaluations: Sequence[Evaluation], images: Sequence[PairedImages], plan: EvaluatePlan, out: Path
) -> pd.DataFrame:
    """Write comparison.csv, pictures, and report.md for two predictions to ``out``; returns the table."""
    from cellwright.evaluation.bootstrap import compare
    from cellwright.evaluation.report import frame_markdown
    from cellwright.report.change_picture import write_changes
    from cellwright.report.evaluation_figures import PR_CURVE, draw_pr_curves
    from cellwright.report.evaluation_report import evaluation_page

    first, second = evaluations
    table = compare(first.report, second.report).rename(columns={"first": first.name, "second": second.name})
    n_images = len(first.report.data.pairs)
    parts = [
        f"# {second.name} compared with {first.name}",
        frame_markdown(table.rename(columns={"low": "95 % CI from", "high": "to"})),
        f"difference = {second.name} - {first.name}, on the same {count(n_images, 'image')}. Confidence interval and "
        "p: paired percentile bootstrap over images, 1,000 resamples; p is two-sided and at least 0.001. If the "
        "interval of a difference includes 0, there is no evidence of a difference.",
        *([] if (note := _p_note(n_images)) is None else [note]),
    ]
    reports = [(evaluation.name, evaluation.report) for evaluation in evaluations]
    if plan.pictures != 0 and all(report.data.masks is not None and report["n_truth"] for _, report in reports):
        draw_pr_curves(reports, out / PR_CURVE)
        parts.append(f"![precision over recall]({PR_CURVE})")
    n_pictures = min(MOST_CHANGES, n_images if plan.pictures == "all" else plan.pictures)
    names = [evaluation.name for evaluation in evaluations]
    changes = write_changes(images, [report for _, report in reports], names, out, n_pictures)
    if changes:
        parts += ["## Where they differ most", *(f"![{change.image}]({quote(change.picture)})" for change in changes)]
    for evaluation in evaluations:
        name = evaluation.name
        parts += [f"## {name}", f"Full report: [{name}/report.md]({name}/report.md)"]
        parts += [f"- {note}" for note in evaluation.report.notes]
    write_text(out / "comparison.csv", frame_csv(table))
    write_text(out / MARKER, "\n\n".join(parts) + "\n")
    write_text(out / REPORT, evaluation_page(out).html())
    return table


def evaluate(  # noqa: PLR0913 - the options of the command
    predictions: Model | ObjectsLike | Dataset | Iterable[ObjectsLike],
    truth: ObjectsLike | Dataset | Iterable[ObjectsLike],
    *,
    metrics: Iterable[str] | None = None,
    class_names: Sequence[str] | None = None,
    image_ids: Sequence[str] | None = None,
    score: float | Sequence[float] | None = None,
    split: str | None = None,
    channel: ChannelChoice | None = None,
    ignore_classes: bool = False,
    remove_border: bool = False,
    roi: str | Path | Sequence[str | Path | tuple[int, int, int, int]] = (),
    prefer: Prefer | None = None,
) -> Report:
    """Evaluate predictions against ground truth.

    Args:
        predictions: the objects of one image, or a list with one entry per image. The objects of an image are
            `Instances`, a label array (H, W) of any integer type with 0 as background, or the path of a label image.
            Also a `Dataset`, or the path of a prediction folder, a dataset or anything else that `read_dataset` reads;
            or a `Model`, or the path of one, which first predicts the images of a dataset given as ``truth``.
        truth: the ground truth, as ``predictions``. Two datasets are paired by image, anything else in order.
        metrics: what to compute, such as "coco_ap", "aji" or "pq"; None: everything. Counts at IoU thresholds
            ("accuracy@0.5", "f1@0.75", "pq", ...) are always computed. All names: docs/metrics.md.
        class_names: names of the classes 0..K-1; None takes those of a dataset, or numbers.
        image_ids: names of the images in the tables; None takes those of a dataset, or numbers from 0.
        score: predictions with a lower score are used for average precision and ranking only; 0 to 1, one number or
            one per class. None takes the threshold of the model or prediction folder, or 0.
        split: use only this split of the ground truth, which must be a dataset.
        channel: name or index of the channel, where there are several, for a model; None: as the dataset or the model
            records.
        ignore_classes: treat all objects as one class.
        remove_border: leave out objects at the border of the image: annotated ones are neither missed nor found, and
            predicted ones count only where they match an annotated object inside.
        roi: leave out objects outside these regions in the same way: (y0, x0, height, width) in pixels, or GeoJSON
            files of polygons. For one image.
        prefer: which file of an image in a prediction folder to read if several were edited differently: "masks",
            "rois", "geojson" or "json".

    Returns:
        A `Report`. Values that are undefined, such as average precision without scores, are NaN, and
        ``report.reasons`` explains them. An empty list and images without objects are accepted.

    Raises:
        InputError: different numbers or sizes of images, a class id without a name, an array that is not a label
            array, or a dataset image without a prediction.
        UsageError: an unsupported type, an unknown metric, or an invalid threshold.

    Example:
        >>> import cellwright as cw, numpy as np
        >>> truth = np.zeros((32, 32), int)
        >>> truth[2:10, 2:10], truth[15:25, 15:25] = 1, 2
        >>> predicted = np.where(truth == 2, 5, 0)
        >>> report = cw.evaluate(predicted, truth, metrics=["pq"])
        >>> report["accuracy@0.5"], report["precision@0.5"]
        (0.5, 1.0)
        >>> report
        Report: 1 image, 2 annotated objects, 1 prediction
          kaggle_score 0.5000, accuracy@0.5 0.5000, pq 0.6667
        >>> cw.evaluate([predicted, truth], [truth, truth])["accuracy@0.5"]
        0.75
    """
    from cellwright.evaluation.evaluate import evaluate_images
    from cellwright.evaluation.pairing import above_threshold, pair_datasets, pair_in_order, with_threshold
    from cellwright.prediction.tiling.regions import roi_words

    threshold = None if score is None else check_threshold(score, name="score")
    path = Path(predictions) if isinstance(predictions, str | os.PathLike) else None
    model = _as_model(predictions, path)
    annotated = _objects(truth, "truth", lambda own: read_ground_truth(own, [path or own], HowToRead(prefer)))
    annotated = above_threshold(annotated) if isinstance(annotated, Dataset) else annotated
    part = _part(annotated, split)
    images = annotated if isinstance(annotated, Dataset) else None
    if model is not None:
        predicted = _predicted_by(model, part, channel)
    elif channel is not None:
        raise UsageError("`channel` needs a model that predicts", got=repr(predictions), remedy="omit `channel`")
    else:
        predicted = _objects(predictions, "predictions", lambda own: read_objects(own, HowToRead(prefer), images))
    if threshold is not None and isinstance(predicted, Dataset):
        predicted = with_threshold(predicted, threshold)
    if isinstance(predicted, Dataset) and isinstance(annotated, Dataset) and isinstance(part, Dataset):
        if class_names is not None or image_ids is not None:
            option = "class_names" if image_ids is None else "image_ids"
            raise UsageError("datasets have their own class names and image ids", got=f"`{option}`", remedy="omit it")
        name = model.name if model is not None else str(path or "predictions")
        paired = pair_datasets(name, predicted, annotated, part, ignore_classes=ignore_classes)
    else:
        paired = pair_in_order(predicted, part, image_ids, class_names)
    if threshold is not None and not isinstance(predicted, Dataset):
        paired = dataclasses.replace(paired, score_threshold=threshold)
    paired = paired.without_border() if remove_border else paired
    evaluated, notes = find_part([] if path is None else [path], roi_words(roi), _sizes(part))
    paired = paired if evaluated is None else evaluated.of(paired)
    paired = dataclasses.replace(paired, notes=(*paired.notes, *summarise(notes)))
    return evaluate_images(paired.without_classes() if ignore_classes else paired, metrics)


def _as_model(predictions: object, path: Path | None) -> Model | None:
    """The model to evaluate; None for predictions."""
    if isinstance(predictions, Model):
        return predictions
    return load_model(path) if path is not None and is_model(path) else None


def _predicted_by(model: Model, part: Dataset | list[Instances], channel: ChannelChoice | None) -> Dataset:
    """The predictions of a model for the images of a dataset."""
    from cellwright.prediction.evaluate import predict_dataset

    if not isinstance(part, Dataset):
        raise UsageError(
            "a model needs a dataset to predict on",
            got=f"the model {model.name}, and ground truth without images",
            expected="a dataset as `truth`",
            remedy="predict first: model.predict(images)",
        )
    part = Reading(channel).recorded_in(part)
    return predict_dataset(model.filtered, part, model.class_names, seen=model.seen)


def _objects(
    value: Model | ObjectsLike | Dataset | Iterable[ObjectsLike], name: str, read: Callable[[Path], Dataset]
) -> Dataset | list[Instances]:
    """A dataset, or the objects of each image. read: for the path of a dataset."""
    if isinstance(value, Dataset):
        return value
    if isinstance(value, Model) or (isinstance(value, str | os.PathLike) and is_model(Path(value))):
        raise UsageError(f"`{name}` is a model", got=str(value), expected="ground truth; a model goes first")
    if isinstance(value, str | os.PathLike):
        path = Path(value)
        if not is_label_image(path):
            return read(path)
    try:
        return as_instances_list(value)[0]
    except UsageError as error:
        if error.expected != OBJECT_TYPES:
            raise
        expected = f"{OBJECT_TYPES}; a Dataset; or a list with one entry per image"
        raise UsageError(f"invalid `{name}`", got=error.got, expected=expected) from error


def _sizes(part: Dataset | list[Instances]) -> list[tuple[int, int]]:
    return [one.image_hw for one in part]


def _part(truth: Dataset | list[Instances], split: str | None) -> Dataset | list[Instances]:
    if split is None:
        return truth
    if not isinstance(truth, Dataset):
        raise UsageError("only a dataset has splits", got=f'`split="{split}"`', remedy="omit `split`")
    return truth.with_split(split)
