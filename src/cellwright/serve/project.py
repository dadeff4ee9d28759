"""A project: the folder on disk that the page works on. Everything is there; nothing lives only in the browser.

    project.json   images by reference (relative where they are below the project), classes, what was predicted
    images/        what was dropped onto the page
    edits/         a journal for each image that was opened (`serve.journal`)
    corrected/     a dataset of what was corrected, written again shortly after each edit (`serve.corrected`)

The folder is an output folder like any other: claimed, and locked while it is served.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cellwright.core.claim import Claim
from cellwright.core.dataset import Dataset
from cellwright.core.errors import CellwrightError, FormatError, InputError, UsageError
from cellwright.core.files import as_utf8, is_hidden, read_json, stem_of, unreadable, write_json
from cellwright.core.memory import return_freed_memory
from cellwright.core.notes import Note
from cellwright.core.output_folder import OutputFolder
from cellwright.core.progress import Description, Track, no_progress
from cellwright.core.result_folders import is_job_folder, kind_of_result
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS
from cellwright.data.formats.tile_job import edited_labels
from cellwright.data.images.names import is_image_name
from cellwright.data.images.reading import Reading
from cellwright.data.images.regions import state_of
from cellwright.serve.annotation import Annotation, Start
from cellwright.serve.corrected import Corrected
from cellwright.serve.events import Events
from cellwright.serve.journal import has_edits
from cellwright.serve.pixels import BUDGET, Kept, Pixels
from cellwright.serve.starts import count_of, empty_start, start_of, start_of_job

PROJECT_FILE, SCHEMA_VERSION = "project.json", 1
IMAGES, EDITS, CORRECTED, PREDICTIONS = "images", "edits", "corrected", "predictions"
_OPEN_ANNOTATIONS, _OPEN_PIXELS, _MOST_FOLDERS = 16, 32, 1000
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
MAX_CLASSES = 1000
_PIXEL_BYTES = 1 << 29  # of decoded images
LARGE_PX = 1 << 24  # what such an image needs for a moment is given back to the system
_TELL_S = 0.3  # between events that tell how much of an image is open
T = TypeVar("T")


@dataclass
class ImageRecord:
    """An image of a project. path: relative to the project. source: folder or file of the objects with which it begins,
    and ``sample`` its id there. prediction: the folder of the last prediction, whatever was corrected since.
    journal_bytes: the size of its journal when ``corrected/`` was written; larger after a kill.
    """

    id: str
    name: str
    path: str
    hw: tuple[int, int] | None
    source: str | None = None
    sample: str | None = None
    reading: dict[str, Any] = field(default_factory=dict)
    prediction: str | None = None
    n_objects: int | None = None
    is_predicted: bool = False
    is_corrected: bool = False
    in_training: bool = False
    channels: list[str] = field(default_factory=list)
    journal_bytes: int = 0
    note: str = ""

    @property
    def state(self) -> str:
        if self.in_training:
            return "training"
        if self.is_corrected:
            return "corrected"
        return "predicted" if self.is_predicted else "new"


class Project:
    """An open project; see the module. Raises `OutputError` if the folder cannot be used, or is served already."""

    def __init__(self, folder: Path, *, roots: Sequence[Path] = ()) -> None:
        self._output = OutputFolder(folder, "serve")
        self.folder = self._output.path
        self.lock = threading.RLock()
        self.name = self.folder.name
        self.events = Events()
        self._classes: list[str] = [DEFAULT_CLASS]
        self._has_classes = False  # others than the default one
        self._images: dict[str, ImageRecord] = {}
        self._annotations: OrderedDict[str, Annotation] = OrderedDict()
        self._opening: dict[str, threading.Lock] = {}
        self._datasets: dict[str, Dataset] = {}
        if (self.folder / PROJECT_FILE).is_file():
            self._read()
        self._output.start({"project": 1}, resume=self._output.claim)
        try:
            self._save()
            self._output.complete([PROJECT_FILE])
        except BaseException:
            self._output.close()
            raise
        self.roots = [self.folder, *(root.resolve() for root in roots)]
        self.corrected_dataset, self._is_closed = Corrected(self), False
        self._count_later(self.images)
        for record in self.images:
            record.in_training = False
            journal = self._journal(record.id)
            if journal.is_file() and journal.stat().st_size != record.journal_bytes:
                self.corrected_dataset.schedule(record.id)

    # --- what is there

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by class id."""
        return tuple(self._classes)

    @property
    def images(self) -> list[ImageRecord]:
        """The images in order."""
        with self.lock:
            return list(self._images.values())

    @property
    def corrected(self) -> Path:
        """The folder of the dataset of what was corrected."""
        return self.folder / CORRECTED

    def image(self, image_id: str) -> ImageRecord:
        """The image with this id. Raises `UsageError` if there is none."""
        record = self._images.get(image_id)
        if record is None:
            raise UsageError("there is no such image", got=ascii(image_id)[:80], expected="an image of this project")
        return record

    def file_names(self) -> dict[str, str]:
        """How files about each image are named, by id: as the user's file, if no other image has that name."""
        images = self.images
        n_of = Counter(record.name.lower() for record in images)
        names = {record.id: record.name if n_of[record.name.lower()] == 1 else record.id for record in images}
        is_clear = len({name.lower() for name in names.values()}) == len(names)
        return names if is_clear else {image_id: image_id for image_id in names}

    def path_of(self, record: ImageRecord) -> Path:
        """The file of an image."""
        return self.folder / record.path

    def annotation(self, image_id: str) -> Annotation:
        """The objects of an image, opened when first asked for."""
        record = self.image(image_id)
        with self.lock:
            found = self._annotations.get(image_id)
            if found is not None:
                self._annotations.move_to_end(image_id)
                return found
        with self._opening_of(image_id):
            with self.lock:
                if image_id in self._annotations:
                    return self._annotations[image_id]
            if record.hw is None:
                raise InputError("this image cannot be read", where=record.name, got=record.note, remedy="see its note")
            opened = Annotation(self._journal(image_id), record.hw, lambda: self._start(record))
            with self.lock:
                self._annotations[image_id] = opened
                self._close_others(image_id)
        self.note_counts(record, opened)
        if record.hw[0] * record.hw[1] > LARGE_PX:
            return_freed_memory()
        return opened

    def _opening_of(self, image_id: str) -> threading.Lock:
        """Held while an image is opened."""
        with self.lock:
            return self._opening.setdefault(image_id, threading.Lock())

    @contextmanager
    def locked(self, image_id: str) -> Iterator[Annotation]:
        """The objects of an image, which no other thread reads or changes meanwhile."""
        while True:
            annotation = self.annotation(image_id)
            with annotation.lock:
                if annotation.is_open:
                    yield annotation
                    return

    def is_changed(self, image_id: str) -> bool:
        """Whether the objects of an image are not those with which it began; also after an undo."""
        return has_edits(self._journal(image_id))

    # --- changing

    def add_class(self, name: str) -> int:
        """The id of a class, which is new if there is none of this name."""
        name = name.strip()
        if not name or len(name) > 100 or not name.isprintable():
            raise UsageError("invalid name of a class", got=ascii(name)[:80], expected="1 to 100 printable characters")
        with self.lock:
            if name not in self._classes:
                if len(self._classes) >= MAX_CLASSES:
                    raise UsageError("too many classes", got=len(self._classes), expected=f"at most {MAX_CLASSES}")
                self._classes.append(name)
                self._has_classes = True
                self._save()
            return self._classes.index(name)

    def add(
        self, what: Path | Found, *, below_roots: bool = False, notes: list[Note] | None = None
    ) -> list[ImageRecord]:
        """Add an image, a folder of images, a dataset, a prediction folder or a tile job.

        below_roots: leave out images that links or records of a dataset refer to outside the opened folders. notes:
        receives what was assumed and left out. Returns the images that are new. Raises what reading them raises.
        """
        found = what if isinstance(what, Found) else find_source(what)
        path, dataset, is_annotated = found.path, found.dataset, found.is_annotated
        _refuse_planes(path, dataset)
        n_all = len(dataset)
        if below_roots:
            dataset = dataset.with_samples([s for s in dataset if s.image_path and self._is_allowed(s.image_path)])
        if notes is not None:
            notes += dataset.notes
            if len(dataset) < n_all:
                text = f"{count(n_all - len(dataset), 'image')} outside the opened folders left out"
                notes.append(Note("images outside the opened folders were left out", text))
        with self.lock:
            new = self._add_dataset(path, dataset, is_annotated=is_annotated)
            self._save()
        self._count_later(new)
        return new

    def remove(self, image_id: str) -> None:
        """Take an image out of the project. Its file stays, and so do its edits, under another name."""
        record = self.image(image_id)
        with self.lock:
            if record.in_training:
                raise UsageError(
                    "this image is in training", got=image_id, remedy="wait for the end, or cancel the job"
                )
            annotation = self._annotations.pop(image_id, None)
            if annotation is not None:
                annotation.close()
            del self._images[image_id]
            journal, number = self._journal(image_id), 1
            while (aside := journal.with_suffix(f".removed{number}")).exists():
                number += 1
            if journal.exists():
                journal.replace(aside)
            self._save()
        self.corrected_dataset.schedule(image_id)

    def adopt(self, prediction: Path, ids: Iterable[str] | None = None) -> list[str]:
        """Take over the objects of a prediction folder or tile job for images of the project, by their files.

        Objects that were drawn or changed by hand stay; the rest is replaced, as an edit that can be undone. Returns
        the ids of these images.
        """
        dataset = find_source(prediction).dataset
        _refuse_planes(prediction, dataset)
        source = self._reference(prediction)
        numbers = self._numbers_of(dataset.class_names)
        by_path = {os.path.realpath(s.image_path): s for s in dataset if s.image_path is not None}
        adopted = []
        for record in self.images:
            sample = by_path.get(os.path.realpath(self.path_of(record)))
            if sample is None or (ids is not None and record.id not in ids):
                continue
            self._adopt(record, dataset, sample.id, source, numbers)
            adopted.append(record.id)
        self.save()
        self.events.publish({"kind": "project"})
        return adopted

    def _numbers_of(self, names: Sequence[str]) -> list[int]:
        """The class ids of names. Until there are other classes, the default one stands for the first of a result."""
        with self.lock:
            if not self._has_classes and names:
                self._classes, self._has_classes = list(names), True
        return [self.add_class(name) for name in names]

    def _adopt(self, record: ImageRecord, dataset: Dataset, sample: str, source: str, numbers: Sequence[int]) -> None:
        with self.lock:
            self._datasets[source] = dataset
            is_new = record.id not in self._annotations and not self._journal(record.id).exists()
            if is_new:
                record.source, record.sample, record.is_predicted = source, sample, True
                record.n_objects = None
            record.prediction = source
        if is_new:
            self.annotation(record.id)
            return
        start = self._start_from(source, sample, record).with_classes(numbers)
        with self.locked(record.id) as annotation:
            applied = annotation.predict(start)
            record.is_predicted = True
            self.edited(record.id, annotation)
            self.events.publish({"kind": "edit", "image": record.id, "rev": applied.rev, "reload": True})

    def _count_later(self, records: Sequence[ImageRecord]) -> None:
        """Count the objects of images that are not open, in the background."""
        waiting = [record for record in records if record.n_objects is None and record.source is not None]
        if waiting:
            threading.Thread(target=self._count, args=(waiting,), name="cellwright count", daemon=True).start()

    def _count(self, records: Sequence[ImageRecord]) -> None:
        for k, record in enumerate(sorted(records, key=_n_px), 1):
            if self._is_closed or record.source is None:
                return
            with suppress(CellwrightError, OSError):
                dataset = self._dataset_of(record.source)
                source = (self.folder / record.source).resolve()
                n_objects = count_of(dataset, str(record.sample), source, self._until_opened(record))
                record.n_objects = n_objects if record.n_objects is None else record.n_objects
            if k % 20 == 0 or k == len(records):
                self.events.publish({"kind": "project"})

    def _until_opened(self, record: ImageRecord) -> Track:
        """A `Track` that waits while an image is opened, and ends when its objects have been counted there."""

        def track(items: Iterable[T], description: Description, total: int | None = None) -> Iterator[T]:
            for item in items:
                with self._opening_of(record.id):
                    pass
                if self._is_closed or record.n_objects is not None:
                    return
                yield item

        return track

    def set_training(self, ids: Iterable[str], *, is_on: bool = True) -> None:
        """Mark images as in training, or not."""
        with self.lock:
            for image_id in ids:
                self.image(image_id).in_training = is_on
            self._save()

    def save_corrected(self, ids: Iterable[str] | None = None) -> Path:
        """Bring the dataset ``corrected/`` up to date now; with ids, these images are in it though nothing was changed.

        Returns its folder. Raises `UsageError` if no image was corrected.
        """
        return self.corrected_dataset.save(None if ids is None else list(ids))

    def note_counts(self, record: ImageRecord, annotation: Annotation) -> None:
        """Take over the number of objects and the state of an image."""
        with annotation.lock:
            record.n_objects = len(annotation.table) - len(annotation.hidden())
            record.is_corrected = annotation.is_edited
            record.is_predicted = record.is_predicted or record.n_objects > 0

    def edited(self, image_id: str, annotation: Annotation) -> None:
        """Called after every edit."""
        record = self.image(image_id)
        self.note_counts(record, annotation)
        self.corrected_dataset.schedule(image_id)

    def save(self) -> None:
        """Write ``project.json``."""
        with self.lock:
            self._save()

    def close(self) -> None:
        """Write what is not written yet, and let others use the folder."""
        self._is_closed = True
        self.corrected_dataset.close()
        with self.lock:
            for image_id, annotation in self._annotations.items():
                if not self.corrected_dataset.is_waiting(image_id):
                    self._images[image_id].journal_bytes = annotation.journal.n_bytes
                annotation.close()
            self._annotations.clear()
            try:
                self._save()
            finally:
                self._output.close()

    def allowed(self, given: str) -> Path:
        """A path that a page asks to open, with links resolved. Raises `InputError` outside the opened roots."""
        if "\0" in given or len(given) > 4096:
            raise InputError("this is no path", got=ascii(given)[:80], expected="a file or folder")
        try:
            path = (self.roots[-1] / Path(given).expanduser()).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError("this path cannot be used", got=ascii(given)[:80], expected="a file or folder") from error
        if not self._is_allowed(path):
            raise InputError(
                "this is outside the folders that were opened",
                got=given,
                expected=f"a path below {' or '.join(map(str, dict.fromkeys(self.roots)))}",
                remedy="stop the page, and start it with that folder",
            )
        if not path.exists():
            raise InputError("there is no such file or folder", got=given, expected="a file or folder that exists")
        return path

    def folders(self, given: str) -> dict[str, Any]:
        """What is in a folder that may be opened: its folders and the number of its images; "" for the opened ones."""
        if not given:
            roots = list(dict.fromkeys(self.roots[1:] or self.roots))
            return {"path": "", "parent": None, "folders": [str(root) for root in roots], "n_images": 0, "kind": None}
        folder = self.allowed(given)
        if not folder.is_dir():
            raise InputError("this is a file", got=given, expected="a folder")
        try:
            entries = sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))
            inside = [str(entry) for entry in entries if entry.is_dir() and self._is_allowed(entry)]
        except OSError as error:
            raise unreadable(folder, error, "folder") from error
        return {
            "path": str(folder),
            "parent": str(folder.parent) if self._is_allowed(folder.parent) else "",
            "folders": inside[:_MOST_FOLDERS],
            "n_images": sum(is_image_name(entry.name) for entry in entries),
            "kind": kind_of_result(folder),
        }

    def _is_allowed(self, path: Path) -> bool:
        return any(path.resolve().is_relative_to(root) for root in self.roots)

    # --- reading and writing

    def _start(self, record: ImageRecord) -> Start:
        if record.source is None:
            return empty_start()
        return self._start_from(record.source, str(record.sample), record, with_classes=True)

    def _told(self, record: ImageRecord) -> Track:
        """A `Track` that tells all windows how much of an image has been opened, if it is a large one."""
        if record.hw is None or record.hw[0] * record.hw[1] <= LARGE_PX:
            return no_progress

        def track(items: Iterable[T], description: Description, total: int | None = None) -> Iterator[T]:
            event, told = {"kind": "opening", "image": record.id, "name": record.name}, 0.0
            for k, item in enumerate(items):
                if total and time.monotonic() > told + _TELL_S:
                    self.events.publish({**event, "done": k / total})
                    told = time.monotonic()
                yield item

        return track

    def _start_from(self, reference: str, sample: str, record: ImageRecord, *, with_classes: bool = False) -> Start:
        source = (self.folder / reference).resolve()
        dataset = self._dataset_of(reference)
        if record.hw is not None and dataset.sample(sample).image_hw != record.hw:
            raise InputError(
                "these objects are of an image of another size",
                where=source,
                got=" x ".join(map(str, dataset.sample(sample).image_hw)),
                expected=f"{record.hw[0]} x {record.hw[1]}, as {record.name}",
                remedy="predict the image at its full size",
            )
        if is_job_folder(source) and record.hw is not None and edited_labels(source) is None:
            start = start_of_job(source, record.hw, dataset.class_names)
        else:
            start = start_of(dataset.sample(sample), dataset, self._told(record))
        return start.with_classes(self._numbers_of(dataset.class_names)) if with_classes else start

    def _dataset_of(self, reference: str) -> Dataset:
        """A prediction folder or dataset of the project, which is listed once."""
        source = (self.folder / reference).resolve()
        if not source.exists():
            raise InputError(
                "the objects of this image are not there",
                where=source,
                remedy="put this folder back, or begin a new project",
            )
        with self.lock:
            dataset = self._datasets.get(reference)
        if dataset is None:
            dataset = find_source(source).dataset
            with self.lock:
                self._datasets[reference] = dataset
        return dataset

    def _add_dataset(self, path: Path, dataset: Dataset, *, is_annotated: bool) -> list[ImageRecord]:
        known = {os.path.realpath(self.path_of(record)) for record in self._images.values()}
        if is_annotated:
            self._numbers_of(dataset.class_names)
        reading = Reading.recorded(dataset.info).to_dict()
        source, new = self._reference(path) if is_annotated else None, []
        for sample in dataset:
            if sample.image_path is None or os.path.realpath(sample.image_path) in known:
                continue
            record = ImageRecord(
                self._new_id(sample.id),
                sample.id,
                self._reference(sample.image_path),
                sample.image_hw,
                source,
                sample.id if is_annotated else None,
                reading,
                prediction=source if kind_of_result(path) is not None else None,
                is_predicted=kind_of_result(path) is not None,
            )
            if not is_annotated:
                self._check_readable(record)
            self._images[record.id] = record
            new.append(record)
        if source is not None:
            self._datasets[source] = dataset
        return new

    def _check_readable(self, record: ImageRecord) -> None:
        """Note the size of an image, or why it cannot be read."""
        try:
            source = Reading.recorded(record.reading).open(self.path_of(record))
            record.hw, record.channels = source.image_hw, list(source.channels)
        except CellwrightError as error:
            record.hw, record.note = None, str(error.args[0] if error.args else error)[:500]

    def _reference(self, path: Path) -> str:
        """A path relative to the project; absolute on another drive."""
        try:
            return Path(os.path.relpath(path.resolve(), self.folder)).as_posix()
        except ValueError:
            return str(path.resolve())

    def _journal(self, image_id: str) -> Path:
        return self.folder / EDITS / f"{image_id}.journal"

    def _new_id(self, name: str) -> str:
        base = _UNSAFE.sub("_", name).strip("._-")[:80] or "image"
        taken = {image_id.lower() for image_id in self._images}
        number, image_id = 1, base
        while image_id.lower() in taken:
            number += 1
            image_id = f"{base}-{number}"
        return image_id

    def _close_others(self, image_id: str) -> None:
        """Close the annotations that were not used for the longest time."""
        for other in list(self._annotations):
            if len(self._annotations) <= _OPEN_ANNOTATIONS:
                break
            if other != image_id and not self.corrected_dataset.is_waiting(other):
                annotation = self._annotations[other]
                if annotation.lock.acquire(blocking=False):
                    try:
                        annotation.close()
                        del self._annotations[other]
                    finally:
                        annotation.lock.release()

    def _read(self) -> None:
        path = self.folder / PROJECT_FILE
        content = read_json(path)
        try:
            if content["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema_version {content['schema_version']!r}")
            self.name = str(content["name"])
            self._classes = [str(name) for name in content["classes"]]
            self._has_classes = bool(content["has_classes"])
            for values in content["images"]:
                record = _record_of(values)
                self._images[record.id] = record
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                "the record of this project is damaged",
                where=path,
                got=f"{type(error).__name__}: {error}"[:200],
                expected="what cellwright serve wrote",
                remedy="restore it from a backup; the edits are in edits/",
            ) from error

    def _save(self) -> None:
        content = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "classes": self._classes,
            "has_classes": self._has_classes,
            "images": [asdict(record) for record in self._images.values()],
        }
        write_json(self.folder / PROJECT_FILE, content)


def _refuse_planes(path: Path, dataset: Dataset) -> None:
    """Raise `InputError` for images that are planes of stacks: on the page, a file is one image."""
    planes = [sample.id for sample in dataset if sample.z is not None or sample.t is not None]
    if planes:
        got = f"{count(len(planes), 'plane')} of stacks, such as {planes[0]}"
        remedy = "open them with napari, or save each plane as an image, and predict these"
        raise InputError("the page shows files of one image", where=path, got=got, remedy=remedy)


def _n_px(record: ImageRecord) -> int:
    return 0 if record.hw is None else record.hw[0] * record.hw[1]


def _record_of(values: Mapping[str, Any]) -> ImageRecord:
    known = {name: values[name] for name in ImageRecord.__dataclass_fields__ if name in values}
    record = ImageRecord(**known)
    if not isinstance(record.id, str) or _UNSAFE.search(record.id) or record.id.startswith("."):
        raise ValueError(f"the id {record.id!r}")
    record.hw = None if record.hw is None else (int(record.hw[0]), int(record.hw[1]))
    return record


@dataclass(frozen=True)
class Found:
    """What can be added to a project: images with their objects, or images alone."""

    path: Path
    dataset: Dataset
    is_annotated: bool


def find_source(path: Path, reading: Reading | None = None) -> Found:
    """What is at a path: images, a dataset, a prediction folder, or a tile job. Raises what reading it raises.

    reading: which part of each file is meant, in place of what the dataset records.
    """
    found = _found_at(path)
    return found if reading is None else replace(found, dataset=_read_as(found.dataset, reading))


def _read_as(dataset: Dataset, reading: Reading) -> Dataset:
    return reading.over(Reading.recorded(dataset.info)).recorded_in(dataset)


def _found_at(path: Path) -> Found:
    from cellwright.api.read import is_dataset, read_dataset
    from cellwright.prediction.sources import sources_of_paths

    path = path.resolve()
    kind = kind_of_result(path) if path.is_dir() else None
    if kind not in (None, "a prediction folder", "a tile job"):
        raise UsageError(f"this is {kind}", where=path, expected="images, a dataset, or a prediction folder")
    if kind is not None or is_dataset(path):
        return Found(path, read_dataset(path), is_annotated=True)
    notes: tuple[Note, ...] = ()
    try:
        dataset = read_dataset(path) if path.is_dir() else None
    except CellwrightError as error:
        dataset = None
        if "no annotations" not in error.problem:
            text = f"no annotations were read, only images: {error.problem}"
            notes = (Note("annotations were not read", text, path.name),)
    if dataset is not None and dataset.info.get("format") != "image_folder":
        return Found(path, dataset, is_annotated=True)
    images = _images_at(sources_of_paths([path]))
    return Found(path, replace(images, notes=(*notes, *images.notes)), is_annotated=False)


def _images_at(sources: Sequence[Any]) -> Dataset:
    from cellwright.core.dataset import Loaded, Sample
    from cellwright.core.instances import Instances

    samples, notes = [], []
    for source in sources:
        if as_utf8(source.path) != str(source.path):
            text = f"{as_utf8(source.path.name)} was left out: its name is not UTF-8"
            notes.append(Note("images were left out whose names are not UTF-8", text))
        else:
            samples.append(Sample(source.id, Path(source.path), (1, 1), Loaded(Instances.empty((1, 1)))))
    return Dataset(tuple(samples), (DEFAULT_CLASS,), notes=tuple(notes))


class Page:
    """What the routes of the page work on."""

    def __init__(self, project: Project) -> None:
        self.project, self.events = project, project.events
        self.kept = Kept(BUDGET)
        self.jobs: Any = None  # a `serve.jobs.JobQueue`, while the server runs
        self.start_worker: Any = None  # for tests: starts its worker
        self._pixels: OrderedDict[str, Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def pixels(self, image_id: str) -> Pixels:
        """The pixels of an image, opened when first asked for. Raises what opening it raises."""
        record = self.project.image(image_id)
        path = self.project.path_of(record)
        state = state_of(path)
        with self._lock:
            if image_id in self._pixels and self._pixels[image_id].state == state:
                self._pixels.move_to_end(image_id)
                return self._pixels[image_id]
        source = Reading.recorded(record.reading).open(path)
        if source.image_hw != record.hw and record.hw is not None:
            raise InputError(
                "this image has another size than before",
                where=record.path,
                got=f"{source.image_hw[0]} x {source.image_hw[1]}",
                expected=f"{record.hw[0]} x {record.hw[1]}",
                remedy="put the image back as it was",
            )
        opened = Pixels(source, self.kept, state)
        with self._lock:
            self._pixels[image_id] = opened
            while len(self._pixels) > 1 and (
                len(self._pixels) > _OPEN_PIXELS or sum(one.n_bytes for one in self._pixels.values()) > _PIXEL_BYTES
            ):
                self._pixels.popitem(last=False)
        return opened


def default_folder(source: Path | None) -> Path:
    """The project for what is opened: itself if it is one, else a folder beside it."""
    if source is None:
        return Path("cellwright_project")
    if is_project(source):
        return source
    if not source.exists():
        raise InputError("there is no such file or folder", where=source, expected="a file or folder that exists")
    return source.parent / f"{stem_of(source) if source.is_file() else source.resolve().name}_project"


def is_project(folder: Path) -> bool:
    """Whether a folder is a project that was served before."""
    with suppress(CellwrightError, OSError):
        claim = Claim.read(folder)
        return claim is not None and claim.verb == "serve"
    return False
