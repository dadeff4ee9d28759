"""The files of one image in a prediction folder, and the record that they are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cellwright.core.claim import CLAIM, CONTROL, Claim, remove_ours
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import CellwrightError, OutputError
from cellwright.core.file_identity import FileIdentity
from cellwright.core.files import write_png, write_text
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.data.formats import FORMATS
from cellwright.data.formats.contract import WriteOptions
from cellwright.data.formats.paths import output_path, short_name
from cellwright.data.formats.predictions import CELLS, EDITABLE, written_digests
from cellwright.measurement.cells import measure_with_cells, same_ids
from cellwright.measurement.table import table_csv, write_measurements
from cellwright.prediction import writers
from cellwright.prediction.existing import names_of, state_of
from cellwright.prediction.job import ENDINGS, Job, digest_of_pixels
from cellwright.prediction.ledger import Done, Ledger
from cellwright.prediction.record import Prediction
from cellwright.prediction.sources import Source
from cellwright.prediction.summaries import summary_row

_TILE_PX = 480


@dataclass(frozen=True)
class Pictures:
    """How pictures are drawn; passed in, because `report` is above this package.

    overlay: an image, its objects, and their cells or None -> uint8 RGB (H', W', 3). thumbnail: an image and its
    objects, with lines that remain visible when the picture is reduced -> uint8 RGB. sheet: tiles (caption, RGB) and a
    title -> uint8 RGB. plate: (row, column) -> tile, and a title -> uint8 RGB. counts: names of images, objects by
    class (N, K), class names -> uint8 RGB. report: the folder, and where its files about all images are -> report.html.
    stack: label images (caption, (H, W)) of planes, and a title -> uint8 RGB; None: there is no such picture.
    """

    overlay: Callable[[Image, Instances, Instances | None], np.ndarray]
    thumbnail: Callable[[Image, Instances], np.ndarray]
    sheet: Callable[[Sequence[tuple[str, np.ndarray]], str], np.ndarray]
    plate: Callable[[Mapping[tuple[int, int], tuple[str, np.ndarray]], str], np.ndarray]
    counts: Callable[[Sequence[str], np.ndarray, Sequence[str]], np.ndarray]
    report: Callable[[Path, Path], str]
    stack: Callable[[Sequence[tuple[str, np.ndarray]], str], np.ndarray] | None = None


@dataclass(frozen=True)
class Place:
    """Where a job writes; several threads or processes may do so, each other images.

    path: the prediction folder. root: where its files are for now, see `OutputFolder`. check: raises `OutputError` if
    the folder is gone, or not that of the job any more.
    """

    path: Path
    root: Path
    ledger: Ledger
    check: Callable[[], None]

    def done(self, image_id: str) -> Done | None:
        """The record of an image whose files are all there."""
        done = self.ledger.read(image_id)
        is_whole = done is not None and all(state_of(self.root / n, f) == "as written" for n, f in done.files.items())
        return done if is_whole else None

    @contextmanager
    def while_it_stays(self, names: Iterable[str]) -> Iterator[None]:
        """Check that the folder is still there after files of these names were written.

        Otherwise, what was written to its former place is removed, and `OutputError` says so.
        """
        try:
            try:
                yield
            finally:
                self.check()
        except OutputError:
            if not (self.path / CONTROL / CLAIM).is_file():
                for name in names:
                    remove_ours(self.root, name)
                for record in self.ledger.folder.glob("*"):
                    record.unlink(missing_ok=True)
                for folder in (self.ledger.folder, *self.ledger.folder.parents):
                    if folder.is_relative_to(self.path):
                        with suppress(OSError):  # not empty
                            folder.rmdir()
            raise


@dataclass(frozen=True)
class UnderWay:
    """The check of a process that has not locked the folder itself: it still has the claim of the unfinished job.

    request: of the job, see `Job.request`.
    """

    path: Path
    root: Path
    request: Mapping[str, Any]

    def __call__(self) -> None:
        """Raise `OutputError` if it is not."""
        with suppress(CellwrightError):
            claim = Claim.read(self.root)
            if claim is not None and claim.state == "writing" and claim.request == self.request:
                return
        remedy = "run the same command again: what is missing is made again"
        problem = "the output folder was finished, moved, removed or taken over while it was written"
        raise OutputError(problem, where=self.path, remedy=remedy)


@dataclass(frozen=True)
class ImageWriter:
    """Writes single images of a job. known: files of stacks, as they were when their first plane was written."""

    job: Job
    pictures: Pictures
    place: Place
    known: dict[Path, FileIdentity] = field(default_factory=dict, compare=False)

    def write(
        self,
        source: Source,
        number: int,
        image: Image,
        prediction: Prediction,
        *,
        seen: Image,
        blank: bool = False,
        thumbnail: bool = False,
    ) -> Done:
        """Write the files of a source; its record comes last, so that an incomplete set is written again.

        number: of the image, if the source has none. image: all channels, which are measured. seen: the channels that
        the predictor saw, which are drawn. blank: ``image`` is a placeholder for a missing one: no intensities are
        measured. thumbnail: keep a small picture for the overview.
        """
        place, ledger = self.place, self.place.ledger
        files = names_of(self.job, source.id)
        place.check()
        with place.while_it_stays(files.values()), ledger.staging(source.id) as staging:
            self._write_files(staging, source, image, prediction, seen, None if blank else image)
            if thumbnail:
                picture = self.pictures.thumbnail(seen, prediction.instances)
                write_png(ledger.path(source.id, ".png"), _shrunk(picture))
            identities = ledger.move_in(source.id, staging, place.root, shown=place.path)
            by_kind = {kind: identities[name] for kind, name in files.items()}
            self._write_record(source, number, image, prediction, [*seen.notes, *prediction.notes], by_kind)
        n_objects = len(prediction.instances)
        done = Done(self._identity(source), digest_of_pixels(image, seen), n_objects, identities)
        return ledger.record(source.id, done)

    def _identity(self, source: Source) -> FileIdentity:
        """Of the file, which is read once for all its planes."""
        if source.z is None and source.t is None:
            return FileIdentity.of(source.path)
        if source.path not in self.known or not source.path.is_dir():
            self.known[source.path] = FileIdentity.of(source.path, self.known.get(source.path))
        return self.known[source.path]

    def _write_files(
        self, root: Path, source: Source, image: Image, prediction: Prediction, seen: Image, measured: Image | None
    ) -> None:
        names, instances, cells = self.job.class_names, prediction.instances, prediction.cells
        for kind in self.job.kinds:
            path = output_path(root, source.id, ENDINGS[kind])
            match kind:
                case "masks":
                    writers.write_labels(path, instances, image.pixel_size_um)
                case "overlay":
                    write_png(path, self.pictures.overlay(_named(seen, source), instances, cells))
                case "cell_masks" if cells is not None:
                    writers.write_labels(path, cells, image.pixel_size_um)
                case "geojson":
                    named = {"sample_id": source.id, "class_names": names, "plane": (source.z or 0, source.t or 0)}
                    writers.write_geojson(path, instances, measured, **named, cells=cells)
                case "rois":
                    writers.write_rois(path, instances, measured, class_names=names)
                case "measurements":
                    given = {"class_names": names, "ring_px": self.job.ring_px}
                    if cells is None:
                        write_measurements(instances, path, image_name=source.id, image=measured, **given)
                    else:
                        table = measure_with_cells(same_ids(instances, cells), measured, **given)
                        write_text(path, table_csv(table, source.id))

    def _write_record(
        self,
        source: Source,
        number: int,
        image: Image,
        prediction: Prediction,
        notes: Sequence[Note],
        files: Mapping[str, FileIdentity],
    ) -> None:
        names, ledger = self.job.class_names, self.place.ledger
        sample = Sample(
            id=source.id,
            image_path=None,  # `PredictionFolder.finish` knows it
            image_hw=image.image_hw,
            load=Loaded(prediction.candidates),
            image_id=number if source.image_id is None else source.image_id,
            split=source.split,
            group=source.group,
            pixel_size_um=image.pixel_size_um,
            source="cellwright predict",
        )
        notes = [*notes, *_name_note(source.id)]
        digests = {kind: files[kind].digest for kind in (*EDITABLE, CELLS) if kind in files}
        info = {
            "summary": summary_row(source.id, prediction, names, notes),
            "files": written_digests(prediction.instances, names, digests),
            "notes": [[note.kind, note.text] for note in notes],
        }
        record = Dataset((sample,), names, root=ledger.folder, info=info)
        FORMATS["coco"].write(record, ledger.path(source.id, ".json"), WriteOptions())


def _named(image: Image, source: Source) -> Image:
    """The image under the name of its file and plane, which pictures show."""
    planes = "".join(f", {axis} {n}" for axis, n in (("t", source.t), ("z", source.z)) if n is not None)
    return replace(image, path=f"{image.path}{planes}") if planes else image


def _name_note(image_id: str) -> list[Note]:
    name = PurePosixPath(image_id).name
    if (short := short_name(name)) == name:
        return []
    text = f"its name is too long for the names of its files, which begin with {short}"
    return [Note("a long name was shortened in the names of files", text)]


def _shrunk(rgb: np.ndarray) -> np.ndarray:
    import cv2

    scale = min(_TILE_PX / max(rgb.shape[:2]), 1.0)
    size_wh = (max(round(rgb.shape[1] * scale), 1), max(round(rgb.shape[0] * scale), 1))
    return rgb if scale == 1.0 else cv2.resize(rgb, size_wh, interpolation=cv2.INTER_AREA)
