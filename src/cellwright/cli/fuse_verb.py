"""``cellwright fuse``: fuse predictions of the same images."""

from __future__ import annotations

from cellwright.api.fuse import FusePlan
from cellwright.cli.console import PLAIN, Common
from cellwright.cli.shown import folder_written
from cellwright.core.text import count


def fuse(plan: FusePlan, *, common: Common = PLAIN) -> int:
    """Show how many objects there are after fusion; the exit code is 3 if images failed."""
    from cellwright.api.fuse import run

    screen = common.screen(plan)
    report = run(plan, screen, dry_run=common.dry_run)
    if report is None:
        return 0
    text = f"{report.counts}, fused from {count(len(plan.predictions), 'prediction')}"
    return folder_written(screen, report, text, plan.out)
