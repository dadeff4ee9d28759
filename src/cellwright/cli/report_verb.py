"""``cellwright report``: one HTML page."""

from __future__ import annotations

from cellwright.api.report import ReportPlan
from cellwright.cli.console import PLAIN, Common


def report(plan: ReportPlan, *, common: Common = PLAIN) -> None:
    """Show the path of the page."""
    from cellwright.api.report import run

    screen = common.screen(plan)
    for path in run(plan, screen, dry_run=common.dry_run):
        screen.result(f"report: {path}", {"out": str(path)})
