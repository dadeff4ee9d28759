"""Measurements of nuclei and their cells in one table: the columns of `table`, with ``nucleus_``, ``cell_`` and, for
the cell without its nucleus, ``cytoplasm_`` in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.measurement.table import POSITIONS, measure_instances

if TYPE_CHECKING:
    import pandas as pd

# A nucleus belongs to the cell that has at least this share of its pixels.
NUCLEUS_SHARE = 0.5
# What is measured of the cytoplasm, whose shape is that of a ring.
_OF_CYTOPLASM = ("area_", "intensity_")
_FLAGS = ("n_nuclei", "nucleus_label", "has_cell")
Measure = Callable[[Instances], "pd.DataFrame"]


@dataclass(frozen=True, eq=False)
class CellPairs:
    """Cells and their nuclei, row by row (N,); a mask is empty where there is none.

    ids, class_ids, scores: of the cell, or of the nucleus where there is no cell. n_nuclei: in each cell; ``nuclei``
    has their union. nucleus_labels: id of the (largest) nucleus, 0 for none. has_cell: whether there is a cell.
    is_matched: whether all this is worth saying, because nuclei and cells were found apart from each other.
    """

    nuclei: Instances
    cells: Instances
    n_nuclei: np.ndarray
    nucleus_labels: np.ndarray
    has_cell: np.ndarray
    is_matched: bool = True

    @property
    def odd(self) -> list[tuple[int, str, str]]:
        """What a user should know: how many, of what, and what is odd about them."""
        return [
            (int((self.n_nuclei == 0).sum()), "cell", "without a nucleus"),
            (int((self.n_nuclei > 1).sum()), "cell", "with several nuclei, which were measured together"),
            (int((~self.has_cell).sum()), "nucleus", "without a cell"),
        ]


def same_ids(nuclei: Instances, cells: Instances) -> CellPairs:
    """The pairs of nuclei and the cells that were made from them, in the same order."""
    n = len(nuclei)
    return CellPairs(nuclei, cells, np.ones(n, np.int64), nuclei.ids, np.ones(n, bool), is_matched=False)


def with_ids(nuclei: Instances, cells: Instances) -> Instances | None:
    """The cells of the same ids as the nuclei, in their order; None if there are others.

    cells: from a label image, in which a cell lost what it shares with another: its own nucleus belongs to it.
    """
    if not np.isin(cells.ids, nuclei.ids).all():
        return None
    masks = concat([nuclei.masks, cells.masks]).union(np.concatenate([nuclei.ids, cells.ids]))
    masks = masks[np.argsort(np.argsort(nuclei.ids, kind="stable"), kind="stable")]
    return replace(nuclei, masks=masks, boxes_xyxy=masks.boxes.astype(np.float32), soft_masks=None, columns={})


def match(nuclei: Instances, cells: Instances) -> CellPairs:
    """Pairs by overlap: a nucleus belongs to the cell that has most of its pixels, if that is at least half of them.

    Of cells that have equally many, it belongs to the first. Cells keep their ids, classes and scores; so does a
    nucleus without a cell, unless a cell has its id: then it gets one above all others.
    """
    i, j, shared = nuclei.masks.intersections(cells.masks)
    order = np.lexsort((-j, shared))  # the cell with most pixels comes last and stays, of equal ones the first
    order = order[shared[order] >= NUCLEUS_SHARE * nuclei.masks.areas[i[order]]]
    owner = np.full(len(nuclei), -1, np.int64)
    owner[i[order]] = j[order]
    alone = np.flatnonzero(owner < 0)
    row = np.where(owner < 0, 0, owner)
    row[alone] = len(cells) + np.arange(len(alone))
    n = len(cells) + len(alone)
    n_nuclei = np.bincount(row, minlength=n)
    # The largest nucleus of a cell comes last and stays.
    labels = np.zeros(n, np.int64)
    by_area = np.argsort(nuclei.masks.areas, kind="stable")
    labels[row[by_area]] = nuclei.ids[by_area]
    filled = np.flatnonzero(n_nuclei)
    masks = _spread(nuclei.masks.union(row), filled, n) if len(nuclei) else _spread(nuclei.masks, filled, n)
    all_cells = _spread(cells.masks, np.arange(len(cells)), n)
    first = int(max(cells.ids.max(initial=0), nuclei.ids.max(initial=0))) + 1
    own, taken = nuclei.ids[alone], np.isin(nuclei.ids[alone], cells.ids)
    ids = np.concatenate([cells.ids, np.where(taken, first + np.cumsum(taken) - 1, own)])
    class_ids = np.concatenate([cells.class_ids, nuclei.class_ids[alone]])
    scores = None
    if cells.scores is not None and nuclei.scores is not None:
        scores = np.concatenate([cells.scores, nuclei.scores[alone]])
    joined = {"ids": ids, "class_ids": class_ids, "scores": scores}
    has_cell = np.arange(n) < len(cells)
    return CellPairs(
        Instances.from_masks(masks, **joined), Instances.from_masks(all_cells, **joined), n_nuclei, labels, has_cell
    )


def cytoplasm_of(pairs: CellPairs) -> Instances:
    """The pixels of each cell that are not in its nucleus; none where there is no cell or no nucleus."""
    cells, nuclei = pairs.cells.masks, pairs.nuclei.masks
    crops = []
    for k in range(len(cells)):
        crop = cells.crop(k).copy()
        if not pairs.n_nuclei[k]:
            crop[:] = 0
        elif crop.size:
            (x0, y0, x1, y1), (left, top, right, bottom) = cells.boxes[k].tolist(), nuclei.boxes[k].tolist()
            y, x = slice(max(y0, top), max(min(y1, bottom), 0)), slice(max(x0, left), max(min(x1, right), 0))
            if y.stop > y.start and x.stop > x.start:
                inside = nuclei.crop(k)[y.start - top : y.stop - top, x.start - left : x.stop - left]
                crop[y.start - y0 : y.stop - y0, x.start - x0 : x.stop - x0][inside > 0] = 0
        crops.append(crop)
    masks = MaskSet.from_crops(cells.boxes, crops, cells.image_hw)
    return replace(pairs.cells, masks=masks, boxes_xyxy=masks.boxes.astype(np.float32), soft_masks=None, columns={})


def measure_pairs(pairs: CellPairs, measure: Measure, measure_cell: Measure | None = None) -> pd.DataFrame:
    """One row per pair, with the id as index "label".

    measure: as `measure_instances` with an image and other options; measure_cell: the same for the cells.

    Columns: class and score of the cell; where cells were matched to nuclei also n_nuclei, nucleus_label and has_cell;
    then all columns of nuclei and cells, and area and intensities of the cytoplasm. What does not exist is NaN.
    """
    import pandas as pd

    of_nuclei = measure(pairs.nuclei)
    of_cells, of_cytoplasm = (measure_cell or measure)(pairs.cells), measure(cytoplasm_of(pairs))
    columns = {"class": of_cells["class"], "score": of_cells["score"]}
    if pairs.is_matched:
        index = of_cells.index
        flags = (pairs.n_nuclei, pairs.nucleus_labels, pairs.has_cell)
        columns |= {name: pd.Series(values, index) for name, values in zip(_FLAGS, flags, strict=True)}
    has_nucleus = pairs.n_nuclei > 0
    parts = (
        ("nucleus", of_nuclei, has_nucleus),
        ("cell", of_cells, pairs.has_cell),
        ("cytoplasm", of_cytoplasm, has_nucleus & pairs.has_cell),
    )
    for name, table, exists in parts:
        for column in table.columns.drop(["class", "score"]):
            if name != "cytoplasm" or column.startswith(_OF_CYTOPLASM):
                values = table[column]
                columns[f"{name}_{column}"] = values if exists.all() else values.astype(object).where(exists)
    made = pd.DataFrame(columns)
    return made.infer_objects()


def measure_with_cells(
    pairs: CellPairs,
    image: Image | None = None,
    *,
    class_names: Sequence[str] | None = None,
    pixel_size_um: tuple[float, float] | None = None,
    ring_px: int | None = None,
) -> pd.DataFrame:
    """`measure_pairs` in an image; a ring is measured around the cells."""

    def measure(objects: Instances, ring: int | None = None) -> pd.DataFrame:
        return measure_instances(objects, image, class_names=class_names, pixel_size_um=pixel_size_um, ring_px=ring)

    return measure_pairs(pairs, measure, lambda cells: measure(cells, ring_px))


def with_cell_measurements(pairs: CellPairs, image: Image | None = None) -> Instances:
    """The nuclei with the measurements of `measure_with_cells` as ``columns``; positions are omitted."""
    table = measure_with_cells(pairs, image)
    omitted = {"class", "score", *(f"{part}_{name}" for part in ("nucleus", "cell") for name in POSITIONS)}
    measured = {str(name): table[name].to_numpy() for name in table if name not in omitted}
    return replace(pairs.nuclei, columns=pairs.nuclei.columns | measured)


def _spread(masks: MaskSet, rows: np.ndarray, n: int) -> MaskSet:
    """The masks at these rows, ascending, of n; the others are empty."""
    boxes, sizes = np.zeros((n, 4), np.int32), np.zeros(n, np.int64)
    boxes[rows], sizes[rows] = masks.boxes, np.diff(masks.offsets)
    return MaskSet(masks.image_hw, boxes, np.concatenate([[0], np.cumsum(sizes)]), masks.crops)
