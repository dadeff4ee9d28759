"""Training as a job: a recipe and a dataset in, a run folder out; the same call goes on where it stopped."""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellwright.api.models import Model, load_model, resolve_device
from cellwright.api.read import read_dataset
from cellwright.api.training_hooks import HEADLINE, evaluation, saver, shown_metrics
from cellwright.config import recipe as recipes
from cellwright.config.conventions import CONVENTIONS
from cellwright.config.model_dense import UNetConfig
from cellwright.config.model_rcnn import RCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError, RecipeError, UsageError, did_you_mean
from cellwright.core.files import read_json, write_text
from cellwright.core.progress import SILENT, Screen

if TYPE_CHECKING:
    import torch

    from cellwright.data.loader import TrainingLoader
    from cellwright.models.contract import Network
    from cellwright.models.weights.foreign import LoadReport


@dataclass(frozen=True)
class TrainPlan:
    """What to train, on what, and where it goes.

    data: a folder, or a dataset in memory. keep_finished: a finished run at ``out`` of the same recipe and data is
    taken as it is, instead of refused.
    """

    recipe: str | Recipe
    data: Path | Dataset
    out: Path
    init: str | None = None
    overrides: tuple[str, ...] = ()
    max_minutes: float | None = None
    device: str = "auto"
    overwrite: bool = False
    keep_finished: bool = False

    def __post_init__(self) -> None:
        if self.max_minutes is not None and not self.max_minutes >= 0:  # true of NaN
            raise UsageError("this is no length of time", where="--max-minutes", got=self.max_minutes, expected=">= 0")


@dataclass(frozen=True)
class Run:
    """A run on disk. metrics: of the best model, by name, those that are defined; none where nothing was evaluated."""

    folder: Path
    metrics: dict[str, float]
    finished: bool

    def headline(self) -> list[tuple[str, float]]:
        """The figures to look at first, as (name, value); all of them where none of those is there."""
        return [(name, self.metrics[name]) for name in HEADLINE if name in self.metrics] or sorted(self.metrics.items())

    @property
    def model(self) -> Model:
        """The best model, loaded now on the device that ``auto`` takes."""
        return load_model(self.folder)


def train(
    recipe: str | Recipe,
    data: Dataset | Path | str,
    *,
    out: Path | str,
    init: str | None = None,
    overrides: tuple[str, ...] = (),
    max_minutes: float | None = None,
    device: str = "auto",
) -> Run:
    """Train a model; a run at ``out`` with the same recipe and data that is not finished goes on.

    recipe: a shipped name, a YAML file, or a `Recipe`. data: a dataset or its folder, with the split "train" (all
    images where there are no splits). overrides: ``"train.lr=2e-4"``. Raises `OutputError` where the run at ``out`` is
    finished or another one.
    """
    dataset = data if isinstance(data, Dataset) else Path(data)
    return run_plan(TrainPlan(recipe, dataset, Path(out), init, overrides, max_minutes, device))


def run_plan(plan: TrainPlan, screen: Screen = SILENT) -> Run:
    """Carry out a plan. Raises what `train.loop.train` raises, `RecipeError` and `InputError`."""
    from cellwright.training import loop
    from cellwright.training.environment import describe_environment
    from cellwright.training.reporter import choose_reporter
    from cellwright.training.run_folder import RunFolder, check_same_run, open_run

    request = _request(plan)
    recipe, device = request.recipe, request.device
    inputs = {"data": fingerprint(request.training), **_init_fingerprint(recipe)}
    environment = describe_environment(device, recipe.train.threads, inputs)
    if plan.keep_finished and not plan.overwrite and RunFolder(plan.out).done.exists():
        check_same_run(RunFolder(plan.out), recipes.dump(recipe), environment)
        return read_run(plan.out)
    # All that may be wrong with the request is found before the folder is touched: --overwrite removes a run.
    network, loader, loaded = _ready(request)
    run = open_run(plan.out, recipe_yaml=recipes.dump(recipe), environment=environment, overwrite=plan.overwrite)
    if loaded is not None:
        write_text(run.init_report, loaded.text())
        screen.note(f"{_start(request, loaded)}; each of them in {run.init_report.name}")
    stream = sys.stdout if screen.log_format == "json" else sys.stderr
    validation = request.validation
    hooks = loop.Hooks(
        save_model=saver(recipe, request.dataset, run.model, environment),
        evaluate=evaluation(recipe, request.dataset, validation, device) if validation is not None else None,
        reporter=choose_reporter(stream, log_format=screen.log_format, quiet=screen.quiet),
        headline=shown_metrics(recipe),
    )
    screen.note(describe(plan, request.training, validation))
    try:
        result = loop.train(network, loader, recipe.train, run, hooks, device=device, max_minutes=plan.max_minutes)
    finally:
        _draw_curves(plan.out)  # also of a run that diverged or was interrupted: there they are needed most
    if not result.finished:
        screen.note(f"stopped at step {result.step} of {result.total_steps}; the same command goes on")
    metrics = {name: value for name, value in result.best_metrics.items() if math.isfinite(value)}
    return Run(plan.out, metrics, result.finished)


def rehearse(plan: TrainPlan) -> str:
    """What `run_plan` would do, in a few lines, after every check that it makes before it writes; nothing is written.

    Raises what `run_plan` raises before its first step.
    """
    request = _request(plan)
    _, _, loaded = _ready(request)
    lines = [describe(plan, request.training, request.validation)]
    return "\n".join(lines if loaded is None else [*lines, _start(request, loaded)])


def read_run(folder: Path) -> Run:
    """A run that is on disk. `InputError` where ``folder`` holds none."""
    if not (folder / "metrics.json").is_file():
        raise InputError("no run here", where=folder, expected="a folder with metrics.json and model/")
    best = read_json(folder / "metrics.json")["best"]["metrics"]
    return Run(folder, {k: v for k, v in best.items() if v is not None}, (folder / "DONE").exists())


def describe(plan: TrainPlan, training: Dataset | None = None, validation: Dataset | None = None) -> str:
    """What will be read, done and written, in a few lines."""
    recipe = recipe_of(plan)
    lines = [f"recipe {recipe.name}: {recipe.description}"]
    if training is not None:
        judged = f", validates on {len(validation)}" if validation is not None else ", validates on none"
        lines.append(f"trains on {len(training)} images{judged}")
    train = recipe.train
    lines.append(f"{train.length} of {train.batch_size * train.accumulate} images a step; writes {plan.out}/")
    if isinstance(recipe.model, RCNNConfig) and recipe.model.init is None:
        backbone = recipe.model.backbone
        if backbone.frozen_stages or backbone.norm == "frozen_batch_norm":
            lines.append(
                "warning: layers of the backbone are frozen and no weights are given (--init): they stay random"
            )
    if getattr(recipe.model, "init_fresh", ()) and getattr(recipe.model, "init", None) is None:
        lines.append("no weights are given (--init): everything starts at random, and model.init_fresh does nothing")
    return "\n".join(lines)


def fingerprint(dataset: Dataset) -> str:
    """A hash of what a run depends on: ids, sizes, splits, classes, and the size of every image file."""
    digest = hashlib.sha256(repr(dataset.class_names).encode())
    for sample in dataset:
        size = sample.image_path.stat().st_size if sample.image_path is not None else 0
        digest.update(repr((sample.id, sample.image_hw, sample.split, size)).encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class _Request:
    """What a plan names, read: the data in its parts, and where it trains."""

    recipe: Recipe
    dataset: Dataset
    training: Dataset
    validation: Dataset | None
    device: torch.device

    @property
    def init(self) -> tuple[str | None, tuple[str, ...]]:
        """What training starts from, and which parts of it do not count."""
        model = self.recipe.model
        return (model.init, model.init_fresh) if isinstance(model, RCNNConfig | UNetConfig) else (None, ())


def _request(plan: TrainPlan) -> _Request:
    recipe = recipe_of(plan)
    dataset = plan.data if isinstance(plan.data, Dataset) else read_dataset(plan.data)
    training, validation = _splits(dataset, recipe)
    _check_classes(recipe, dataset)
    _check_best_metric(recipe, dataset)
    return _Request(recipe, dataset, training, validation, resolve_device(plan.device))


def _ready(request: _Request) -> tuple[Network, TrainingLoader, LoadReport | None]:
    """The network with its first weights, the data's loader, and what became of the weights that were given."""
    import torch

    from cellwright.models.build import build_network
    from cellwright.models.weights.model_folder import start_from
    from cellwright.training import loop

    torch.manual_seed(request.recipe.train.seed)
    network = build_network(request.recipe, len(request.dataset.class_names))
    init, fresh = request.init
    loaded = None if init is None else start_from(network, init, fresh=fresh)
    loader = _loader(request.recipe, request.training, network)
    evaluates = request.validation is not None
    loop.check(network, loader, request.recipe.train, evaluates=evaluates, device=request.device)
    return network, loader, loaded


def _start(request: _Request, loaded: LoadReport) -> str:
    return f"starts from {request.init[0]}: {loaded.headline}"


def recipe_of(plan: TrainPlan) -> Recipe:
    """The plan's recipe, resolved. Raises `RecipeError` where it cannot be read or is not trained."""
    if isinstance(plan.recipe, Recipe):
        if plan.overrides or plan.init is not None:
            got = (*plan.overrides, *((f"model.init={plan.init}",) if plan.init is not None else ()))
            raise RecipeError("overrides go with a recipe's name", got=got, remedy="change the recipe itself")
        return plan.recipe.resolved()
    init = (f"model.init={plan.init}",) if plan.init is not None else ()
    recipe = recipes.load(plan.recipe, (*plan.overrides, *init)).resolved()
    if recipe.model.kind == "classical":
        remedy = "use it at once: cellwright predict IMAGES --model classical"
        raise RecipeError("the classical method is not trained", where=recipe.name, remedy=remedy)
    return recipe


def _splits(dataset: Dataset, recipe: Recipe) -> tuple[Dataset, Dataset | None]:
    """Training and validation images; without splits all are trained on and none validated."""
    if not dataset.splits:
        return dataset, None
    judged = recipe.evaluate.split
    validation = dataset.with_split(judged) if judged in dataset.splits else None
    if validation is not None and recipe.evaluate.max_images is not None:
        validation = validation.with_samples(validation.samples[: recipe.evaluate.max_images])
    return dataset.with_split("train"), validation


def _check_classes(recipe: Recipe, dataset: Dataset) -> None:
    n_classes = len(dataset.class_names)
    if recipe.classes is not None and recipe.classes != n_classes:
        raise RecipeError(
            "the recipe's class count differs from the dataset's",
            where="classes",
            got=f"recipe {recipe.classes}, dataset {n_classes} ({', '.join(dataset.class_names)})",
            remedy=f"set --set classes={n_classes}, or choose another dataset",
        )


def _check_best_metric(recipe: Recipe, dataset: Dataset) -> None:
    """Now, not after the first thousand steps."""
    from cellwright.api.judge import evaluate

    known = evaluate([], [], metrics=recipe.evaluate.metrics, class_names=dataset.class_names).values
    if recipe.train.best_metric not in known:
        raise RecipeError(
            "the metric that picks the best model is not among those that are computed",
            where="train.best_metric, evaluate.metrics",
            got=f"{recipe.train.best_metric!r} with metrics {', '.join(recipe.evaluate.metrics)}",
            remedy=did_you_mean(recipe.train.best_metric, known),
        )


def _init_fingerprint(recipe: Recipe) -> dict[str, str]:
    """A hash of the weights that training starts from; the name itself where it is no file. Never a path."""
    from cellwright.models.weights.sources import shipped_model

    init = getattr(recipe.model, "init", None)
    if init is None:
        return {}
    path = shipped_model(init) or Path(init.rpartition(":")[2])
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors")) if path.is_dir() else []
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    return {"init": digest if files else init}


def _loader(recipe: Recipe, training: Dataset, network: Network) -> TrainingLoader:
    from cellwright.data.check import require_objects
    from cellwright.data.loader import LoaderConfig, TrainingLoader

    require_objects(training)
    config = LoaderConfig(
        input=recipe.input,
        augment=recipe.augment,
        data=recipe.data,
        resize_rule=CONVENTIONS[recipe.conventions].resize_rule,
        stride=network.stride,  # type: ignore[arg-type]
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
    )
    return TrainingLoader(training.samples, config)


def _draw_curves(folder: Path) -> None:
    from cellwright.report.plots import draw_curves

    if (folder / "log.csv").is_file():
        draw_curves(folder / "log.csv", folder / "curves")
