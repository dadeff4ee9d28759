"""The measurements of all images in one table: CSV, and Parquet beside it. Neither is ever in memory as a whole."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cellwright.core.files import atomic_path
from cellwright.core.table import from_csv_cell

if TYPE_CHECKING:
    import pyarrow as pa

NO_PARQUET = (
    'measurements.parquet needs another package, so there is only measurements.csv: pip install "cellwright[pyarrow]"'
)
_TEXTS, _FLAGS = ("image", "class"), ("touches_border",)
_INTEGERS = re.compile(r"label|object|t|z|area_px|ring_area_px|bbox_.*_px")
# What columns begin with where nuclei and cells are measured together.
_PART = re.compile(r"(nucleus|cell|cytoplasm)_")
# Bytes of the CSV file that are converted at once.
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class PlaneOf:
    """The time point and plane of an image of a stack; None where the stack is not taken apart, or there is no stack.

    objects: the number of an object in the stack, by its label in the plane; None if planes are not joined.
    """

    t: int | None
    z: int | None
    objects: Mapping[int, int] | None = None

    def columns(self, label: str) -> dict[str, object]:
        """The cells that say where an object is."""
        joined = {} if self.objects is None else {"object": self.objects.get(int(label), "")}
        return {**joined, "t": "" if self.t is None else self.t, "z": "" if self.z is None else self.z}


def pool_tables(tables: Sequence[Path], out: Path, planes: Sequence[PlaneOf] | None = None) -> None:
    """Join CSV tables to one, row by row, with their cells as they are.

    Columns that a table lacks stay empty; new columns follow those before. planes: of the image of each table, which
    adds the columns object, t and z after the label.
    """
    columns: dict[str, None] = {}
    if planes:
        columns = dict.fromkeys(["image", "label", *planes[0].columns("0")])
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            columns |= dict.fromkeys(next(csv.reader(file), []))
    with atomic_path(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as joined:
        writer = csv.DictWriter(joined, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        for table, plane in zip(tables, planes or [None] * len(tables), strict=True):
            with table.open(newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                writer.writerows(rows if plane is None else (row | plane.columns(row["label"]) for row in rows))


def can_write_parquet() -> bool:
    """Whether the extra package is there."""
    return find_spec("pyarrow") is not None


def write_parquet(table: Path, out: Path) -> None:
    """Convert a CSV table of measurements to Parquet, block by block; empty cells are null.

    The type of a column follows from its name, so that the tables of all folders fit together: text for image and
    class, integers for labels, areas and boxes in pixels, and float64 for all other measurements.
    """
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    with table.open(newline="", encoding="utf-8") as file:
        cells = next(csv.reader(file))
    types = {cell: _type_of(from_csv_cell(cell)) for cell in cells}
    schema = pa.schema([(from_csv_cell(cell), kind) for cell, kind in types.items()])
    read = pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    convert = pa_csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    with (
        pa_csv.open_csv(table, read_options=read, parse_options=parse, convert_options=convert) as blocks,
        atomic_path(out) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for block in blocks:
            columns = [_as_written(column) if column.type == pa.string() else column for column in block.columns]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _type_of(name: str) -> pa.DataType:
    import pyarrow as pa

    name = _PART.sub("", name, count=1) if _PART.match(name) else name
    if name in _TEXTS:
        return pa.string()
    if name in _FLAGS:
        return pa.bool_()
    return pa.int64() if _INTEGERS.fullmatch(name) else pa.float64()


def _as_written(column: pa.Array) -> pa.Array:
    """Text without the apostrophes of `csv_cell`."""
    import pyarrow as pa

    known = {text: from_csv_cell(text) for text in column.unique().to_pylist()}
    return pa.array([known[text] for text in column.to_pylist()], pa.string())
