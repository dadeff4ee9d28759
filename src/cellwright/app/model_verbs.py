"""``cellwright demo | doctor | train`` and ``cellwright model ...``: what makes and describes models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cellwright.app.console import Common

PLAIN = Common()
Flag = Annotated[bool, Parameter(negative="")]


def demo(
    *, train: Flag = False, out: Path = Path("work/demo"), overwrite: Flag = False, common: Common = PLAIN
) -> None:
    """The whole job on drawn nuclei: train a small model for about two minutes, evaluate it, predict.

    Parameters
    ----------
    train:
        Train the small model; while no model is shipped, always done.
    out:
        Folder to write: the drawn dataset, the run, the evaluation and the predictions.
    overwrite:
        Begin again where the folder holds a finished demo.
    """
    from cellwright.api import demo as api

    show = common.show
    show.note(f"draws nuclei, trains about two minutes and predicts; writes {out}/data, run, evaluation, predictions")
    if not common.dry_run:
        report, folder = api.demo(out, overwrite=overwrite, screen=show)
        show.table("on drawn images never trained on", ("metric", "value"), report.headline())
        show.result(f"predictions: {folder}; look at {folder / 'contact_sheet.png'}", {"out": str(folder)})


def doctor(*, common: Common = PLAIN) -> None:
    """Versions, device (and why no GPU), models and extras."""
    from cellwright.api.doctor import facts

    common.show.table("", ("what", "found"), facts())


def train(
    recipe: str,
    /,
    *,
    data: Path,
    init: str | None = None,
    set: Annotated[list[str] | None, Parameter(name="--set")] = None,  # noqa: A002 - the flag's name is fixed
    max_minutes: float | None = None,
    device: str = "auto",
    out: Path | None = None,
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> None:
    """Train a model; the same command goes on where an interrupted one stopped.

    Parameters
    ----------
    recipe:
        A shipped recipe (see `recipes list`) or a YAML file.
    data:
        Dataset folder with the splits train and val.
    init:
        Weights to start from: a model folder or a run.
    set:
        Change a key of the recipe, such as train.lr=2e-4; repeatable.
    max_minutes:
        Stop after so long, with a checkpoint; the same command goes on.
    device:
        auto, cpu, cuda:N or mps.
    out:
        Run folder to write; left away, runs/ and the recipe's name.
    overwrite:
        Begin again where the folder holds a run.
    """
    from cellwright.api import training

    show = common.show
    plan = training.TrainPlan(
        recipe=recipe,
        data=data,
        out=out or Path("runs") / recipe.rsplit("/", 1)[-1].removesuffix(".yaml"),
        init=init,
        overrides=tuple(set or ()),
        max_minutes=max_minutes,
        device=device,
        overwrite=overwrite,
    )
    if common.dry_run:
        show.note(training.describe(plan))
        return
    run = training.run_plan(plan, screen=show)
    show.table("best model", ("metric", "value"), sorted(run.metrics.items()))
    show.result(f"model: {run.folder / 'model'}", {"out": str(run.folder)})


def list_models(*, common: Common = PLAIN) -> None:
    """The models that a --model takes by name."""
    from cellwright.api.model import NAMED_MODELS

    common.show.table("", ("model", "what it is"), NAMED_MODELS.items())


def inspect(folder: Path, /, *, common: Common = PLAIN) -> None:
    """What a model folder holds: kind, classes, input, metrics, every tensor.

    Parameters
    ----------
    folder:
        A model folder or a run.
    """
    from cellwright.api.model import inspect_tables

    for title, columns, rows in inspect_tables(folder):
        common.show.table(title, columns, rows)


VERBS = {"demo": demo, "doctor": doctor, "train": train}
GROUPS = {"model": ("Models in the box and on disk.", {"list": list_models, "inspect": inspect})}
