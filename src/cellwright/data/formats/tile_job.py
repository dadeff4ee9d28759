"""The folder of an image that was predicted tile by tile (``docs/scale.md``), as a dataset of one image.

The label image is read, so that labels which were corrected count; classes and scores are those of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.claim import Claim, check_complete, is_as_written
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import CellwrightError, FormatError, InputError, UsageError
from cellwright.core.files import read_json, stem_of
from cellwright.core.geometry import MAX_SIDE, box_areas
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.memory import check_memory
from cellwright.core.notes import Note
from cellwright.core.result_folders import JOB_FILE, is_job_folder
from cellwright.core.text import count, listed
from cellwright.data.formats.contract import Format, ReadOptions
from cellwright.data.formats.label_kinds import MAX_CLASSES, PARTS_PER_VALUE
from cellwright.data.formats.large_labels import read_large_labels
from cellwright.data.formats.paths import GivenImages
from cellwright.data.images.calibration import as_pixel_size
from cellwright.data.images.reading import Reading

if TYPE_CHECKING:
    import pandas as pd

LABELS_TIFF, LABELS_ZARR, OUTLINES = "labels.tif", "labels.zarr", "objects.geojson.gz"
TABLE_PARQUET, TABLE_CSV = "objects.parquet", "objects.csv.gz"
# Memory per byte of all boxes while labels become masks, and per object.
_BYTES_PER_BOX_PX, _BYTES_PER_OBJECT = 4, 1000
_SIDES = ["bbox_x0_px", "bbox_y0_px", "bbox_x1_px", "bbox_y1_px"]
_AGAIN = "write the outputs again: cellwright job finish"


class TileJob(Format):
    name = "tile_job"
    description = "the folder of an image that cellwright predicted tile by tile; corrected labels count"

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is the folder of a tile job."""
        return path.is_dir() and is_job_folder(path)

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """One sample: the image of the job, with its objects, their classes and scores.

        Raises `InputError` for a job that is not complete, or whose outlines were edited.
        """
        if not self.sniff(path):
            raise InputError("this is not the folder of a tile job", where=path, expected=f"a folder with {JOB_FILE}")
        check_complete(path)
        record = _Record.read(path)
        labels = _labels_of(path)
        sample_id = stem_of(record.name)
        image, notes = _image_of(path, record, options)
        load = _LoadJob(path, labels, record.image_hw, record.class_names)
        sample = Sample(sample_id, image, record.image_hw, load, pixel_size_um=record.pixel_size_um, source=self.name)
        class_names = options.select_classes(record.class_names, path)
        if class_names != record.class_names:
            remedy = "omit `classes`, or export the job to GeoJSON and read that"
            raise UsageError("the classes of a tile job cannot be selected", where=path, remedy=remedy)
        notes = (*notes, *_edited(path), *record.notes)
        info = record.reading.to_dict() | {"format": self.name}
        return Dataset((sample,), class_names, root=path, info=info, notes=notes)


@dataclass(frozen=True)
class _Record:
    """What of ``job.json`` a reader of its objects needs."""

    path: str | None
    fingerprint: str
    image_hw: tuple[int, int]
    pixel_size_um: tuple[float, float] | None
    class_names: tuple[str, ...]
    reading: Reading
    regions: tuple[str, ...]
    tissue: str | None

    @property
    def name(self) -> str:
        return "image" if self.path is None else Path(self.path).name

    @property
    def notes(self) -> list[Note]:
        notes = []
        if self.regions:
            text = f"only a part of this image was predicted ({listed(self.regions)}): there are no objects elsewhere"
            notes.append(Note("only a part of an image was predicted", text, self.name))
        if self.tissue is not None:
            text = f"tiles without tissue ({self.tissue}) were skipped: objects annotated there count as missed"
            notes.append(Note("tiles without tissue were skipped", text, self.name))
        return notes

    @staticmethod
    def read(folder: Path) -> _Record:
        content = read_json(folder / JOB_FILE)
        try:
            source, options = content["source"], dict(content["request"].get("options", {}))
            height, width = source["image_hw"]
            if not all(0 < int(side) <= MAX_SIDE for side in (height, width)):
                raise ValueError(f"a height of {height} and a width of {width}")
            return _Record(
                None if source["path"] is None else str(source["path"]),
                str(source["fingerprint"]),
                (int(height), int(width)),
                as_pixel_size(source.get("pixel_size_um")),
                tuple(map(str, content["class_names"])),
                Reading.recorded(dict(options.get("reading", {}))),
                tuple(map(str, options.get("roi") or ())),
                None if content.get("tissue") is None else _name_of_tissue(str(content["tissue"]["word"])),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, UsageError) as error:
            where, remedy = folder / JOB_FILE, "start the job again in another folder"
            raise FormatError(
                "the record of this job is damaged", where=where, got=str(error).replace("\n", ";")[:300], remedy=remedy
            ) from error


def _name_of_tissue(word: str) -> str:
    """ "auto", or the name of a mask, whose digest follows it."""
    return word.rpartition(" ")[0] or word


def _labels_of(folder: Path) -> Path:
    found = [folder / name for name in (LABELS_ZARR, LABELS_TIFF) if (folder / name).exists()]
    if len(found) != 1:
        got = "both" if found else "none"
        expected = f"{LABELS_ZARR} or {LABELS_TIFF}"
        raise InputError("a tile job has one label image", where=folder, got=got, expected=expected, remedy=_AGAIN)
    return found[0]


def _image_of(folder: Path, record: _Record, options: ReadOptions) -> tuple[Path | None, tuple[Note, ...]]:
    """The image of the job, if it is there, and a note if it is not as it was."""
    if options.images is not None:
        found = GivenImages(options.images).find(folder / JOB_FILE, record.name)
        image = found.image_path if isinstance(found, Sample) else found
        if image is not None:
            return image, ()
    elif record.path is not None and Path(record.path).exists():
        image = Path(record.path)
        with suppress(CellwrightError):
            if record.reading.open(image).fingerprint() == record.fingerprint:
                return image, ()
        text = "warning: the image has changed since it was predicted"
        return image, (Note("an image has changed since it was predicted", text, record.name),)
    if options.require_images:
        where = record.path if options.images is None else folder
        remedy = "set `images` to the image, or to its folder"
        raise InputError("the image of this job is not there", where=where, expected=record.name, remedy=remedy)
    return None, ()


def _edited(folder: Path) -> list[Note]:
    """A note if the labels were corrected. Raises `InputError` if the outlines were, which are not read."""
    claim = Claim.read(folder)
    if claim is not None and OUTLINES in claim.files and not is_as_written(folder, OUTLINES, claim.files[OUTLINES]):
        raise InputError(
            "the outlines of this job were edited, but of a job its labels are read",
            where=folder / OUTLINES,
            remedy="give this file itself, or remove it",
        )
    labels = edited_labels(folder)
    if labels is None:
        return []
    return [Note("corrected labels were read", f"{labels.name} was edited: the objects in it were read", folder.name)]


def edited_labels(folder: Path) -> Path | None:
    """The label image of a job if it is not as it was written; None also if that is not known."""
    claim = Claim.read(folder)
    if claim is None:
        return None
    labels = _labels_of(folder)
    names = [name for name in claim.files if name == labels.name or name.startswith(f"{labels.name}/")]
    same = ((folder / name).exists() and is_as_written(folder, name, claim.files[name]) for name in names)
    return None if all(same) else labels


@dataclass(frozen=True, eq=False)
class _LoadJob:
    """A `Sample.load` for the objects of a job."""

    folder: Path
    labels: Path
    image_hw: tuple[int, int]
    class_names: tuple[str, ...]

    def __call__(self) -> Instances:
        table = read_table(self.folder, ["label", "class", "score"])
        try:
            numbers, own_scores = (table[name].to_numpy(np.float64) for name in ("label", "score"))
            if not (np.isfinite(numbers).all() and (np.abs(numbers) < 2**53).all() and (numbers % 1 == 0).all()):
                raise ValueError("a label is not a whole number")
            if not ((own_scores >= 0) & (own_scores <= 1)).all():
                raise ValueError("a score is not between 0 and 1")
            boxes = read_table(self.folder, _SIDES).to_numpy(np.float64) if len(table) else np.zeros((0, 4))
            if not (np.abs(boxes) <= MAX_SIDE).all():
                raise ValueError("a box is not a box of pixels")
        except (TypeError, ValueError, OverflowError) as error:
            raise _damaged_table(self.folder, error) from error
        needed = float(box_areas(boxes).sum()) * _BYTES_PER_BOX_PX + len(table) * _BYTES_PER_OBJECT
        check_memory(needed, f"reading {count(len(table), 'object')}", where=self.folder)
        masks, ids = read_large_labels(self.labels, self.image_hw)
        _check_apart(masks, len(table), self.labels)
        rows, is_new = _rows_of(numbers.astype(np.int64), ids)
        if is_new.any() and len(self.class_names) > 1:
            raise InputError(
                "a new object in a label image has no class",
                where=self.labels,
                got=f"label {ids[is_new][0]}, which is not in the table of objects",
                expected=f"a row with its label and class: {', '.join(self.class_names)}",
            )
        class_ids, scores = np.zeros(len(ids), np.int64), np.ones(len(ids), np.float32)
        class_ids[~is_new] = self._class_ids(table["class"].tolist())[rows]
        scores[~is_new] = own_scores[rows]
        return Instances.from_masks(masks, ids=ids, class_ids=class_ids, scores=scores)

    def _class_ids(self, names: Sequence[str]) -> np.ndarray:
        number = {name: k for k, name in enumerate(self.class_names)}
        unknown = set(names) - set(number)
        if unknown:
            expected, got = ", ".join(self.class_names), min(map(str, unknown))
            raise InputError("unknown class in the table of objects", where=self.folder, got=got, expected=expected)
        return np.array([number[name] for name in names], np.int64)


def _check_apart(masks: MaskSet, n_predicted: int, labels: Path) -> None:
    """Raise `InputError` if few values in many parts took the place of many objects, as in a foreground mask."""
    if len(masks) > MAX_CLASSES or n_predicted <= PARTS_PER_VALUE * MAX_CLASSES:
        return
    n_parts = sum(map(len, masks.to_polygons()))
    if n_parts > PARTS_PER_VALUE * len(masks):
        raise InputError(
            "this label image no longer tells objects apart",
            where=labels,
            got=f"{count(len(masks), 'value')} in {count(n_parts, 'part')}",
            expected="a number of its own for each object, 0 for background",
            remedy="save the labels themselves, not a foreground mask",
        )


def _rows_of(labels: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row of the table of each object that has one, and which objects (N,) bool have none."""
    order = np.argsort(labels, kind="stable")
    place = np.minimum(np.searchsorted(labels[order], ids), max(len(labels) - 1, 0))
    is_new = labels[order][place] != ids if len(labels) else np.ones(len(ids), bool)
    return order[place[~is_new]], is_new


def read_table(folder: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """The table of objects of a job. Raises `UsageError` if a package is missing, `InputError` if there is no table."""
    import pandas as pd

    parquet, csv = folder / TABLE_PARQUET, folder / TABLE_CSV
    try:
        if parquet.is_file():
            return pd.read_parquet(parquet, columns=columns)
        if csv.is_file():
            return pd.read_csv(csv, usecols=columns)
    except ImportError as error:
        remedy = 'pip install "cellwright[pyarrow]"'
        raise UsageError("Parquet needs another package", where=parquet, got=str(error), remedy=remedy) from error
    except Exception as error:  # on damaged files, readers raise whatever their codecs raise
        raise _damaged_table(folder, error) from error
    raise InputError("this job has no table of objects", where=folder, expected=TABLE_PARQUET, remedy=_AGAIN)


def _damaged_table(folder: Path, error: Exception) -> FormatError:
    where = folder / TABLE_PARQUET if (folder / TABLE_PARQUET).is_file() else folder / TABLE_CSV
    got = f"{type(error).__name__}: {error}"[:200]
    return FormatError("the table of objects is damaged", where=where, got=got, remedy=_AGAIN)
