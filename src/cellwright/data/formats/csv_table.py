"""Read a CSV table, with errors that name file, line and column."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cellwright.core.errors import FormatError
from cellwright.core.files import read_text
from cellwright.core.table import from_csv_cell
from cellwright.data.formats.paths import first_bytes


@dataclass(frozen=True)
class Row:
    """One row: the cells by lower-case column name, and its location for messages."""

    cells: dict[str, str]
    where: str

    def text(self, column: str) -> str:
        """A cell that must not be empty."""
        value = self.cells[column].strip()
        if not value:
            raise FormatError(
                "a cell is empty", where=f"{self.where}, column {column}", remedy="fill it in, or remove the row"
            )
        return value

    def whole(self, column: str, lowest: int, highest: int) -> int:
        """A cell that must be a whole number in [lowest, highest]."""
        value = self.cells[column].strip()
        number = int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else -1
        if not lowest <= number <= highest:
            raise FormatError(
                "a cell is out of range",
                where=f"{self.where}, column {column}",
                got=repr(value[:40]),
                expected=f"a whole number from {lowest} to {highest}",
            )
        return number

    def share(self, column: str) -> float:
        """A cell that must be a number in [0, 1]."""
        value = self.cells[column].strip()
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number <= 1:
            where = f"{self.where}, column {column}"
            raise FormatError(
                "a cell is out of range", where=where, got=repr(value[:40]), expected="a number from 0 to 1"
            )
        return number


# What separates cells; Excel writes semicolons where the comma is the decimal mark.
_DELIMITERS = ",;\t"


def first_header(path: Path) -> tuple[str, ...]:
    """The lower-case column names in the first line of a file, empty if there are none. Never raises."""
    try:
        line = first_bytes(path).splitlines()[0].decode("utf-8-sig")
        return tuple(name.strip().lower() for name in next(csv.reader([line], delimiter=_delimiter(line))))
    except (UnicodeDecodeError, IndexError, StopIteration, csv.Error):
        return ()


def _delimiter(line: str) -> str:
    """The delimiter that occurs most often in the header."""
    return max(_DELIMITERS, key=line.count)


def read_rows(path: Path) -> list[Row]:
    """All rows of a table with a header, separated by commas, semicolons or tabs, in UTF-8 or UTF-16; blank lines are
    ignored.

    Raises `FormatError` that names the line if it has too few or too many cells or is not text.
    """
    text = read_text(path, "table")
    rows: list[Row] = []
    header: list[str] | None = None
    delimiter = _delimiter(text.partition("\n")[0])
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    # The runs of a large object may exceed the csv module's default limit of 131,072 characters per cell.
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if header is None:
                header = [name.strip().lower() for name in cells]
                _check_header(header, where)
            elif cells:
                rows.append(_row(header, cells, where))
    except csv.Error as error:
        raise FormatError(
            "this table is malformed",
            where=f"{path}, line {reader.line_num}",
            got=str(error),
            remedy="save the table again as CSV",
        ) from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _check_header(header: list[str], where: str) -> None:
    duplicates = [name for name, n in Counter(header).items() if n > 1]
    if duplicates:
        raise FormatError(
            "a column occurs twice in this table",
            where=where,
            got=", ".join(sorted(duplicates)),
            remedy="remove or rename one of them",
        )


def _row(header: list[str], cells: list[str], where: str) -> Row:
    if len(cells) != len(header):
        raise FormatError(
            "a row and the header differ in the number of cells",
            where=where,
            got=f"{len(cells)} cells",
            expected=f"{len(header)}: {', '.join(header)}"[:200],
            remedy="check for a missing comma, or a truncated file",
        )
    return Row(dict(zip(header, map(from_csv_cell, cells), strict=True)), where)
