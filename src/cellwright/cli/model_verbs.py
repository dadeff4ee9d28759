"""``cellwright demo | doctor | train | compare`` and ``cellwright model ...``: what makes and describes models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cellwright.cli.console import Common

PLAIN = Common()
Flag = Annotated[bool, Parameter(negative="")]


def demo(
    *, train: Flag = False, out: Path = Path("work/demo"), overwrite: Flag = False, common: Common = PLAIN
) -> None:
    """Segment three images with the model in the box; with --train, do the whole job on drawn nuclei.

    Parameters
    ----------
    train:
        Draw a dataset, train a small model on it for about two minutes, evaluate it, and predict with that.
    out:
        Folder to write: images and predictions; with --train the drawn dataset, the run and the evaluation too.
    overwrite:
        Begin again where the folder holds a finished demo.
    """
    from cellwright.api import demo as api

    show = common.show
    if train:
        what = f"draws nuclei, trains about two minutes; writes {out}/data, run, evaluation, predictions"
    else:
        what = f"segments three images; writes {out}/images, predictions"
    show.note(what)
    if common.dry_run:
        return
    if train:
        report, folder = api.demo_training(out, overwrite=overwrite, screen=show)
        show.table("on drawn images never trained on", ("metric", "value"), report.headline())
    else:
        folder = api.demo(out, overwrite=overwrite, screen=show)
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
    repeat: int | None = None,
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
        Weights to start from: nuclei, a model folder, or a run.
    set:
        Change a key of the recipe, such as train.lr=2e-4; repeatable.
    repeat:
        Train so many runs that differ in their seed, each in a folder of its own, and show mean and spread.
    max_minutes:
        Stop after so long, with a checkpoint; the same command goes on.
    device:
        auto, cpu, cuda:N or mps.
    out:
        Run folder to write; left away, runs/ and the recipe's name.
    overwrite:
        Begin again where the folder holds a run.
    """
    from cellwright.api import repeating, training

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
        show.note(training.rehearse(plan))
        return
    if repeat is not None:
        repeats = repeating.run_repeats(plan, repeat, screen=show)
        show.table(f"best models of {len(repeats.runs)} seeds", *repeats.table())
        show.result(f"all figures: {repeats.folder / repeating.SUMMARY}", {"out": str(repeats.folder)})
        return
    run = training.run_plan(plan, screen=show)
    show.table("best model", ("metric", "value"), run.headline())
    show.result(f"model: {run.folder / 'model'}", {"out": str(run.folder)})


def compare(
    runs: list[Path],
    /,
    *,
    out: Path = Path("work/comparison"),
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> None:
    """Put runs side by side: what differs between their recipes, what they reached, what they cost.

    Parameters
    ----------
    runs:
        Run folders, two or more, finished or not.
    out:
        Folder to write: the table (compare.md, compare.csv) and the curves (compare.png).
    overwrite:
        Replace a comparison that exists.
    """
    from cellwright.api import compare as api

    show = common.show
    show.note(f"compares {', '.join(map(str, runs))}; writes {out}/compare.md, compare.csv, compare.png")
    if common.dry_run:
        return
    comparison = api.run_plan(api.ComparePlan(tuple(runs), out, overwrite), screen=show)
    show.table(*comparison.table())
    for note in comparison.notes:
        show.note(note)
    show.result(f"everything: {out / 'compare.md'}", {"out": str(out)})


def list_models(*, common: Common = PLAIN) -> None:
    """The models that a --model takes by name."""
    from cellwright.api.models import NAMED_MODELS

    common.show.table("", ("model", "what it is"), NAMED_MODELS.items())


def inspect(model: str, /, *, common: Common = PLAIN) -> None:
    """What a model folder or a file of weights holds: the network, the recipe that fits, every tensor.

    Parameters
    ----------
    model:
        nuclei, a model folder, a run, a .pth, .pkl or .safetensors file, or torchvision:NAME.
    """
    from cellwright.api.models import inspect_tables

    for title, columns, rows in inspect_tables(model):
        common.show.table(title, columns, rows)


def import_weights(
    file: str,
    /,
    *,
    recipe: str,
    out: Path,
    set: Annotated[list[str] | None, Parameter(name="--set")] = None,  # noqa: A002 - the flag's name is fixed
    classes: Path | None = None,
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> None:
    """Make a model folder of torchvision's or Detectron2's weights; nothing in the file is run.

    Parameters
    ----------
    file:
        A .pth, .pkl or .safetensors file, or torchvision:NAME; its licence is yours to check.
    recipe:
        A shipped recipe or a YAML file for the same network (`model inspect` lists the keys).
    out:
        Folder to write: the model, and import_report.txt with a line for every tensor.
    set:
        Change a key of the recipe, such as classes=80; repeatable.
    classes:
        Text file with the class names, one a line; left away, class_1, class_2, ...
    overwrite:
        Replace a model that exists.
    """
    from cellwright.api import importing

    show = common.show
    plan = importing.ImportPlan(
        source=file, recipe=recipe, out=out, overrides=tuple(set or ()), classes=classes, overwrite=overwrite
    )
    show.note(importing.describe(plan))
    if common.dry_run:
        return
    imported = importing.run_plan(plan, screen=show)
    values = {"out": str(out), "classes": list(imported.class_names)}
    show.result(f"{imported.report.headline}; model: {out}, every tensor: {out / importing.REPORT}", values)


def export(
    model: Path,
    /,
    *,
    to: str,
    out: Path = Path("work/exported_model"),
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> None:
    """Write a model for another runtime (the network in parts, each checked), or in half the size.

    Parameters
    ----------
    model:
        nuclei, a model folder, or a run.
    to:
        onnx, which needs the extra (pip install "cellwright[onnx]"), or half: a model folder with weights in float16.
    out:
        Folder to write: with onnx a file for each part, and export.json with all numbers and steps between them.
    overwrite:
        Replace an export that exists.
    """
    from cellwright.api import exporting

    show = common.show
    plan = exporting.ExportPlan(model, out, to, overwrite)
    show.note(exporting.describe(plan))
    if common.dry_run:
        return
    exported = exporting.run_plan(plan, screen=show)
    show.table(*exported.table)
    show.result(exported.text, {"out": str(out)})
