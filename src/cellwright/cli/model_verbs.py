"""``cellwright demo``, ``doctor``, ``train``, ``compare`` and ``cellwright model ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cellwright.api.demo import DemoPlan
from cellwright.api.doctor import DoctorPlan
from cellwright.api.export_model import ExportModelPlan
from cellwright.api.import_model import ImportPlan
from cellwright.api.inspect_model import InspectPlan
from cellwright.cli.console import Common

PLAIN = Common()
DEMO, DOCTOR = DemoPlan(), DoctorPlan()
Flag = Annotated[bool, Parameter(negative="")]


def demo(plan: DemoPlan = DEMO, *, common: Common = PLAIN) -> None:
    """Show the evaluation, if there is one, and where the pictures are."""
    from cellwright.api.demo import run

    screen = common.screen(plan)
    if (done := run(plan, screen, dry_run=common.dry_run)) is None:
        return
    if done.report is not None:
        screen.table("on validation images", ("metric", "value"), done.report.headline())
    sheet = done.predictions / "contact_sheet.png"
    screen.result(f"predictions: {done.predictions}; see {sheet}", {"out": str(done.predictions)})


def doctor(plan: DoctorPlan = DOCTOR, *, common: Common = PLAIN) -> None:
    """Show the facts, and how to ask about the device."""
    from cellwright.api.doctor import facts

    screen = common.screen(plan)
    screen.table("", ("what", "found"), facts(plan))
    if not plan.device:
        screen.note("to see the GPU, or why there is none: cellwright doctor --device")


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
    """Show the models that can be named instead of a folder."""
    from cellwright.api.models import NAMED_MODELS

    common.screen().table("", ("model", "what it is"), NAMED_MODELS.items())


def inspect(plan: InspectPlan, *, common: Common = PLAIN) -> None:
    """Show the tables."""
    from cellwright.api.inspect_model import run

    for table in run(plan):
        common.screen(plan).table(*table)


def import_weights(plan: ImportPlan, *, common: Common = PLAIN) -> None:
    """Show how many tensors were used, and where the report is."""
    from cellwright.api.import_model import REPORT, run

    screen = common.screen(plan)
    if (imported := run(plan, screen, dry_run=common.dry_run)) is None:
        return
    values = {"out": str(plan.out), "classes": list(imported.class_names)}
    screen.result(f"{imported.report.headline}; model: {plan.out}, every tensor: {plan.out / REPORT}", values)


def export(plan: ExportModelPlan, *, common: Common = PLAIN) -> None:
    """Show what was written."""
    from cellwright.api.export_model import run

    screen = common.screen(plan)
    if (exported := run(plan, screen, dry_run=common.dry_run)) is None:
        return
    screen.table(*exported.table)
    screen.result(exported.text, {"out": str(plan.out)})
