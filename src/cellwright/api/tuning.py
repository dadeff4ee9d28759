"""Tuning as a job: thresholds, smallest areas and honest scores from a validation split, into a copy of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwright.api.models import Model, load_model
from cellwright.api.outputs import claim_folder
from cellwright.api.predict import predict_dataset
from cellwright.api.read import read_dataset
from cellwright.api.sides import digest
from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError, UsageError, did_you_mean
from cellwright.core.progress import SILENT, Screen
from cellwright.data.views import parse_views

if TYPE_CHECKING:
    from cellwright.evaluation.thresholds import Tuning

METRIC = "accuracy@0.5"
Table = tuple[str, tuple[str, ...], Iterable[Sequence[object]]]


@dataclass(frozen=True)
class TunePlan:
    """What is tuned on what, for which metric, and where the tuned copy goes.

    views: in which the images are seen, and then whenever the copy predicts; None takes the model's own.
    """

    model: Path
    data: Path
    out: Path
    split: str = "val"
    metric: str = METRIC
    views: str | None = None
    device: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class Tuned:
    """The tuned copy on disk and what was found."""

    folder: Path
    found: Tuning

    def table(self) -> Table:
        """A row a class."""
        columns = ("class", "score from", "area from (px)", f"{self.found.metric} of everything found", "tuned")
        rows = [(name, one.score, one.min_area_px, one.before, one.after) for name, one in self.found.classes.items()]
        return "tuned, by the model's own score", columns, rows


def run_plan(plan: TunePlan, screen: Screen = SILENT) -> Tuned:
    """Carry out a plan: the model folder ``plan.out``, which `load_model` and every command use as tuned.

    A model that is tuned already is tuned anew from its own scores. Raises `UsageError` for an unknown metric or a
    model without a folder, `InputError` where classes do not fit, `OutputError` where ``plan.out`` exists.
    """
    from cellwright.evaluation.thresholds import METRICS, tune
    from cellwright.models.weights.model_folder import INFO, model_folder, read_model_info
    from cellwright.models.weights.torch_io import read_weights, save_model

    if plan.metric not in METRICS:
        remedy = did_you_mean(plan.metric, METRICS)
        raise UsageError("cannot tune for this metric", got=repr(plan.metric), remedy=remedy)
    if str(plan.model) == "classical":
        remedy = "train a model first: cellwright train"
        raise UsageError("the classical method has no folder to hold thresholds", got="classical", remedy=remedy)
    if plan.out.resolve() in (plan.model.resolve(), model_folder(plan.model).resolve()):
        raise UsageError("a tuned model is a copy", where=plan.out, remedy="choose another --out")
    dataset = read_dataset(plan.data).with_split(plan.split)
    model = load_model(plan.model, device=plan.device)
    if plan.views is not None:
        model = dataclasses.replace(model, predictor=model.predictor.with_views(parse_views(plan.views)))
    views = plan.views or (model.tuned_on or {}).get("views")
    _check_classes(model, dataset)
    claim_folder(plan.out, INFO, overwrite=plan.overwrite)
    pairs, digests = _pairs(model, dataset, screen)
    found = tune(pairs, model.class_names, plan.metric)
    info = dataclasses.replace(read_model_info(plan.model), **_fields(found, plan, views, digests))
    save_model(plan.out, read_weights(plan.model), info)
    for name in found.untuned:
        screen.note(f"class {name} has no object on this split: it keeps the recipe's threshold")
    return Tuned(plan.out, found)


def _pairs(model: Model, dataset: Dataset, screen: Screen):
    """What thresholds are chosen from: every prediction with the model's own score, and the images' digests."""
    from cellwright.evaluation.match import PairOptions, pair_image
    from cellwright.prediction.options import PredictOptions

    found = predict_dataset(model, dataset, screen, PredictOptions())
    pairs, digests = [], []
    for sample, predicted in zip(dataset, found, strict=True):
        truth = sample.read_instances()
        pairs.append(pair_image(truth, predicted, sample.id, PairOptions()))
        digests.append(digest(truth, sample.id))
    return pairs, digests


def _fields(found: Tuning, plan: TunePlan, views: str | None, digests: Sequence[str]) -> dict[str, Any]:
    """The fields of ``ModelInfo`` that tuning sets."""
    thresholds = {f"score/{name}": one.score for name, one in found.classes.items()}
    thresholds |= {f"min_area_px/{name}": float(one.min_area_px) for name, one in found.classes.items()}
    tuned_on = {"split": plan.split, "metric": plan.metric, "images": sorted(digests)}
    if views is not None:
        tuned_on["views"] = views
    return {"thresholds": thresholds, "calibration": found.calibration.to_dict(), "tuned_on": tuned_on}


def _check_classes(model: Model, dataset: Dataset) -> None:
    # One thing is sought and one annotated, whatever each calls it.
    only_one = len(model.class_names) == len(dataset.class_names) == 1
    if model.class_names != dataset.class_names and not only_one:
        raise InputError(
            "the classes of the model and of the dataset differ",
            where=dataset.root,
            got=", ".join(dataset.class_names),
            expected=", ".join(model.class_names),
            remedy="rename or reorder them with: cellwright data merge --map old=new",
        )
