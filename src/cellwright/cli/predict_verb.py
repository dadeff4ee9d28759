"""``cellwright predict``: segment images."""

from __future__ import annotations

from cellwright.api.predict import PredictPlan
from cellwright.cli.console import PLAIN, Common
from cellwright.cli.shown import folder_written, job_written
from cellwright.prediction.tiling.job import JobReport


def predict(plan: PredictPlan, *, common: Common = PLAIN) -> int:
    """Show how many objects were predicted; the exit code is 3 if images failed."""
    from cellwright.api.predict import run

    screen = common.screen(plan)
    report = run(plan, screen, dry_run=common.dry_run)
    if report is None:
        return 0
    if isinstance(report, JobReport):
        return job_written(screen, report, plan.out)
    return folder_written(screen, report, report.counts, plan.out)
