"""Judging as a job: predictions of any origin and truth in, metrics, tables and pictures out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cellwright.api.models import Model, load_model
from cellwright.api.outputs import claim_folder
from cellwright.api.predict import predict_dataset
from cellwright.api.sides import ObjectsOf, Sides, is_model, pair_sides, read_side, read_truth, tuning_warning
from cellwright.core.dataset import Dataset, Loaded
from cellwright.core.errors import UsageError
from cellwright.core.files import write_text
from cellwright.core.instances import Instances
from cellwright.core.progress import SILENT, Screen, Track, no_progress

if TYPE_CHECKING:
    import pandas as pd

    from cellwright.evaluation.report import Report

MARKER = "report.md"
PICTURES = 12


@dataclass(frozen=True)
class JudgePlan:
    """What is judged against what, and where it goes; two predictions are compared.

    metrics: None judges with every metric. pictures: of so many images, the worst first. ignore_classes: an object is
    an object on both sides.
    """

    predictions: tuple[Path, ...]
    data: Path
    out: Path
    split: str | None = None
    metrics: tuple[str, ...] | None = None
    pictures: int | Literal["all"] = PICTURES
    ignore_classes: bool = False
    device: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class Verdict:
    """What was judged: the name of the prediction, its report, and the 95 % intervals of the headline."""

    name: str
    report: Report
    limits: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Judgement:
    """verdicts: one for each prediction. comparison: of two, a row a metric, else None."""

    verdicts: tuple[Verdict, ...]
    comparison: pd.DataFrame | None


def evaluate(
    predictions: Sequence[Instances],
    truths: Sequence[Instances],
    *,
    metrics: Iterable[str] | None = None,
    class_names: Sequence[str] | None = None,
    image_ids: Sequence[str] | None = None,
    score_threshold: float | tuple[float, ...] = 0.0,
) -> Report:
    """Judge predictions against truth, image by image; see `evaluate.report.evaluate_pairs`.

    score_threshold: below it objects count for average precision only, not for the metrics of label images.
    """
    from cellwright.evaluation.report import evaluate_pairs

    return evaluate_pairs(
        predictions,
        truths,
        metrics=metrics,
        class_names=class_names,
        image_ids=image_ids,
        score_threshold=score_threshold,
    )


def judge_model(model: Model, truth: Dataset, metrics: Sequence[str] | None = None, screen: Screen = SILENT) -> Report:
    """Predict on the images of ``truth`` and judge; everything found counts for average precision."""
    return judge_sides(_predicted(model, truth, truth, screen), metrics)


def judge_sides(
    sides: Sides,
    metrics: Sequence[str] | None = None,
    candidates: Sequence[Instances] | None = None,
    track: Track = no_progress,
) -> Report:
    """The report on two sides; ``candidates`` (one `Instances` an image) add where recall was lost."""
    from cellwright.evaluation.report import evaluate_pairs

    report = evaluate_pairs(
        ObjectsOf(sides.predicted),
        ObjectsOf(sides.truth),
        metrics=metrics,
        class_names=sides.class_names,
        image_ids=[one.id for one in sides.truth],
        score_threshold=sides.score_threshold,
        candidates=candidates,
        track=track,
    )
    warning = tuning_warning(sides)
    notes = (*((warning,) if warning else ()), *sides.notes, *report.notes)
    return dataclasses.replace(report, notes=notes)


def run_plan(plan: JudgePlan, screen: Screen = SILENT) -> Judgement:
    """Carry out a plan; everything is also written to ``plan.out``.

    Raises `OutputError` where it exists, `InputError` where images are missing on one side.
    """
    if len(plan.predictions) > 2:
        got = f"{len(plan.predictions)} predictions"
        raise UsageError("one prediction is judged, or two are compared", got=got, remedy="judge them one by one")
    truth = read_truth(plan.data, plan.predictions, screen.track)
    wanted = truth if plan.split is None else truth.with_split(plan.split)
    claim_folder(plan.out, MARKER, overwrite=plan.overwrite)
    names = short_names(plan.predictions)
    verdicts = []
    for source, name in zip(plan.predictions, names, strict=True):
        folder = plan.out if len(names) == 1 else plan.out / name
        verdicts.append(_judge_one(source, name, (truth, wanted), plan, folder, screen))
    comparison = None
    if len(verdicts) == 2:
        comparison = _compare(verdicts[0], verdicts[1])
        write_text(plan.out / "comparison.csv", comparison.to_csv(index=False, lineterminator="\n"))
        write_text(plan.out / MARKER, _comparison_page(verdicts, comparison))
    return Judgement(tuple(verdicts), comparison)


def _judge_one(
    source: Path, name: str, truth: tuple[Dataset, Dataset], plan: JudgePlan, folder: Path, screen: Screen
) -> Verdict:
    from cellwright.api.error_pictures import pictures_section, write_error_pictures
    from cellwright.api.lost import candidates_of
    from cellwright.evaluation.bootstrap import intervals
    from cellwright.evaluation.write import write_report

    whole, wanted = truth
    model = None
    if is_model(source):
        model = load_model(source, device=plan.device)
        sides = _predicted(model, whole, wanted, screen, ignore_classes=plan.ignore_classes)
    else:
        predicted = read_side(source, whole, screen.track)
        sides = pair_sides(str(source), predicted, whole, wanted, ignore_classes=plan.ignore_classes)
    candidates, notes = candidates_of(sides, model) if plan.metrics is None else (None, ())
    sides = dataclasses.replace(sides, notes=(*sides.notes, *notes))
    report = judge_sides(sides, plan.metrics, candidates, screen.track)
    limits = intervals(report)
    pictures = write_error_pictures(sides, report, folder / "errors", plan.pictures, screen)
    write_report(report, folder, limits=limits, sections=pictures_section(pictures, folder))
    return Verdict(name, report, limits)


def _predicted(model: Model, truth: Dataset, wanted: Dataset, screen: Screen, *, ignore_classes: bool = False) -> Sides:
    """A model's predictions on the images that are wanted, in memory, paired with their truth."""
    found = predict_dataset(model, wanted, screen)
    samples = [dataclasses.replace(one, load=Loaded(cells)) for one, cells in zip(wanted, found, strict=True)]
    info = {"score_threshold": model.options.score_threshold, "tuned_on": model.tuned_on}
    predicted = Dataset(tuple(samples), model.class_names, None, info=info)
    return pair_sides(model.name, predicted, truth, wanted, ignore_classes=ignore_classes)


def _compare(first: Verdict, second: Verdict) -> pd.DataFrame:
    from cellwright.evaluation.bootstrap import compare

    table = compare(first.report, second.report)
    return table.rename(columns={"first": first.name, "second": second.name})


def _comparison_page(verdicts: Sequence[Verdict], comparison: pd.DataFrame) -> str:
    from cellwright.evaluation.write import table_markdown

    first, second = verdicts
    shown = comparison.rename(columns={"low": "95 % from", "high": "to"})
    parts = [
        f"# {second.name} against {first.name}",
        table_markdown(shown),
        f"difference = {second.name} - {first.name}, on the same {len(first.report.judged.images)} images. Interval "
        "and p: paired bootstrap over images (percentiles of 1,000 resamples; p two-sided, at least .001). An interval "
        "that holds 0 is no evidence of a difference.",
    ]
    for verdict in verdicts:
        parts += [f"## {verdict.name}", f"Everything: [{verdict.name}/report.md]({verdict.name}/report.md)"]
        parts += [f"- {note}" for note in verdict.report.notes]
    return "\n\n".join(parts) + "\n"


def short_names(predictions: Sequence[Path]) -> list[str]:
    """A short name for each, distinct: the last part of the path, with more of it or a number where that is needed."""
    names = [path.stem if path.is_file() else path.resolve().name for path in predictions]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}_{name}" for path, name in zip(predictions, names, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name}_{k + 1}" for k, name in enumerate(names)]
    return [name.replace("|", "_") for name in names]
