"""``report``: what a training run, a prediction or an evaluation is about, on one page to read, print and send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from cellwright.api.outputs import FileOutput, write_once
from cellwright.api.tile_jobs import job_root
from cellwright.core.claim import check_complete
from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import write_text
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.result_folders import REPORT, TILE_JOB, kind_of_result
from cellwright.training.run_folder import REPEATS

if TYPE_CHECKING:
    from cellwright.report.page import Page


@Parameter(name="*")
@dataclass(frozen=True)
class ReportPlan:
    """Write one HTML page about a training run, a prediction or an evaluation."""

    result: Path
    """The folder of a run or of repeated runs, a prediction, a large image predicted tile by tile, or an evaluation."""
    _: KW_ONLY
    out: Path = Path(REPORT)
    """HTML file to write; it contains all its pictures."""
    overwrite: bool = False
    """Replace an existing file."""


def run(plan: ReportPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> list[Path]:
    """Write the page; returns its path, or nothing after a dry run.

    It is the page that the command which wrote the folder has left there, unless files were corrected since. Raises
    `InputError` for a folder that is none of these or is not complete, `FormatError` for damaged files, and
    `OutputError` if the output exists with other content.
    """
    output = FileOutput(plan.out, inputs=[plan.result], overwrite=plan.overwrite, suffixes=(".html", ".htm"))
    try:
        html = _page_of(plan.result).html()
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        # Of damaged tables, the packages that read them raise what they like.
        got, remedy = f"{type(error).__name__}: {error}"[:200], "copy the folder again, or write it again"
        problem = "files of this folder are damaged, or of another version"
        raise FormatError(problem, where=plan.result, got=got, remedy=remedy) from error

    def write(folder: Path) -> None:
        write_text(folder / plan.out.name, html)

    return write_once(output, write, str(plan.out), screen, dry_run=dry_run)


def _page_of(folder: Path) -> Page:
    """The report of a folder, by what it is."""
    if (folder / REPEATS).is_file():
        from cellwright.report.repeats_report import repeats_page

        return repeats_page(folder)
    kind = kind_of_result(folder) if folder.is_dir() else None
    if kind == TILE_JOB:
        from cellwright.report.job_report import job_page

        return job_page(job_root(folder))
    pages = {"a run": _run_page, "a prediction folder": _prediction_page, "an evaluation": _evaluation_page}
    made: Callable[[Path], Page] | None = pages.get(kind or "")
    if kind != "a run":
        check_complete(folder)
    if made is None:
        got = kind or ("a folder without such files" if folder.is_dir() else "no folder")
        expected = "the folder of a training run, a prediction or an evaluation"
        remedy = "give the `out` of one of these"
        raise InputError("there is no report on this", where=folder, got=got, expected=expected, remedy=remedy)
    return made(folder)


def _run_page(folder: Path) -> Page:
    from cellwright.report.run_report import run_page

    return run_page(folder)


def _prediction_page(folder: Path) -> Page:
    from cellwright.report.prediction_report import prediction_page

    return prediction_page(folder)


def _evaluation_page(folder: Path) -> Page:
    from cellwright.report.evaluation_report import evaluation_page

    return evaluation_page(folder)
