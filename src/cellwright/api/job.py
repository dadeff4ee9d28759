"""``job``: the folder of an image that was predicted tile by tile."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cellwright.api.predict_tiles import finish_job
from cellwright.api.tile_jobs import Job, job_root, open_job
from cellwright.core.errors import InputError, OutputError
from cellwright.core.output_folder import OutputFolder
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.text import count
from cellwright.data.images.reading import Reading
from cellwright.prediction.tiling.job import JobFacts, JobReport


@dataclass(frozen=True)
class StatusPlan:
    """Show what is done, failed and left of a job."""

    folder: Path
    """A job folder."""


@dataclass(frozen=True)
class FinishPlan:
    """Write the outputs of a job of which all tiles are done or failed."""

    folder: Path
    """A job folder."""
    _: KW_ONLY
    image: Path | None = None
    """The image, if it is no longer where it was."""


def status(plan: StatusPlan) -> Job:
    """The state of a job."""
    return open_job(plan.folder)


def finish(plan: FinishPlan, reporter: ProgressReporter = SILENT, *, dry_run: bool = False) -> JobReport | None:
    """Write the outputs of a job; None after a dry run.

    Raises `InputError` for an image that has changed, `OutputError` if tiles are left.
    """
    root = job_root(plan.folder)
    job = JobFacts.read(root)
    ledger = job.ledger(root)
    failed = {failure.tile for failure in ledger.failures()}
    if left := [tile for tile in ledger.left() if tile not in failed]:
        got = f"{count(len(left), 'tile')} left"
        raise OutputError("this job is not done", where=plan.folder, got=got, remedy="run its predict command again")
    path = plan.image or (None if job.source.get("path") is None else Path(str(job.source["path"])))
    if path is None or not path.exists():
        raise InputError("the image of this job is not there", where=path, remedy="give its new place as `image`")
    reading = Reading.recorded(dict(job.request.get("options", {})).get("reading", {}))
    source = reading.open(path)
    if source.fingerprint() != job.source.get("fingerprint"):
        remedy = "give the image of the job as `image`, or start another job"
        raise InputError("this is not the image of the job, or it was changed", where=path, remedy=remedy)
    output = OutputFolder(plan.folder, "predict", same=("fuse",))
    reporter.note(f"will write the outputs of {count(len(job.tiles), 'tile')} to {plan.folder}/")
    if dry_run:
        return None
    claim = output.claim if root == plan.folder else output.pending
    assert claim is not None
    output.start(claim.request or {}, resume=claim)
    try:
        return finish_job(output, job, source, reporter, n_before=len(job.tiles), seconds=0.0)
    finally:
        output.close()
