"""Kaggle's run-length tables: one row per object, with runs as "start length" pairs counted from 1.

| format | columns | pixel order |
|---|---|---|
| `rle_csv`: Sartorius training table | id, annotation, width, height, cell_type, ... | along rows |
| `rle_csv_submission`: Sartorius submission | id, predicted | along rows, no pixel in two objects |
| `dsb2018_csv`: DSB2018 | ImageId, EncodedPixels[, Height, Width] | down columns |

For a column ``rle`` there is no convention: the order is detected, or given as `ReadOptions.rle_order`. `settle_order`
describes how a wrong order is noticed. A row without runs denotes an image without objects.
"""

from __future__ import annotations

import csv
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError, OutputError, UsageError
from cellwright.core.files import atomic_path
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions, WriteOptions
from cellwright.data.formats.csv_table import Row, first_header, read_rows
from cellwright.data.formats.paths import ImageFinder, copy_image, first_files, output_path, root_of, walk
from cellwright.data.images.read import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)

Order = Literal["row", "column"]

_ID_COLUMNS = ("id", "imageid")
_CLASS_COLUMNS = ("cell_type", "class")
# The pixel order that the name of the run-length column implies, by the conventions of the competitions that use it.
_ORDERS: dict[str, Order | None] = {
    "annotation": "row",
    "predicted": "row",
    "encodedpixels": "column",
    "rle_mask": "column",
    "rle": None,
}
_MAX_SIDE = 1_000_000
_IMAGE_DEPTH = 4

# How many objects are decoded in both orders to detect a wrong one.
_SAMPLED_OBJECTS = 200


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
        with atomic_path(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.header)
            writer.writerows(rows)
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
    run_columns = ("annotation", "rle")
    header = ("id", "annotation", "width", "height", "cell_type", "object_id", "score")
    file_name = "annotations.csv"

    def rows_of(self, sample: Sample, class_names: Sequence[str]) -> list[Sequence[object]]:
        instances = _with_pixels(sample.read_instances(), sample.id)
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
        masks = _disjoint(sample.read_instances(), sample.id)
        return [(sample.id, text) for text in encode(masks, "row") or [""]]


class Dsb2018Csv(_RunLengthTable):
    """DSB2018's table. Overlaps are kept; ids, classes, scores, sizes and ignore flags are lost."""

    name = "dsb2018_csv"
    description = "Kaggle table ImageId, EncodedPixels (DSB2018), runs down columns; loses ids, classes, scores, sizes"
    run_columns = ("encodedpixels", "rle_mask")
    header = ("ImageId", "EncodedPixels")
    file_name = "stage1_train_labels.csv"

    def rows_of(self, sample: Sample, class_names: Sequence[str]) -> list[Sequence[object]]:
        masks = _with_pixels(sample.read_instances(), sample.id).masks
        return [(sample.id, text) for text in encode(masks, "column") or [""]]


# Reading


@dataclass(frozen=True)
class _Columns:
    """The names (lower case) of the columns of one table; ``kind``, the class column, is None if there is none."""

    image: str
    runs: str
    kind: str | None

    @staticmethod
    def of(header: Sequence[str]) -> _Columns | None:
        image = next((name for name in _ID_COLUMNS if name in header), None)
        runs = next((name for name in _ORDERS if name in header), None)
        kind = next((name for name in _CLASS_COLUMNS if name in header), None)
        return _Columns(image, runs, kind) if image and runs else None


def _table_of(path: Path) -> tuple[Path, _Columns] | None:
    """The table at ``path``, or the only one directly in the folder, disregarding a sample submission."""
    files = [path] if path.is_file() else [file for file in first_files(path) if file.parent == path]
    tables = []
    for file in files:
        columns = _Columns.of(first_header(file)) if file.suffix.lower() == ".csv" else None
        if columns is not None and (path == file or file.stem != "sample_submission"):
            tables.append((file, columns))
    return tables[0] if len(tables) == 1 else None


@dataclass(frozen=True)
class RunText:
    """The runs of one object as text, and the location (file, line, column) for messages."""

    text: str
    where: str


@dataclass(frozen=True)
class _Object:
    runs: RunText
    class_name: str
    object_id: int | None
    score: float | None


@dataclass(frozen=True)
class LoadRuns:
    """Decodes the rows of one image; ``class_ids`` (N,) are those of the ``objects``."""

    objects: tuple[_Object, ...]
    class_ids: tuple[int, ...]
    image_hw: tuple[int, int]
    order: Order
    scored: bool

    def __call__(self) -> Instances:
        if not self.objects:
            return Instances.empty(self.image_hw, scored=self.scored)
        masks = decode([entry.runs for entry in self.objects], self.image_hw, self.order)
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
    kinds = sorted({row.cells[columns.kind] for row in rows if row.cells[columns.runs].strip()}) if columns.kind else []
    names = options.select_classes(kinds, file)
    by_image: dict[str, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row.text(columns.image), []).append(row)
    files = _images_below(root_of(file))
    finder = ImageFinder(options)
    prepared = []
    for image_id, image_rows in options.track(by_image.items(), "reading headers", len(by_image)):
        image_file = _only(files.get(image_id, []), file, image_id)
        image = finder.find(file, image_id, _recorded_hw(image_rows), image_file)
        objects = [_object(row, columns) for row in image_rows if row.cells[columns.runs].strip()]
        kept = [entry for entry in objects if columns.kind is None or entry.class_name in names]
        prepared.append((image_id, image, tuple(kept)))
    evidence = [(entry.runs, image.image_hw) for _, image, objects in prepared for entry in objects]
    order = settle_order(evidence, _ORDERS[columns.runs], options.rle_order, file)
    scored = any(entry.score is not None for _, _, objects in prepared for entry in objects)
    samples = []
    for image_id, image, objects in prepared:
        class_ids = tuple(names.index(entry.class_name) if columns.kind else 0 for entry in objects)
        load = LoadRuns(objects, class_ids, image.image_hw, order, scored)
        size_um = image.pixel_size_um
        samples.append(Sample(image_id, image.path, image.image_hw, load, None, None, None, size_um, "rle_csv"))
    return Dataset(tuple(samples), names, root_of(file), info={"format": "rle_csv"})


def _images_below(root: Path) -> dict[str, list[Path]]:
    """Image files by stem, at most as deep as in the folders of the competitions."""
    images: dict[str, list[Path]] = {}
    for file in walk(root, _IMAGE_DEPTH):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.parent.name != "masks":
            images.setdefault(file.stem, []).append(file)
    return images


def _only(files: list[Path], table: Path, image_id: str) -> Path | None:
    if len(files) > 1:
        got = ", ".join(str(file) for file in files[:4])
        raise InputError(
            "several images have the name that a table uses",
            where=f"{table}, image {image_id}",
            got=got,
            remedy="rename the images so that each name occurs once",
        )
    return files[0] if files else None


def _recorded_hw(rows: list[Row]) -> tuple[int, int] | None:
    """Height and width from the rows of one image; None if the table has no such columns."""
    if not {"width", "height"} <= rows[0].cells.keys():
        return None
    sizes = {(row.whole("height", 1, _MAX_SIDE), row.whole("width", 1, _MAX_SIDE)): row for row in rows}
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


# Run-length text


def parse_runs(runs: RunText, image_hw: tuple[int, int]) -> np.ndarray:
    """Flat 0-based pixel positions (A,) int64, ascending and distinct.

    Raises `FormatError` for text that is not run-length text, and for runs that extend beyond the image.
    """
    tokens = runs.text.split()
    try:
        numbers = np.array(tokens, dtype=np.int64).reshape(-1, 2)
    except (ValueError, OverflowError):
        bad = next((token for token in tokens if not token.isdecimal()), None)
        got = f"{bad[:40]!r}" if bad is not None else f"{len(tokens)} numbers"
        expected = "pairs of whole numbers 'start length start length ...'"
        raise FormatError("not run-length text", where=runs.where, got=got, expected=expected) from None
    starts, lengths = numbers[:, 0] - 1, numbers[:, 1]
    size = image_hw[0] * image_hw[1]
    wrong = (starts < 0) | (lengths < 1) | (lengths > size) | (starts > size - lengths)
    if wrong.any():
        start, length = numbers[np.flatnonzero(wrong)[0]]
        raise FormatError(
            "a run extends beyond its image",
            where=runs.where,
            got=f"start {start}, length {length}",
            expected=f"within 1 to {size}, the pixels of {image_hw[0]} x {image_hw[1]} (height x width)",
            remedy="check that the table belongs to these images, and their width and height",
        )
    total = int(lengths.sum())
    if total > size:
        raise FormatError("runs overlap", where=runs.where, got=f"{total} px of runs", expected=f"at most {size} px")
    before = np.cumsum(lengths) - lengths
    return np.unique(np.repeat(starts - before, lengths) + np.arange(total))


def crop_of(positions: np.ndarray, image_hw: tuple[int, int], order: Order) -> tuple[np.ndarray, np.ndarray]:
    """Box (4,) int32 and crop (h, w) bool of flat positions (A,) counted in ``order``; the crop may be empty."""
    if positions.size == 0:
        return np.zeros(4, np.int32), np.zeros((0, 0), bool)
    if order == "row":
        y, x = np.divmod(positions, image_hw[1])
    else:
        x, y = np.divmod(positions, image_hw[0])
    box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.int32)
    crop = np.zeros((box[3] - box[1], box[2] - box[0]), bool)
    crop[y - box[1], x - box[0]] = True
    return box, crop


def decode(objects: Sequence[RunText], image_hw: tuple[int, int], order: Order) -> MaskSet:
    """The masks of one image."""
    cut = [crop_of(parse_runs(runs, image_hw), image_hw, order) for runs in objects]
    boxes = np.array([box for box, _ in cut], np.int32).reshape(-1, 4)
    return MaskSet.from_crops(boxes, [crop for _, crop in cut], image_hw)


def encode(masks: MaskSet, order: Order) -> list[str]:
    """Run-length text of each mask, with sorted runs of maximal length; ``""`` for an empty mask."""
    texts = []
    height, width = masks.image_hw
    for i in range(len(masks)):
        crop, (x0, y0) = masks.crop(i), masks.boxes[i, :2].astype(np.int64)
        if order == "row":
            y, x = np.nonzero(crop)
            positions = (y + y0) * width + x + x0
        else:
            x, y = np.nonzero(crop.T)
            positions = (x + x0) * height + y + y0
        texts.append(_runs_of(positions))
    return texts


def _runs_of(positions: np.ndarray) -> str:
    if positions.size == 0:
        return ""
    breaks = np.flatnonzero(np.diff(positions) > 1) + 1
    starts = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([starts, [positions.size]]))
    pairs = np.stack([positions[starts] + 1, lengths], axis=1)
    return " ".join(map(str, pairs.ravel().tolist()))


# Pixel order


def settle_order(
    objects: Sequence[tuple[RunText, tuple[int, int]]], declared: Order | None, requested: Order | None, where: object
) -> Order:
    """The pixel order in which to decode a table.

    declared: what the columns of the table imply by convention, or None. requested: what the user asks for, or None.

    An object that is decoded in the wrong order falls apart. A sample of the objects is therefore decoded in both
    orders, and the connected parts are counted. (A square image provides no evidence, since there the wrong order only
    transposes the objects.) Raises `FormatError` if the parts contradict the declared or requested order, and
    `UsageError` if there is neither and the parts are inconclusive.
    """
    parts, n_objects = _count_parts(objects)
    order = requested or declared
    if order is None:
        torn: Order = "row" if parts["row"] > parts["column"] else "column"
        whole: Order = "column" if torn == "row" else "row"
        if _many_more(parts[torn], parts[whole]):
            return whole
        raise UsageError(
            "this table does not say whether its runs follow rows or columns",
            where=where,
            got=f"{n_objects} objects have {parts['row']} parts by rows, {parts['column']} by columns",
            remedy='set `rle_order="row"` (as in Sartorius) or `rle_order="column"` (as in DSB2018)',
        )
    other: Order = "column" if order == "row" else "row"
    if _many_more(parts[order], parts[other]):
        raise FormatError(
            f"objects fall apart when their runs are read in {order} order",
            where=where,
            got=f"{n_objects} objects in {parts[order]} connected parts, compared to {parts[other]} in {other} order",
            expected="about one part per object",
            remedy=f'set `rle_order="{other}"`, or check the width and height of the images',
        )
    return order


def _many_more(torn: int, whole: int) -> bool:
    # In the wrong order, a cell of h rows has h parts. A few objects that really have two parts must not count.
    return torn > 2 * whole and torn >= whole + 4


def _count_parts(objects: Sequence[tuple[RunText, tuple[int, int]]]) -> tuple[dict[Order, int], int]:
    """The number of connected parts of a sample of objects in both orders, and the number of objects in the sample."""
    from scipy.ndimage import label

    useful = [(runs, hw) for runs, hw in objects if hw[0] != hw[1] and len(runs.text) > 3]
    step = max(1, len(useful) // _SAMPLED_OBJECTS)
    sampled = useful[::step][:_SAMPLED_OBJECTS]
    parts: dict[Order, int] = {"row": 0, "column": 0}
    for runs, image_hw in sampled:
        positions = parse_runs(runs, image_hw)
        for order in parts:
            labelled: Any = label(crop_of(positions, image_hw, order)[1], structure=np.ones((3, 3)))
            parts[order] += labelled[1]
    return parts, len(sampled)
