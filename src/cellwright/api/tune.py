"""``tune``: score thresholds, minimum areas and calibrated scores from a validation split, in a copy of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cyclopts import Parameter

from cellwright.api.bundled_choice import network_for
from cellwright.api.models import Model, load_model
from cellwright.api.outputs import FolderOutput, earlier_output
from cellwright.api.paths import content_of
from cellwright.api.read import read_annotations
from cellwright.api.shared_options import Channel, FormatName, Planes, Series, TimePoint, reading_of
from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError, UsageError
from cellwright.core.notes import summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.scores import shown_score
from cellwright.core.table import Table
from cellwright.core.text import count
from cellwright.data.formats.predictions import as_annotations
from cellwright.data.images.reading import Reading
from cellwright.data.merge import class_advice

if TYPE_CHECKING:
    from cellwright.data.images.channels import ChannelChoice
    from cellwright.evaluation.matching import ImagePairs
    from cellwright.evaluation.thresholds import Tuning


@Parameter(name="*")
@dataclass(frozen=True)
class TunePlan:
    """Choose score thresholds and minimum areas per class, and calibrate scores, on a validation split."""

    model: Path
    """nuclei, a model folder, or a run; it is not changed."""
    _: KW_ONLY
    data: Path
    """Dataset folder with the split."""
    format: FormatName = None
    split: str = "val"
    """Split to tune on; do not report results on it afterwards."""
    channel: Channel = ()
    z: Planes = None
    t: TimePoint = None
    series: Series = None
    metric: str = "accuracy@0.5"
    """What to maximise, as a mean over images: accuracy@T or f1@T for T from 0.5 to 0.95, or kaggle_score."""
    views: str | None = None
    """Views for test-time augmentation, as for `predict`; the tuned model uses them by default."""
    device: str = "auto"
    """auto, cpu, cuda:N or mps."""
    out: Path = Path("work/tuned")
    """Model folder to write: a copy of the model that uses these thresholds and the calibration by default."""
    overwrite: bool = False
    """Replace an existing model folder."""


@dataclass(frozen=True, eq=False)
class TuneResult:
    """The tuned copy on disk, and the result of tuning."""

    folder: Path
    tuning: Tuning

    def table(self) -> Table:
        """One row per class."""
        metric = self.tuning.metric
        columns = ("class", "min score", "min area (px)", f"{metric} without thresholds", "with thresholds")
        rows = []
        for name, tuned in self.tuning.classes.items():
            (score,) = self.tuning.calibration(np.array([tuned.score]))
            rows.append((name, shown_score(score), tuned.min_area_px, tuned.before, tuned.after))
        return Table("thresholds", columns, rows)


def run(plan: TunePlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> TuneResult | None:
    """Carry out a plan and write the model folder ``plan.out``; returns None after a dry run, or if it is complete.

    A tuned model is tuned again from its original scores. Raises `UsageError` for an unknown metric or a model without
    a folder, `InputError` if the classes of model and dataset differ, `OutputError` if ``plan.out`` exists.
    """
    dataset = read_annotations(plan.data, reading_of(plan), screen, format=plan.format)
    return _tune(_with_one_network(plan, dataset, screen), dataset, screen, dry_run=dry_run)


def tune(  # noqa: PLR0913 - the options of the command
    model: str | Path,
    data: Dataset | str | Path,
    *,
    out: str | Path,
    split: str = "val",
    metric: str = "accuracy@0.5",
    channel: ChannelChoice | None = None,
    views: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Model:
    """Choose score thresholds and minimum areas per class, and calibrate scores, on a validation split.

    If ``out`` has the result of the same call, it is returned as it is.

    Args:
        model: "nuclei", a model folder, or a run; it is not changed.
        data: a dataset or its folder, with the split.
        out: model folder to write: a copy of the model that uses these thresholds and the calibration by default.
        split: split to tune on; do not report results on it afterwards.
        metric: what to maximise, as a mean over images: accuracy@T or f1@T for T from 0.5 to 0.95, or kaggle_score.
        channel: name or index of the channel to use, where there are several, or a list; None: as the dataset or the
            model records.
        views: views for test-time augmentation, such as "flips"; the tuned model uses them by default.
        device: "auto", "cpu", "cuda:N" or "mps".
        overwrite: replace an existing model folder.

    Returns:
        The tuned model.

    Raises:
        OutputError: ``out`` contains something else.
        UsageError: an unknown metric, or a model without a folder.
        InputError: the classes of model and data differ, or there is no such split.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import cellwright as cw
        >>> from cellwright.data.synthetic import write_demo_dataset
        >>> folder = Path(tempfile.mkdtemp())
        >>> data = write_demo_dataset(folder, splits=(("val", 1),), image_hw=(64, 64), n_objects=4)
        >>> cw.tune("nuclei", data, out=folder / "tuned", device="cpu").tuned_on["split"]
        'val'
    """
    dataset = as_annotations(data) if isinstance(data, Dataset) else read_annotations(Path(data))
    where = dataset.root or Path("the dataset")
    plan = TunePlan(Path(model), data=where, split=split, metric=metric, views=views, device=device, out=Path(out))
    plan = dataclasses.replace(plan, channel=Reading(channel).channels, overwrite=overwrite)
    _tune(_with_one_network(plan, dataset, SILENT), Reading(channel).recorded_in(dataset), SILENT)
    return load_model(plan.out, device=device)


def _tune(plan: TunePlan, dataset: Dataset, screen: ProgressReporter, *, dry_run: bool = False) -> TuneResult | None:
    """See `run`. dataset: all splits, with the choice of channel."""
    from cellwright.evaluation.thresholds import check_metric
    from cellwright.evaluation.thresholds import tune as tune_pairs
    from cellwright.models.weights.model_folder import CARD, INFO, WEIGHTS, copy_model, model_folder, read_model_info

    check_metric(plan.metric)
    if str(plan.model) == "classical":
        remedy = "train a model first: cellwright train"
        raise UsageError("the classical method has no model folder to tune", got="classical", remedy=remedy)
    if plan.out.resolve() in (plan.model.resolve(), model_folder(plan.model).resolve()):
        raise UsageError("the tuned model cannot replace the original", where=plan.out, remedy="choose another `out`")
    inputs, earlier = (plan.model, plan.data), earlier_output("tune", INFO, WEIGHTS, CARD)
    output = FolderOutput(plan.out, "tune", inputs=inputs, overwrite=plan.overwrite, earlier=earlier)
    dataset = dataset.with_split(plan.split)
    model = load_model(plan.model, device=plan.device)
    model = model.with_options(views=plan.views)
    _check_classes(model, dataset)
    request = _request(plan, model, dataset, screen)
    if output.answers(request):
        screen.note(output.text)
        return None
    screen.note(f"tuning {plan.model} for {plan.metric} on split {plan.split} of {plan.data}; will write {plan.out}/")
    if dry_run:
        return None
    pairs, digests = _pairs(model, dataset, screen)
    if n := len(set(digests) & set(model.trained_on)):
        of_all = f"{n} of these {count(len(digests), 'image')}"
        screen.note(
            f"warning: the model was trained on {of_all}, so the thresholds and the calibration are too optimistic; "
            "tune on other images"
        )
    tuning = tune_pairs(pairs, model.class_names, plan.metric)
    info = dataclasses.replace(read_model_info(plan.model), **_fields(tuning, plan, model.views, digests))
    with output.write(request) as folder:
        copy_model(plan.model, folder, info)
    for name in tuning.untuned:
        screen.note(f"no objects of class {name} on this split: the threshold of the recipe is kept")
    return TuneResult(plan.out, tuning)


def _with_one_network(plan: TunePlan, dataset: Dataset, screen: ProgressReporter) -> TunePlan:
    """The plan for one network, where its name stands for two; a note says which one the images chose."""
    reading = reading_of(plan).over(Reading.recorded(dataset.info))
    samples = [sample for sample in dataset if sample.split == plan.split]
    network, note = network_for(str(plan.model), samples or dataset.samples, reading)
    if note:
        screen.note(note)
    return dataclasses.replace(plan, model=Path(network))


def _request(plan: TunePlan, model: Model, dataset: Dataset, screen: ProgressReporter) -> dict[str, Any]:
    """What identifies the tuning: the content of model and data, and the options."""
    from cellwright.data.identity import Identity

    return {
        "the model": content_of(plan.model),
        "the data": Identity.of(dataset, track=screen.track).digest,
        "options": {
            "metric": plan.metric,
            "split": plan.split,
            "views": model.views,
            **Reading.recorded(dataset.info).to_dict(),
        },
    }


def _pairs(model: Model, dataset: Dataset, screen: ProgressReporter) -> tuple[list[ImagePairs], list[str]]:
    """Pairs with all predictions at their original scores, and the digests of the images."""
    from cellwright.data.identity import annotation_digest
    from cellwright.evaluation.matching import PairOptions, pair_image
    from cellwright.prediction.evaluate import predict_images
    from cellwright.prediction.options import PredictOptions

    predictor = dataclasses.replace(model.filtered, options=PredictOptions())
    predictions = predict_images(predictor, dataset, screen.track)
    for line in summarise(note for prediction in predictions for note in prediction.notes):
        screen.note(line)
    pairs, digests = [], []
    for sample, predicted in zip(dataset, predictions, strict=True):
        truth = sample.read_instances()
        pairs.append(pair_image(truth, predicted.instances, sample.id, PairOptions()))
        digests.append(annotation_digest(truth, sample.id))
    return pairs, digests


def _fields(tuning: Tuning, plan: TunePlan, views: str | None, digests: Sequence[str]) -> dict[str, Any]:
    """The fields of ``ModelInfo`` that tuning sets."""
    thresholds = {f"score/{name}": tuned.score for name, tuned in tuning.classes.items()}
    thresholds |= {f"min_area_px/{name}": float(tuned.min_area_px) for name, tuned in tuning.classes.items()}
    tuned_on = {"split": plan.split, "metric": plan.metric, "images": sorted(digests)}
    if views is not None:
        tuned_on["views"] = views
    return {"thresholds": thresholds, "calibration": tuning.calibration.to_dict(), "tuned_on": tuned_on}


def _check_classes(model: Model, dataset: Dataset) -> None:
    # With one class on both sides, the objects are the same kind whatever it is called.
    only_one = len(model.class_names) == len(dataset.class_names) == 1
    if model.class_names != dataset.class_names and not only_one:
        raise InputError(
            "the classes of the model and of the dataset differ",
            where=dataset.root,
            got=", ".join(dataset.class_names),
            expected=", ".join(model.class_names),
            remedy=class_advice(dataset.class_names, model.class_names),
        )
