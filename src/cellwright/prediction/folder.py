"""The prediction folder: what it contains, and how it is written image by image so that a job can be resumed.

    predictions.json   all images and objects, candidates included (COCO results with images)
    summary.csv        one row per image       failures.csv       images that could not be predicted, and why
    recipe.yaml        the resolved recipe     contact_sheet.png  up to 24 images with their objects, evenly chosen
    measurements.csv   all objects             counts.png         the number of objects in each image
    wells.csv          one row per well        plate.png          one image per well; both if image names contain wells
    <image id>...      files per image: see `ENDINGS`

``.job.json`` says which job this is (see `prediction.job`). While it runs, ``.progress/`` holds a small COCO file for
each image that is done. At the end these are joined into ``predictions.json``. ``.progress/`` stays while images have
failed, which the same command tries again.
"""

from __future__ import annotations

import csv
import errno
import io
import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import CellwrightError, InputError, OutputError, UsageError
from cellwright.core.events import emit
from cellwright.core.files import FileLock, write_png, write_text
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.notes import Note, summarise
from cellwright.core.progress import Track, no_progress
from cellwright.core.text import count
from cellwright.data.formats import FORMATS
from cellwright.data.formats.coco import PREDICTIONS_NAME, WRITTEN
from cellwright.data.formats.contract import Prefer, ReadOptions, WriteOptions
from cellwright.data.formats.paths import output_path, short_name
from cellwright.data.formats.predictions import EDITABLE, written_digests
from cellwright.data.identity import FileIdentity, digest_of, listed
from cellwright.data.images.reading import Reading
from cellwright.measurement.table import write_measurements
from cellwright.prediction import writers
from cellwright.prediction.diameter import Diameter
from cellwright.prediction.job import (
    ENDINGS,
    JOB_FILE,
    Done,
    Job,
    JobRecord,
    SeeImage,
    changes,
    digest_of_pixels,
)
from cellwright.prediction.predictor import Predictor
from cellwright.prediction.record import Prediction
from cellwright.prediction.sources import Source, seen_by
from cellwright.prediction.summaries import Well, evenly_chosen, pool_tables, well_table, wells_of

PREDICTIONS, SUMMARY, FAILURES = PREDICTIONS_NAME, "summary.csv", "failures.csv"
RECIPE, CONTACT_SHEET = "recipe.yaml", "contact_sheet.png"
MEASUREMENTS, WELLS, COUNTS, PLATE = "measurements.csv", "wells.csv", "counts.png", "plate.png"
SHEET_TILES = 24
_TILE_PX = 480


@dataclass(frozen=True)
class Pictures:
    """How pictures are drawn; passed in, because `report` is above this package.

    overlay: an image and its objects -> uint8 RGB (H', W', 3). thumbnail: the same, with lines that remain visible when
    the picture is reduced. sheet: tiles (caption, RGB) and a title -> uint8 RGB. plate: (row, column) -> tile, and a
    title -> uint8 RGB. counts: names of images, objects by class (N, K), class names -> uint8 RGB.
    """

    overlay: Callable[[Image, Instances], np.ndarray]
    thumbnail: Callable[[Image, Instances], np.ndarray]
    sheet: Callable[[Sequence[tuple[str, np.ndarray]], str], np.ndarray]
    plate: Callable[[Mapping[tuple[int, int], tuple[str, np.ndarray]], str], np.ndarray]
    counts: Callable[[Sequence[str], np.ndarray, Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class FolderReport:
    """What a job did.

    n_images: images with a result, of which n_resumed were done before. n_objects: objects in all of them.
    failures: (image id, error) of each image without a result. notes: what a user should know, one sentence each.
    """

    n_images: int
    n_resumed: int
    n_objects: int
    failures: tuple[tuple[str, CellwrightError], ...]
    notes: tuple[str, ...]

    @property
    def counts(self) -> str:
        """``"99 objects in 2 images"``."""
        return f"{count(self.n_objects, 'object')} in {count(self.n_images, 'image')}"


class PredictionFolder:
    """A prediction folder being written: `start`, `write` or `fail` for each image, then `finish`.

    Creating one checks that the folder can be written, and changes nothing. A folder in which no image is done takes
    any job. ``is_complete``: all images of this job are done already, and there is nothing to do. Raises `OutputError`
    for a folder whose images would come out otherwise in this job (unless ``overwrite`` is set), and for a folder with
    other files, which are never removed.

    see: reads an image as the job does; without it, images are not compared under another `Job.reading`.
    """

    def __init__(
        self, out: Path, job: Job, pictures: Pictures, *, see: SeeImage | None = None, overwrite: bool = False
    ) -> None:
        self.out, self.job, self._pictures = out, job, pictures
        self._progress, self._job_file = out / ".progress", out / JOB_FILE
        self._failures: dict[str, CellwrightError] = {}
        ids = [source.id for source in job.sources]
        self._wells = wells_of(ids)
        self._on_sheet = set(evenly_chosen(len(ids), SHEET_TILES))
        # The first image of each well is on the picture of its plate.
        self._on_plate = set({well: k for k, well in reversed([*enumerate(self._wells or ())])}.values())
        self._lock: FileLock | None = None
        self._done: dict[str, Done] = {}
        self._state: Literal["new", "resumed", "replaced", "complete"] = self._check(see, overwrite=overwrite)
        self._n_resumed = len(self._done)

    @property
    def is_complete(self) -> bool:
        """Whether all images are done already, with the same result."""
        return self._state == "complete"

    @property
    def left(self) -> list[int]:
        """The sources that are not done, in order."""
        return [index for index, source in enumerate(self.job.sources) if source.id not in self._done]

    def describe(self) -> str | None:
        """What is done already, as a sentence; None if nothing is."""
        if self._state == "complete":
            return f"already complete: {self.out}/ has these predictions"
        if self._state == "resumed":
            return f"{count(self._n_resumed, 'image')} done before, {len(self.left)} to do"
        return None

    def start(self) -> None:
        """Create the folder, or resume the same job; an old folder is removed if ``overwrite`` was set.

        Raises `OutputError` if another process is writing the folder.
        """
        self._lock = FileLock.take(self._progress / "lock", self.out)
        if self._state == "replaced":
            for old in self.out.iterdir():
                if old.is_dir() and old != self._progress:
                    shutil.rmtree(old)
                elif not old.is_dir():
                    old.unlink()
        if self._state != "resumed":
            for old in self._progress.glob("*.*"):
                old.unlink()
        JobRecord(self.job.request()).write(self._job_file)
        write_text(self.out / RECIPE, self.job.recipe_yaml)

    def is_done(self, index: int) -> bool:
        """Whether source ``index`` has been written."""
        return self.job.sources[index].id in self._done

    def write(
        self, index: int, image: Image, prediction: Prediction, *, seen: Image | None = None, blank: bool = False
    ) -> None:
        """Write the files of source ``index``; its record comes last, so that an incomplete set is written again.

        image: all channels, which are measured. seen: the channels that the predictor saw, which are drawn; None: all.
        blank: ``image`` is a placeholder for a missing one: no intensities are measured.
        """
        source, instances, names = self.job.sources[index], prediction.instances, self.job.class_names
        seen = image if seen is None else seen
        measured = None if blank else image
        for kind in self.job.save:
            path = self._output(index, kind)
            match kind:
                case "masks":
                    writers.write_labels(path, instances, image.pixel_size_um)
                case "overlay":
                    write_png(path, self._pictures.overlay(seen, instances))
                case "geojson":
                    writers.write_geojson(path, instances, measured, sample_id=source.id, class_names=names)
                case "rois":
                    writers.write_rois(path, instances, measured, class_names=names)
                case "measurements":
                    write_measurements(
                        instances,
                        path,
                        image_name=source.id,
                        image=measured,
                        class_names=names,
                        ring_px=self.job.ring_px,
                    )
        if index in self._on_sheet | self._on_plate:
            write_png(self._tile(index), _shrunk(self._pictures.thumbnail(seen, instances)))
        sample = Sample(
            id=source.id,
            image_path=source.path if source.path.is_file() else None,  # fused predictions may have no image files
            image_hw=image.image_hw,
            load=Loaded(prediction.candidates),
            image_id=index + 1 if source.image_id is None else source.image_id,
            split=source.split,
            group=source.group,
            pixel_size_um=image.pixel_size_um,
            source="cellwright predict",
        )
        files: dict[Prefer, Path] = {kind: self._output(index, kind) for kind in EDITABLE if kind in self.job.save}
        notes = [*seen.notes, *prediction.notes, *_name_note(source.id)]
        info = {
            "summary": summary_row(source.id, prediction, names, notes),
            "files": written_digests(instances, names, files),
            "notes": [[note.kind, note.text] for note in notes],
        }
        record = Dataset((sample,), names, root=self._progress, info=info)
        FORMATS["coco"].write(record, self._of(source, ".json"), WriteOptions())
        done = Done(FileIdentity.of(source.path), digest_of_pixels(image, seen), len(instances))
        done.write(self._of(source, ".done"), source.id)
        self._done[source.id] = done
        progress = {"done": len(self._done) + len(self._failures), "total": len(self.job.sources)}
        text = f"{source.id}: {count(len(instances), 'object')}"
        emit("image", text, {"image": source.id, "objects": len(instances), "progress": progress})

    def fail(self, index: int, error: CellwrightError) -> None:
        """Record that source ``index`` failed; it is tried again when the job is run again."""
        image_id = self.job.sources[index].id
        self._failures[image_id] = error
        emit("failure", f"{image_id}: {error.problem}", {"image": image_id, **error.parts()}, level=logging.WARNING)

    def finish(self) -> FolderReport:
        """Join the records: the tables and pictures of all images and, last, predictions.json."""
        names, sources = self.job.class_names, self.job.sources
        done = [index for index in range(len(sources)) if self.is_done(index)]
        options = ReadOptions(require_images=False)
        parts = [FORMATS["coco"].read(self._of(sources[index], ".json"), options) for index in done]
        rows = [dict(part.info["summary"]) for part in parts]
        notes = [
            Note(kind, text, row["image"])
            for row, part in zip(rows, parts, strict=True)
            for kind, text in part.info["notes"]
        ]
        columns = list(summary_row("", Prediction.of(Instances.empty((1, 1), scored=True)), names))
        write_text(self.out / SUMMARY, _csv(columns, rows))
        failures = [_failure_row(name, error) for name, error in self._failures.items()]
        write_text(self.out / FAILURES, _csv(["image", "problem", "where", "got", "fix"], failures))
        self._write_overview(done, rows)
        numbers = {source.id: k + 1 if source.image_id is None else source.image_id for k, source in enumerate(sources)}
        samples = tuple(replace(sample, image_id=numbers[sample.id]) for part in parts for sample in part)
        threshold = self.job.options.score_threshold
        written = {sample.id: part.info["files"] for part in parts for sample in part if "files" in part.info}
        facts = {"description": "predictions by cellwright", "score_threshold": threshold, WRITTEN: written}
        facts |= self.job.reading
        predictions = Dataset(samples, names, root=self.out, info=facts | dict(self.job.info))
        FORMATS["coco"].write(predictions, self.out / PREDICTIONS, WriteOptions())
        if not self._failures:
            ordered = {source.id: self._done[source.id] for source in sources}
            JobRecord(self.job.request(), ordered).write(self._job_file)
        self.close()
        if not self._failures:
            shutil.rmtree(self._progress)
        return FolderReport(
            n_images=len(rows),
            n_resumed=self._n_resumed,
            n_objects=sum(row["objects"] for row in rows),
            failures=tuple(self._failures.items()),
            notes=(*_notes(rows), *_diameter_notes(rows), *self._well_notes(), *summarise(notes, details=SUMMARY)),
        )

    def _write_overview(self, done: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what concerns all images together. done: the sources with a result; rows: of the summary, for each."""
        if not done:
            return
        shown = [(k, index) for k, index in enumerate(done) if index in self._on_sheet and self._tile(index).is_file()]
        tiles = [(_caption(rows[k]), _read_png(self._tile(index))) for k, index in shown]
        if tiles:
            title = f"{len(tiles)} of {count(len(rows), 'image')}"
            write_png(self.out / CONTACT_SHEET, self._pictures.sheet(tiles, title))
        names, pooled = self.job.class_names, None
        if "measurements" in self.job.save:
            pooled = self.out / MEASUREMENTS
            pool_tables([self._output(index, "measurements") for index in done], pooled)
        if len(rows) > 1:
            columns = [f"objects_{name}" for name in names] if len(names) > 1 else ["objects"]
            table = np.array([[row[column] for column in columns] for row in rows], np.int64)
            write_png(self.out / COUNTS, self._pictures.counts([row["image"] for row in rows], table, names))
        if self._wells is not None:
            wells = [self._wells[index] for index in done]
            well_rows = well_table(wells, rows, pooled)
            write_text(self.out / WELLS, well_rows.to_csv(index=False, float_format="%.7g", lineterminator="\n"))
            self._write_plates(done, rows, wells)

    def _write_plates(self, done: Sequence[int], rows: Sequence[Mapping[str, Any]], wells: Sequence[Well]) -> None:
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
            name = re.sub(r"[^\w.-]+", "_", plate)
            path = self.out / (PLATE if len(plates) == 1 else f"{name}_plate.png")
            write_png(
                path,
                self._pictures.plate(tiles, f"{plate or 'plate'}: first image of each well, objects of all its images"),
            )

    def _well_notes(self) -> list[str]:
        if self._wells is None:
            return []
        n_plates = len({well.plate for well in self._wells})
        wells, plates = count(len(set(self._wells)), "well"), count(n_plates, "plate")
        return [f"image names were taken for {wells} on {plates}: see {WELLS} and {PLATE}"]

    def close(self) -> None:
        """Let other processes write the folder."""
        if self._lock is not None:
            self._lock.release()

    def report(self) -> FolderReport:
        """The report of a folder that `is_complete`."""
        n_objects = sum(done.objects for done in self._done.values())
        return FolderReport(len(self._done), len(self._done), n_objects, (), ())

    def _check(self, see: SeeImage | None, *, overwrite: bool) -> Literal["new", "resumed", "replaced", "complete"]:
        """What is to be done with the folder; `OutputError` if it cannot be written."""
        remedy = "use `overwrite=True` to start again, or choose another `out`"
        if self.out.is_file():
            raise OutputError("the output folder is a file", where=self.out, remedy="choose another `out`")
        if not self._job_file.is_file():
            return self._check_without_job(remedy, overwrite=overwrite)
        if overwrite:
            return "replaced"
        recorded = JobRecord.read(self._job_file)
        done = self._found_done(recorded)
        if not done:
            return "new"
        different = changes(self.job, recorded, done, see)
        if different:
            got = f"changed since: {'; '.join(different)}"
            n_left = "" if recorded.images is not None else ", unfinished"
            raise OutputError(f"this folder has other{n_left} predictions", where=self.out, got=got, remedy=remedy)
        self._done = done
        if recorded.images is None:
            self._done = {name: one for name, one in done.items() if not self._missing(name)}
            return "resumed"
        removed = [path for name in done for path in self._missing(name)]
        if removed or not (self.out / PREDICTIONS).is_file():
            names = [path.relative_to(self.out).as_posix() for path in removed] or [PREDICTIONS]
            got = f"{count(len(names), 'file')} missing ({listed(names)})"
            raise OutputError("files of these predictions were removed", where=self.out, got=got, remedy=remedy)
        return "complete"

    def _check_without_job(self, remedy: str, *, overwrite: bool) -> Literal["new", "replaced"]:
        if (self.out / PREDICTIONS).is_file():
            if overwrite:
                return "replaced"
            raise OutputError("predictions of another job are here", where=self.out, remedy=remedy)
        # A job that was killed at once left only the temporary name of its first file.
        own = f".{JOB_FILE}."
        entries = [] if not self.out.is_dir() else [path.name for path in self.out.iterdir()]
        if any(not name.startswith(own) and name != self._progress.name for name in entries):
            raise OutputError(
                "this folder is not empty and has no predictions",
                where=self.out,
                expected=f"a new folder, or one with {PREDICTIONS}",
                remedy="choose another `out`",
            )
        return "new"

    def _found_done(self, recorded: JobRecord) -> dict[str, Done]:
        """The images that are done, by id, whatever job they belong to."""
        if recorded.images is not None:
            return dict(recorded.images)
        return dict(Done.read(path) for path in sorted(self._progress.glob("*.done")))

    def _missing(self, image_id: str) -> list[Path]:
        """The files of an image that do not exist."""
        paths = [output_path(self.out, image_id, ENDINGS[kind]) for kind in self.job.save]
        return [path for path in paths if not path.is_file()]

    def _output(self, index: int, kind: str) -> Path:
        return output_path(self.out, self.job.sources[index].id, ENDINGS[kind])

    def _tile(self, index: int) -> Path:
        return self._of(self.job.sources[index], ".png")

    def _of(self, source: Source, suffix: str) -> Path:
        """A file of the unfinished job about one source: its record, its thumbnail, or that it is done."""
        return self._progress / f"{digest_of(source.id)}{suffix}"


def predict_into(
    folder: PredictionFolder,
    predictor: Predictor,
    *,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    fail_fast: bool = False,
    track: Track = no_progress,
) -> FolderReport:
    """Predict all sources of a folder's job, one after the other, and finish the folder.

    reading: which part of each image is used; all channels are measured.

    An image that cannot be read or does not fit the model is recorded in failures.csv and the job continues; with
    ``fail_fast`` its error is raised and the folder stays unfinished.
    """
    if folder.is_complete:
        return folder.report()
    folder.start()
    try:
        left = folder.left
        for index in track(left, "predicting", len(left)):
            source = folder.job.sources[index]
            try:
                if source.error is not None:
                    raise source.error
                image, seen = read_and_choose(source.path, predictor, reading)
                (prediction,) = predictor.predict([seen])
                folder.write(index, image, prediction, seen=seen)
            except (InputError, UsageError) as error:  # such as a channel that this image does not have
                if fail_fast:
                    raise
                folder.fail(index, error)
            except OutputError as error:
                if fail_fast or not _is_about_name(error):
                    raise
                folder.fail(index, error)
        return folder.finish()
    finally:
        folder.close()


def read_and_choose(path: Path, predictor: Predictor, reading: Reading) -> tuple[Image, Image]:
    """An image with all channels, and with those that the predictor sees."""
    image = reading.read(path)
    return image, seen_by(predictor, image, reading.channel)


def _is_about_name(error: OutputError) -> bool:
    """Whether an output could not be written because of its name, which the disk does not allow."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


def _name_note(image_id: str) -> list[Note]:
    name = PurePosixPath(image_id).name
    if (short := short_name(name)) == name:
        return []
    text = f"its name is too long for the names of its files, which begin with {short}"
    return [Note("a long name was shortened in the names of files", text)]


def summary_row(
    image_id: str, prediction: Prediction, class_names: Sequence[str], notes: Sequence[Note] = ()
) -> dict[str, Any]:
    """One row of summary.csv. notes: what was assumed about the image."""
    instances = prediction.instances
    height, width = instances.image_hw
    covered = int(np.count_nonzero(instances.masks.foreground()))
    row: dict[str, Any] = {"image": image_id, "height_px": height, "width_px": width, "objects": len(instances)}
    if len(class_names) > 1:
        counts = np.bincount(instances.class_ids, minlength=len(class_names))
        row |= {f"objects_{label}": int(n) for label, n in zip(class_names, counts, strict=True)}
    assert instances.scores is not None
    row |= {
        "mean_score": round(float(instances.scores.mean()), 4) if len(instances) else None,
        "median_area_px": float(np.median(instances.masks.areas)) if len(instances) else None,
        "foreground_share": round(covered / (height * width), 5),
        "left_out_low_score": prediction.n_low_score,
        "left_out_small": prediction.n_small,
        "left_out_border": prediction.n_border,
        "left_out_max_objects": prediction.n_over_cap,
        "model_cap_reached": prediction.model_cap,
        "overlap_pixels_resolved": prediction.pixels_resolved,
        # A label image has one object per pixel: the pixels that lower scores lose there.
        "overlap_pixels_lost_in_label_image": int(instances.masks.areas.sum()) - covered,
    }
    return row | _diameter_columns(prediction.diameter) | {"notes": "; ".join(note.text for note in notes)}


def _diameter_columns(diameter: Diameter | None) -> dict[str, Any]:
    """The diameter by which the image was resized, and the scale; empty for models that do not use one."""
    if diameter is None:
        return dict.fromkeys(("diameter_px", "diameter_from", "network_scale", "network_scale_wanted"))
    px, requested = diameter.px, diameter.requested_scale
    return {
        "diameter_px": None if px is None else round(px, 2),
        "diameter_from": "estimated" if diameter.estimated else "given",
        "network_scale": round(diameter.scale, 4),
        "network_scale_wanted": None if requested is None else round(requested, 4),
    }


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was omitted, from the rows of the summary."""
    notes = []
    caps = [row["model_cap_reached"] for row in rows if row["model_cap_reached"]]
    if caps:
        notes.append(
            f"{count(len(caps), 'image')} reached the model's own limit of {count(max(caps), 'object')}: some may be "
            "missing"
        )
    over = [row["left_out_max_objects"] for row in rows if row["left_out_max_objects"]]
    if over:
        notes.append(f"`max_objects` omitted {count(sum(over), 'object')} in {count(len(over), 'image')}")
    lost = [row["overlap_pixels_lost_in_label_image"] for row in rows if row["overlap_pixels_lost_in_label_image"]]
    if lost:
        notes.append(
            f"objects overlap in {count(len(lost), 'image')}: in the label images, {count(sum(lost), 'pixel')} went to "
            f"the object with the higher score; {PREDICTIONS} keeps them all"
        )
    return notes


def _diameter_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The diameters by which images were resized, from the rows of the summary."""
    resized = [row for row in rows if row["diameter_from"]]
    diameters = [float(row["diameter_px"]) for row in resized if row["diameter_px"] is not None]
    notes = []
    if diameters:
        low, high, source = min(diameters), max(diameters), resized[0]["diameter_from"]
        shown = f"diameter {low:.1f} px" if f"{low:.1f}" == f"{high:.1f}" else f"diameters {low:.1f} to {high:.1f} px"
        notes.append(f"{shown} ({source}){f', one per image in {SUMMARY}' if low < high else ''}")
    if unmeasured := len(resized) - len(diameters):
        notes.append(f"no object to measure a diameter on in {count(unmeasured, 'image')}: predicted at original size")
    if limited := sum(row["network_scale_wanted"] is not None for row in resized):
        notes.append(
            f"{count(limited, 'image')} could not be resized as much as the diameter requires (network_scale in "
            f"{SUMMARY}), which reduces quality: cut large images of tiny objects into parts"
        )
    return notes


def _caption(row: Mapping[str, Any]) -> str:
    text = f"{row['image']}: {row['objects']} object{'' if row['objects'] == 1 else 's'}"
    if row["left_out_max_objects"]:
        text += f", {row['left_out_max_objects']} over the maximum omitted"
    return text + (f", the model's cap of {row['model_cap_reached']} reached" if row["model_cap_reached"] else "")


def _failure_row(image_id: str, error: CellwrightError) -> dict[str, Any]:
    where = None if error.where is None else Path(str(error.where)).name
    return {"image": image_id, "problem": error.problem, "where": where, "got": error.got, "fix": error.remedy}


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_png(path: Path) -> np.ndarray:
    import cv2

    return np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR))[:, :, ::-1]


def _shrunk(rgb: np.ndarray) -> np.ndarray:
    import cv2

    scale = min(_TILE_PX / max(rgb.shape[:2]), 1.0)
    size_wh = (max(round(rgb.shape[1] * scale), 1), max(round(rgb.shape[0] * scale), 1))
    return rgb if scale == 1.0 else cv2.resize(rgb, size_wh, interpolation=cv2.INTER_AREA)
