"""``cellwright data ...`` and ``cellwright recipes ...``."""

from __future__ import annotations

from cellwright.api.check import CheckPlan
from cellwright.api.convert import ConvertPlan, summary_line
from cellwright.api.info import InfoPlan
from cellwright.api.merge import MergePlan
from cellwright.api.recipes import CopyPlan
from cellwright.api.show_data import ShowPlan
from cellwright.api.split import SplitPlan
from cellwright.cli.console import PLAIN, Common
from cellwright.core.text import count


def convert(plan: ConvertPlan, *, common: Common = PLAIN) -> int:
    """Show a line about the dataset; the exit code is 3 if images were omitted."""
    from cellwright.api.convert import failed, run

    screen = common.screen(plan)
    dataset = run(plan, screen, dry_run=common.dry_run)
    if dataset is None:
        return 0
    problems = failed(dataset)
    for problem in problems:
        screen.note(f"not converted: {problem}")
    omitted = f"; {count(len(problems), 'image')} not converted" if problems else ""
    screen.result(summary_line(dataset) + omitted, {"out": str(plan.out), "failed": len(problems)})
    return 3 if problems else 0


def info(plan: InfoPlan, *, common: Common = PLAIN) -> None:
    """Show the table."""
    from cellwright.api.info import run

    screen = common.screen(plan)
    screen.table(*run(plan, screen))


def check(plan: CheckPlan, *, common: Common = PLAIN) -> int:
    """Show findings and suspects; the exit code is 3 if there are errors."""
    from cellwright.api.check import run

    screen = common.screen(plan)
    checked = run(plan, screen, dry_run=common.dry_run)
    if checked is None:
        return 0
    if listed := checked.most_severe_first(plan.suspects):
        rows = [(finding.severity, finding.where, finding.what, finding.remedy) for finding in listed]
        screen.table("", ("severity", "where", "what", "remedy"), rows)
    n_errors, n_suspects = checked.n_errors, len(checked.suspects)
    counts = (n_errors, "error"), (len(checked.findings) - n_errors, "other finding"), (n_suspects, "suspect")
    values = {"errors": n_errors, "suspects": n_suspects, "out": None if plan.out is None else str(plan.out)}
    screen.result(", ".join(count(n, noun) for n, noun in counts), values)
    return 3 if n_errors else 0


def split(plan: SplitPlan, *, common: Common = PLAIN) -> None:
    """Show images and objects per split."""
    from cellwright.api.split import run

    screen = common.screen(plan)
    for table in run(plan, screen, dry_run=common.dry_run):
        screen.table(*table)


def merge(plan: MergePlan, *, common: Common = PLAIN) -> None:
    """Show objects per class and split."""
    from cellwright.api.merge import run

    screen = common.screen(plan)
    merged = run(plan, screen, dry_run=common.dry_run)
    if merged is not None:
        dataset, table = merged
        screen.table(*table)
        screen.result(summary_line(dataset), {"out": str(plan.out)})


def show(plan: ShowPlan, *, common: Common = PLAIN) -> None:
    """Show the path of the picture."""
    from cellwright.api.show_data import run

    screen = common.screen(plan)
    path = run(plan, screen, dry_run=common.dry_run)
    if path is not None:
        screen.result(str(path), {"out": str(path)})


def list_recipes(*, common: Common = PLAIN) -> None:
    """Show the recipes to start with, then all others."""
    from cellwright.api.recipes import tables

    for table in tables():
        common.screen().table(*table)


def copy_recipe(plan: CopyPlan, *, common: Common = PLAIN) -> None:
    """Show the path of the copy."""
    from cellwright.api.recipes import copy

    screen = common.screen(plan)
    path = copy(plan, screen, dry_run=common.dry_run)
    if path is not None:
        screen.result(str(path), {"out": str(path)})
