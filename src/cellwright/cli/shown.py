"""What several verbs show at their end, each with the exit code."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cellwright.core.text import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cellwright.cli.console import Show
    from cellwright.core.errors import InputError
    from cellwright.prediction.folder import FolderReport
    from cellwright.prediction.tiling.job import JobReport


def job_written(screen: Show, report: JobReport, out: Path) -> int:
    """Show what a tile job found; the exit code is 3 if tiles failed."""
    from cellwright.prediction.tiling.job import FAILURES

    reasons = Counter(failure.problem for failure in report.failures)
    for problem, n in reasons.items():
        screen.problem(f"failed: {count(n, 'tile')}: {problem}")
    failed = f"; {count(len(report.failures), 'tile')} failed, see {out / FAILURES}" if report.failures else ""
    found = "unfinished" if report.n_objects is None else count(report.n_objects, "object")
    values = {"out": str(out), "tiles": report.n_tiles, "objects": report.n_objects, "failed": len(report.failures)}
    screen.result(f"{found} in {count(report.n_tiles, 'tile')}: {out}{failed}", values)
    return 3 if report.failures else 0


def folder_written(screen: Show, report: FolderReport, text: str, out: Path) -> int:
    """Show what a prediction folder contains; returns the exit code."""
    from cellwright.prediction.job import FAILURES, group_failures

    for line in group_failures(report.failures):
        screen.problem(f"failed: {line}")
    n_failed = len(report.failures)
    failed = f"; {count(n_failed, 'image')} failed, see {out / FAILURES}" if n_failed else ""
    left = f"; {count(report.n_left, 'image')} left to other shards" if report.n_left else ""
    values = {"out": str(out), "images": report.n_images, "failed": n_failed, "left": report.n_left}
    screen.result(f"{text}: {out}{failed}{left}", values)
    return 3 if n_failed else 0


def skipped(screen: Show, failures: Sequence[InputError], done: str) -> int:
    """Show why images were skipped, by kind; returns the exit code."""
    from cellwright.prediction.job import group_failures

    for line in group_failures([(Path(str(error.where)).name, error) for error in failures]):
        screen.problem(f"not {done}: {line}")
    return 3 if failures else 0
