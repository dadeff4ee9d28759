"""The prediction folder: what it contains, and how it is written image by image so that a job can be resumed.

    predictions.json   all images and objects, candidates included (COCO results with images)
    summary.csv        one row per image       failures.csv       images that could not be predicted, and why
    recipe.yaml        the resolved recipe     contact_sheet.png  up to 24 images with their objects, evenly chosen
    measurements.csv   all objects             counts.png         the number of objects in each image
    measurements.parquet   the same, of several images, where pyarrow is installed
    stacks.csv         one row per stack whose planes were joined (see `prediction.stacks`, also for its other files)
    wells.csv          one row per well        plate.png          one image per well; both if image names contain wells
    report.html        all of this on one page
    <image id>...      files per image: see `ENDINGS`

``.cellwright/`` says which job this is (see `core.output_folder`). While it runs, it holds a record of each image that
is done (see `prediction.ledger`). At the end these are joined into ``predictions.json``. They stay while images have
failed, which the same command tries again.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.candidates import CANDIDATES
from cellwright.core.claim import is_as_written, remove_ours
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import CellwrightError, OutputError
from cellwright.core.events import emit
from cellwright.core.file_identity import FileIdentity
from cellwright.core.files import write_png, write_text
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.notes import Note, summarise
from cellwright.core.output_folder import OutputFolder
from cellwright.core.result_folders import REPORT
from cellwright.core.scores import reaches_threshold
from cellwright.core.table import frame_csv, rows_csv
from cellwright.core.text import count, listed
from cellwright.data.formats import FORMATS
from cellwright.data.formats.coco import WRITTEN
from cellwright.data.formats.contract import ReadOptions, WriteOptions
from cellwright.data.formats.paths import output_path
from cellwright.prediction.earlier import earlier_claim
from cellwright.prediction.existing import check_foreign, examine
from cellwright.prediction.image_writer import ImageWriter, Pictures, Place, UnderWay
from cellwright.prediction.job import (
    CONTACT_SHEET,
    COUNTS,
    ENDINGS,
    FAILURES,
    MEASUREMENTS,
    MEASUREMENTS_PARQUET,
    PLATE,
    PREDICTIONS,
    RECIPE,
    SUMMARY,
    WELLS,
    Job,
    SeeImage,
)
from cellwright.prediction.ledger import ABOUT_ALL, Done, Ledger
from cellwright.prediction.pooled_table import NO_PARQUET, PlaneOf, can_write_parquet, pool_tables, write_parquet
from cellwright.prediction.record import Prediction
from cellwright.prediction.stacks import (
    STACK_COLUMNS,
    STACKS,
    StackReport,
    not_joined,
    stack_files,
    stack_notes,
    write_stack,
)
from cellwright.prediction.summaries import (
    Well,
    caption,
    evenly_chosen,
    notes_of,
    summary_row,
    well_table,
    wells_of,
)

SHEET_TILES = 24


@dataclass(frozen=True)
class FolderReport:
    """What a job did.

    n_images: images with a result, of which n_resumed were done before. n_objects: objects in all of them.
    failures: (image id, error) of each image without a result. notes: what a user should know, one sentence each.
    n_left: images that other shards have not done yet.
    """

    n_images: int
    n_resumed: int
    n_objects: int
    failures: tuple[tuple[str, CellwrightError], ...]
    notes: tuple[str, ...]
    n_left: int = 0

    @property
    def counts(self) -> str:
        """``"99 objects in 2 images"``."""
        return f"{count(self.n_objects, 'object')} in {count(self.n_images, 'image')}"


@dataclass(frozen=True)
class _Record:
    """What the record of an image says; its objects are read when they are needed."""

    sample: Sample
    summary: dict[str, Any]
    files: Any
    notes: Sequence[tuple[str, str]]

    @staticmethod
    def read(path: Path) -> _Record:
        part = _read_record(path)
        sample = replace(part[0], load=_Objects(path))
        return _Record(sample, dict(part.info["summary"]), part.info["files"], part.info["notes"])


@dataclass(frozen=True)
class _Objects:
    path: Path

    def __call__(self) -> Instances:
        return _read_record(self.path)[0].read_instances()


def _read_record(path: Path) -> Dataset:
    return FORMATS["coco"].read(path, ReadOptions(require_images=False))


class PredictionFolder:
    """A prediction folder being written: `start`, `write` or `fail` for each image, then `finish`.

    Creating one looks at what is there (see `existing`), and changes nothing. A folder in which no image is done takes
    any job. ``is_complete``: all images of this job are done already, and there is nothing to do. With ``overwrite``, a
    result is replaced once the new one is complete. Raises `OutputError` for a folder whose images would come out
    otherwise in this job (unless ``overwrite`` is set), for one with other files, which are never removed, and where a
    file that was changed since, or an input, would be replaced.

    see: reads an image as the job does; without it, images are not compared under another `Job.reading`. verb: the
    command. inputs: what it reads besides the images. joins: other processes may do images of the same job.
    """

    def __init__(
        self,
        out: Path,
        job: Job,
        pictures: Pictures,
        *,
        see: SeeImage | None = None,
        overwrite: bool = False,
        verb: str = "predict",
        inputs: Sequence[Path] = (),
        joins: bool = False,
    ) -> None:
        self.out, self.job, self.pictures = out, job, pictures
        self._output = OutputFolder(out, verb, same=("predict", "fuse"), earlier=earlier_claim)
        self._failures: dict[str, CellwrightError] = {}
        ids = [source.id for source in job.sources]
        in_stack = {source: stack.id for stack in job.stacks for row in stack.numbers for source in row}
        self._wells = wells_of([in_stack.get(k, name) for k, name in enumerate(ids)])
        self._stack_reports: list[StackReport] = []
        self._on_sheet = set(evenly_chosen(len(ids), SHEET_TILES))
        # The first image of each well is on the picture of its plate.
        self._on_plate = set({well: k for k, well in reversed([*enumerate(self._wells or ())])}.values())
        all_inputs = [*inputs, *(source.path for source in job.sources)]
        self._existing = examine(self._output, job, see, all_inputs, overwrite=overwrite, joins=joins)
        self._done = dict(self._existing.done)
        self._ledger = Ledger(self._output.progress_of(self._existing.resume))
        self._n_resumed = len(self._done)

    @property
    def is_complete(self) -> bool:
        """Whether all images are done already, with the same result."""
        return self._existing.state == "complete"

    @property
    def is_new(self) -> bool:
        """Whether no image is done."""
        return not self._done

    @property
    def left(self) -> list[int]:
        """The sources that are not done, in order."""
        return [index for index, source in enumerate(self.job.sources) if source.id not in self._done]

    def describe(self) -> str | None:
        """What is done already, as a sentence; None if nothing is."""
        edited = self._existing.edited
        kept = f"; changed since and kept: {listed(edited)}" if edited else ""
        if self._existing.state == "complete":
            return f"already complete: {self.out}/ has these predictions{kept}"
        if self._existing.state == "resumed" and self._done:
            return f"{count(self._n_resumed, 'image')} done before, {len(self.left)} to do{kept}"
        return None

    def start(self) -> None:
        """Create and claim the folder, or go on with the same job.

        Raises `OutputError` if another process is writing the folder.
        """
        existing = self._existing
        self._output.start(self.job.request(), resume=existing.resume, replaces=existing.old)
        self._ledger = Ledger(self._output.progress)

    def is_done(self, index: int) -> bool:
        """Whether source ``index`` has been written."""
        return self.job.sources[index].id in self._done

    def check_under_way(self) -> UnderWay:
        """A check for processes that do not lock the folder, after `start`."""
        return UnderWay(self._output.path, self._output.root, self.job.request())

    def verify(self) -> None:
        """Raise `OutputError` if the folder was moved, removed or taken over since `start`."""
        self._output.verify()

    @property
    def shown(self) -> frozenset[int]:
        """The sources of which a small picture is kept for the overview."""
        return frozenset(self._on_sheet | self._on_plate)

    def place(self, check: Callable[[], None] | None = None) -> Place:
        """Where the files are, after `start`. check: see `Place`; None for a process that has the lock."""
        return Place(self._output.path, self._output.root, self._ledger, check or self._output.verify)

    def write(
        self, index: int, image: Image, prediction: Prediction, *, seen: Image | None = None, blank: bool = False
    ) -> None:
        """Write the files of source ``index``; its record comes last, so that an incomplete set is written again.

        image: all channels, which are measured. seen: the channels that the predictor saw, which are drawn; None: all.
        blank: ``image`` is a placeholder for a missing one: no intensities are measured.
        """
        source, seen = self.job.sources[index], image if seen is None else seen
        writer = ImageWriter(self.job, self.pictures, self.place())
        is_shown = index in self._on_sheet or index in self._on_plate
        done = writer.write(source, index + 1, image, prediction, seen=seen, blank=blank, thumbnail=is_shown)
        self.add(index, done)

    def add(self, index: int, done: Done) -> None:
        """Count source ``index``, which was written."""
        source = self.job.sources[index]
        self._done[source.id] = done
        progress = {"done": len(self._done) + len(self._failures), "total": len(self.job.sources)}
        text = f"{source.id}: {count(done.objects, 'object')}"
        emit("image", text, {"image": source.id, "objects": done.objects, "progress": progress})

    def fail(self, index: int, error: CellwrightError) -> None:
        """Record that source ``index`` failed; it is tried again when the job is run again."""
        image_id = self.job.sources[index].id
        self._failures[image_id] = error
        emit("failure", f"{image_id}: {error.problem}", {"image": image_id, **error.parts()}, level=logging.WARNING)

    def fail_for_all(self, index: int, error: CellwrightError) -> None:
        """`fail`, also for the process that finishes the job."""
        self._ledger.fail(self.job.sources[index].id, error)
        self.fail(index, error)

    def forget_failures(self, numbers: Iterable[int]) -> None:
        """Forget that these sources failed earlier: they are tried again."""
        for index in numbers:
            self._ledger.forget_failure(self.job.sources[index].id)

    def take_failures(self) -> None:
        """Count the sources that failed in other processes."""
        ids = {source.id for source in self.job.sources}
        failures = self._ledger.failures().items()
        self._failures |= {name: error for name, error in failures if name in ids and name not in self._done}

    @property
    def n_left(self) -> int:
        """The number of sources that are neither done nor failed."""
        return len(self.left) - len(self._failures)

    def shard_report(self, n_left: int) -> FolderReport:
        """The report of a shard while others have ``n_left`` images left."""
        n_objects = sum(done.objects for done in self._done.values())
        return FolderReport(len(self._done), self._n_resumed, n_objects, tuple(self._failures.items()), (), n_left)

    def finish(self) -> FolderReport:
        """Join the records: the tables and pictures of all images and, last, predictions.json.

        Raises `OutputError` if an image has neither a result nor a failure.
        """
        sources = self.job.sources
        self._output.verify()
        done = [index for index in range(len(sources)) if self.is_done(index)]
        lost = [sources[k].id for k in done if not self._ledger.is_whole(sources[k].id, self._done[sources[k].id])]
        lost += [source.id for source in sources if source.id not in self._done and source.id not in self._failures]
        if lost:
            raise OutputError(
                "the results of some images were removed while the job was running",
                where=self.out,
                got=f"nothing for {count(len(lost), 'image')} ({listed(lost)})",
                remedy="run the same command again, which predicts them again",
            )
        self._remove_unfinished()
        records = [_Record.read(self._ledger.path(sources[k].id, ".json")) for k in done]
        rows = [record.summary for record in records]
        about_all = self._write_about_all(done, records, rows)
        self._complete(about_all)
        notes = [Note(kind, text, record.sample.id) for record in records for kind, text in record.notes]
        return FolderReport(
            n_images=len(rows),
            n_resumed=self._n_resumed,
            n_objects=sum(row["objects"] for row in rows),
            failures=tuple(self._failures.items()),
            notes=(
                *notes_of(rows),
                *stack_notes(self._stack_reports),
                *self._well_notes(),
                *self._table_notes(),
                *summarise(notes, details=SUMMARY),
            ),
        )

    def _remove_unfinished(self) -> None:
        """Remove what was begun for images that failed or are no longer among the sources."""
        for image_id, files in self._ledger.begun().items():
            if image_id and image_id not in self._done:
                for name, identity in files.items():
                    if is_as_written(self._output.root, name, identity):
                        remove_ours(self._output.root, name)
                self._ledger.path(image_id, ".begun").unlink()

    def _write_about_all(
        self, done: Sequence[int], records: Sequence[_Record], rows: Sequence[Mapping[str, Any]]
    ) -> list[str]:
        """Write the files about all images; returns their names."""
        root, names, resume = self._output.root, self.job.class_names, self._existing.resume
        known = set() if resume is None else {*resume.files}
        possible = {PREDICTIONS, SUMMARY, FAILURES, RECIPE, CONTACT_SHEET, MEASUREMENTS, WELLS, COUNTS, REPORT}
        possible.add(MEASUREMENTS_PARQUET)
        possible |= {self._plate_name(well.plate) for well in self._wells or ()}
        if self.job.stitch is not None:
            possible |= {STACKS, *(name for stack in self.job.stacks for name in stack_files(stack, known))}
        check_foreign(self._output, root, sorted(possible), known, self._ledger)
        columns = list(summary_row("", Prediction.of(Instances.empty((1, 1), scored=True)), names))
        if self.job.stacks:
            columns[1:1] = ["t", "z"]
            sources = [self.job.sources[index] for index in done]
            rows = [{"t": one.t, "z": one.z, **row} for one, row in zip(sources, rows, strict=True)]
        failures = [_failure_row(name, error) for name, error in self._failures.items()]
        with self.place().while_it_stays(possible), self._ledger.staging(ABOUT_ALL) as staging:
            write_text(staging / RECIPE, self.job.recipe_yaml)
            write_text(staging / SUMMARY, _csv(columns, rows))
            write_text(staging / FAILURES, _csv(["image", "problem", "where", "got", "fix"], failures))
            self._write_stacks(staging, dict(zip(done, records, strict=True)))
            self._write_overview(staging, done, rows)
            self._write_predictions(staging, records)
            write_text(staging / REPORT, self.pictures.report(root, staging))
            files = {} if resume is None else resume.files
            written = {*self._ledger.move_in(ABOUT_ALL, staging, root, shown=self.out, known=files)}
        for name in (known & possible) - written:  # of a job that goes on
            remove_ours(root, name)
        return sorted(written)

    def _write_stacks(self, root: Path, records: Mapping[int, _Record]) -> None:
        """Join the planes of stacks. records: of the sources with a result, by number."""
        job, iou = self.job, self.job.stitch
        if iou is None or not job.stacks:
            return

        def read(number: int) -> Instances:
            candidates = records[number].sample.read_instances()
            return candidates[reaches_threshold(candidates.scores, candidates.class_ids, job.options.score_threshold)]

        reports = []
        for stack in job.stacks:
            sources = [number for row in stack.numbers for number in row]
            n_failed = sum(number not in records for number in sources)
            if n_failed:
                reports.append(not_joined(stack, iou, n_failed))
                continue
            pixel_size = records[sources[0]].sample.pixel_size_um
            named = {"class_names": job.class_names, "pixel_size_um": pixel_size, "draw": self.pictures.stack}
            named["labels"] = job.stack_labels
            reports.append(write_stack(root, stack, read, iou, **named))
        self._stack_reports = reports
        write_text(root / STACKS, _csv(STACK_COLUMNS, [report.row for report in reports]))

    def _write_predictions(self, root: Path, records: Sequence[_Record]) -> None:
        sources, names, threshold = self.job.sources, self.job.class_names, self.job.options.score_threshold
        numbers = {source.id: k + 1 if source.image_id is None else source.image_id for k, source in enumerate(sources)}
        paths = {source.id: source.path for source in sources}
        planes = {source.id: (source.z, source.t) for source in sources}
        samples = tuple(
            replace(
                sample,
                image_id=numbers[sample.id],
                image_path=paths[sample.id] if paths[sample.id].exists() else None,  # fused predictions may have none
                z=planes[sample.id][0],
                t=planes[sample.id][1],
            )
            for sample in (record.sample for record in records)
        )
        written = {record.sample.id: record.files for record in records}
        facts = {"description": "predictions by cellwright", "score_threshold": threshold, WRITTEN: written}
        facts |= {} if self.job.options.expand is None else {"expand": self.job.options.expand}
        facts |= {} if self.job.options.candidates else {CANDIDATES: False}
        info = facts | dict(self.job.reading) | dict(self.job.info)
        predictions = Dataset(samples, names, root=root, info=info)
        place = self._output.place(self._output.root)
        FORMATS["coco"].write(predictions, root / PREDICTIONS, WriteOptions(place=place))

    def _complete(self, about_all: Sequence[str]) -> None:
        """Declare the folder complete; the records are kept while images have failed."""
        root = self._output.root
        files: dict[str, FileIdentity | None] = {name: FileIdentity.of(root / name) for name in about_all}
        for source in self.job.sources:
            if source.id in self._done:
                files |= self._done[source.id].files
        if self._failures:
            self._ledger.remove_list()
        else:
            self._ledger.finish({source.id: self._done[source.id] for source in self.job.sources})
        self._output.complete(files, keep_progress=True)
        if not self._failures:
            Ledger(self._output.progress_of(self._output.claim)).remove_all_but_list()
        self.close()

    def _write_overview(self, root: Path, done: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write pictures and tables of all images together.

        done: the sources with a result; rows: of the summary, for each.
        """
        if not done:
            return
        shown = [(k, index) for k, index in enumerate(done) if index in self._on_sheet and self._tile(index).is_file()]
        tiles = [(caption(rows[k]), _read_png(self._tile(index))) for k, index in shown]
        if tiles:
            title = f"{len(tiles)} of {count(len(rows), 'image')}"
            write_png(root / CONTACT_SHEET, self.pictures.sheet(tiles, title))
        names, pooled = self.job.class_names, None
        if "measurements" in self.job.save:
            pooled = root / MEASUREMENTS
            pool_tables([self._path(index, "measurements") for index in done], pooled, self._planes_of(done))
            if self._has_parquet and can_write_parquet():
                write_parquet(pooled, root / MEASUREMENTS_PARQUET)
        if len(rows) > 1:
            columns = [f"objects_{name}" for name in names] if len(names) > 1 else ["objects"]
            table = np.array([[row[column] for column in columns] for row in rows], np.int64)
            write_png(root / COUNTS, self.pictures.counts([row["image"] for row in rows], table, names))
        if self._wells is not None:
            wells = [self._wells[index] for index in done]
            well_rows = well_table(wells, rows, pooled)
            write_text(root / WELLS, frame_csv(well_rows, float_format="%.7g"))
            self._write_plates(root, done, rows, wells)

    def _planes_of(self, done: Sequence[int]) -> list[PlaneOf] | None:
        """The plane of each source that is done, and its objects in its stack; None if there are no stacks."""
        if not self.job.stacks:
            return None
        joined = {index: labels for report in self._stack_reports for index, labels in report.objects.items()}
        sources = ((index, self.job.sources[index]) for index in done)
        numbered = self.job.stitch is not None
        return [PlaneOf(one.t, one.z, joined.get(index, {}) if numbered else None) for index, one in sources]

    def _write_plates(
        self, root: Path, done: Sequence[int], rows: Sequence[Mapping[str, Any]], wells: Sequence[Well]
    ) -> None:
        """Write plate.png, or NAME_plate.png for each of several plates."""
        plates: dict[str, dict[tuple[int, int], tuple[str, np.ndarray]]] = {}
        totals = Counter[Well]()
        for row, well in zip(rows, wells, strict=True):
            totals[well] += row["objects"]
        for index, well in zip(done, wells, strict=True):
            if index in self._on_plate and self._tile(index).is_file():
                caption = f"{well.name}: {count(totals[well], 'object')}"
                plates.setdefault(well.plate, {})[well.row, well.column] = caption, _read_png(self._tile(index))
        for plate, tiles in plates.items():
            write_png(
                root / self._plate_name(plate),
                self.pictures.plate(tiles, f"{plate or 'plate'}: first image of each well, objects of all its images"),
            )

    def _plate_name(self, plate: str) -> str:
        n_plates = len({well.plate for well in self._wells or ()})
        return PLATE if n_plates == 1 else re.sub(r"[^\w.-]+", "_", plate) + "_plate.png"

    def _well_notes(self) -> list[str]:
        if self._wells is None:
            return []
        n_plates = len({well.plate for well in self._wells})
        wells, plates = count(len(set(self._wells)), "well"), count(n_plates, "plate")
        return [f"image names were taken for {wells} on {plates}: see {WELLS} and {PLATE}"]

    @property
    def _has_parquet(self) -> bool:
        """Whether the pooled measurements are written as Parquet, too: for several images."""
        return "measurements" in self.job.save and len(self.job.sources) > 1

    def _table_notes(self) -> list[str]:
        return [NO_PARQUET] if self._has_parquet and not can_write_parquet() else []

    def close(self) -> None:
        """Let other processes write the folder."""
        self._output.close()

    def report(self) -> FolderReport:
        """The report of a folder that `is_complete`."""
        n_objects = sum(done.objects for done in self._done.values())
        return FolderReport(len(self._done), len(self._done), n_objects, (), ())

    def _path(self, index: int, kind: str) -> Path:
        return output_path(self._output.root, self.job.sources[index].id, ENDINGS[kind])

    def _tile(self, index: int) -> Path:
        return self._ledger.path(self.job.sources[index].id, ".png")


def _failure_row(image_id: str, error: CellwrightError) -> dict[str, Any]:
    where = None if error.where is None else Path(str(error.where)).name
    return {"image": image_id, "problem": error.problem, "where": where, "got": error.got, "fix": error.remedy}


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    return rows_csv([columns, *([row.get(name) for name in columns] for row in rows)])


def _read_png(path: Path) -> np.ndarray:
    import cv2

    return np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR))[:, :, ::-1]
