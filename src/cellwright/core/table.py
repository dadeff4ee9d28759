"""A small table of results, for the terminal and for Markdown reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


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
