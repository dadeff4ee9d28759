"""`Job`: the folder of an image that was predicted tile by tile."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellwright.core.errors import InputError, OutputError
from cellwright.core.output_folder import CONTROL, NEW, Claim
from cellwright.core.public import public
from cellwright.core.result_folders import JOB_FILE
from cellwright.core.text import count
from cellwright.data.formats.tile_job import read_table
from cellwright.prediction.tiling.job import SUMMARY, JobFacts
from cellwright.prediction.tiling.ledger import Failure

if TYPE_CHECKING:
    import pandas as pd


@public
@dataclass(frozen=True)
class Job:
    """The folder of one image that was predicted tile by tile.

    folder: where it is. n_tiles: of the job, of which n_done are done; failures: why the others failed, if they did.
    is_complete: whether the outputs are written. n_objects: in the whole image, if it is complete.

    >>> Job(Path("work/slide"), n_tiles=400, n_done=398, failures=(), is_complete=False, n_objects=None).n_left
    2
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
        if not self.is_complete:
            raise OutputError("this job is not complete", where=self.folder, remedy="run the same command again")
        return read_table(self.folder).set_index("label")

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


def open_job(folder: Path | str) -> Job:
    """The state of a job folder. Raises `InputError` if the folder is not that of a job, `FormatError` if damaged."""
    folder = Path(folder)
    root = job_root(folder)
    job = JobFacts.read(root)
    ledger = job.ledger(root)
    claim = Claim.read(folder)
    is_complete = root == folder and claim is not None and claim.state == "complete"
    n_done = len(job.tiles) - len(ledger.left(verify=False))
    n_objects = n_objects_of(folder) if is_complete else None
    return Job(folder, len(job.tiles), n_done, tuple(ledger.failures()), is_complete, n_objects)


def n_objects_of(root: Path) -> int | None:
    """The number of objects in the summary of a complete job; None if it cannot be read."""
    try:
        with (root / SUMMARY).open(encoding="utf-8", newline="") as file:
            return int(next(csv.DictReader(file))["objects"])
    except (OSError, KeyError, ValueError, StopIteration):
        return None


def job_root(folder: Path) -> Path:
    """Where the job is: in the folder, or beside an older result that it replaces."""
    for root in (folder / CONTROL / NEW, folder):
        if (root / JOB_FILE).is_file():
            return root
    raise InputError("this is not the folder of a job", where=folder, expected=f"a folder with {JOB_FILE}")
