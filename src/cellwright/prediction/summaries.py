"""What a prediction folder says about all its images together: pooled measurements, and the wells of plates."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.core.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

# B3, b03 or, as Opera microscopes name files, r02c03; not as part of a longer word or number.
_WELL = re.compile(r"(?<![A-Za-z0-9])(?:([A-Pa-p])(\d{1,2})(?!\d)|[rR](\d{2})[cC](\d{2})(?!\d))")
_ROWS, _COLUMNS = 16, 24  # of a 384-well plate
_SEPARATORS = " _-./"
# Measurements whose mean over the objects of a well means nothing.
_POSITIONS = re.compile(r"(label|score|bbox_.*|centroid_.*|orientation_deg)")


@dataclass(frozen=True)
class Well:
    """The place of an image on a plate: row and column from 0. plate: its name, "" if there is only one.

    >>> Well("", 1, 2).name
    'B03'
    """

    plate: str
    row: int
    column: int

    @property
    def name(self) -> str:
        """Letter of the row and number of the column."""
        return f"{chr(ord('A') + self.row)}{self.column + 1:02d}"


def wells_of(image_ids: Sequence[str]) -> list[Well] | None:
    """The well of each image if the ids of all of them name one, and at least two wells are named; otherwise None.

    Where ids contain several such words, the one that differs most between images is the well. What precedes it is the
    plate.

    >>> [well.name for well in wells_of(["p1/A01_s1", "p1/A01_s2", "p1/b12_s1"])]
    ['A01', 'A01', 'B12']
    >>> wells_of(["cells_1", "A01"]) is None, wells_of(["A01_1", "A01_2"]) is None
    (True, True)
    """
    matches = [[match for match in _WELL.finditer(image_id) if _place(match) is not None] for image_id in image_ids]
    n_words = min(map(len, matches), default=0)
    choices = [[_place(found[k]) for found in matches] for k in range(n_words)]
    if not choices:
        return None
    # Of equal ones, the one with two digits, then the last: "p1_A02" is on plate 1.
    padded = [all(re.search(r"\d\d$", found[k].group()) for found in matches) for k in range(n_words)]
    best = max(range(n_words), key=lambda k: (len(set(choices[k])), padded[k], k))
    places = [place for place in choices[best] if place is not None]
    if len(set(places)) < 2:
        return None
    plates = [
        image_id[: found[best].start()].strip(_SEPARATORS) for image_id, found in zip(image_ids, matches, strict=True)
    ]
    if 2 * len(set(plates)) > len(plates):  # what precedes the well numbers the images
        plates = [str(PurePosixPath(image_id).parent).strip(_SEPARATORS) for image_id in image_ids]
    return [Well(plate, *place) for plate, place in zip(plates, places, strict=True)]


def _place(match: re.Match[str]) -> tuple[int, int] | None:
    """Row and column, from 0; None if no plate has them."""
    letter, number, row, column = match.groups()
    place = (ord(letter.upper()) - ord("A"), int(number) - 1) if letter else (int(row) - 1, int(column) - 1)
    return place if 0 <= place[0] < _ROWS and 0 <= place[1] < _COLUMNS else None


def evenly_chosen(n: int, n_most: int) -> list[int]:
    """Up to ``n_most`` of 0..n-1, ascending, evenly spread.

    >>> evenly_chosen(10, 4), evenly_chosen(3, 4), evenly_chosen(0, 4)
    ([0, 3, 6, 9], [0, 1, 2], [])
    """
    return np.unique(np.linspace(0, n - 1, min(n_most, n)).round().astype(int)).tolist()


def pool_tables(tables: Sequence[Path], out: Path) -> None:
    """Join CSV tables to one, row by row. Columns that a table lacks stay empty; new columns follow those before."""
    columns: dict[str, None] = {}
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            columns |= dict.fromkeys(next(csv.reader(file), []))
    with atomic_path(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as joined:
        writer = csv.DictWriter(joined, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        for table in tables:
            with table.open(newline="", encoding="utf-8") as file:
                writer.writerows(csv.DictReader(file))


def well_table(wells: Sequence[Well], rows: Sequence[Mapping[str, Any]], measurements: Path | None) -> pd.DataFrame:
    """One row per well: images, objects (of each class too), objects per image, and the mean of every measurement.

    wells: of each row of the summary. measurements: the pooled table; None omits the means.
    """
    import pandas as pd

    keys = ["plate", "well"]
    summary = pd.DataFrame([dict(row) for row in rows])
    summary["plate"], summary["well"] = [well.plate for well in wells], [well.name for well in wells]
    grouped = summary.groupby(keys, sort=True)
    counts = [name for name in summary if name == "objects" or name.startswith("objects_")]
    table = pd.DataFrame({"images": grouped.size()}).join(pd.DataFrame(grouped[counts].sum()))
    table.insert(2, "objects_per_image", table["objects"] / table["images"])
    if measurements is not None:
        pooled = pd.read_csv(measurements)
        by_image = summary.set_index("image")[keys]
        pooled = pooled.join(by_image, on="image")
        measured = [
            name for name in pooled.select_dtypes("number") if name not in table and not _POSITIONS.fullmatch(name)
        ]
        table = table.join(pd.DataFrame(pooled.groupby(keys)[measured].mean()).add_prefix("mean_"))
    table = table.reset_index()
    return table if any(well.plate for well in wells) else table.drop(columns="plate")
