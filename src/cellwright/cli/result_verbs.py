"""``cellwright predict | fuse | tune | evaluate | measure | export | report``: predictions and their evaluation."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cellwright.api.evaluate import EvaluatePlan
from cellwright.api.export import ExportPlan
from cellwright.api.fuse import FusePlan
from cellwright.api.measure import MeasurePlan
from cellwright.api.predict import PredictPlan
from cellwright.api.report import ReportPlan
from cellwright.api.tune import TunePlan
from cellwright.cli.console import Common, Show
from cellwright.core.text import count
from cellwright.prediction.tiling.job import FAILURES, JobReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cellwright.core.errors import InputError
    from cellwright.prediction.folder import FolderReport

PLAIN = Common()
SHOWN_PATHS = 10


def predict(plan: PredictPlan, *, common: Common = PLAIN) -> int:
    """Show how many objects were predicted; the exit code is 3 if images failed."""
    from cellwright.api.predict import run

    screen = common.screen(plan)
    report = run(plan, screen, dry_run=common.dry_run)
    if report is None:
        return 0
    if isinstance(report, JobReport):
        return job_written(screen, report, plan.out)
    return _folder_written(screen, report, report.counts, plan.out)


def job_written(screen: Show, report: JobReport, out: Path) -> int:
    """Show what a tile job found; the exit code is 3 if tiles failed."""
    reasons = Counter(failure.problem for failure in report.failures)
    for problem, n in reasons.items():
        screen.problem(f"failed: {count(n, 'tile')}: {problem}")
    failed = f"; {count(len(report.failures), 'tile')} failed, see {out / FAILURES}" if report.failures else ""
    found = "unfinished" if report.n_objects is None else count(report.n_objects, "object")
    values = {"out": str(out), "tiles": report.n_tiles, "objects": report.n_objects, "failed": len(report.failures)}
    screen.result(f"{found} in {count(report.n_tiles, 'tile')}: {out}{failed}", values)
    return 3 if report.failures else 0


def fuse(plan: FusePlan, *, common: Common = PLAIN) -> int:
    """Show how many objects there are after fusion; the exit code is 3 if images failed."""
    from cellwright.api.fuse import run

    screen = common.screen(plan)
    report = run(plan, screen, dry_run=common.dry_run)
    if report is None:
        return 0
    text = f"{report.counts}, fused from {count(len(plan.predictions), 'prediction')}"
    return _folder_written(screen, report, text, plan.out)


def _folder_written(screen: Show, report: FolderReport, text: str, out: Path) -> int:
    """Show what a prediction folder contains; returns the exit code."""
    from cellwright.prediction.job import group_failures

    for line in group_failures(report.failures):
        screen.problem(f"failed: {line}")
    n_failed = len(report.failures)
    failed = f"; {count(n_failed, 'image')} failed, see {out / FAILURES}" if n_failed else ""
    left = f"; {count(report.n_left, 'image')} left to other shards" if report.n_left else ""
    values = {"out": str(out), "images": report.n_images, "failed": n_failed, "left": report.n_left}
    screen.result(f"{text}: {out}{failed}{left}", values)
    return 3 if n_failed else 0


def tune(plan: TunePlan, *, common: Common = PLAIN) -> None:
    """Show the thresholds of every class."""
    from cellwright.api.tune import run

    screen = common.screen(plan)
    if result := run(plan, screen, dry_run=common.dry_run):
        screen.table(*result.table())
        screen.result(f"tuned model: {result.folder}", {"out": str(result.folder)})


def evaluate(plan: EvaluatePlan, *, common: Common = PLAIN) -> int:
    """Show the headline metrics, or those of two predictions side by side, and the notes.

    The exit code is 3 if images were not evaluated.
    """
    from cellwright.api.evaluate import MARKER, run

    screen = common.screen(plan)
    result = run(plan, screen, dry_run=common.dry_run)
    if result is None:
        return 0
    if not result.evaluations:
        return _skipped(screen, result.failures, "evaluated")
    if result.comparison is None:
        (evaluation,) = result.evaluations
        rows = [
            (metric, value, _interval(low, high))
            for metric, value, low, high in evaluation.intervals.itertuples(index=False)
        ]
        title = f"{evaluation.name}: {evaluation.report.counts}"
        screen.table(title, ("metric", "value", "95 % interval"), rows)
    else:
        names = [evaluation.name for evaluation in result.evaluations]
        rows = [
            (metric, first, second, difference, _interval(low, high), "-" if math.isnan(p) else f"{p:.4f}")
            for metric, first, second, difference, low, high, p in result.comparison.itertuples(index=False)
        ]
        columns = ("metric", *names, "difference", "95 % interval", "p")
        screen.table(f"{names[1]} compared with {names[0]}", columns, rows)
    for note in sorted(result.notes, key=lambda note: not note.startswith("warning: ")):
        screen.note(note)
    screen.result(f"report: {plan.out / MARKER}", {"out": str(plan.out)})
    return _skipped(screen, result.failures, "evaluated")


def _skipped(screen: Show, failures: Sequence[InputError], done: str) -> int:
    """Show why images were skipped, by kind; returns the exit code."""
    from cellwright.prediction.job import group_failures

    for line in group_failures([(Path(str(error.where)).name, error) for error in failures]):
        screen.problem(f"not {done}: {line}")
    return 3 if failures else 0


def _interval(low: float, high: float) -> str:
    """``0.4120 to 0.5631``, or a dash if there are fewer than two images."""
    return "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"


def measure(plan: MeasurePlan, *, common: Common = PLAIN) -> int:
    """Show how many objects were measured; the exit code is 3 if images were omitted."""
    from cellwright.api.measure import run

    screen = common.screen(plan)
    if (measured := run(plan, screen, dry_run=common.dry_run)) is None:
        return 0
    n_objects, images = len(measured.table), count(measured.n_images, "image")
    values = {"out": str(plan.out), "objects": n_objects, "images": measured.n_images}
    screen.result(f"{count(n_objects, 'object')} in {images}: {plan.out}", values)
    return _skipped(screen, measured.failures, "measured")


def export(plan: ExportPlan, *, common: Common = PLAIN) -> int:
    """Show the first files written, and the numbers of files and objects; the exit code is 3 if images were omitted."""
    from cellwright.api.export import run

    screen = common.screen(plan)
    if (exported := run(plan, screen, dry_run=common.dry_run)) is None:
        return 0
    values = {"out": [str(path) for path in exported.paths], "objects": exported.n_objects, "images": exported.n_images}
    screen.result("\n".join([*map(str, exported.paths[:SHOWN_PATHS]), exported.text]), values)
    return _skipped(screen, exported.failures, "exported")


def report(plan: ReportPlan, *, common: Common = PLAIN) -> None:
    """Show the path of the page."""
    from cellwright.api.report import run

    screen = common.screen(plan)
    for path in run(plan, screen, dry_run=common.dry_run):
        screen.result(f"report: {path}", {"out": str(path)})
