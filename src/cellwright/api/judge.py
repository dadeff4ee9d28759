"""Judging as a job: predictions of any origin and truth in, metrics out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellwright.api.data import read_dataset
from cellwright.api.model import Model, load_model
from cellwright.api.outputs import claim_folder
from cellwright.api.predicting import predict_dataset
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.instances import Instances
from cellwright.core.progress import SILENT, Screen

if TYPE_CHECKING:
    from cellwright.evaluate.report import Report


@dataclass(frozen=True)
class JudgePlan:
    """What is judged against what, and where it goes; None judges with every metric."""

    predictions: tuple[Path, ...]
    data: Path
    out: Path
    split: str | None = None
    metrics: tuple[str, ...] | None = None
    device: str = "auto"
    overwrite: bool = False


def evaluate(
    predictions: Sequence[Instances],
    truths: Sequence[Instances],
    *,
    metrics: Iterable[str] | None = None,
    class_names: Sequence[str] | None = None,
    image_ids: Sequence[str] | None = None,
    score_threshold: float = 0.0,
) -> Report:
    """Judge predictions against truth, image by image; see `evaluate.report.evaluate_pairs`.

    score_threshold: below it objects count for average precision only, not for the metrics of label images.
    """
    from cellwright.evaluate.report import evaluate_pairs

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
    found = predict_dataset(model, truth, screen)
    return evaluate(
        found,
        [sample.read_instances() for sample in truth],
        metrics=metrics,
        class_names=truth.class_names,
        image_ids=[sample.id for sample in truth],
        score_threshold=model.options.score_threshold,
    )


def run_plan(plan: JudgePlan, screen: Screen = SILENT) -> Report:
    """Carry out a plan: the report, also written to ``plan.out``.

    Raises `OutputError` where it exists, `InputError` where predictions and truth share no image.
    """
    if len(plan.predictions) != 1:
        raise UsageError("one prediction is judged at a time", got=f"{len(plan.predictions)} predictions")
    claim_folder(plan.out, "metrics.json", overwrite=plan.overwrite)
    truth = read_dataset(plan.data, require_images=False)
    truth = truth if plan.split is None else truth.with_split(plan.split)
    source = plan.predictions[0]
    if _is_model(source):
        report = judge_model(load_model(source, device=plan.device), truth, plan.metrics, screen)
    else:
        report = _judge_files(source, truth, plan, screen)
    report.save(plan.out)
    return report


def _judge_files(source: Path, truth: Dataset, plan: JudgePlan, screen: Screen) -> Report:
    from cellwright.data.formats import ReadOptions
    from cellwright.data.formats import read_dataset as read

    predicted = read(source, ReadOptions(images=truth, require_images=False, track=screen.track))
    pairs = _paired(predicted, truth, source)
    threshold = predicted.info.get("score_threshold", 0.0)
    return evaluate(
        [one.read_instances() for one, _ in pairs],
        [one.read_instances() for _, one in pairs],
        metrics=plan.metrics,
        class_names=truth.class_names,
        image_ids=[one.id for _, one in pairs],
        score_threshold=float(threshold),
    )


def _paired(predicted: Dataset, truth: Dataset, source: Path) -> list[tuple[Sample, Sample]]:
    """Predicted and true samples of each true image, by id, else by the last part of the id.

    Raises `InputError` naming the images without a prediction: leaving them out would flatter the result.
    """
    by_id = {one.id: one for one in predicted}
    by_name = {Path(one.id).name: one for one in predicted}
    pairs = [(by_id.get(one.id) or by_name.get(Path(one.id).name), one) for one in truth]
    missing = [true.id for found, true in pairs if found is None]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise InputError(
            f"{len(missing)} of {len(truth)} images have no prediction",
            where=source,
            got=f"predictions for {', '.join(sorted(by_id)[:3]) or 'no image'}",
            expected=shown,
            remedy="predict on these images too, or judge a split that was predicted on (--split)",
        )
    return [(found, true) for found, true in pairs if found is not None]


def _is_model(path: Path) -> bool:
    return str(path) == "classical" or any((path / name).is_file() for name in ("model.json", "model/model.json"))
