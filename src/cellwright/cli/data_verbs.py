"""``cellwright data ...`` and ``cellwright recipes ...``."""

from __future__ import annotations

from cellwright.api import check as checking
from cellwright.api import convert as converting
from cellwright.api import info as describing
from cellwright.api import merge as merging
from cellwright.api import recipes as shipped
from cellwright.api import show_data as showing
from cellwright.api import split as splitting
from cellwright.cli.console import Common
from cellwright.core.text import count

PLAIN = Common()


def convert(plan: converting.ConvertPlan, *, common: Common = PLAIN) -> None:
    """Show a line about the dataset."""
    screen = common.screen(plan)
    dataset = converting.run(plan, screen, dry_run=common.dry_run)
    if dataset is not None:
        screen.result(converting.summary_line(dataset), {"out": str(plan.out)})


def info(plan: describing.InfoPlan, *, common: Common = PLAIN) -> None:
    """Show the table."""
    screen = common.screen(plan)
    screen.table(*describing.run(plan, screen))


def check(plan: checking.CheckPlan, *, common: Common = PLAIN) -> int:
    """Show findings and suspects; exit code 3 if there are errors."""
    screen = common.screen(plan)
    checked = checking.run(plan, screen, dry_run=common.dry_run)
    if checked is None:
        return 0
    listed = checked.most_severe_first(plan.suspects)
    if listed:
        rows = [(finding.severity, finding.where, finding.what, finding.remedy) for finding in listed]
        screen.table("", ("severity", "where", "what", "remedy"), rows)
    n_errors, n_suspects = checked.n_errors, len(checked.suspects)
    counts = (n_errors, "error"), (len(checked.findings) - n_errors, "other finding"), (n_suspects, "suspect")
    values = {"errors": n_errors, "suspects": n_suspects, "out": None if plan.out is None else str(plan.out)}
    screen.result(", ".join(count(n, noun) for n, noun in counts), values)
    return 3 if n_errors else 0


def split(plan: splitting.SplitPlan, *, common: Common = PLAIN) -> None:
    """Show images and objects per split."""
    screen = common.screen(plan)
    for table in splitting.run(plan, screen, dry_run=common.dry_run):
        screen.table(*table)


def merge(plan: merging.MergePlan, *, common: Common = PLAIN) -> None:
    """Show objects per class and split."""
    screen = common.screen(plan)
    merged = merging.run(plan, screen, dry_run=common.dry_run)
    if merged is not None:
        dataset, table = merged
        screen.table(*table)
        screen.result(converting.summary_line(dataset), {"out": str(plan.out)})


def show(plan: showing.ShowPlan, *, common: Common = PLAIN) -> None:
    """Show the path of the picture."""
    screen = common.screen(plan)
    path = showing.run(plan, screen, dry_run=common.dry_run)
    if path is not None:
        screen.result(str(path), {"out": str(path)})


def list_recipes(*, common: Common = PLAIN) -> None:
    """Show the recipes to start with, then all others."""
    for table in shipped.tables():
        common.screen().table(*table)


def copy_recipe(plan: shipped.CopyPlan, *, common: Common = PLAIN) -> None:
    """Show the path of the copy."""
    screen = common.screen(plan)
    path = shipped.copy(plan, screen, dry_run=common.dry_run)
    if not common.dry_run:
        screen.result(str(path), {"out": str(path)})
