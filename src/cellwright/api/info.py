"""``data info``: counts and distributions of a dataset."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from cellwright.api.convert import summary_line
from cellwright.api.read import of_split, read_annotations
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.table import Table


@Parameter(name="*")
@dataclass(frozen=True)
class InfoPlan:
    """Show counts, classes, sizes, density, overlaps and bit depth of a dataset."""

    dataset: Path
    """A dataset folder, or anything that `data convert` reads."""
    _: KW_ONLY
    split: str | None = None
    """Only this split."""


def run(plan: InfoPlan, screen: ProgressReporter = SILENT) -> Table:
    """Measure the dataset; returns a table of names and values."""
    from cellwright.data.info import describe_dataset

    dataset = of_split(read_annotations(plan.dataset), plan.split)
    return Table(summary_line(dataset), ("what", "value"), describe_dataset(dataset, track=screen.track).rows())
