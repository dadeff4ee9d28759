"""Kaggle's run-length tables: one row per object, with runs as "start length" pairs (see `rle_runs`).

| format | columns | pixel order |
|---|---|---|
| `rle_csv`: Sartorius training table | id, annotation, width, height, cell_type, ... | along rows |
| `rle_csv_submission`: Sartorius submission | id, predicted | along rows, no pixel in two objects |
| `dsb2018_csv`: DSB2018 | ImageId, EncodedPixels[, Height, Width] | down columns |

For a column ``rle`` (HuBMAP) there is no convention: the order is detected, or given as `ReadOptions.rle_order`. A row
without runs (empty, -1 or nan) denotes an image without objects. File names may stand for image ids; their suffix is
then no part of the sample id.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.core.files import plain_suffix, stem_of, write_text
from cellwright.core.geometry import MAX_SIDE
from cellwright.core.ignored import objects_only
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.core.notes import Note
from cellwright.core.table import rows_csv
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions, WriteOptions
from cellwright.data.formats.csv_table import Row, first_header, read_rows
from cellwright.data.formats.paths import (
    ANNOTATION_FOLDERS,
    ImageFinder,
    ImageIndex,
    copy_image,
    first_files,
    output_path,
    root_of,
    walk,
)
from cellwright.data.formats.rle_runs import (
    Evidence,
    First,
    Order,
    RunText,
    decode,
    encode,
    has_start_0,
    settle_first,
    settle_order,
)
from cellwright.data.images.read import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)

_ID_COLUMNS = ("id", "imageid", "image_id", "img_id", "image", "filename", "file_name")
_SIZE_COLUMNS = (("height", "width"), ("img_height", "img_width"), ("image_height", "image_width"))
_CLASS_COLUMNS = ("cell_type", "class")
# The pixel order that the name of the run-length column implies, by the conventions of the competitions that use it.
_ORDERS: dict[str, Order | None] = {
    "annotation": "row",
    "predicted": "row",
    "encodedpixels": "column",
    "rle_mask": "column",
    "rle": None,
    "segmentation": None,
}
# What tables write for an image without objects.
_NO_RUNS = ("", "-1", "nan", "none", "null", "na", "n/a", "[]", "1 0")
# How many images are examined for masks of whole images, and how many parts these have at least.
_FOREGROUND_SAMPLE, _MANY_PARTS = 8, 4
_IMAGE_DEPTH = 4
_SUFFIXES = (".csv", ".tsv")


class _RunLengthTable(Format):
    """One of the tables. A subclass says how to recognise it and how to write it; all are read in the same way.

    run_columns: names of the run-length column, lower case. header, file_name: of the table when written.
    """

    run_columns: ClassVar[tuple[str, ...]]
    header: ClassVar[tuple[str, ...]]
    file_name: ClassVar[str]

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is such a table, or a folder that contains exactly one."""
        if path.is_dir() and any(file.parent.name == "masks" for file in first_files(path)):
            return False  # a mask folder with a table in it
        table = _table_of(path)
        return table is not None and table[1].runs in self.run_columns

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Any of the tables. Ids are those of a column object_id, else 1..N by row.

        Image sizes come from the columns width and height, else from the images, which are searched below the folder of
        the table, else from ``options.images``.
        """
        return _read(path, options)

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write the table to ``out`` or ``out/<file_name>``, and the images next to it if ``copy_images`` is set."""
        rows: list[Sequence[object]] = []
        for sample in options.track(dataset, "writing runs", len(dataset)):
            rows += self.rows_of(sample, dataset.class_names)
        target = out if out.suffix.lower() == ".csv" else out / self.file_name
        write_text(target, rows_csv([self.header, *rows]))
        if not options.copy_images:
            return [target]
        copies = [copy_image(sample, output_path(target.parent, sample.id, "")) for sample in dataset]
        return [target, *(path for paths in copies for path in paths)]

    @abstractmethod
    def rows_of(self, sample: Sample, class_names: Sequence[str]) -> list[Sequence[object]]:
        """The rows of one image, at least one."""


class RleCsv(_RunLengthTable):
    """Sartorius's training table, with the additional columns object_id and score when written.

    Objects without a pixel and ignore flags are lost.
    """

    name = "rle_csv"
    description = (
        "Kaggle table id, annotation, width, height, cell_type (Sartorius), runs along rows; loses ignore flags, "
        "names of classes without objects"
    )
    run_columns = ("annotation", "rle", "segmentation")
    header = ("id", "annotation", "width", "height", "cell_type", "object_id", "score")
    file_name = "annotations.csv"

    def rows_of(self, sample: Sample, class_names: Sequence[str]) -> list[Sequence[object]]:
        instances = _with_pixels(objects_only(sample.read_instances()), sample.id)
        height, width = sample.image_hw
        rows: list[Sequence[object]] = []
        for k, text in enumerate(encode(instances.masks, "row")):
            score = "" if instances.scores is None else f"{float(instances.scores[k]):.9g}"
            name = class_names[int(instances.class_ids[k])]
            rows.append((sample.id, text, width, height, name, int(instances.ids[k]), score))
        return rows or [(sample.id, "", width, height, "", "", "")]


class RleCsvSubmission(_RunLengthTable):
    """Sartorius's submission.

    The competition refuses overlaps: pixels that predictions share go to the one with the higher score, with a warning.
    Ground truth has no scores, so overlaps in it raise `OutputError`. Ids, classes, scores and sizes are lost.
    """

    name = "rle_csv_submission"
    description = (
        "Kaggle submission id, predicted (Sartorius), runs along rows, no overlaps; loses ids, classes, scores, sizes"
    )
    run_columns = ("predicted",)
    header = ("id", "predicted")
    file_name = "submission.csv"

    def rows_of(self, sample: Sample, class_names: Sequence[str]) -> list[Sequence[object]]:
        masks = _disjoint(objects_only(sample.read_instances()), sample.id)
        return [(sample.id, text) for text in encode(masks, "row") or [""]]


class Dsb2018Csv(_RunLengthTable):
    """DSB2018's table. Overlaps are kept; ids, classes, scores, sizes and ignore flags are lost."""

    name = "dsb2018_csv"
    description = "Kaggle table ImageId, EncodedPixels (DSB2018), runs down columns; loses ids, classes, scores, sizes"
    run_columns = ("encodedpixels", "rle_mask")
    header = ("ImageId", "EncodedPixels")
    file_name = "stage1_train_labels.csv"

    def rows_of(self, sample: Sample, class_names: Sequence[str]) -> list[Sequence[object]]:
        masks = _with_pixels(objects_only(sample.read_instances()), sample.id).masks
        return [(sample.id, text) for text in encode(masks, "column") or [""]]


# Reading


@dataclass(frozen=True)
class _Columns:
    """The names (lower case) of the columns of one table; ``kind``, the class column, is None if there is none."""

    image: str
    runs: str
    kind: str | None
    is_ours: bool

    @staticmethod
    def of(header: Sequence[str]) -> _Columns | None:
        image = next((name for name in _ID_COLUMNS if name in header), None)
        runs = next((name for name in _ORDERS if name in header), None)
        kind = next((name for name in _CLASS_COLUMNS if name in header), None)
        return _Columns(image, runs, kind, "object_id" in header) if image and runs else None


def _table_of(path: Path) -> tuple[Path, _Columns] | None:
    """The table at ``path``, or the only one directly in the folder, disregarding a sample submission."""
    files = [path] if path.is_file() else [file for file in first_files(path) if file.parent == path]
    tables = []
    for file in files:
        columns = _Columns.of(first_header(file)) if plain_suffix(file) in _SUFFIXES else None
        if columns is not None and (path == file or stem_of(file) != "sample_submission"):
            tables.append((file, columns))
    return tables[0] if len(tables) == 1 else None


@dataclass(frozen=True)
class _Object:
    runs: RunText
    class_name: str
    object_id: int | None
    score: float | None


@dataclass(frozen=True)
class LoadRuns:
    """Decodes the rows of one image; ``class_ids`` (N,) are those of the ``objects``.

    split: whether a row is the foreground of a whole image, of which each connected part is an object.
    """

    objects: tuple[_Object, ...]
    class_ids: tuple[int, ...]
    image_hw: tuple[int, int]
    order: Order
    first: First
    scored: bool
    split: bool = False

    def __call__(self) -> Instances:
        if not self.objects:
            return Instances.empty(self.image_hw, scored=self.scored)
        masks = decode([entry.runs for entry in self.objects], self.image_hw, self.order, self.first)
        if self.split:
            return _parts_of(masks, self.class_ids)
        ids = [entry.object_id for entry in self.objects if entry.object_id is not None]
        scores = [entry.score for entry in self.objects if entry.score is not None]
        if len(set(ids)) < len(ids):
            where = self.objects[0].runs.where
            raise FormatError(
                "an object_id occurs twice in one image",
                where=f"the image of {where}",
                got=sorted(ids),
                remedy="number the objects of each image",
            )
        return Instances.from_masks(
            masks,
            class_ids=np.array(self.class_ids, np.int64),
            ids=np.array(ids, np.int64) if len(ids) == len(masks) else None,
            scores=np.array(scores, np.float32) if len(scores) == len(masks) else None,
        )


def _read(path: Path, options: ReadOptions) -> Dataset:
    table = _table_of(path)
    if table is None:
        raise InputError(
            "no run-length table here",
            where=path,
            expected="one CSV with columns id and annotation (or predicted), or ImageId and EncodedPixels",
            remedy="give the path of the table itself",
        )
    file, columns = table
    rows = read_rows(file)
    kinds = (
        sorted({row.cells[columns.kind] for row in rows if has_runs(row.cells[columns.runs])}) if columns.kind else []
    )
    names = options.select_classes(kinds, file)
    by_image: dict[str, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row.text(columns.image), []).append(row)
    index = ImageIndex(f for f in walk(root_of(file), _IMAGE_DEPTH) if f.parent.name.lower() not in ANNOTATION_FOLDERS)
    finder = ImageFinder(options)
    prepared = []
    for image_id, image_rows in options.track(by_image.items(), "reading headers", len(by_image)):
        given = None if options.images is not None else _only(index.find(image_id), file, image_id)
        image = finder.find(file, image_id, _recorded_hw(image_rows), given)
        objects = [_object(row, columns) for row in image_rows if has_runs(row.cells[columns.runs])]
        kept = [entry for entry in objects if columns.kind is None or entry.class_name in names]
        prepared.append((image_id, image, tuple(kept)))
    evidence = [
        Evidence(tuple(entry.runs for entry in objects), image.image_hw, image.path) for _, image, objects in prepared
    ]
    order, first, notes = _settle(evidence, columns, options, file)
    split = _is_foreground(evidence, order, first, options, file)
    scored = any(entry.score is not None for _, _, objects in prepared for entry in objects)
    samples = []
    for (_, image, objects), sample_id in zip(prepared, _without_suffixes(list(by_image)), strict=True):
        class_ids = tuple(names.index(entry.class_name) if columns.kind else 0 for entry in objects)
        load = LoadRuns(objects, class_ids, image.image_hw, order, first, scored, split)
        size_um = image.pixel_size_um
        samples.append(Sample(sample_id, image.path, image.image_hw, load, None, None, None, size_um, "rle_csv"))
    info = {"format": "rle_csv"}
    return Dataset(tuple(samples), names, root_of(file), info=info, notes=(*finder.notes, *notes))


def has_runs(cell: str) -> bool:
    """Whether the cell of a run-length column describes an object."""
    return cell.strip().lower() not in _NO_RUNS


def _settle(
    evidence: Sequence[Evidence], columns: _Columns, options: ReadOptions, file: Path
) -> tuple[Order, First, list[Note]]:
    """The order of the runs, the number of the first pixel, and what was assumed."""
    start: First = options.rle_first if options.rle_first is not None else 0 if has_start_0(evidence) else 1
    order, notes = settle_order(evidence, _ORDERS[columns.runs], options.rle_order, start, file)
    first, more = settle_first(evidence, order, options.rle_first, file)
    return order, first, [] if columns.is_ours else [*notes, *more]


def _is_foreground(evidence: Sequence[Evidence], order: Order, first: First, options: ReadOptions, file: Path) -> bool:
    """Whether each row is the foreground of a whole image, to be split into objects; `InputError` if that is unclear.

    HuBMAP's tables have one row per image, with all objects in it.
    """
    single = [image for image in evidence if image.runs]
    if not single or any(len(image.runs) > 1 for image in single):
        return False
    masks = [decode(image.runs, image.image_hw, order, first) for image in single[:_FOREGROUND_SAMPLE]]
    n_parts = sum(len(_parts_of(mask, (0,))) for mask in masks)
    if n_parts < 2 * len(masks) or n_parts < _MANY_PARTS:
        return False
    if options.foreground == "split":
        return True
    raise InputError(
        "each image of this table has one mask of several parts",
        where=file,
        got=f"{count(n_parts, 'part')} in {count(len(masks), 'image')}",
        expected="one row per object",
        remedy='set `foreground="split"` to make an object of each connected part; objects that touch become one',
    )


def _parts_of(masks: MaskSet, class_ids: Sequence[int]) -> Instances:
    """The connected parts (8 neighbours) of masks as objects."""
    from scipy.ndimage import label

    parts, of_class = [], []
    for k in range(len(masks)):
        labelled: Any = label(masks.crop(k), structure=np.ones((3, 3)))[0]  # type: ignore[index]
        found, _ = MaskSet.from_label_map(labelled)
        x0, y0 = masks.boxes[k, :2].tolist()
        boxes = found.boxes + np.array([x0, y0, x0, y0], np.int32)
        parts.append(MaskSet.from_crops(boxes, [found.crop(i) for i in range(len(found))], masks.image_hw))
        of_class += [class_ids[k]] * len(found)
    if not parts:
        return Instances.empty(masks.image_hw)
    return Instances.from_masks(concat(parts), class_ids=np.array(of_class, np.int64))


def _without_suffixes(image_ids: Sequence[str]) -> list[str]:
    """The image ids, without the suffix of an image file unless two would then be equal."""
    is_name = [plain_suffix(name) in IMAGE_SUFFIXES for name in image_ids]
    short = [
        (PurePosixPath(name).parent / stem_of(name)).as_posix() if named else name
        for name, named in zip(image_ids, is_name, strict=True)
    ]
    return short if len(set(short)) == len(short) else list(image_ids)


def _only(files: list[Path], table: Path, image_id: str) -> Path | None:
    if len(files) > 1:
        got = ", ".join(str(file) for file in files[:4])
        raise InputError(
            "several images have the name that a table uses",
            where=f"{table}, image {image_id}",
            got=got,
            remedy="rename the images so that each name occurs once, or set `images` to the folder of the right ones",
        )
    return files[0] if files else None


def _recorded_hw(rows: list[Row]) -> tuple[int, int] | None:
    """Height and width from the rows of one image; None if the table has no such columns."""
    columns = next((pair for pair in _SIZE_COLUMNS if set(pair) <= rows[0].cells.keys()), None)
    if columns is None:
        return None
    height, width = columns
    sizes = {(row.whole(height, 1, MAX_SIDE), row.whole(width, 1, MAX_SIDE)): row for row in rows}
    if len(sizes) > 1:
        where = list(sizes.values())[1].where
        raise FormatError("one image has two sizes", where=where, got=sorted(sizes), expected="one size")
    return next(iter(sizes))


def _object(row: Row, columns: _Columns) -> _Object:
    return _Object(
        RunText(row.cells[columns.runs], f"{row.where}, column {columns.runs}"),
        row.cells[columns.kind] if columns.kind else DEFAULT_CLASS,
        row.whole("object_id", 1, 2**62) if row.cells.get("object_id", "").strip() else None,
        row.share("score") if row.cells.get("score", "").strip() else None,
    )


# Writing


def _with_pixels(instances: Instances, where: str) -> Instances:
    filled = instances.masks.areas > 0
    if not filled.all():
        _log.warning("%s: %s without a pixel not written", where, count(int((~filled).sum()), "object"))
    return instances[filled]


def _disjoint(instances: Instances, where: str) -> MaskSet:
    """The masks without overlaps, in order. Shared pixels of predictions go to the higher score; overlapping ground
    truth raises `OutputError`."""
    filled = _with_pixels(instances, where)
    i, j, area = filled.masks.intersections(filled.masks)
    if not (i < j).any():
        return filled.masks
    if filled.scores is None:
        first, second = filled.ids[i[i < j][0]], filled.ids[j[i < j][0]]
        raise OutputError(
            "the masks of a submission must not overlap",
            where=where,
            got=f"objects {first} and {second} share {int(area[i < j][0])} px",
            remedy="write rle_csv or dsb2018_csv, which keep overlaps; predictions with scores are resolved by score",
        )
    ranked = filled.by_score()
    masks, ids = MaskSet.from_label_map(ranked.masks.to_label_map(ranked.ids))
    position = {int(number): k for k, number in enumerate(ids)}
    _log.warning(
        "%s: %s of predictions overlap; shared pixels went to the higher score, %s lost all pixels",
        where, count(int((i < j).sum()), "pair"), count(len(filled) - len(ids), "object"),
    )  # fmt: skip
    return masks[[position[int(number)] for number in filled.ids if int(number) in position]]
