"""``job``: the folder of an image that was predicted tile by tile."""

from __future__ import annotations

from collections import Counter
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellwright.core.errors import InputError, OutputError
from cellwright.core.output_folder import Claim, OutputFolder
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.public import public
from cellwright.core.text import count
from cellwright.prediction.tiling.job import JOB_FILE, TABLE_CSV, TABLE_PARQUET, JobFacts, JobReport
from cellwright.prediction.tiling.ledger import Failure, Ledger

if TYPE_CHECKING:
    import pandas as pd


@public
@dataclass(frozen=True)
class Job:
    """The folder of one image that was predicted tile by tile.

    folder: where it is. n_tiles: of the job, of which n_done are done; failures: why the others failed, if they did.
    is_complete: whether the outputs are written. n_objects: in the whole image, if it is complete.
    """

    folder: Path
    n_tiles: int
    n_done: int
    failures: tuple[Failure, ...]
    is_complete: bool
    n_objects: int | None

    @property
    def n_left(self) -> int:
        """Number of tiles that are neither done nor failed."""
        return self.n_tiles - self.n_done - len(self.failures)

    def objects(self) -> pd.DataFrame:
        """The table of all objects, a row per object; the index "label" holds the ids in the label image.

        Raises `OutputError` if the job is not complete.
        """
        import pandas as pd

        if not self.is_complete:
            raise OutputError("this job is not complete", where=self.folder, remedy="run the same command again")
        parquet = self.folder / TABLE_PARQUET
        table = pd.read_parquet(parquet) if parquet.is_file() else pd.read_csv(self.folder / TABLE_CSV)
        return table.set_index("label")

    def rows(self) -> list[tuple[str, str]]:
        """What `cellwright job status` shows."""
        rows = [
            ("tiles", f"{self.n_done:,} of {self.n_tiles:,} done, {self.n_left:,} left, {len(self.failures):,} failed"),
            ("outputs", "complete" if self.is_complete else "not written yet"),
        ]
        if self.n_objects is not None:
            rows.append(("objects", f"{self.n_objects:,}"))
        reasons = Counter(failure.problem for failure in self.failures)
        return rows + [("failed", f"{count(n, 'tile')}: {problem}") for problem, n in reasons.items()]


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


def open_job(folder: Path | str) -> Job:
    """The state of a job folder. Raises `InputError` if the folder is not that of a job, `FormatError` if damaged."""
    folder = Path(folder)
    root = _root(folder)
    job = JobFacts.read(root)
    ledger = Ledger(root, job.tiles)
    claim = Claim.read(folder)
    is_complete = root == folder and claim is not None and claim.state == "complete"
    from cellwright.api.predict_tiles import n_objects_of

    n_done = len(job.tiles) - len(ledger.left(verify=False))
    n_objects = n_objects_of(folder) if is_complete else None
    return Job(folder, len(job.tiles), n_done, tuple(ledger.failures()), is_complete, n_objects)


def status(plan: StatusPlan) -> Job:
    """The state of a job."""
    return open_job(plan.folder)


def finish(plan: FinishPlan, reporter: ProgressReporter = SILENT, *, dry_run: bool = False) -> JobReport | None:
    """Write the outputs of a job; None after a dry run.

    Raises `InputError` for an image that has changed, `OutputError` if tiles are left.
    """
    from cellwright.api.predict_tiles import finish_job
    from cellwright.data.images.reading import Reading

    root = _root(plan.folder)
    job = JobFacts.read(root)
    ledger = Ledger(root, job.tiles)
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
        raise InputError("this is not the image of the job, or it was changed", where=path)
    output = OutputFolder(plan.folder, "predict", same=("fuse",))
    reporter.note(f"will write the outputs of {count(len(job.tiles), 'tile')} to {plan.folder}/")
    if dry_run:
        return None
    claim = output.claim if root == plan.folder else output.pending
    assert claim is not None
    output.start(claim.request or {}, resume=claim)
    try:
        return finish_job(output, ledger, job, source, reporter, n_before=len(job.tiles), seconds=0.0)
    finally:
        output.close()


def _root(folder: Path) -> Path:
    """Where the job is: in the folder, or beside an older result that it replaces."""
    from cellwright.core.output_folder import CONTROL, NEW

    for root in (folder / CONTROL / NEW, folder):
        if (root / JOB_FILE).is_file():
            return root
    raise InputError("this is not the folder of a job", where=folder, expected=f"a folder with {JOB_FILE}")
