"""``cellwright demo``, ``doctor``, ``plan``, ``train``, ``compare`` and ``cellwright model ...``."""

from __future__ import annotations

import shlex

from cellwright.api.compare import ComparePlan
from cellwright.api.demo import DemoPlan
from cellwright.api.doctor import DoctorPlan
from cellwright.api.export_parts import ExportModelPlan
from cellwright.api.import_model import ImportPlan
from cellwright.api.inspect_model import InspectPlan
from cellwright.api.plan_recipe import RecipePlan
from cellwright.api.train import TrainPlan
from cellwright.cli.console import PLAIN, Common
from cellwright.core.result_folders import REPORT
from cellwright.core.text import count

NO_METRICS = ("none: no objects to validate on", "-")
HOW_TO_VALIDATE = "the last model was kept; to choose validation images: cellwright data split"
DEMO, DOCTOR = DemoPlan(), DoctorPlan()


def demo(plan: DemoPlan = DEMO, *, common: Common = PLAIN) -> None:
    """Show the evaluation, if there is one, and where the pictures are."""
    from cellwright.api.demo import run

    screen = common.screen(plan)
    if (done := run(plan, screen, dry_run=common.dry_run)) is None:
        return
    if done.report is not None:
        screen.table("on validation images", ("metric", "value"), done.report.headline())
    page = done.predictions / REPORT
    screen.result(f"predictions: {done.predictions}; see {page}", {"out": str(done.predictions)})


def doctor(plan: DoctorPlan = DOCTOR, *, common: Common = PLAIN) -> None:
    """Show the table, and how to ask about the device."""
    from cellwright.api.doctor import facts

    screen = common.screen(plan)
    screen.table("", ("what", "found"), facts(plan))
    if not plan.device:
        screen.note("to see the GPU, or why there is none: cellwright doctor --device")


def plan(plan: RecipePlan, *, common: Common = PLAIN) -> None:
    """Show each choice with its reason, what could not be known, and how to train."""
    from cellwright.api.plan_recipe import run

    screen = common.screen(plan)
    if (planned := run(plan, screen, dry_run=common.dry_run)) is None:
        return
    rows = [(choice.name, choice.value, choice.why) for choice in planned.choices]
    screen.table("", ("what", "choice", "why"), rows)
    for line in planned.unknown:
        screen.note(f"not known: {line}")
    values = {"out": str(plan.out), "unknown": list(planned.unknown)}
    words = ["cellwright", "train", str(plan.out), "--data", str(plan.dataset)]
    for name in ("format", "z", "t", "series", "device"):  # what is not in the recipe
        if (value := getattr(plan, name)) not in (None, "auto"):
            words += [f"--{name}", str(value)]
    screen.result(f"recipe: {plan.out}; next: {shlex.join(words)}", values)


def train(plan: TrainPlan, *, common: Common = PLAIN) -> None:
    """Show the metrics of the best model, or their mean and spread over several runs."""
    from cellwright.api.train import Repeats, run

    screen = common.screen(plan)
    result = run(plan, screen, dry_run=common.dry_run)
    if result is None:
        return
    if isinstance(result, Repeats):
        if not result.runs:
            text = f"no run has finished yet, of {result.planned}: the time was over; train again to resume"
            screen.result(text, {"out": str(result.folder)})
            return
        columns, rows = result.table()
        empty = [[*NO_METRICS, *["-"] * (len(columns) - 2)]]
        screen.table(f"best models of {count(len(result.runs), 'run')}", columns, rows or empty)
        if not rows:
            screen.note(HOW_TO_VALIDATE)
        screen.result(f"all metrics: {result.summary}", {"out": str(result.folder)})
        return
    screen.table("best model", ("metric", "value"), result.headline() or [NO_METRICS])
    if not result.metrics:
        screen.note(HOW_TO_VALIDATE)
    screen.result(f"model: {result.folder / 'model'}", {"out": str(result.folder)})


def compare(plan: ComparePlan, *, common: Common = PLAIN) -> None:
    """Show the table and the notes."""
    from cellwright.api.compare import MARKER, run

    screen = common.screen(plan)
    if (comparison := run(plan, screen, dry_run=common.dry_run)) is None:
        return
    facts = comparison.main_facts()
    screen.table(*comparison.table(facts))
    if n_more := len(comparison.facts) - len(facts):
        screen.note(f"{count(n_more, 'further row')} in {plan.out / MARKER}")
    for note in comparison.notes:
        screen.note(note)
    screen.result(f"comparison with curves: {plan.out / MARKER}", {"out": str(plan.out)})


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
