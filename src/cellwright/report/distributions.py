"""What reports say about the objects of a prediction together: distributions and a table, by class."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.table import from_csv_cell
from cellwright.core.text import count
from cellwright.prediction.summaries import TABLE_ROWS
from cellwright.report.page import Cell, Charts, Part, Table, Text
from cellwright.report.svg import MAX_SERIES, histogram

Columns: TypeAlias = Mapping[str, np.ndarray]
"""Columns (N,) of a table by name; numbers may be text, as in a CSV file."""

_SHAPES = {
    "area": "area",
    "equivalent_diameter": "equivalent diameter",
    "circularity": "circularity",
    "solidity": "solidity",
    "eccentricity": "eccentricity",
}
_UNITS = {"um2": "µm²", "um": "µm", "px": "px"}
_MEAN = "intensity_mean_"
_MAX_CHANNELS = 3
_DRAWN = ("area", "circularity", "cell area", "cytoplasm")
MAX_OBJECTS = 200_000  # that are read; of more, every second, third, ... one


@dataclass(frozen=True)
class Objects:
    """Classes (N,) as text, and measurements (N,) float32 by what they are called, with units.

    step: every step-th object of the table is here.
    """

    classes: np.ndarray
    values: dict[str, np.ndarray]
    step: int = 1

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def median_area(self) -> tuple[float | None, str]:
        """The median area and its unit."""
        name = next((name for name in self.values if name.startswith("area")), None)
        if name is None or not len(self):
            return None, "px"
        return float(np.nanmedian(self.values[name])), name.rpartition(", ")[2]


def read_objects(
    path: Path, n_objects: int, instead: tuple[frozenset[str], Sequence[Columns]] = (frozenset(), ())
) -> Objects | None:
    """Objects of a measurements.csv or a compressed one, which may be larger than memory; None if there is no table.

    n_objects: their number, of which ``MAX_OBJECTS`` are kept. instead: images, and the tables that replace theirs.
    """
    if not path.is_file():
        return None
    others, tables = instead
    return objects_of(chain(_parts(path, others), tables), step_of(n_objects))


def _parts(path: Path, others: frozenset[str]) -> Iterator[Columns]:
    """The columns that are shown, as text, in parts. Not by pandas, whose import takes longer than the usual table."""
    with (
        gzip.open(path, "rt", newline="", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(newline="", encoding="utf-8") as file
    ):
        lines = csv.reader(file)
        columns, filled = next(lines, []), (row for row in lines if row)  # some programs add empty lines
        shown = {"class", *chosen_columns(columns)}
        wanted = [k for k, name in enumerate(columns) if name in shown]
        while rows := list(islice(filled, TABLE_ROWS)):
            if short := [row for row in rows if len(row) != len(columns)]:
                raise FormatError(
                    "a row of the table has another number of cells than its first row",
                    where=path,
                    got=f"{count(len(short[0]), 'cell')}: {','.join(short[0])[:60]}",
                    expected=count(len(columns), "cell"),
                    remedy="write the table again: run the command that made this folder with `overwrite`",
                )
            if others:
                image = columns.index("image")
                rows = [row for row in rows if from_csv_cell(row[image]) not in others]
            yield {columns[k]: np.array([row[k] for row in rows], object) for k in wanted}


def step_of(n_objects: int) -> int:
    """Which part of so many objects is kept: every ...th.

    >>> step_of(0), step_of(200_000), step_of(1_000_000)
    (1, 1, 5)
    """
    return max(-(-n_objects // MAX_OBJECTS), 1)


def chosen_columns(columns: Sequence[str]) -> dict[str, str]:
    """The columns that a report shows, and what it calls them: one of each measurement, in µm where there is that."""
    chosen = {}
    # Where nuclei were measured with their cells, they are the objects.
    own = "nucleus_" if "nucleus_area_px" in columns else ""
    shapes = {own + short: shown for short, shown in _SHAPES.items()} | {"cell_area": "cell area"}
    for short, shown in shapes.items():
        for suffix, unit in (("_um2", "um2"), ("_um", "um"), ("_px", "px"), ("", "")):
            if short + suffix in columns:
                chosen[short + suffix] = f"{shown}, {_UNITS[unit]}" if unit else shown
    if "score" in columns:
        chosen["score"] = "score"
    for mean, shown in ((own + _MEAN, "mean intensity"), (f"cytoplasm_{_MEAN}", "cytoplasm, mean intensity")):
        means = [name for name in columns if name.startswith(mean)][:_MAX_CHANNELS]
        chosen |= {name: f"{shown}, {from_csv_cell(name.removeprefix(mean))}" for name in means}
    return chosen


def objects_of(parts: Iterable[Columns], step: int = 1) -> Objects:
    """Every step-th object of a table in parts. A measurement in µm that some objects lack is replaced by that in
    pixels."""
    classes: list[np.ndarray] = []
    values: dict[str, list[np.ndarray]] = {}
    names: dict[str, str] = {}
    n_seen = 0
    for part in parts:
        n, kept = len(part["class"]), slice(-n_seen % step, None, step)
        n_seen += n
        names = names or chosen_columns(list(part))
        own = [from_csv_cell(str(name)) for name in part["class"][kept]]
        classes.append(np.array(own, object))
        for name, shown in names.items():
            column = _numbers(part[name][kept]) if name in part else np.full(len(own), np.nan, np.float32)
            values.setdefault(shown, []).append(column)
    joined = {name: np.concatenate(arrays) for name, arrays in values.items()}
    for name in list(joined):
        shape, _, unit = name.rpartition(", ")
        if unit.startswith("µ") and f"{shape}, px" in joined:
            is_known = bool(np.isfinite(joined[name]).all())
            del joined[f"{shape}, px" if is_known else name]
    return Objects(np.concatenate([*classes, np.zeros(0, object)]), _without_copies(joined), step)


def _numbers(column: np.ndarray) -> np.ndarray:
    """Numbers or text as float32; empty text is NaN."""
    if column.dtype == object:
        return np.array([np.nan if value == "" else value for value in column], object).astype(np.float32)
    return column.astype(np.float32)


def _without_copies(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of a grey image that is stored as colours, one channel."""
    channels = [name for name in values if name.startswith("mean intensity")]
    if len(channels) < 2 or not all(np.array_equal(values[channels[0]], values[name]) for name in channels[1:]):
        return values
    kept = {name: array for name, array in values.items() if name not in channels}
    return {**kept, "mean intensity": values[channels[0]]}


def distributions(objects: Objects) -> list[Part]:
    """Histograms, and a table with a row per measurement and class."""
    if not len(objects):
        return [Text("There are no objects to measure.")]
    names, counts = np.unique(objects.classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    classes = names[order].tolist()
    masks = {name: objects.classes == name for name in classes}
    drawn = [name for name in objects.values if name.startswith((*_DRAWN, "score", "mean intensity"))]
    shown = classes[:MAX_SERIES]
    charts = [
        (_capitalised(name), histogram({key: objects.values[name][masks[key]] for key in shown}, name), "")
        for name in drawn
    ]
    note = "Dashed lines are medians; the last bar includes all larger values."
    note += f" The {len(shown)} most frequent of {len(classes)} classes." if len(classes) > len(shown) else ""
    note += f" One in {objects.step} objects was used." if objects.step > 1 else ""
    rows: list[Sequence[Cell]] = []
    for name, values in objects.values.items():
        for key in classes:
            own = values[masks[key]]
            own = own[np.isfinite(own)].astype(np.float64)
            first = (name, key) if len(classes) > 1 else (name,)
            rows.append((*first, len(own), *_statistics(own)))
    columns = (
        "measurement",
        *(("class",) if len(classes) > 1 else ()),
        "objects",
        "mean",
        "SD",
        "5 %",
        "median",
        "95 %",
    )
    table = Table(columns, rows, n_text=len(columns) - 6, note="5 % and 95 %: percentiles. SD: standard deviation.")
    return [Text(note), Charts(charts), table]


def _statistics(values: np.ndarray) -> tuple[float | None, ...]:
    if not len(values):
        return (None,) * 5
    low, middle, high = np.percentile(values, [5, 50, 95]).tolist()
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, low, middle, high


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
