"""``export``: predictions or annotations in another format, for a submission or another tool."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from cellwright.api.outputs import claim_file
from cellwright.core.errors import OutputError, UsageError, did_you_mean
from cellwright.core.progress import SILENT, ProgressReporter

RANKED = ("coco", "coco_results")


@Parameter(name="*")
@dataclass(frozen=True)
class ExportPlan:
    """Write predictions in another format, for a submission or another tool."""

    prediction: Path
    """A prediction folder, or anything that `data convert` reads."""
    _: KW_ONLY
    to: str
    """Format, such as coco_results."""
    out: Path
    """File or folder to write; .zip packs a submission."""
    image_ids: Path | None = None
    """JSON list of file_name, id, height and width that defines the images of a submission."""
    overwrite: bool = False
    """Replace existing files."""


def run(plan: ExportPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> list[Path]:
    """Write the files and return their paths; an empty list after a dry run.

    The COCO formats get every candidate, since average precision rewards uncertain objects too. All other formats get
    the objects that reach the score threshold of the prediction folder, the same as in its label images.
    Raises `UsageError` for a format that cannot be written, `OutputError` if the output exists, and what
    `cellwright.read_dataset` raises.
    """
    from cellwright.api.read import read_dataset
    from cellwright.data.formats import FORMATS
    from cellwright.data.formats.contract import WriteOptions
    from cellwright.evaluation.pairing import above_threshold

    writable = {name: form for name, form in FORMATS.items() if form.is_writable}
    if plan.to not in writable:
        raise UsageError(
            "unknown export format", got=plan.to, expected=", ".join(writable), remedy=did_you_mean(plan.to, writable)
        )
    _claim(plan.out, overwrite=plan.overwrite)
    dataset = read_dataset(plan.prediction, require_images=False)
    if plan.to not in RANKED:
        dataset = above_threshold(dataset)
    screen.note(f"will write {plan.out}")
    if dry_run:
        return []
    return writable[plan.to].write(dataset, plan.out, WriteOptions(image_ids=plan.image_ids, track=screen.track))


def _claim(out: Path, *, overwrite: bool) -> None:
    if out.suffix:
        claim_file(out, overwrite=overwrite)
    elif not overwrite and out.is_dir() and any(out.iterdir()):
        remedy = "use `overwrite=True` to replace files of the same names, or choose another `out`"
        raise OutputError("this folder is not empty", where=out, remedy=remedy)
