"""``data check``: errors in a dataset, and the annotations that are most likely wrong."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from cellwright.api.outputs import FileOutput
from cellwright.api.read import of_split, read_annotations
from cellwright.api.shared_options import Channel, FormatName, Planes, Series, TimePoint, reading_of
from cellwright.core.progress import SILENT, ProgressReporter

if TYPE_CHECKING:
    from cellwright.data.check import Finding
    from cellwright.data.suspects import Suspect

# Suspects in the CSV file.
MAX_SUSPECTS = 1000

_REMEDIES = {
    "merged": "inspect it; if it contains two nuclei, separate them",
    "split": "inspect both; if they are one nucleus, merge them",
    "displaced": "inspect it; if it misses its nucleus, move or redraw it",
    "tiny": "inspect it; if it is a stray speck, delete it",
    "open": "inspect it; if its inside is missing, fill or redraw it",
}


@Parameter(name="*")
@dataclass(frozen=True)
class CheckPlan:
    """List errors and suspicious annotations of a dataset, and how to fix them."""

    dataset: Path
    """A dataset folder, or anything that `data convert` reads."""
    _: KW_ONLY
    split: str | None = None
    """Only this split."""
    format: FormatName = None
    channel: Channel = ()
    z: Planes = None
    t: TimePoint = None
    series: Series = None
    suspects: int = 20
    """Number of suspicious annotations to list (merged, split, displaced, tiny or open objects); 0 for none."""
    out: Path | None = None
    """CSV file for up to 1000 suspects; a contact sheet of the first 24 is written beside it (.png)."""
    overwrite: bool = False
    """Replace existing files."""


@dataclass(frozen=True)
class Checked:
    """What a check found: findings about the dataset, and suspicious annotations (most likely wrong first)."""

    findings: list[Finding]
    suspects: list[Suspect]

    @property
    def n_errors(self) -> int:
        """Number of findings that are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def most_severe_first(self, n_suspects: int) -> list[Finding]:
        """All findings and the first ``n_suspects`` suspects."""
        from cellwright.data.check import SEVERITIES

        listed = [*self.findings, *suspect_findings(self.suspects[: max(n_suspects, 0)])]
        return sorted(listed, key=lambda finding: SEVERITIES.index(finding.severity))


def run(plan: CheckPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Checked | None:
    """Check the dataset and write the suspects, if ``out`` is given; None after a dry run.

    Raises `OutputError` if an output exists, `UsageError` for an ``out`` that is not a CSV file, and what
    `cellwright.read_dataset` raises; whatever is wrong with a single sample becomes a finding.
    """
    from cellwright.data.check import check_dataset
    from cellwright.data.suspects import rank_suspects, write_suspects

    output = _output(plan)
    dataset = of_split(read_annotations(plan.dataset, reading_of(plan), screen, format=plan.format), plan.split)
    if output is not None and not output.exists:
        screen.note(f"will write {output.out} and {output.out.with_suffix('.png')}")
    if dry_run:
        return None
    findings = check_dataset(dataset, track=screen.track)
    suspects: list[Suspect] = []
    if plan.suspects > 0 or output is not None:
        suspects = rank_suspects(dataset, limit=MAX_SUSPECTS, track=screen.track)
    if output is not None:
        from cellwright.core.files import write_png
        from cellwright.report.suspect_sheet import draw_suspects

        sheet = draw_suspects(dataset, suspects, screen.track)
        with output.write() as folder:
            write_suspects(suspects, folder / output.out.name)
            write_png((folder / output.out.name).with_suffix(".png"), sheet)
        if output.is_complete:
            screen.note(output.text)
    return Checked(findings, suspects)


def _output(plan: CheckPlan) -> FileOutput | None:
    """Where suspects are written; None if they are not."""
    if plan.out is None:
        return None
    sheet = plan.out.with_suffix(".png")
    return FileOutput(plan.out, sheet, inputs=(plan.dataset,), overwrite=plan.overwrite, suffixes=(".csv",))


def suspect_findings(suspects: list[Suspect]) -> list[Finding]:
    """Suspects as findings."""
    from cellwright.data.check import Finding

    return [
        Finding(
            "suspect",
            f"{suspect.sample_id}, object {suspect.object_id}",
            f"{suspect.kind}? {suspect.why}",
            _REMEDIES[suspect.kind],
        )
        for suspect in suspects
    ]
