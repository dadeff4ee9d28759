"""``cellwright job ...``: images that are predicted tile by tile."""

from __future__ import annotations

from cellwright.api.job import FinishPlan, StatusPlan
from cellwright.cli.console import PLAIN, Common


def status(plan: StatusPlan, *, common: Common = PLAIN) -> int:
    """Show the state of a job; the exit code is 3 if tiles failed."""
    from cellwright.api import job

    screen = common.screen(plan)
    state = job.status(plan)
    screen.table(str(plan.folder), ("", ""), state.rows())
    return 3 if state.failures else 0


def finish(plan: FinishPlan, *, common: Common = PLAIN) -> int:
    """Show what was written; the exit code is 3 if tiles failed."""
    from cellwright.api import job
    from cellwright.cli.shown import job_written

    screen = common.screen(plan)
    report = job.finish(plan, screen, dry_run=common.dry_run)
    return 0 if report is None else job_written(screen, report, plan.folder)
