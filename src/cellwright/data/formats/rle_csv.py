"""Kaggle run-length tables, in and out: one row an object, runs as "start length" pairs counted from 1.

| table | columns | order of pixels |
|---|---|---|
| `rle_csv`: Sartorius training | id, annotation, width, height, cell_type, ... | along rows |
| `rle_csv_submission`: Sartorius submission | id, predicted | along rows, no pixel in two objects |
| `dsb2018_csv`: DSB2018 | ImageId, EncodedPixels[, Height, Width] | down columns |

A column ``rle`` names no order: it is detected, or asked for. `settle_order` tells how a wrong order is caught. A row
without runs is an image without objects.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.core.files import atomic_path
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import kaggle_runs
from cellwright.data.formats.class_names import DEFAULT_CLASS, named_classes
from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
from cellwright.data.formats.csv_table import Row, first_header, read_rows
from cellwright.data.formats.kaggle_runs import Order, RunText
from cellwright.data.formats.pairing import Pictures, copy_image, first_files, output_path, root_of, walk
from cellwright.data.images.read import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)

_ID_COLUMNS = ("id", "imageid")
_CLASS_COLUMNS = ("cell_type", "class")
# What the name of the run-length column means by the convention of the contests that use it.
_ORDERS: dict[str, Order | None] = {
    "annotation": "row",
    "predicted": "row",
    "encodedpixels": "column",
    "rle_mask": "column",
    "rle": None,
}
_MAX_SIDE = 1_000_000
_IMAGE_DEPTH = 4


@dataclass(frozen=True)
class _Columns:
    """The names, lower case, of the columns of one table; None where it has none."""

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
    """The table at ``path``, or the only one directly in the folder (a sample submission does not count)."""
    files = [path] if path.is_file() else [file for file in first_files(path) if file.parent == path]
    tables = []
    for file in files:
        columns = _Columns.of(first_header(file)) if file.suffix.lower() == ".csv" else None
        if columns is not None and (path == file or file.stem != "sample_submission"):
            tables.append((file, columns))
    return tables[0] if len(tables) == 1 else None


def _sniff(path: Path, wanted: Sequence[str]) -> bool:
    if path.is_dir() and any(file.parent.name == "masks" for file in first_files(path)):
        return False  # a mask folder that keeps its table beside it
    table = _table_of(path)
    return table is not None and table[1].runs in wanted


def sniff(path: Path) -> bool:
    """Whether this is a table like Sartorius's training table, or a folder with one."""
    return _sniff(path, ("annotation", "rle"))


def sniff_submission(path: Path) -> bool:
    """Whether this is a table ``id, predicted``."""
    return _sniff(path, ("predicted",))


def sniff_dsb2018(path: Path) -> bool:
    """Whether this is a table ``ImageId, EncodedPixels``."""
    return _sniff(path, ("encodedpixels", "rle_mask"))


@dataclass(frozen=True)
class _Object:
    runs: RunText
    class_name: str
    object_id: int | None
    score: float | None


@dataclass(frozen=True)
class LoadRuns:
    """Decodes the rows of one image; ``class_ids`` (N,) belong to ``objects``."""

    objects: tuple[_Object, ...]
    class_ids: tuple[int, ...]
    image_hw: tuple[int, int]
    order: Order
    scored: bool

    def __call__(self) -> Instances:
        if not self.objects:
            return Instances.empty(self.image_hw, scored=self.scored)
        masks = kaggle_runs.decode([one.runs for one in self.objects], self.image_hw, self.order)
        ids = [one.object_id for one in self.objects if one.object_id is not None]
        scores = [one.score for one in self.objects if one.score is not None]
        if len(set(ids)) < len(ids):
            where = self.objects[0].runs.where
            raise FormatError(
                "an object_id stands twice in one image",
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


def read(path: Path, options: ReadOptions) -> Dataset:
    """Any of the tables. Sizes come from columns width and height, else from the images, which are sought below the
    table's folder, else from ``options.images``. Ids are those of a column object_id, else 1..N by row."""
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
    found = sorted({row.cells[columns.kind] for row in rows if row.cells[columns.runs].strip()}) if columns.kind else []
    names = named_classes(found, options, file)
    by_image: dict[str, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row.text(columns.image), []).append(row)
    images = _images_below(root_of(file))
    pictures = Pictures(options)
    prepared = []
    for image_id, own in options.track(by_image.items(), "reading headers", len(by_image)):
        picture = pictures.of(file, image_id, _recorded_hw(own), _only(images.get(image_id, []), file, image_id))
        objects = [_object(row, columns) for row in own if row.cells[columns.runs].strip()]
        kept = [one for one in objects if columns.kind is None or one.class_name in names]
        prepared.append((image_id, picture, tuple(kept)))
    evidence = [(one.runs, picture.image_hw) for _, picture, objects in prepared for one in objects]
    order = kaggle_runs.settle_order(evidence, _ORDERS[columns.runs], options.rle_order, file)
    scored = any(one.score is not None for _, _, objects in prepared for one in objects)
    samples = []
    for image_id, picture, objects in prepared:
        class_ids = tuple(names.index(one.class_name) if columns.kind else 0 for one in objects)
        load = LoadRuns(objects, class_ids, picture.image_hw, order, scored)
        size_um = picture.pixel_size_um
        samples.append(Sample(image_id, picture.path, picture.image_hw, load, None, None, None, size_um, "rle_csv"))
    return Dataset(tuple(samples), names, root_of(file), info={"format": "rle_csv"})


def _images_below(root: Path) -> dict[str, list[Path]]:
    """Image files by stem, not looking deeper than the contests' own folders do."""
    found: dict[str, list[Path]] = {}
    for file in walk(root, _IMAGE_DEPTH):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.parent.name != "masks":
            found.setdefault(file.stem, []).append(file)
    return found


def _only(files: list[Path], table: Path, image_id: str) -> Path | None:
    if len(files) > 1:
        got = ", ".join(str(file) for file in files[:4])
        raise InputError(
            "several images have the name that a table uses",
            where=f"{table}, image {image_id}",
            got=got,
            remedy="rename the images, so that each name stands once",
        )
    return files[0] if files else None


def _recorded_hw(rows: list[Row]) -> tuple[int, int] | None:
    """Height and width that the rows of one image state; None where the table has no such columns."""
    if not {"width", "height"} <= rows[0].cells.keys():
        return None
    sizes = {(row.whole("height", 1, _MAX_SIDE), row.whole("width", 1, _MAX_SIDE)): row for row in rows}
    if len(sizes) > 1:
        where = list(sizes.values())[1].where
        raise FormatError("one image is stated in two sizes", where=where, got=sorted(sizes), expected="one size")
    return next(iter(sizes))


def _object(row: Row, columns: _Columns) -> _Object:
    return _Object(
        RunText(row.cells[columns.runs], f"{row.where}, column {columns.runs}"),
        row.cells[columns.kind] if columns.kind else DEFAULT_CLASS,
        row.whole("object_id", 1, 2**62) if row.cells.get("object_id", "").strip() else None,
        row.share("score") if row.cells.get("score", "").strip() else None,
    )


def _target(out: Path, name: str) -> Path:
    return out if out.suffix.lower() == ".csv" else out / name


def _write_rows(target: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with atomic_path(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _copy_images(dataset: Dataset, target: Path, options: WriteOptions) -> list[Path]:
    if not options.copy_images:
        return []
    return [path for sample in dataset for path in copy_image(sample, output_path(target.parent, sample.id, ""))]


def write(dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
    """Sartorius's training table, ``out`` or ``out/annotations.csv``, with columns object_id and score added.

    Ignore flags are not carried, nor are objects without a pixel.
    """
    rows: list[Sequence[object]] = []
    for sample in options.track(dataset, "writing runs", len(dataset)):
        instances = _with_pixels(sample.read_instances(), sample.id)
        height, width = sample.image_hw
        for k, text in enumerate(kaggle_runs.encode(instances.masks, "row")):
            score = "" if instances.scores is None else f"{float(instances.scores[k]):.9g}"
            name = dataset.class_names[int(instances.class_ids[k])]
            rows.append((sample.id, text, width, height, name, int(instances.ids[k]), score))
        if not len(instances):
            rows.append((sample.id, "", width, height, "", "", ""))
    target = _target(out, "annotations.csv")
    _write_rows(target, ("id", "annotation", "width", "height", "cell_type", "object_id", "score"), rows)
    return [target, *_copy_images(dataset, target, options)]


def write_submission(dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
    """Sartorius's submission ``id, predicted``, ``out`` or ``out/submission.csv``.

    An image without objects keeps a row. The contest refuses overlaps: a pixel of two predictions goes to the one of
    higher score, with a notice. Truth with overlaps has no such rank: `OutputError`. Ids, classes, scores and sizes are
    not carried.
    """
    rows: list[Sequence[object]] = []
    for sample in options.track(dataset, "writing runs", len(dataset)):
        masks = _disjoint(sample.read_instances(), sample.id)
        texts = kaggle_runs.encode(masks, "row") or [""]
        rows += [(sample.id, text) for text in texts]
    target = _target(out, "submission.csv")
    _write_rows(target, ("id", "predicted"), rows)
    return [target, *_copy_images(dataset, target, options)]


def write_dsb2018(dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
    """DSB2018's ``ImageId, EncodedPixels``, ``out`` or ``out/stage1_train_labels.csv``, runs down the columns.

    Overlaps are kept. Ids, classes, scores, sizes and ignore flags are not carried.
    """
    rows: list[Sequence[object]] = []
    for sample in options.track(dataset, "writing runs", len(dataset)):
        texts = kaggle_runs.encode(_with_pixels(sample.read_instances(), sample.id).masks, "column") or [""]
        rows += [(sample.id, text) for text in texts]
    target = _target(out, "stage1_train_labels.csv")
    _write_rows(target, ("ImageId", "EncodedPixels"), rows)
    return [target, *_copy_images(dataset, target, options)]


def _with_pixels(instances: Instances, where: str) -> Instances:
    filled = instances.masks.areas > 0
    if not filled.all():
        _log.warning("%s: %d object(s) without a pixel are not written", where, int((~filled).sum()))
    return instances[filled]


def _disjoint(instances: Instances, where: str) -> MaskSet:
    """The masks without overlaps, in their order: by score for predictions; `OutputError` for overlapping truth."""
    filled = _with_pixels(instances, where)
    i, j, area = filled.masks.intersections(filled.masks)
    if not (i < j).any():
        return filled.masks
    if filled.scores is None:
        first, second = filled.ids[i[i < j][0]], filled.ids[j[i < j][0]]
        raise OutputError(
            "a submission may not hold overlapping masks",
            where=where,
            got=f"objects {first} and {second} share {int(area[i < j][0])} px",
            remedy="write rle_csv or dsb2018_csv, which keep overlaps; predictions with scores are resolved by score",
        )
    ranked = filled.by_score()
    masks, ids = MaskSet.from_label_map(ranked.masks.to_label_map(ranked.ids))
    kept = {int(one): k for k, one in enumerate(ids)}
    _log.warning(
        "%s: %d pairs of predictions overlap; shared pixels went to the higher score, %d object(s) have none left",
        where, int((i < j).sum()), len(filled) - len(ids),
    )  # fmt: skip
    return masks[[kept[int(one)] for one in filled.ids if int(one) in kept]]


FORMAT = Format(
    name="rle_csv",
    describe="Kaggle table id, annotation, width, height, cell_type (Sartorius), runs along rows; loses ignore flags, "
    "names of classes without objects",
    sniff=sniff,
    read=read,
    write=write,
)
FORMAT_SUBMISSION = Format(
    name="rle_csv_submission",
    describe="Kaggle submission id, predicted (Sartorius), runs along rows, no overlaps; loses ids, classes, scores, "
    "sizes",
    sniff=sniff_submission,
    read=read,
    write=write_submission,
)
FORMAT_DSB2018 = Format(
    name="dsb2018_csv",
    describe="Kaggle table ImageId, EncodedPixels (DSB2018), runs down columns; loses ids, classes, scores, sizes",
    sniff=sniff_dsb2018,
    read=read,
    write=write_dsb2018,
)
