"""Measurements of objects: as a table, as a CSV file, and as columns that travel with the objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.files import write_text
from cellwright.core.image import Image
from cellwright.core.instances import Instances

if TYPE_CHECKING:
    import pandas as pd

# What a table needs and outlines say already.
_PLACES = ("centroid_y_px", "centroid_x_px", "bbox_x0_px", "bbox_y0_px", "bbox_x1_px", "bbox_y1_px")


def measure(
    cells: Instances, image: Image | np.ndarray | None = None, *, class_names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Size, shape and, with an image, intensities of every object; the index "label" holds the ids.

    The columns, with their units and definitions: `measure.table.measure_instances`.
    """
    from cellwright.measurement.table import measure_instances

    return measure_instances(cells, as_image(image), class_names=class_names)


def write_measurements(
    cells: Instances,
    path: Path,
    *,
    image_name: str,
    image: Image | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write the table as CSV, atomically: first columns image (``image_name`` in each row), label, class, score."""
    from cellwright.measurement.table import table_csv

    write_text(path, table_csv(measure(cells, image, class_names=class_names), image_name))


def with_measurements(cells: Instances, image: Image | None = None) -> Instances:
    """The objects with their measurements as ``columns``, for formats that carry such: all but places, which the
    outlines say. A column of the same name that was there is replaced."""
    table = measure(cells, image).drop(columns=["class", "score", *_PLACES])
    measured = {str(name): table[name].to_numpy() for name in table}
    return dataclasses.replace(cells, columns=cells.columns | measured)


def as_image(image: Image | np.ndarray | None) -> Image | None:
    """An array as an `Image`; what is one, or None, as it is."""
    return Image.from_array(image) if isinstance(image, np.ndarray) else image
