"""A prediction folder as input: what the user corrected in it counts.

A folder holds the objects of an image up to four times: as label image, ImageJ ROIs, QuPath GeoJSON, and in
``predictions.json``. The one that was edited after it was written is read instead of ``predictions.json``, and a note
says so. Objects are compared, not bytes, so saving a file again in another program is no edit. If two files of an image
were edited differently, reading that image raises an error; `ReadOptions.prefer` chooses.

``predictions.json`` stores digests of what was written (``info.written``). For folders of older versions, which lack
them, files are compared with the objects in ``predictions.json`` that reach the score threshold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.class_ids import NO_CLASS, values_of_class
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError
from cellwright.core.file_identity import FileIdentity
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.notes import Note, with_where
from cellwright.core.scores import ScoreThreshold, reaches_threshold, recorded_threshold
from cellwright.core.text import count
from cellwright.data.formats import geojson, imagej_roi, label_io
from cellwright.data.formats.coco import DATASET_NAME, PREDICTIONS_NAME, WRITTEN, Coco
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, Prefer, ReadOptions
from cellwright.data.formats.label_kinds import facts_of
from cellwright.data.formats.paths import output_path
from cellwright.data.formats.qupath import IGNORED_CLASS, read_features
from cellwright.data.images.names import CELL_MASKS
from cellwright.data.merge import RenumberedClasses

# The files of an image that can be edited, and what follows the image's id in their names; those that say most about an
# object first.
EDITABLE: dict[Prefer, str] = {"geojson": ".geojson", "rois": "_rois.zip", "masks": "_masks.tif"}
# A label image has no classes and no overlaps.
CELLS = "cell_masks"  # the label image of the cells around the objects, which is no other version of them
MOST_COMPLETE_FIRST: tuple[Prefer, ...] = ("geojson", "rois", "json", "masks")
EDITED = "edited files were read"
CONFLICT = "files of one image were edited differently"
UNREADABLE = "an edited file cannot be read"
# What the model was trained and tuned on, in the info of predictions.
SEEN = ("trained_on", "tuned_on")
_MIN_IOU = 0.5  # an edited object takes over class and score of a predicted one from this overlap


class Predictions(Format):
    name = "predictions"
    description = "a prediction folder of cellwright; files that were corrected in it count"

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is a folder with a ``predictions.json``."""
        return (path / PREDICTIONS_NAME).is_file() and not (path / DATASET_NAME).is_file()

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """The predictions with all candidates; of an image that was edited, the edited objects.

        Edited objects keep class and score of the predicted object they overlap most; new ones have score 1.
        """
        dataset = Coco().read(path / PREDICTIONS_NAME, replace(options, class_names=None))
        threshold, written = recorded_threshold(dataset.info), dataset.info.get(WRITTEN)
        names, samples, notes = list(dataset.class_names), [], list[Note]()
        for sample in options.track(dataset.samples, "looking for edited files", total=len(dataset)):
            known = written.get(sample.id) if isinstance(written, dict) else None
            image = _Image(path, sample, threshold, dataset.class_names, known if isinstance(known, dict) else None)
            load, image_notes = _choose(image, options.prefer)
            notes += with_where(image_notes, sample.id)
            names += [name for name in getattr(load, "class_names", ()) if name not in names]
            samples.append(sample if load is None else replace(sample, load=load))
        samples = [_with_class_ids(sample, names) for sample in samples]
        info = {key: value for key, value in dataset.info.items() if key != WRITTEN} | {"format": self.name}
        if isinstance(written, dict) and info.get("expand"):
            info[CELLS] = {name: files for name, files in written.items() if isinstance(files, dict) and CELLS in files}
        if len(names) > len(dataset.class_names):
            info.pop("category_ids", None)
            if isinstance(threshold, tuple):
                info["score_threshold"] = [*threshold, *[0.0] * (len(names) - len(threshold))]
        named = replace(dataset, samples=tuple(samples), class_names=tuple(names), info=info, notes=tuple(notes))
        return named if options.class_names is None else _with_classes(named, options, path)


def written_digests(instances: Instances, class_names: Sequence[str], files: Mapping[str, str]) -> dict[str, str]:
    """What `Predictions` needs to know later about the files just written for one image.

    instances: the objects in these files. files: digests of the files that were written (see `FileIdentity`).
    """
    return {"objects": _digest(instances, class_names), "labels": _digest(_as_labels(instances)), **files}


@dataclass(frozen=True)
class CellFile:
    """The label image of the cells of an image; calling it gives them.

    is_edited: whether it was changed since. other: the outlines in which the cells, too, are others now.
    """

    path: Path
    image_hw: tuple[int, int]
    is_edited: bool
    other: Path | None = None

    @staticmethod
    def of(folder: Path, dataset: Dataset, sample: Sample) -> CellFile | None:
        """That in a prediction folder, if there is one. dataset: as `Predictions` reads the folder."""
        path, outlines = (output_path(folder, sample.id, ending) for ending in (CELL_MASKS, EDITABLE["geojson"]))
        written = dataset.info.get(CELLS, {}).get(sample.id)
        if written is None or not path.is_file():
            return None
        file = CellFile(path, sample.image_hw, FileIdentity.of(path).digest != written[CELLS])
        is_same = not outlines.is_file() or FileIdentity.of(outlines).digest == written.get("geojson")
        return file if is_same or file._has(outlines, dataset.class_names) else replace(file, other=outlines)

    def _has(self, outlines: Path, class_names: tuple[str, ...]) -> bool:
        """Whether these are the cells in a GeoJSON."""
        try:
            cells = geojson.LoadFeatures(outlines, self.image_hw, class_names, class_names[0])()
        except InputError:
            return True  # reading its nuclei says what is wrong
        return _digest(_as_labels(cells)) == _digest(_as_labels(self()))

    def __call__(self) -> Instances:
        """Raises `InputError` for a file that cannot be read."""
        return _LoadLabels(self.path, self.image_hw)()


def is_correction(folder: Path, record: Dataset, kind: Prefer) -> bool:
    """Whether a changed file of an image can be read. record: the predicted objects of that image alone."""
    try:
        _Image(folder, record[0], 0.0, record.class_names, None).loader(kind)()
    except InputError:
        return False
    return True


def as_annotations(dataset: Dataset) -> Dataset:
    """The objects of a prediction folder or a tile job that the run reported, as annotations; other datasets as they
    are.
    """
    if dataset.info.get("format") not in (Predictions.name, "tile_job"):
        return dataset
    threshold = recorded_threshold(dataset.info)
    samples = [replace(sample, load=_LoadReported(sample.load, threshold)) for sample in dataset]
    info = {key: value for key, value in dataset.info.items() if key not in ("score_threshold", "expand", CELLS, *SEEN)}
    dataset = replace(dataset, samples=tuple(samples), info=info)
    if not np.any(threshold):
        return dataset  # of a tile job, which has no others
    limits = ", ".join(f"{limit:.3g}" for limit in np.unique(threshold))
    note = Note("uncertain objects were left out", f"predicted objects with a score below {limits} were left out")
    return replace(dataset, notes=(*dataset.notes, note))


def images_in_conflict(dataset: Dataset) -> set[str]:
    """The ids of images of which several files were edited differently, or one cannot be read."""
    return {note.where for note in dataset.notes if note.kind in (CONFLICT, UNREADABLE)}


def without_conflicts(dataset: Dataset) -> tuple[Dataset, list[InputError]]:
    """The images that can be read, and the errors of those of which several files were edited or one is damaged."""
    failing = images_in_conflict(dataset)
    errors = []
    for sample in dataset:
        if sample.id in failing:
            try:
                sample.read_instances()
            except InputError as error:
                errors.append(error)
    readable = dataset.with_samples([sample for sample in dataset if sample.id not in failing])
    notes = [
        replace(note, text=f"{note.text}, so the image was skipped") if note.where in failing else note
        for note in dataset.notes
    ]
    return replace(readable, notes=tuple(notes)), errors


# What was edited


@dataclass(frozen=True, eq=False)
class _Image:
    """One image of the folder. ``written``: its digests, None if an older version wrote the folder."""

    folder: Path
    sample: Sample
    threshold: ScoreThreshold
    class_names: tuple[str, ...]
    written: Mapping[str, str] | None

    def reported(self) -> Instances:
        """The objects of predictions.json that reach the score threshold."""
        instances = self.sample.read_instances()
        return instances[reaches_threshold(instances.scores, instances.class_ids, self.threshold)]

    def name(self, kind: Prefer) -> str:
        return PREDICTIONS_NAME if kind == "json" else self.file(kind).name

    def file(self, kind: Prefer) -> Path:
        return output_path(self.folder, self.sample.id, EDITABLE[kind])

    def loader(self, kind: Prefer) -> _LoadEdited:
        """Raises `InputError` if the file is damaged."""
        file, names = self.file(kind), list(self.class_names)
        load: Callable[[], Instances]
        match kind:
            case "geojson":
                unclassified = names[0] if len(names) == 1 else DEFAULT_CLASS
                features = read_features(file)
                # Of cells, the nuclei are what was predicted.
                nucleus = features.has_nuclei
                features = read_features(file, nucleus=True) if nucleus else features
                found = [feature.class_name or unclassified for feature in features.objects]
                names = list(dict.fromkeys([*names, *(name for name in found if name != IGNORED_CLASS)]))
                load = geojson.LoadFeatures(file, self.sample.image_hw, tuple(names), unclassified, nucleus)
                notes = features.notes
            case "rois":
                unclassified = names[0] if len(names) == 1 else DEFAULT_CLASS
                rois = imagej_roi.LoadRois((file,), self.sample.image_hw, (), unclassified, self.class_names)
                content = imagej_roi.read_content((file,))
                with_class = [roi for roi in content.rois if not imagej_roi.is_region(roi)]
                names = list(dict.fromkeys([*names, *map(rois.class_name, with_class)]))
                load, notes = replace(rois, class_names=tuple(names)), tuple(content.notes)
            case _:
                load, notes = _LoadLabels(file, self.sample.image_hw), ()
        return _LoadEdited(load, self.reported, tuple(names), self.threshold, file, kind == "masks", notes)


def _choose(image: _Image, prefer: Prefer | None) -> tuple[Callable[[], Instances] | None, Sequence[Note]]:
    """How to read the objects of an image (None: from predictions.json), and notes."""
    try:
        edited = _edited(image)
        if not edited:
            return None, ()
        kinds: list[Prefer] = [kind for kind in MOST_COMPLETE_FIRST if kind in edited]
        if not _agree(list(edited.values())):
            if prefer is None or (prefer != "json" and not image.file(prefer).is_file()):
                return _Raise(_conflict(image, kinds)), [Note(CONFLICT, _conflict(image, kinds).problem)]
            chosen = prefer
        else:
            chosen = kinds[0]
        note = _note(image, chosen, is_edited=chosen in edited)
        if chosen == "json":
            return None, [note]
        load = image.loader(chosen)
        load()
    except InputError as error:
        return _Raise(error), [Note(UNREADABLE, str(error.problem))]
    return load, [note, *load.notes]


def _note(image: _Image, kind: Prefer, *, is_edited: bool) -> Note:
    why = "was edited, so its objects were read" if is_edited else f'was read, as `prefer="{kind}"` says'
    return Note(EDITED, f"{image.name(kind)} {why}")


def _edited(image: _Image) -> dict[Prefer, _Versions]:
    """The files that differ from what was written, the one that says most about an object first."""
    changed: list[Prefer] = [kind for kind in EDITABLE if image.file(kind).is_file() and not _is_unchanged(image, kind)]
    if not changed:
        return {}
    names, reported = image.class_names, image.reported()
    base = _Versions(_digest(reported, names), _digest(_as_labels(reported)), has_classes=True)
    written = base if image.written is None else replace(base, **_of_objects(image.written, base))
    edited: dict[Prefer, _Versions] = {}
    for kind in changed:
        load = image.loader(kind)
        objects = load()
        versions = _Versions(
            _digest(objects, load.class_names), _digest(_as_labels(objects)), has_classes=kind != "masks"
        )
        if not _agree([versions, written]):
            edited[kind] = versions
    if image.written is not None and edited and not _agree([base, written]):
        edited["json"] = base
    if image.written is None and len(edited) > 1 and len(edited) == _n_files(image) and _agree(list(edited.values())):
        return {"json": base}  # all files say the same: it is predictions.json that was edited
    return edited


def _is_unchanged(image: _Image, kind: Prefer) -> bool:
    """Whether a file still has the bytes that were written, which is faster to tell than whether its objects differ."""
    return image.written is not None and image.written.get(kind) == FileIdentity.of(image.file(kind)).digest


def _n_files(image: _Image) -> int:
    return sum(image.file(kind).is_file() for kind in EDITABLE)


@dataclass(frozen=True)
class _Versions:
    """Digests of the objects of a file, with their classes if the file has them, and of their label image."""

    objects: str
    labels: str
    has_classes: bool


def _of_objects(written: Mapping[str, str], default: _Versions) -> dict[str, str]:
    return {"objects": written.get("objects", default.objects), "labels": written.get("labels", default.labels)}


def _agree(versions: Sequence[_Versions]) -> bool:
    """Whether files have the same objects. A label image is compared with the label images of the others."""
    complete = {version.objects for version in versions if version.has_classes}
    if len(complete) == 1 and all(version.has_classes for version in versions):
        return True
    return len(complete) <= 1 and len({version.labels for version in versions}) == 1


def _conflict(image: _Image, kinds: Sequence[Prefer]) -> InputError:
    options = " or ".join(f'`prefer="{kind}"`' for kind in kinds)
    return InputError(
        f"{' and '.join(image.name(kind) for kind in kinds)} of one image were edited differently",
        where=image.folder / image.sample.id,
        got="different objects",
        expected="one edited file",
        remedy=f"choose with {options}, or delete the file that does not count",
    )


def _digest(instances: Instances, class_names: Sequence[str] | None = None) -> str:
    """Identifies the objects that have a pixel, whatever their order and ids; with their classes if given."""
    masks = instances.masks
    names = None if class_names is None else values_of_class(instances.class_ids, class_names, "")
    objects = []
    for k in np.flatnonzero(masks.areas > 0).tolist():
        label = b"" if names is None else f"{names[k]}|{instances.ignore[k]}".encode()
        packed = np.packbits(masks.crop(k)).tobytes()
        objects.append(hashlib.blake2b(masks.boxes[k].astype("<i4").tobytes() + packed + label, digest_size=8).digest())
    whole = hashlib.blake2b(repr(tuple(map(int, instances.image_hw))).encode(), digest_size=16)
    for digest in sorted(objects):
        whole.update(digest)
    return whole.hexdigest()


def _as_labels(instances: Instances) -> Instances:
    """The objects as a label image shows them: shared pixels belong to the higher score."""
    best_first = instances.by_score()
    return Instances.from_masks(MaskSet.from_label_map(best_first.masks.to_label_map())[0])


# Loading


@dataclass(frozen=True, eq=False)
class _LoadLabels:
    """A `Sample.load` for a label image."""

    path: Path
    image_hw: tuple[int, int]

    def __call__(self) -> Instances:
        labels = label_io.read_label_map(self.path)
        if labels.shape != tuple(self.image_hw):
            raise InputError(
                "this label image has another size than its image",
                where=self.path,
                got=f"{labels.shape[0]} x {labels.shape[1]} (height x width)",
                expected=f"{self.image_hw[0]} x {self.image_hw[1]}",
                remedy="save it at full size, without cropping or scaling",
            )
        if facts_of(label_io.Raster(labels), self.path.name).kind not in ("labels", "empty"):
            n_values = np.unique(labels[labels > 0]).size
            raise InputError(
                "this label image no longer tells objects apart",
                where=self.path,
                got=f"{count(n_values, 'value')} in many separate parts",
                expected="a number of its own for each object, 0 for background",
                remedy="save the labels themselves, not a foreground mask",
            )
        return Instances.from_label_map(labels)


@dataclass(frozen=True, eq=False)
class _LoadEdited:
    """A `Sample.load` for an edited file: its objects with the scores (and for a label image, the classes) of the
    predicted objects that they overlap.

    predicted: those objects. class_names: the classes of the objects, those of the folder first.
    """

    load: Callable[[], Instances]
    predicted: Callable[[], Instances]
    class_names: tuple[str, ...]
    threshold: ScoreThreshold
    path: Path
    takes_classes: bool
    notes: tuple[Note, ...] = ()

    def __call__(self) -> Instances:
        instances, predicted = self.load(), self.predicted()
        partner = _partners(instances.masks, predicted.masks)
        is_new = partner < 0
        scores = np.ones(len(instances), np.float32)
        if predicted.scores is not None:
            scores[~is_new] = predicted.scores[partner[~is_new]]
        class_ids, ignore = instances.class_ids, instances.ignore
        if self.takes_classes:
            if is_new.any() and len(self.class_names) > 1:
                raise InputError(
                    "a new object in a label image has no class",
                    where=self.path,
                    got=f"label {instances.ids[is_new][0]}, which overlaps no predicted object",
                    expected=", ".join(self.class_names),
                    remedy="draw it in the GeoJSON or the ROIs of this image, which contain classes",
                )
            class_ids, ignore = np.zeros(len(instances), np.int64), np.zeros(len(instances), bool)
            class_ids[~is_new] = predicted.class_ids[partner[~is_new]]
            ignore[~is_new] = predicted.ignore[partner[~is_new]]
        # An object that was moved to another class counts, whatever the threshold of that class.
        limits = np.asarray(self.threshold, np.float32)
        known = ~ignore & (class_ids < limits.size if limits.ndim else True)
        scores[known] = np.maximum(scores[known], limits[class_ids[known]] if limits.ndim else limits)
        return replace(instances, scores=scores, class_ids=class_ids, ignore=ignore, columns={})


def _partners(masks: MaskSet, predicted: MaskSet) -> np.ndarray:
    """For each mask (N,) the index of the predicted one that it overlaps most, -1 if by less than half."""
    partner = np.full(len(masks), -1, np.int64)
    i, j, iou = masks.iou(predicted)
    order = np.argsort(iou, kind="stable")  # the largest overlap comes last and stays
    order = order[iou[order] >= _MIN_IOU]
    partner[i[order]] = j[order]
    return partner


@dataclass(frozen=True, eq=False)
class _LoadReported:
    """A `Sample.load` for the objects that reach the threshold of their class, without scores and measurements."""

    load: Callable[[], Instances]
    threshold: ScoreThreshold

    def __call__(self) -> Instances:
        instances = self.load()
        reported = instances[reaches_threshold(instances.scores, instances.class_ids, self.threshold)]
        return replace(reported, scores=None, columns={})


@dataclass(frozen=True, eq=False)
class _Raise:
    """A `Sample.load` of an image whose files contradict each other or are damaged."""

    error: InputError

    def __call__(self) -> Instances:
        raise self.error


def _with_class_ids(sample: Sample, names: Sequence[str]) -> Sample:
    """The sample with the class ids of ``names``; other images may have brought other new classes."""
    load = sample.load
    if not isinstance(load, _LoadEdited) or load.class_names == tuple(names[: len(load.class_names)]):
        return sample
    return replace(sample, load=RenumberedClasses(load, np.array([names.index(name) for name in load.class_names])))


def _with_classes(dataset: Dataset, options: ReadOptions, path: Path) -> Dataset:
    """Only the classes of ``options.class_names``, with their score thresholds."""
    names = options.select_classes(dataset.class_names, path)
    new_ids = np.array([names.index(name) if name in names else NO_CLASS for name in dataset.class_names], np.int64)
    threshold = recorded_threshold(dataset.info)
    info: dict[str, Any] = {key: value for key, value in dataset.info.items() if key != "category_ids"}
    if isinstance(threshold, tuple):
        info["score_threshold"] = [threshold[dataset.class_names.index(name)] for name in names]
    samples = [replace(sample, load=RenumberedClasses(sample.load, new_ids)) for sample in dataset]
    return replace(dataset, samples=tuple(samples), class_names=names, info=info)
