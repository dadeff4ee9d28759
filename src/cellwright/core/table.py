"""Tables of results: for the terminal, for Markdown reports, and as CSV files that spreadsheets open safely.

A spreadsheet takes a cell that begins with = + - or @ for a formula, which may start programs. Names of files and
classes come from anyone, so such text is written with an apostrophe before it, which spreadsheets do not show.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

T = TypeVar("T")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Table(NamedTuple):
    """A title (may be empty), column names, and rows with one value per column."""

    title: str
    columns: tuple[str, ...]
    rows: Iterable[Sequence[object]]


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; floats are rounded to four decimal places, NaN is shown as "-".

    >>> print(markdown_table(["metric", "value"], [("pq", 0.87774), ("n_truth", 100)]))
    | metric | value |
    |---|---|
    | pq | 0.8777 |
    | n_truth | 100 |
    """
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(markdown_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def markdown_cell(value: object) -> str:
    """One value of a Markdown table."""
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.4f}"
    return str(value).replace("|", "\\|")


def csv_cell(value: T) -> T | str:
    """A value for a CSV file: text that a spreadsheet would take for a formula gets an apostrophe; numbers stay.

    >>> [csv_cell(value) for value in ("=1+1", "-well_A", "-3.5", -3.5, "a=b", "'=x", "-")]
    ["'=1+1", "'-well_A", '-3.5', -3.5, 'a=b', "''=x", '-']
    """
    if not isinstance(value, str) or len(value) < 2 or not value.lstrip("'").startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def from_csv_cell(text: str) -> str:
    """The text of which `csv_cell` made a cell.

    >>> [from_csv_cell(csv_cell(text)) for text in ("=1+1", "'=x", "'quoted'", "-3.5")]
    ['=1+1', "'=x", "'quoted'", '-3.5']
    """
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA) else text


def rows_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows, the first of which is the header, as CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([csv_cell(value) for value in row] for row in rows)
    return text.getvalue()


def columns_csv(columns: Mapping[str, np.ndarray], float_format: str) -> str:
    """Columns of one length as CSV, as `frame_csv` of a table of them, without pandas; NaN is an empty cell."""
    texts = []
    for values in columns.values():
        cells: list[object] = values.tolist()
        if values.dtype.kind == "f":
            cells = ["" if value != value else float_format % value for value in cells]  # noqa: PLR0124 - NaN
        texts.append(cells if values.dtype.kind in "biuf" else map(csv_cell, cells))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[csv_cell(name) for name in columns], *zip(*texts, strict=True)])
    return text.getvalue()


def frame_csv(frame: pd.DataFrame, *, float_format: str | None = None, header: bool = True) -> str:
    """A pandas table without its index as CSV; NaN is an empty cell."""
    texts = {name: frame[name].map(csv_cell) for name in frame if frame[name].dtype.kind not in "biuf"}
    safe = frame.assign(**texts).rename(columns=csv_cell)
    return safe.to_csv(index=False, float_format=float_format, header=header, lineterminator="\n")
