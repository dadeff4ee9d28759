"""``train``: train a model on a dataset, once or with several seeds; an interrupted run is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from cellwright.api.bundled_choice import network_for
from cellwright.api.models import Model, load_model
from cellwright.api.paths import is_model_folder
from cellwright.api.read import read_annotations
from cellwright.api.shared_options import FormatName, Planes, Series, TimePoint
from cellwright.api.train_devices import Job, follow, is_member, loader_of, team_of, threads_of
from cellwright.config import recipe as recipes
from cellwright.config.conventions import CONVENTIONS
from cellwright.config.model_dense import DenseConfig
from cellwright.config.model_rcnn import RCNNConfig
from cellwright.config.recipe import Recipe, with_channel
from cellwright.core.dataset import Dataset
from cellwright.core.errors import CellwrightError, InputError, RecipeError, UsageError
from cellwright.core.files import write_json, write_text
from cellwright.core.needs_torch import require_torch
from cellwright.core.notes import summarise
from cellwright.core.progress import SILENT, ProgressReporter, Track
from cellwright.core.public import public
from cellwright.core.result_folders import REPORT
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS
from cellwright.data.formats.predictions import as_annotations
from cellwright.data.identity import Identity
from cellwright.data.images.reading import Reading
from cellwright.data.survey import Survey, survey_images
from cellwright.evaluation.data import HEADLINE
from cellwright.training.run_folder import (
    REPEATS,
    SCHEMA_VERSION,
    RunFolder,
    read_best,
)
from cellwright.training.run_output import RepeatsOutput, RunOutput

if TYPE_CHECKING:
    import torch

    from cellwright.data.images.channels import ChannelChoice
    from cellwright.data.loader import TrainingLoader
    from cellwright.models.contract import Network
    from cellwright.models.weights.foreign import LoadReport
    from cellwright.models.weights.model_folder import ModelInfo
    from cellwright.training.distributed import Team
    from cellwright.training.loop import Training


@Parameter(name="*")
@dataclass(frozen=True)
class TrainPlan:
    """Train a model, or resume an interrupted run."""

    recipe: str
    """A shipped recipe (see `recipes list`) or a YAML file."""
    _: KW_ONLY
    data: Path
    """Dataset folder with the splits train and val; without splits, all images are used for training."""
    format: FormatName = None
    channel: tuple[str, ...] = ()
    """Name or number of the channel to train on, where there are several; "DAPI|Hoechst" is the first that exists.
    Repeat for a network of several channels (default: as the dataset records, or what leaves no doubt)."""
    init: str | None = None
    """Weights to start from: nuclei, a model folder, a run, torchvision:NAME, or detectron2:FILE."""
    set: tuple[str, ...] = ()
    """Keys of the recipe to change, such as train.lr=2e-4."""
    repeat: int | None = None
    """Train this many runs with different seeds, each in its own folder, and show the metrics' mean and spread."""
    max_minutes: float | None = None
    """Save a checkpoint and stop after this many minutes; the same command resumes the run."""
    z: Planes = None
    t: TimePoint = None
    series: Series = None
    device: str = "auto"
    """auto, cpu, cuda:N or mps."""
    devices: int | None = None
    """Train on this many GPUs, or processes with device cpu, which share every batch (default: 1)."""
    out: Path | None = None
    """Run folder to write (default: runs/ and the name of the recipe)."""
    overwrite: bool = False
    """Start from scratch if the folder contains a run."""


@public
@dataclass(frozen=True, repr=False)
class Run:
    """A training run on disk.

    Attributes:
        folder: the run folder.
        metrics: metrics of the best model on the validation images by name, without undefined ones; empty if there are
            no validation images.
        finished: whether the run has reached its end.

    Example:
        >>> from pathlib import Path
        >>> import cellwright as cw
        >>> cw.Run(Path("runs/mine"), {"AP@all": 0.4471, "pq": 0.5953}, finished=True)
        Run('runs/mine', finished, AP@all 0.447, pq 0.595)
    """

    folder: Path
    metrics: dict[str, float]
    finished: bool

    def __repr__(self) -> str:
        shown = "".join(f", {name} {value:.3g}" for name, value in self.headline()[:4])
        return f"Run({str(self.folder)!r}, {'finished' if self.finished else 'not finished'}{shown})"

    def headline(self) -> list[tuple[str, float]]:
        """The most important metrics as (name, value); all metrics if none of those is there."""
        return [(name, self.metrics[name]) for name in HEADLINE if name in self.metrics] or sorted(self.metrics.items())

    @property
    def model(self) -> Model:
        """The best model, loaded on the default device each time this property is read."""
        return load_model(self.folder)


@dataclass(frozen=True)
class Repeats:
    """Runs that differ only in their seed.

    Attributes:
        folder: contains a folder for each run.
        runs: the finished runs by seed.
        planned: the planned number of runs.
    """

    folder: Path
    runs: dict[int, Run]
    planned: int

    @property
    def summary(self) -> Path:
        """The file with the metrics of all runs, their mean and spread."""
        return self.folder / REPEATS

    @property
    def finished(self) -> bool:
        """Whether all runs are finished."""
        return len(self.runs) == self.planned

    def metrics(self) -> dict[str, dict[str, float | int | None]]:
        """``mean``, ``std`` (of a sample, n - 1; None for one run) and ``n`` of each metric that every run has."""
        metrics = [run.metrics for run in self.runs.values()]
        names = [name for name in (metrics[0] if metrics else {}) if all(name in others for others in metrics)]
        values = {name: [run_metrics[name] for run_metrics in metrics] for name in names}
        return {
            name: {"mean": fmean(own), "std": stdev(own) if len(own) > 1 else None, "n": len(own)}
            for name, own in values.items()
        }

    def table(self) -> tuple[tuple[str, ...], list[list[object]]]:
        """Columns and rows: metric, mean, standard deviation, and the value of each seed."""
        summary = self.metrics()
        rows: list[list[object]] = []
        for name in [name for name in HEADLINE if name in summary] or sorted(summary):
            std = summary[name]["std"]
            each = [run.metrics[name] for run in self.runs.values()]
            rows.append([name, summary[name]["mean"], "-" if std is None else std, *each])
        return ("metric", "mean", "std", *(f"seed {seed}" for seed in self.runs)), rows


def train(  # noqa: PLR0913 - the options of the command
    recipe: str | Path | Recipe,
    data: Dataset | Path | str,
    *,
    out: Path | str,
    channel: ChannelChoice | None = None,
    init: str | None = None,
    set: Sequence[str] = (),  # noqa: A002 - the same name as on the command line
    max_minutes: float | None = None,
    device: str = "auto",
    devices: int | None = None,
    overwrite: bool = False,
) -> Run:
    """Train a model; a run at ``out`` with the same recipe and data is resumed, or returned if it is finished.

    Args:
        recipe: the name of a shipped recipe ("nuclei/finetune", "vrdl_nuclei/flow", ...), a YAML file, or a `Recipe`.
        data: a dataset or its folder. Images of the split "train" are used for training, those of "val" to select the
            best model. Without splits, all images are used for training, and the last model is kept.
        out: the run folder to write; the model is in its subfolder ``model``.
        channel: name or index of the channel to train on, where there are several ("DAPI|Hoechst": the first that
            exists), or a list for a network of several channels. None: as the dataset records, or what leaves no doubt.
        init: weights to start from, in place of the recipe's: "nuclei", a model folder, a run, "torchvision:NAME" or
            "detectron2:FILE".
        set: keys of the recipe to change, such as ``["train.lr=2e-4", "train.length=500 steps"]``.
        max_minutes: save a checkpoint and stop after this time; the same call resumes the run.
        device: "auto", "cpu", "cuda:N" or "mps".
        devices: train on this many GPUs, or processes with ``device="cpu"``, which share every batch. None: 1, or the
            processes that torchrun has started, which all call this function and get the same run.
        overwrite: start from scratch if ``out`` contains a run.

    Returns:
        The run, with the metrics of its best model.

    Raises:
        OutputError: ``out`` contains a run with another recipe or data, or something else.
        RecipeError: the recipe is not valid, or does not fit the data or the device.
        ModelError: the initial weights do not exist or do not fit.
        InputError: there are no training images or objects, or an image cannot be read.
        TrainingDiverged: a loss or gradient is not finite.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import cellwright as cw
        >>> from cellwright.data.synthetic import write_demo_dataset
        >>> folder = Path(tempfile.mkdtemp())
        >>> data = write_demo_dataset(folder, splits=(("train", 1), ("val", 1)), image_hw=(64, 64), n_objects=4)
        >>> small = ["model.backbone.width=8", "model.fpn.channels=16", "augment.crop_px=64", "train.batch_size=1"]
        >>> short = ["train.length=1 step", "train.warmup=null"]
        >>> run = cw.train("synthetic/demo", data, out=folder / "run", set=small + short, device="cpu")
        >>> run.finished
        True
        >>> sorted(path.name for path in (folder / "run" / "model").iterdir())
        ['README.md', 'model.json', 'weights.safetensors']
        >>> run.model.class_names
        ('nucleus',)
    """
    if is_member():
        follow(device)
        return read_run(Path(out))
    dataset = as_annotations(data) if isinstance(data, Dataset) else read_annotations(Path(data))
    request = _request(load_recipe(recipe, set, init), dataset, Reading(channel).channels)
    request = dataclasses.replace(request, out=Path(out), max_minutes=max_minutes, device=device, overwrite=overwrite)
    with team_of(device, devices) as team:
        run = _train(dataclasses.replace(request, team=team), SILENT)
    assert run is not None  # not a dry run
    return run


def run(plan: TrainPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Run | Repeats | None:
    """Carry out a plan. Returns the run, all runs with ``repeat``, or None after a dry run.

    None also in processes that torchrun has started for other ranks than 0. Raises what `train` raises, and
    `UsageError` for an invalid ``max_minutes`` or ``repeat``.
    """
    require_torch("training")
    if is_member():
        return follow(plan.device)
    recipe = load_recipe(plan.recipe, plan.set, plan.init)
    out = plan.out or Path("runs") / Path(plan.recipe).name.removesuffix(".yaml")
    request = _request(
        recipe,
        read_annotations(plan.data, Reading(z=plan.z, t=plan.t, series=plan.series), screen, format=plan.format),
        plan.channel,
    )
    request = dataclasses.replace(
        request,
        out=out,
        max_minutes=plan.max_minutes,
        device=plan.device,
        overwrite=plan.overwrite,
        inputs=(plan.data,),
    )
    with team_of(plan.device, plan.devices) as team:
        request = dataclasses.replace(request, team=team)
        if plan.repeat is not None:
            return _train_repeats(request, plan.repeat, screen, dry_run=dry_run)
        return _train(request, screen, dry_run=dry_run)


def train_briefly(
    recipe: Recipe, dataset: Dataset, channel: tuple[str | int, ...] = (), *, device: str, out: Path
) -> Path:
    """Train without the evaluation for the report, to measure the time of a step; returns the log."""
    request = _request(recipe.resolved(), dataset, channel)
    _train(dataclasses.replace(request, out=out, device=device, is_reported=False), SILENT)
    return RunFolder(out).log


def read_run(folder: Path) -> Run:
    """The run in ``folder``. Raises `InputError` if there is none."""
    paths = RunFolder(folder)
    if not paths.metrics.is_file():
        raise InputError("not a run", where=folder, expected="a folder with metrics.json and model/")
    return Run(folder, dict(read_best(paths).metrics), paths.done.exists())


def load_recipe(recipe: str | Path | Recipe, changes: Sequence[str] = (), init: str | None = None) -> Recipe:
    """The resolved recipe with its ``changes``. Raises `RecipeError` if it is not valid or cannot be trained."""
    changes = (*changes, *((f"model.init={init}",) if init is not None else ()))
    if isinstance(recipe, Recipe):
        if changes:
            raise RecipeError(
                "`set` and `init` need a recipe given by name or file",
                got=changes,
                remedy="change the Recipe object itself",
            )
        return recipe.resolved()
    loaded = recipes.load(str(recipe), changes).resolved()
    if loaded.model.kind == "classical":
        remedy = "predict with the model named classical, without training"
        raise RecipeError("the classical method needs no training", where=loaded.name, remedy=remedy)
    return loaded


@dataclass(frozen=True, eq=False)
class _Request:
    """One training run with its recipe and data; ``identity`` is that of the data, if known already.

    reading: which part of each image file is used. survey: what the training images are like. notes: what was assumed
    about the data, one sentence each. inputs: further files and folders that are read. is_reported: whether the best
    model is evaluated once more at the end, for the report. team: the processes that train together; None: only this.
    """

    recipe: Recipe
    dataset: Dataset
    reading: Reading
    survey: Survey
    out: Path = Path("run")
    max_minutes: float | None = None
    device: str = "auto"
    overwrite: bool = False
    identity: Identity | None = None
    notes: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    is_reported: bool = True
    team: Team | None = None

    def __post_init__(self) -> None:
        if self.max_minutes is not None and not self.max_minutes >= 0:  # True for NaN
            raise UsageError("invalid time limit", where="`max_minutes`", got=self.max_minutes, expected=">= 0")

    @property
    def training(self) -> Dataset:
        """The training images."""
        return _training_part(self.dataset)

    @property
    def validation(self) -> Dataset | None:
        """The validation images, or None."""
        evaluate = self.recipe.evaluate
        if evaluate.split not in self.dataset.splits:
            return None
        validation = self.dataset.with_split(evaluate.split)
        return validation.with_samples(validation.samples[: evaluate.max_images])

    def output(self) -> RunOutput:
        """The folder of the run."""
        start = [] if self.init is None or not Path(self.init).exists() else [self.init]
        return RunOutput(self.out, overwrite=self.overwrite, inputs=[*self.inputs, *start])

    def identify(self, output: RunOutput, track: Track) -> Identity:
        """The content of all images and annotations that are used; reads them all, or as far as the run knows them."""
        if self.identity is not None:
            return self.identity
        used = {sample.id: sample for part in (self.training, self.validation or ()) for sample in part}
        dataset, known = self.dataset.with_samples(tuple(used.values())), output.recorded_identity()
        identity = Identity.of(dataset, known, track)
        # What was recorded may be damaged: before it is said that the data changed, all files are read.
        is_other = known is not None and identity.digest != output.recorded_data()
        return Identity.of(dataset, None, track) if is_other else identity

    @property
    def init(self) -> str | None:
        """The weights that training starts from."""
        return getattr(self.recipe.model, "init", None)

    @property
    def shared(self) -> str:
        """How many devices share a step, if they are several."""
        return "" if self.team is None or self.team.place.n == 1 else f", on {self.team.place.n} devices"

    def describe(self) -> list[str]:
        """What will be read, done and written, and warnings, in a few lines."""
        recipe, train = self.recipe, self.recipe.train
        validation = self.validation
        n_validation = "no validation images" if validation is None else count(len(validation), "validation image")
        lines = [
            f"recipe {recipe.name}: {recipe.description}",
            f"{count(len(self.training), 'training image')}, {n_validation}; {train.length} with "
            f"{count(train.batch_size * train.accumulate, 'image')} per step, {train.precision}{self.shared}",
        ]
        return [*lines, *self.notes, *init_warnings(recipe), *summarise(self.survey.notes)]


def _request(recipe: Recipe, dataset: Dataset, channel: tuple[str | int, ...] = ()) -> _Request:
    """The request with what the dataset records and what its images decide: channels, and the range of their values."""
    reading = Reading(channel or recipe.input.channel).over(Reading.recorded(dataset.info))
    recipe, notes = _with_input_of_init(recipe, _training_part(dataset), reading)
    dataset, of_class = _with_class_of_init(recipe, dataset)
    notes += of_class
    recipe = with_channel(recipe, reading.channels)
    survey = survey_images(_training_part(dataset).samples, recipe.input, reading)
    recipe = recipe.model_copy(update={"input": survey.config})
    reading = dataclasses.replace(reading, channel=survey.config.channel)
    return _Request(recipe, dataset, reading, survey, notes=tuple(notes))


def _with_input_of_init(recipe: Recipe, training: Dataset, reading: Reading) -> tuple[Recipe, list[str]]:
    """The recipe with the network that `network_for` chooses to start from, and the kind of normalisation that it saw.

    The notes say what was chosen, and how the recipe's own input differs from that of the initial weights.
    """
    init, notes = getattr(recipe.model, "init", None), []
    if init is not None:
        network, note = network_for(init, training.samples, reading)
        notes = [note] if note else []
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"init": network})})
    theirs = _input_of_init(recipe)
    known = bool(theirs)
    theirs["percentiles_of"] = theirs.get("percentiles_of") or "channel"
    theirs["background"] = theirs.get("background") or "any"
    as_theirs = {"percentiles_of": recipe.input.percentiles_of or theirs["percentiles_of"]}
    if recipe.input.normalise == "percentile":
        as_theirs["background"] = recipe.input.background or theirs["background"]
    recipe = recipe.model_copy(update={"input": recipe.input.model_copy(update=as_theirs)})
    own = recipe.input.model_dump()
    of_percentiles = ("percentiles", *as_theirs) if own["normalise"] == "percentile" else ()
    keys = ("normalise", "colour_order", "diameter_px", *of_percentiles)
    differing = [key for key in keys if known and _plain(theirs.get(key, own[key])) != _plain(own[key])]
    notes += [
        f"warning: the initial weights saw images with input.{key} {theirs[key]}, this recipe has {own[key]}"
        for key in differing
    ]
    return recipe, notes


def _input_of_init(recipe: Recipe) -> dict[str, Any]:
    """The section ``input`` of the recipe of the initial weights; empty where it is not known."""
    from cellwright.models.weights.model_folder import is_foreign

    init = getattr(recipe.model, "init", None)
    if init is not None and isinstance(recipe.model, DenseConfig) and is_foreign(init):
        from cellwright.models.weights.peers import is_peer, read_peer
        from cellwright.models.weights.sources import find_weights

        if init.partition(":")[0] in ("torchvision", "detectron2"):  # `start_from` refuses them
            return {}
        weights = find_weights(init)
        return dict(read_peer(weights, init).values["input"]) if is_peer(weights) else {}
    info = _info_of_init(init)
    return {} if info is None else dict(info.normalisation)


def _plain(value: Any) -> Any:
    """As JSON gives it."""
    return list(value) if isinstance(value, tuple) else value


def _with_class_of_init(recipe: Recipe, dataset: Dataset) -> tuple[Dataset, list[str]]:
    """The dataset with the class name of the model that training starts from, where its own is only a default."""
    info = _info_of_init(getattr(recipe.model, "init", None))
    if info is None or dataset.class_names != (DEFAULT_CLASS,):
        return dataset, []
    names = info.class_names
    if len(names) != 1 or names == dataset.class_names:
        return dataset, []
    note = f"class {DEFAULT_CLASS} of the data, a name for files without class names, keeps the model's name {names[0]}"
    return dataclasses.replace(dataset, class_names=names), [note]


def _training_part(dataset: Dataset) -> Dataset:
    """The training images: all images if the dataset has no splits."""
    return dataset.with_split("train") if dataset.splits else dataset


def init_warnings(recipe: Recipe) -> list[str]:
    """Warnings about a recipe without initial weights."""
    warnings = []
    if getattr(recipe.model, "init", None) is None:
        if isinstance(recipe.model, RCNNConfig):
            backbone = recipe.model.backbone
            if backbone.frozen_stages or backbone.norm == "frozen_batch_norm":
                warnings.append("warning: frozen layers of the backbone stay random without initial weights (`init`)")
        if getattr(recipe.model, "init_fresh", ()):
            warnings.append("warning: model.init_fresh has no effect without initial weights (`init`)")
    return warnings


def _class_warnings(request: _Request, identity: Identity) -> list[str]:
    """Classes that cannot be learned, because no training image has an object of them."""
    splits = request.dataset.splits
    learned, evaluated = identity.counts("train" if splits else None), identity.counts(request.recipe.evaluate.split)
    warnings = []
    for name in identity.classes:
        if not learned[name]:
            where = f", but the validation images have {count(evaluated[name], 'object')}" if evaluated[name] else ""
            warnings.append(f"warning: no training image has an object of class {name}{where}: it cannot be learned")
    return warnings


def _train(request: _Request, screen: ProgressReporter, *, dry_run: bool = False) -> Run | None:
    """Check the request, say what will be done, and train; None after a dry run, which writes nothing."""
    from cellwright.prediction.backends.torch import resolve_device
    from cellwright.training import loop
    from cellwright.training.distributed import Team, check_share
    from cellwright.training.environment import describe_environment
    from cellwright.training.precision import precision_for

    started = time.monotonic()
    recipe, output = request.recipe, request.output()
    _check_classes(recipe, request.dataset)
    team = request.team or Team()
    check_share(recipe.train.batch_size, team.place.n, compiles=recipe.train.compile)
    device = resolve_device(request.device) if team.place.n == 1 else team.device
    identity = request.identify(output, screen.track)
    chosen = request.reading.to_dict()
    inputs = {"data": identity.digest, **({"reading": repr(chosen)} if chosen else {}), **_init_fingerprint(recipe)}
    recipe_yaml = recipes.dump(recipe)
    environment = describe_environment(
        device, threads_of(recipe, team), inputs, precision_for(recipe, device), team.place.n
    )
    environment["sources"] = sorted({sample.source for sample in request.dataset if sample.source})[:10]
    environment = output.examine(recipe_yaml, environment, identity)
    if output.is_finished:
        screen.note(f"already complete: {request.out}/ has the finished run of this recipe and these data")
        return None if dry_run else read_run(request.out)
    request = _with_train(request, {"precision": environment["precision"]})
    info = _model_info(request, environment, identity)
    training, loaded = _prepare(request, device, info, screen)
    job = Job(request.recipe, request.training.samples, len(request.dataset.class_names), request.reading)
    for line in (*request.describe(), *_class_warnings(request, identity), *_what_is_written(request, output, loaded)):
        screen.note(line)
    if dry_run:
        return None
    with output.started(recipe_yaml, environment, identity) as run:
        if loaded is not None:
            write_text(run.init_report, loaded.text())
        used = (time.monotonic() - started) / 60
        left = None if request.max_minutes is None else max(0.0, request.max_minutes - used)
        n_closing = 1 + (_start_of(request) is not None) if request.is_reported and request.validation else 0
        threads = environment["threads"] if team.place.n > 1 or output.is_on_other_devices else None
        changes = {"run": run, "n_closing": n_closing, "verify": output.verify, "team": team, "threads": threads}
        training = dataclasses.replace(training, **changes)
        with _reporting(run):
            team.start()
            team.send(job)
            result = loop.train(training, max_minutes=left)
            if n_closing and result.best_step >= 0:
                output.verify()
                _close(request, run, result.best_step, device, screen)
        if result.finished:
            output.complete()
        else:
            screen.note(f"stopped at step {result.step} of {result.total_steps}; run the training again to resume")
    metrics = {name: value for name, value in result.best_metrics.items() if math.isfinite(value)}
    is_aside = output.replaces and not result.finished
    return Run(run.root if is_aside else request.out, metrics, result.finished)


def _start_of(request: _Request) -> str | None:
    """The model that training starts from, if it is one of ours, with which the best one can be compared."""
    return None if _info_of_init(request.init) is None else request.init


def _close(request: _Request, run: RunFolder, step: int, device: torch.device, screen: ProgressReporter) -> None:
    """Evaluate the best model for the report; a problem is no reason for a training to fail."""
    from cellwright.api.closing_evaluation import write_validation

    validation = request.validation
    assert validation is not None
    and_start = " and the one that training started from" if _start_of(request) is not None else ""
    screen.note(f"evaluating the best model{and_start} for the report")
    try:
        write_validation(
            run,
            request.reading.recorded_in(validation),
            step=step,
            start=_start_of(request),
            metrics=tuple(dict.fromkeys((*request.recipe.evaluate.metrics, "errors"))),
            device=device,
            screen=screen,
        )
    except CellwrightError as error:
        screen.note(f"warning: the report has no pictures of the validation images: {error.problem}")


def _what_is_written(request: _Request, output: RunOutput, loaded: LoadReport | None) -> list[str]:
    lines = []
    if loaded is not None:
        details = RunFolder(request.out).init_report.name
        lines.append(f"initial weights: {request.init}: {loaded.headline}; details in {details}")
    if output.discarded is not None:
        lines.append(f"the unfinished run in {output.recorded.root} is begun again: {output.discarded}")
    if output.moved is not None:
        lines.append(f"this run is resumed on other hardware ({output.moved}): it will not end exactly as on the first")
    once = ", in place of the old run once the new one is finished" if output.replaces else ""
    return [*lines, f"will write {request.out}/{once}"]


def _prepare(
    request: _Request, device: torch.device, info: ModelInfo, screen: ProgressReporter
) -> tuple[Training, LoadReport | None]:
    """The network with its initial weights and everything else that training needs, after all checks."""
    import torch

    from cellwright.models.build import build_network, check_training_memory
    from cellwright.models.weights.initial import start_from
    from cellwright.training import loop
    from cellwright.training.logging import choose_reporter
    from cellwright.training.validation import Validation, check_best_metric

    recipe, class_names = request.recipe, request.dataset.class_names
    check_best_metric(recipe, class_names)
    torch.manual_seed(recipe.train.seed)
    network = build_network(recipe, len(class_names))
    check_training_memory(network)
    loaded = None
    if isinstance(recipe.model, RCNNConfig | DenseConfig) and recipe.model.init is not None:
        loaded = start_from(network, recipe.model.init, fresh=recipe.model.init_fresh)
    validation, seen = request.validation, (request.survey.values, request.survey.channels)
    training = loop.Training(
        network=network,
        loader=_loader(request, network),
        config=recipe.train,
        run=RunFolder(request.out),
        info=info,
        validation=None
        if validation is None
        else Validation(recipe, validation, device, network.stride, request.reading, *seen),
        reporter=choose_reporter(
            sys.stdout if screen.log_format == "json" else sys.stderr, log_format=screen.log_format, quiet=screen.quiet
        ),
        device=device,
    )
    loop.check(training)
    return training, loaded


def _loader(request: _Request, network: Network) -> TrainingLoader:
    from cellwright.data.check import require_objects
    from cellwright.training.distributed import Team

    require_objects(request.training)
    return loader_of(request.recipe, request.training, network, request.reading, request.team or Team())


def _model_info(request: _Request, environment: dict[str, Any], identity: Identity) -> ModelInfo:
    """The ``model.json`` of the trained model, without its metrics."""
    from cellwright import __version__
    from cellwright.data.network_input import training_scale
    from cellwright.models.weights.model_folder import ModelInfo

    git, recipe, dataset = environment.get("git"), request.recipe, request.dataset
    values, start = request.survey.values, _info_of_init(request.init)
    sizes = [sample.image_hw for sample in request.training]
    trained_on = {identity.samples[sample.id].annotation for sample in request.training}
    return ModelInfo(
        kind=recipe.model.kind,
        recipe=recipe.to_dict(),
        class_names=dataset.class_names,
        normalisation=recipe.input.model_dump(mode="json"),
        channels=request.survey.channels,
        values=None if values is None else values.to_dict(),
        scale=training_scale(sizes, recipe.input, CONVENTIONS[recipe.conventions].resize_rule),
        pixel_size_um=request.survey.pixel_size_um,
        data_licence=dataset.licence,
        version=__version__,
        git_hash=git["commit"] if isinstance(git, dict) else None,
        trained_on=tuple(sorted({*trained_on, *(() if start is None else start.trained_on)})),
    )


def _info_of_init(init: str | None) -> ModelInfo | None:
    """The ``model.json`` of the model that training starts from; None for other weights, or none."""
    from cellwright.models.weights.model_folder import bundled_model, read_model_info

    if init is None or (bundled_model(init) is None and not is_model_folder(Path(init))):
        return None
    return read_model_info(init)


def _check_classes(recipe: Recipe, dataset: Dataset) -> None:
    n_classes = len(dataset.class_names)
    if recipe.classes is not None and recipe.classes != n_classes:
        raise RecipeError(
            "the recipe and the dataset have different numbers of classes",
            where="classes",
            got=f"recipe {recipe.classes}, dataset {n_classes} ({', '.join(dataset.class_names)})",
            remedy=f'use `set="classes={n_classes}"`; or rename, combine or drop classes with cellwright data merge '
            "(`map`, `keep`), or keep only some when converting (`classes`)",
        )


def _init_fingerprint(recipe: Recipe) -> dict[str, str]:
    """A hash of the initial weights, or their name if it is not a file or folder. Never a path."""
    from cellwright.models.weights.model_folder import bundled_model

    init = getattr(recipe.model, "init", None)
    if init is None:
        return {}
    path = bundled_model(init) or Path(init.rpartition(":")[2])
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors")) if path.is_dir() else []
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    return {"init": digest if files else init}


@contextmanager
def _reporting(run: RunFolder) -> Iterator[None]:
    """Draw the curves and write the report at the end, also if the training diverged or was interrupted."""
    from cellwright.report.curves import draw_curves
    from cellwright.report.run_report import run_page

    ended = False
    try:
        yield
        ended = True
    finally:
        with nullcontext() if ended else suppress(CellwrightError):
            if run.log.is_file():
                draw_curves(run.log, run.curves)
                write_text(run.report, run_page(run.root).html())


def _train_repeats(request: _Request, planned: int, screen: ProgressReporter, *, dry_run: bool) -> Repeats | None:
    """Train ``planned`` runs with consecutive seeds, starting from the recipe's, each in ``out/seed_N``.

    A time limit applies to all runs together. ``out/repeat.json`` is written after each run. Raises `UsageError` for
    less than one run, `OutputError` if ``out`` contains something else, and what `train` raises.
    """
    if planned < 1:
        raise UsageError("invalid number of runs", where="`repeat`", got=planned, expected="1 or more")
    seeds = range(request.recipe.train.seed, request.recipe.train.seed + planned)
    folder = RepeatsOutput(request.out, recipes.dump(request.recipe), overwrite=request.overwrite)
    screen.note(f"{count(planned, 'run')} with seeds from {seeds[0]}; will write {request.out}/")
    first = _with_seed(request, seeds[0])
    request = dataclasses.replace(request, identity=first.identify(first.output(), screen.track))
    if dry_run:
        screen.note(f"seed {seeds[0]} (1 of {planned})")
        _train(_with_seed(request, seeds[0]), screen, dry_run=True)
        return None
    with folder.started():
        repeats = Repeats(request.out, {}, planned)
        deadline = None if request.max_minutes is None else time.monotonic() + 60 * request.max_minutes
        _write_repeats(repeats, seeds)
        for seed in seeds:
            single = _with_seed(request, seed)
            is_kept = folder.is_done(seed) or not request.overwrite
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) / 60
            # A finished run takes no time, and is part of the summary.
            if left is not None and left <= 0 and not (is_kept and RunFolder(single.out).done.exists()):
                screen.note("the time limit is reached; run the training again to resume")
                break
            screen.note(f"seed {seed} ({seed - seeds[0] + 1} of {planned})")
            run = _train(dataclasses.replace(single, max_minutes=left, overwrite=not is_kept), screen)
            assert run is not None  # not a dry run
            if run.finished:
                repeats = dataclasses.replace(repeats, runs={**repeats.runs, seed: run})
                _write_repeats(repeats, seeds)
                folder.done(seed)
        if repeats.finished:
            folder.complete()
    return repeats


def _with_seed(request: _Request, seed: int) -> _Request:
    return dataclasses.replace(_with_train(request, {"seed": seed}), out=request.out / f"seed_{seed}")


def _with_train(request: _Request, changes: dict[str, object]) -> _Request:
    """The request with other values in the section ``train`` of its recipe."""
    recipe = request.recipe
    changed = recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
    return dataclasses.replace(request, recipe=changed)


def _write_repeats(repeats: Repeats, seeds: Sequence[int]) -> None:
    runs = [
        {
            "seed": seed,
            "folder": f"seed_{seed}",
            "metrics": repeats.runs[seed].metrics if seed in repeats.runs else None,
        }
        for seed in seeds
    ]
    content = {"schema_version": SCHEMA_VERSION, "finished": repeats.finished, "runs": runs}
    write_json(repeats.summary, {**content, "metrics": repeats.metrics()})
    if repeats.runs:
        from cellwright.report.repeats_report import repeats_page

        with suppress(CellwrightError):  # such as a run that is no longer there
            write_text(repeats.folder / REPORT, repeats_page(repeats.folder).html())
