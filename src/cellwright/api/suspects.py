"""The annotations most likely wrong, for people to look at: a table and a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cellwright.api.data import read_dataset
from cellwright.api.outputs import claim_file
from cellwright.core.errors import UsageError
from cellwright.core.progress import Track, no_progress
from cellwright.data.check import Finding
from cellwright.data.suspects import Suspect, rank_suspects, write_suspects

WRITTEN = 1000

_REMEDIES = {
    "merged": "look at it; if these are two nuclei, part them",
    "split": "look at both; if they are one nucleus, unite them",
    "displaced": "look at it; if it lies beside its nucleus, move or redraw it",
    "tiny": "look at it; delete it where it is a stray speck",
    "open": "look at it; fill or redraw it where its inside is missing",
}


@dataclass(frozen=True)
class SuspectPlan:
    """Where to look. out: a ``.csv`` to write, the contact sheet beside it with ``.png``; None writes nothing."""

    dataset: Path
    split: str | None = None
    out: Path | None = None
    overwrite: bool = False


def claim_outputs(plan: SuspectPlan) -> None:
    """Raise before the long work starts: `OutputError` where an output exists, `UsageError` for another suffix."""
    if plan.out is None:
        return
    if plan.out.suffix.lower() != ".csv":
        raise UsageError("the suspects are written as a table", where="--out", got=plan.out.name, expected="a .csv")
    for path in (plan.out, plan.out.with_suffix(".png")):
        claim_file(path, overwrite=plan.overwrite)


def find_suspects(plan: SuspectPlan, limit: int = WRITTEN, track: Track = no_progress) -> list[Suspect]:
    """Up to ``limit`` suspects, worst first; with ``out`` also their table and the contact sheet of the worst 24."""
    claim_outputs(plan)
    dataset = read_dataset(plan.dataset)
    dataset = dataset if plan.split is None else dataset.with_split(plan.split)
    suspects = rank_suspects(dataset, limit=limit, track=track)
    if plan.out is not None:
        from cellwright.core.files import write_png
        from cellwright.report.suspects import draw_suspects

        sheet = draw_suspects(dataset, suspects, track)
        write_suspects(suspects, plan.out)
        write_png(plan.out.with_suffix(".png"), sheet)
    return suspects


def as_findings(suspects: list[Suspect]) -> list[Finding]:
    """Suspects as lines of ``data check``."""
    return [
        Finding("suspect", f"{one.sample_id}, object {one.object_id}", f"{one.kind}? {one.why}", _REMEDIES[one.kind])
        for one in suspects
    ]
