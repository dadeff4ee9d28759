"""``export``: predictions or annotations in another format, for a submission or another tool."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from cellwright.api.export_job import JOB_FORMATS, SPATIALDATA, check_job_export, export_job
from cellwright.api.outputs import FileOutput, FolderOutput, write_once
from cellwright.api.shared_options import FormatName
from cellwright.core.candidates import missing_candidates
from cellwright.core.errors import InputError, UsageError, did_you_mean
from cellwright.core.instances import Instances
from cellwright.core.notes import summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.result_folders import is_job_folder
from cellwright.core.scores import ScoreThreshold, reaches_threshold
from cellwright.core.text import count
from cellwright.data.formats.contract import Prefer

RANKED = ("coco", "coco_results")
KEEP_IGNORED = ("coco", "geojson", "imagej_roi", "label_images")  # formats that tell ignored regions from objects
WITH_IMAGES = ("cellpose",)  # formats whose files are opened beside their images, which are copied
FILES = (".json", ".zip", ".csv")  # other outputs are folders


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
    format: FormatName = None
    images: Path | None = None
    """Folder or dataset of the images, for predictions that do not record the sizes of their images."""
    prefer: Prefer | None = None
    """Which file of an image to read if several in a prediction folder were edited differently."""
    image_ids: Path | None = None
    """JSON list of file_name, id, height and width that defines the images of a submission."""
    overwrite: bool = False
    """Replace existing files."""


@dataclass(frozen=True)
class Exported:
    """What was written: the files, and the numbers of objects and images in them.

    n_below: objects below the score threshold, which were omitted. failures: why images were omitted.
    """

    paths: tuple[Path, ...]
    to: str
    n_objects: int
    n_images: int
    n_below: int
    failures: tuple[InputError, ...] = ()

    @property
    def text(self) -> str:
        """``"1 file with 99 objects in 2 images (coco)"``."""
        written = f"{count(len(self.paths), 'file')} with {count(self.n_objects, 'object')}"
        below = f"; {count(self.n_below, 'object')} below the score threshold omitted" if self.n_below else ""
        return f"{written} in {count(self.n_images, 'image')} ({self.to}){below}"


@dataclass(frozen=True, eq=False)
class _CountedLoad:
    """A `Sample.load` of the objects that reach a threshold; records, by sample, how many there are and how many do.

    keeps_ignored: also ignored regions, which are not counted. n_regions: how many were omitted, by sample.
    """

    load: Callable[[], Instances]
    sample_id: str
    threshold: ScoreThreshold
    counts: dict[str, tuple[int, int]]
    keeps_ignored: bool
    n_regions: dict[str, int]

    def __call__(self) -> Instances:
        instances = self.load()
        reaches = reaches_threshold(instances.scores, instances.class_ids, self.threshold)
        is_object = ~instances.ignore
        self.counts[self.sample_id] = int(is_object.sum()), int((reaches & is_object).sum())
        if self.keeps_ignored:
            return instances[reaches]
        self.n_regions[self.sample_id] = int(instances.ignore.sum())
        return instances[reaches & is_object]


def run(plan: ExportPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Exported | None:
    """Write the files; returns None after a dry run.

    The COCO formats get every candidate, since average precision rewards uncertain objects too. All other formats get
    the objects that reach the score threshold of the prediction folder, the same as in its label images.
    Raises `UsageError` for a format that cannot be written, `OutputError` if the output exists, and what
    `cellwright.read_dataset` raises.
    """
    from cellwright.data.formats import FORMATS, ReadOptions, WriteOptions, read_dataset, sniff
    from cellwright.data.formats.predictions import without_conflicts
    from cellwright.evaluation.pairing import score_threshold_of, with_threshold

    if is_job_folder(plan.prediction) and (plan.to in JOB_FORMATS or plan.to not in FORMATS):
        return _run_job(plan, screen, dry_run=dry_run)
    writable = {name: form for name, form in FORMATS.items() if form.is_writable}
    if plan.to not in writable:
        raise UsageError(
            "unknown export format", got=plan.to, expected=", ".join(writable), remedy=did_you_mean(plan.to, writable)
        )
    inputs = [path for path in (plan.prediction, plan.images, plan.image_ids) if path is not None]
    is_file = plan.out.suffix.lower() in FILES
    if is_file:
        output = FileOutput(plan.out, inputs=inputs, overwrite=plan.overwrite)
    else:
        output = FolderOutput(plan.out, "export", inputs=inputs, overwrite=plan.overwrite)
    reading = ReadOptions(require_images=False, prefer=plan.prefer, track=screen.track)
    images = None if plan.images is None else sniff(plan.images).read(plan.images, reading)
    dataset = read_dataset(plan.prediction, dataclasses.replace(reading, images=images), format=plan.format)
    dataset, failures = without_conflicts(dataset)
    if failures and not len(dataset):
        raise failures[0]
    for line in summarise(dataset.notes):
        screen.note(line)
    if plan.to in RANKED and (missing := missing_candidates(dataset.info)) is not None:
        screen.note(missing)
    threshold = 0.0 if plan.to in RANKED else score_threshold_of(dataset)
    counts: dict[str, tuple[int, int]] = {}
    n_regions: dict[str, int] = {}
    keeps = plan.to in KEEP_IGNORED
    loads = [_CountedLoad(sample.load, sample.id, threshold, counts, keeps, n_regions) for sample in dataset]
    samples = [dataclasses.replace(sample, load=load) for sample, load in zip(dataset, loads, strict=True)]
    counted = dataset.with_samples(samples)
    counted = counted if plan.to in RANKED else with_threshold(counted, 0.0)
    with_images = plan.to in WITH_IMAGES
    options = WriteOptions(plan.image_ids, copy_images=with_images, place=output.place, track=screen.track)

    def write(folder: Path) -> None:
        writable[plan.to].write(counted, folder / plan.out.name if is_file else folder, options)

    paths = write_once(output, write, str(plan.out), screen, dry_run=dry_run)
    if dry_run:
        return None
    if omitted := sum(n_regions.values()):
        screen.note(f"{count(omitted, 'ignored region')} omitted: {plan.to} has no place for them")
    n_objects = sum(kept for _, kept in counts.values())
    n_below = sum(n for n, _ in counts.values()) - n_objects
    return Exported(tuple(paths), plan.to, n_objects, len(counts), n_below, tuple(failures))


def _run_job(plan: ExportPlan, screen: ProgressReporter, *, dry_run: bool) -> Exported | None:
    """Export the objects of one large image."""
    check_job_export(plan.prediction, plan.to, plan.out)
    is_store = plan.to == SPATIALDATA
    if is_store:
        output = FolderOutput(plan.out, "export", inputs=[plan.prediction], overwrite=plan.overwrite)
    else:
        output = FileOutput(plan.out, inputs=[plan.prediction], overwrite=plan.overwrite)
    n_objects: list[int] = []

    def write(folder: Path) -> None:
        target = folder if is_store else folder / plan.out.name
        n_objects.append(export_job(plan.prediction, plan.to, target, screen.track))

    paths = write_once(output, write, str(plan.out), screen, dry_run=dry_run)
    if paths and is_store:
        screen.note("the store has labels, outlines and measurements, not the pixels of the image")
        paths = [plan.out]
    return None if dry_run else Exported(tuple(paths), plan.to, n_objects[0] if n_objects else 0, 1, 0)
