"""``cellwright tune``: thresholds and calibration."""

from __future__ import annotations

from cellwright.api.tune import TunePlan
from cellwright.cli.console import PLAIN, Common


def tune(plan: TunePlan, *, common: Common = PLAIN) -> None:
    """Show the thresholds of every class."""
    from cellwright.api.tune import run

    screen = common.screen(plan)
    if result := run(plan, screen, dry_run=common.dry_run):
        screen.table(*result.table())
        screen.result(f"tuned model: {result.folder}", {"out": str(result.folder)})
