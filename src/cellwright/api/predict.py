"""Prediction as a job: images and a model in, a prediction folder out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from cellwright.api.models import NAMED_MODELS, Model, load_model
from cellwright.api.read import is_dataset, read_dataset
from cellwright.core.errors import UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.data.views import parse_views
from cellwright.prediction.fusion import FusionOptions
from cellwright.prediction.saves import SAVES, Save

if TYPE_CHECKING:
    from cellwright.prediction.options import PredictOptions
    from cellwright.prediction.sources import Source
    from cellwright.prediction.writer import Makers


@dataclass(frozen=True)
class PredictPlan:
    """What to predict on, with what, and where it goes; None takes the model's own choice.

    diameter_px: of the objects of all these images, as the median of equivalent circles; None estimates it.
    views: as `parse_views` reads them; None is the image as it is, or what a model was tuned in. others: models whose
    objects are fused with those of ``model``, as ``fusion`` says.
    """

    sources: tuple[Path, ...]
    model: str
    out: Path
    split: str | None = None
    channel: str | None = None
    z: int | None = None
    diameter_px: float | None = None
    views: str | None = None
    others: tuple[str, ...] = ()
    fusion: FusionOptions = field(default_factory=FusionOptions)
    score: float | None = None
    min_area_px: int | None = None
    max_objects: int | None = None
    save: tuple[str, ...] = SAVES
    device: str = "auto"
    fail_fast: bool = False
    overwrite: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        """All models by name."""
        return self.model, *self.others


@dataclass(frozen=True)
class Predicted:
    """What a job did, and one line about it."""

    n_images: int
    n_failed: int
    text: str


def run_plan(plan: PredictPlan, screen: ProgressReporter = SILENT) -> Predicted:
    """Carry out a plan; the same plan goes on where it stopped. Raises `OutputError` for a finished folder."""
    from cellwright.api.fused_model import calibration_note, fused_model, fused_recipe, sized
    from cellwright.data.images.read import read_image
    from cellwright.prediction.run import predict_to_folder
    from cellwright.prediction.writer import Job

    members = [load_model(name, device=plan.device) for name in plan.models]
    model = fused_model(members if plan.diameter_px is None else sized(members, plan.diameter_px), plan.fusion)
    views = plan.views if plan.views is not None else (model.tuned_on or {}).get("views")
    predictor = model.predictor if plan.views is None else model.predictor.with_views(parse_views(plan.views))
    sources = _sources(plan)
    options = _options(plan, model)
    screen.note(describe(plan, len(sources)))
    if model.tuned_on is not None:
        screen.note(describe_tuning(model, options))
        if plan.views not in (None, model.tuned_on.get("views")):
            screen.note(f"in other views ({plan.views}) than it was tuned in: what it keeps and its scores may be off")
    if (note := calibration_note(members)) is not None:
        screen.note(note)
    job = Job(
        sources=tuple(sources),
        class_names=model.class_names,
        recipe_yaml=fused_recipe(members, plan.fusion),
        model=" ".join(_digest(name) for name in plan.models),
        options=options,
        reading={"channel": plan.channel, "z": plan.z, "diameter": plan.diameter_px, "views": views},
        save=plan.save,  # type: ignore[arg-type] - checked by Job
        info={} if model.tuned_on is None else {"tuned_on": dict(model.tuned_on)},
    )

    def read(path: Path) -> Image:
        return read_image(path, channel=plan.channel, z=plan.z)

    report = predict_to_folder(
        dataclasses.replace(predictor, options=options),
        job,
        plan.out,
        read=read,
        makers=makers(model.class_names),
        overwrite=plan.overwrite,
        fail_fast=plan.fail_fast,
        track=screen.track,
    )
    for note in report.notes:
        screen.note(note)
    text = f"{report.n_objects} objects in {report.n_images} images: {plan.out}"
    if report.failures:
        text += f"; {len(report.failures)} images failed, see {plan.out / 'failures.csv'}"
    return Predicted(report.n_images, len(report.failures), text)


def describe(plan: PredictPlan, n_images: int | None = None) -> str:
    """What will be read and written."""
    count = "" if n_images is None else f"{n_images} images, "
    only = " (finds nuclei only)" if any(name in NAMED_MODELS for name in plan.models) else ""
    seen = "" if plan.views is None else f" in {len(parse_views(plan.views))} views"
    files = f"predictions.json, summary.csv, {', '.join(plan.save)}"
    return f"{count}model {' + '.join(plan.models)}{only}{seen}; writes {plan.out}/ ({files})"


def describe_tuning(model: Model, options: PredictOptions) -> str:
    """What a tuned model leaves out, class by class, and what its scores mean."""
    scores, areas = options.score_threshold, options.min_area_px
    rows = []
    for k, name in enumerate(model.class_names):
        score = scores[k] if isinstance(scores, tuple) else scores
        area = areas[k] if isinstance(areas, tuple) else areas
        rows.append(f"{name} from score {score:.3g} and {area} px")
    tuned_on = model.tuned_on or {}
    where = f"split {tuned_on['split']} for {tuned_on['metric']}" if tuned_on else "no split"
    where += f", seen in views {tuned_on['views']}" if "views" in tuned_on else ""
    meaning = "; scores are the IoU to expect" if options.calibration is not None else ""
    return f"tuned on {where}: keeps {', '.join(rows)}{meaning}"


def makers(class_names: Sequence[str]) -> Makers:
    """How the pictures and tables of predictions are made."""
    from cellwright.api.extras import Extra, write_extra
    from cellwright.prediction.writer import Makers
    from cellwright.report.draw import contact_sheet, draw_overlay

    def overlay(image: Image, cells: Instances) -> np.ndarray:
        return draw_overlay(image, cells, class_names=class_names)

    def thumbnail(image: Image, cells: Instances) -> np.ndarray:
        outline_px = max(round(max(image.image_hw) / 400), 1)
        return draw_overlay(image, cells, class_names=class_names, outline_px=outline_px, legend=False)

    def beside(kind: Save, path: Path, cells: Instances, image: Image | None, sample_id: str) -> None:
        write_extra(cast(Extra, kind), path, cells, image, sample_id=sample_id, class_names=class_names)

    return Makers(overlay=overlay, thumbnail=thumbnail, sheet=contact_sheet, beside=beside)


def _sources(plan: PredictPlan) -> list[Source]:
    from cellwright.prediction.sources import sources_of_dataset, sources_of_paths

    if len(plan.sources) == 1 and is_dataset(plan.sources[0]):
        dataset = read_dataset(plan.sources[0])
        return sources_of_dataset(dataset.with_split(plan.split) if plan.split is not None else dataset)
    if plan.split is not None:
        remedy = "name a dataset folder, or leave --split out"
        raise UsageError("only a dataset has splits", got=f"--split {plan.split}", remedy=remedy)
    return sources_of_paths(plan.sources)


def _options(plan: PredictPlan, model: Model) -> PredictOptions:
    changes = {"score_threshold": plan.score, "min_area_px": plan.min_area_px, "max_objects": plan.max_objects}
    return dataclasses.replace(model.options, **{name: value for name, value in changes.items() if value is not None})


def _digest(model: str) -> str:
    """What tells two models apart: the weights' hash, or the name of one that has none."""
    from cellwright.models.weights.model_folder import WEIGHTS, model_folder

    if model == "classical":
        return model
    return hashlib.sha256((model_folder(model) / WEIGHTS).read_bytes()).hexdigest()
