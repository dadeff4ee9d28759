"""Measurements of objects: one table per image with one row per object.

Measurements are made on the masks of the objects, so overlapping objects keep all their pixels. The pixel in column x
covers [x, x + 1): centroids are measured from the corner of the image, not from the centre of the first pixel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cellwright.core.class_ids import values_of_class
from cellwright.core.errors import InputError, UsageError
from cellwright.core.files import write_text
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.table import columns_csv, frame_csv

if TYPE_CHECKING:
    import pandas as pd

    from cellwright.data.images.source import ImageSource

# The side of the parts in which large images are measured.
PART_PX = 2048
FLOATS = "%.7g"  # in CSV files
# Pixel types that the kernels are compiled for; all others are converted to float64.
_COMPILED_TYPES = (np.uint8, np.uint16, np.float32)
_STATISTICS = ("mean", "min", "max", "std")
# Columns that formats with outlines do not need.
POSITIONS = (
    "touches_border",
    "centroid_y_px",
    "centroid_x_px",
    "bbox_x0_px",
    "bbox_y0_px",
    "bbox_x1_px",
    "bbox_y1_px",
)


def measure_instances(
    cells: Instances,
    image: Image | None = None,
    *,
    class_names: Sequence[str] | None = None,
    pixel_size_um: tuple[float, float] | None = None,
    ring_px: int | None = None,
) -> pd.DataFrame:
    """Measurements of N objects, in their order; the index "label" holds their ids.

    class: the class id, or the name if ``class_names`` are given. score: NaN without scores.
    area_px, bbox_{x0,y0,x1,y1}_px: integers; boxes are half open. centroid_{y,x}_px: mean position of the pixels.
    touches_border: whether the object has a pixel at the border of the image, so that it may be cut off.
    equivalent_diameter_px: diameter of the circle with the same area.
    area_um2, equivalent_diameter_um: only with a pixel size: ``pixel_size_um`` (y, x), else that of the image.
    perimeter_px: Crofton's formula in four directions (Rivollier 2010, as scikit-image's ``perimeter_crofton``),
        including holes. Straight edges are underestimated by 5 % along the grid and overestimated by 3 % at 22.5
        degrees, which averages out on round outlines; objects of a few pixels are underestimated.
    major_axis_px, minor_axis_px, eccentricity in [0, 1]: of the ellipse with the same second moments, as in
        scikit-image.
    orientation_deg: of the major axis in (-90, 90], counter-clockwise from the x axis; NaN if both axes are equal.
    solidity in (0, 1]: area divided by the number of pixels whose centre is in the convex hull of the object's pixel
        centres; 1 for convex shapes. scikit-image expands the hull by half a pixel, so its values are slightly lower.
    circularity in (0, 1]: 4 pi area / perimeter^2, clipped at 1, which small objects would exceed because their
        perimeter is underestimated.
    intensity_{mean,min,max,std}_CHANNEL: of the pixels of the object in the image's own values, without background
        subtraction. An alpha channel is omitted. Channels with equal names are numbered.

    ring_area_px, ring_mean_CHANNEL: only with ``ring_px``: number and mean of the pixels within ``ring_px`` of the
        object and outside of all objects: the background around it. NaN if there is no such pixel.

    Without objects the table has all columns and no rows. An empty mask has area and box 0, and NaN otherwise. Raises
    `InputError` for an image of another size, or a class without a name.
    """
    import pandas as pd

    columns = _columns(cells, image, class_names=class_names, pixel_size_um=pixel_size_um, ring_px=ring_px)
    return pd.DataFrame(columns, index=pd.Index(cells.ids, name="label"))


def _columns(
    cells: Instances,
    image: Image | None,
    *,
    class_names: Sequence[str] | None = None,
    pixel_size_um: tuple[float, float] | None = None,
    ring_px: int | None = None,
) -> dict[str, np.ndarray]:
    """The columns of `measure_instances`, without pandas, which takes longer to import than all of this."""
    if image is not None and image.image_hw != cells.image_hw:
        raise InputError(
            "image and objects have different sizes",
            where=image.path,
            got=f"{image.image_hw[0]} x {image.image_hw[1]} (height x width)",
            expected=f"{cells.image_hw[0]} x {cells.image_hw[1]}",
            remedy="use the image in which the objects were segmented, at its original size",
        )
    scores = np.full(len(cells), np.nan, np.float32) if cells.scores is None else cells.scores
    columns = {"class": _classes(cells, class_names), "score": scores}
    if pixel_size_um is None and image is not None:
        pixel_size_um = image.pixel_size_um
    columns |= shape_columns(cells.masks, pixel_size_um)
    if image is not None:
        columns |= intensity_columns(cells.masks, image)
        if ring_px is not None:
            columns |= ring_columns(cells.masks, image, ring_px)
    return columns


def measure_in_parts(
    cells: Instances,
    source: ImageSource,
    *,
    class_names: Sequence[str] | None = None,
    pixel_size_um: tuple[float, float] | None = None,
    ring_px: int | None = None,
    part_px: int = PART_PX,
) -> pd.DataFrame:
    """The table of `measure_instances` for an image of any size, of which a part at a time is read."""
    import pandas as pd

    margin = 1 + (ring_px or 0)
    (height, width), boxes = cells.image_hw, cells.masks.boxes
    cell = boxes[:, 1] // part_px * (width // part_px + 1) + boxes[:, 0] // part_px
    tables = []
    for number in np.unique(cell):
        own = np.flatnonzero(cell == number)
        y0, x0 = np.maximum(boxes[own, 1::-1].min(axis=0) - margin, 0).tolist()
        y1, x1 = np.minimum(boxes[own, :1:-1].max(axis=0) + margin, (height, width)).tolist()
        near = (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 1] < y1) & (boxes[:, 3] > y0)
        near[own] = False
        listed = np.concatenate([own, np.flatnonzero(near)])  # others only end the rings
        masks = cells.masks[listed].window(y0, x0, y1, x1)
        part = dataclasses.replace(
            cells[listed], image_hw=masks.image_hw, masks=masks, boxes_xyxy=masks.boxes.astype(np.float32), columns={}
        )
        table = (
            measure_instances(
                part,
                source.read(y0, x0, y1 - y0, x1 - x0),
                class_names=class_names,
                pixel_size_um=pixel_size_um,
                ring_px=ring_px,
            )
            .iloc[: len(own)]
            .copy()
        )
        for name in POSITIONS[1:]:
            table[name] += y0 if "_y" in name else x0
        table["touches_border"] = cells.masks[own].touches_border
        tables.append(table)
    if not tables:
        return measure_instances(
            dataclasses.replace(cells, image_hw=(1, 1), masks=MaskSet.empty((1, 1))),
            source.read(0, 0, 1, 1),
            class_names=class_names,
            pixel_size_um=pixel_size_um,
            ring_px=ring_px,
        )
    return pd.concat(tables).loc[cells.ids]


def shape_columns(masks: MaskSet, pixel_size_um: tuple[float, float] | None = None) -> dict[str, np.ndarray]:
    """The columns of `measure_instances` that need only the masks, each (N,)."""
    kernels = _kernels()
    parts = masks.boxes, masks.offsets, masks.crops
    moments = kernels.raw_moments(*parts)
    along_grid, along_diagonals = kernels.entries(*parts).astype(np.float64).T
    hull = kernels.convex_areas(*parts)
    areas = moments[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        area = np.where(areas > 0, areas, np.nan)
        diameter = np.sqrt(4 * area / np.pi)
        # Lines are 1 px apart along the grid and 1 / sqrt(2) px along diagonals; NaN for empty masks.
        perimeter = np.pi / 4 * (along_grid + along_diagonals / np.sqrt(2)) + 0 * area
        columns = {"area_px": areas}
        if pixel_size_um is not None:
            columns["area_um2"] = area * pixel_size_um[0] * pixel_size_um[1]
        columns["centroid_y_px"] = masks.boxes[:, 1] + moments[:, 2] / area + 0.5
        columns["centroid_x_px"] = masks.boxes[:, 0] + moments[:, 1] / area + 0.5
        for k, name in enumerate(("x0", "y0", "x1", "y1")):
            columns[f"bbox_{name}_px"] = masks.boxes[:, k].astype(np.int64)
        columns["touches_border"] = masks.touches_border
        columns["equivalent_diameter_px"] = diameter
        if pixel_size_um is not None:
            columns["equivalent_diameter_um"] = diameter * np.sqrt(pixel_size_um[0] * pixel_size_um[1])
        columns["perimeter_px"] = perimeter
        columns |= _ellipses(area, moments.astype(np.float64))
        columns["solidity"] = areas / np.where(areas > 0, hull, np.nan)
        columns["circularity"] = np.minimum(4 * np.pi * area / perimeter**2, 1)
    return columns


def _ellipses(area: np.ndarray, moments: np.ndarray) -> dict[str, np.ndarray]:
    """Axes, eccentricity and orientation from the raw moments (N, 6); area (N,) is NaN for empty masks."""
    _, x, y, xx, yy, xy = moments.T
    # Second central moments times area^2: integers, exact except for huge objects, so equal axes compare as equal.
    c_xx, c_yy, c_xy = area * xx - x * x, area * yy - y * y, area * xy - x * y
    larger = (c_xx + c_yy) / 2 + np.hypot((c_xx - c_yy) / 2, c_xy)
    # From the determinant, which is exactly 0 for a line, unlike the difference of the roots.
    smaller = np.maximum(c_xx * c_yy - c_xy * c_xy, 0) / np.where(larger > 0, larger, 1)
    degrees = -np.degrees(np.arctan2(2 * c_xy, c_xx - c_yy) / 2)
    degrees = np.where(degrees <= -90, degrees + 180, degrees) + 0.0
    return {
        "major_axis_px": 4 * np.sqrt(larger) / area,
        "minor_axis_px": 4 * np.sqrt(smaller) / area,
        "eccentricity": np.sqrt(np.maximum(1 - smaller / np.where(larger > 0, larger, 1), 0)) * np.sign(larger),
        "orientation_deg": np.where((c_xx == c_yy) & (c_xy == 0), np.nan, degrees),
    }


def intensity_columns(masks: MaskSet, image: Image) -> dict[str, np.ndarray]:
    """Mean, minimum, maximum and standard deviation (with divisor N) of each channel, each column (N,) float64."""
    is_compiled = image.data.dtype in _COMPILED_TYPES
    data = np.ascontiguousarray(image.data if is_compiled else image.data.astype(np.float64))
    values = _kernels().intensities(masks.boxes, masks.offsets, masks.crops, data)
    return {
        f"intensity_{statistic}_{name}": values[:, c, k]
        for c, name in enumerate(_measured_channels(image))
        for k, statistic in enumerate(_STATISTICS)
    }


def ring_columns(masks: MaskSet, image: Image, ring_px: int) -> dict[str, np.ndarray]:
    """Number of pixels and mean of each channel, each column (N,), in the ring around each object.

    The ring holds the pixels whose distance to the nearest pixel of the object is at most ``ring_px``, and which belong
    to no object. Raises `UsageError` for a ring below 1.
    """
    if ring_px < 1:
        raise UsageError("invalid `ring`", got=ring_px, expected="at least 1 pixel")
    names, free = _measured_channels(image), ~masks.foreground()
    y, x = np.mgrid[-ring_px : ring_px + 1, -ring_px : ring_px + 1]
    disc = (y * y + x * x <= ring_px * ring_px).astype(np.uint8)
    areas, means = np.zeros(len(masks), np.int64), np.full((len(masks), len(names)), np.nan)
    for i, (x0, y0, x1, y1) in enumerate(masks.boxes.tolist()):
        if x1 <= x0:
            continue
        top, left = max(y0 - ring_px, 0), max(x0 - ring_px, 0)
        window = (slice(top, y1 + ring_px), slice(left, x1 + ring_px))
        inside = np.zeros(free[window].shape, np.uint8)
        inside[y0 - top : y1 - top, x0 - left : x1 - left] = masks.crop(i)
        ring = (cv2.dilate(inside, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0) & free[window]
        areas[i] = np.count_nonzero(ring)
        if areas[i]:
            means[i] = image.data[window][ring][:, : len(names)].mean(axis=0, dtype=np.float64)
    return {"ring_area_px": areas} | {f"ring_mean_{name}": means[:, c] for c, name in enumerate(names)}


def _measured_channels(image: Image) -> list[str]:
    """The names of the channels, without alpha; numbered if some are equal."""
    names = list(image.channels)
    if len(set(names)) < len(names):
        names = [f"{name}{k}" for k, name in enumerate(names)]
    return names[:-1] if len(names) > 1 and image.channels[-1] == "A" else names


def table_csv(table: pd.DataFrame, image_name: str) -> str:
    """The table as CSV, with the columns image, label, class and score first; NaN is an empty cell."""
    listed = table.reset_index()
    listed.insert(0, "image", [image_name] * len(listed))
    return frame_csv(listed, float_format=FLOATS)


def write_measurements(
    cells: Instances,
    path: Path,
    *,
    image_name: str,
    image: Image | None = None,
    class_names: Sequence[str] | None = None,
    ring_px: int | None = None,
) -> None:
    """Write `table_csv` of the measurements atomically; ``image_name`` is the first column of every row."""
    columns = {"image": np.full(len(cells), image_name, object), "label": cells.ids}
    columns |= _columns(cells, image, class_names=class_names, ring_px=ring_px)
    write_text(path, columns_csv(columns, FLOATS))


def with_measurements(cells: Instances, image: Image | None = None) -> Instances:
    """The objects with their measurements as ``columns``, for formats that store properties with outlines.

    Positions are omitted. Existing columns with the same names are replaced.
    """
    omitted = {"class", "score", *POSITIONS}
    measured = {name: values for name, values in _columns(cells, image).items() if name not in omitted}
    return dataclasses.replace(cells, columns=cells.columns | measured)


def _classes(cells: Instances, class_names: Sequence[str] | None) -> np.ndarray:
    if class_names is None:
        return cells.class_ids
    highest = int(cells.class_ids.max(initial=-1))
    if highest >= len(class_names):
        expected = f"0 to {len(class_names) - 1} ({', '.join(class_names)})"
        raise InputError("an object has a class id without a name", got=highest, expected=expected)
    return values_of_class(cells.class_ids, class_names, "")


def _kernels() -> Any:
    from cellwright.measurement import _kernels

    return _kernels
