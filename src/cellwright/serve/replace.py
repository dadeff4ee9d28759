"""New objects of a model take the place of the old ones, chunk by chunk; what was drawn by hand stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.text import count
from cellwright.serve.layer import Box, Row, packed, unpacked

if TYPE_CHECKING:
    from cellwright.serve.annotation import Annotation, Start, State

# A new object is left out if objects that stay cover at least this share of it.
_COVERED = 0.5


@dataclass
class Replacement:
    """What changes. pixels: boxes with the packed XOR of before and after."""

    state: State
    pixels: list[tuple[Box, bytes]] = field(default_factory=list)
    rows: dict[int, tuple[Row | None, Row | None]] = field(default_factory=dict)
    n_kept: int = 0
    message: str = ""


def replaced(annotation: Annotation, start: Start) -> Replacement:
    """How the objects of ``annotation`` become those of ``start``; nothing is changed yet."""
    old_columns, new_columns = annotation.table.columns(), start.table.columns()
    kept = old_columns["id"][old_columns["manual"]].astype(np.uint32)
    shift = annotation.table.next_id - 1 if kept.size else 0
    new_ids = new_columns["id"]
    visible = np.zeros(int(new_ids.max(initial=0)) + 1, np.int64)
    for _, old, new in _pairs(annotation, start):
        seen = new[~np.isin(old, kept)] if kept.size else new
        numbers, times = np.unique(seen, return_counts=True)
        visible[numbers] += times
    left_out = new_ids[visible[new_ids] <= (1 - _COVERED) * new_columns["area"]]
    table = np.arange(len(visible), dtype=np.uint32) + np.uint32(shift)
    table[0] = 0
    table[left_out] = 0
    result = Replacement(replace(start.state, regions=annotation.state.regions), n_kept=int(kept.size))
    boxes: dict[int, Box] = {}
    for box, old, new in _pairs(annotation, start):
        after = table[new]
        if kept.size:
            after = np.where(np.isin(old, kept), old, after)
        if not np.array_equal(old, after):
            result.pixels.append((box, packed(old ^ after)))
        _extents(after, box, boxes)
    _fill_rows(annotation, start, result, boxes, (shift, visible, {*left_out.tolist()}))
    n_new = len(new_ids) - len(left_out)
    result.message = f"{count(n_new, 'predicted object')}"
    if kept.size:
        result.message += f"; {count(int(kept.size), 'object')} drawn or changed by hand stayed"
    return result


def _pairs(annotation: Annotation, start: Start) -> Iterator[tuple[Box, np.ndarray, np.ndarray]]:
    """Each chunk that has objects, before and after, with the ids of ``start``."""
    chunks = annotation.chunks
    for row, column in chunks:
        box = chunks.box_of(row, column)
        data = start.chunks.get((row, column))
        if start.base is not None:
            new = np.ascontiguousarray(start.base(row, column), np.uint32)
        elif data is None:
            if chunks.is_blank(row, column):
                continue
            new = np.zeros(box.hw, np.uint32)
        else:
            new = unpacked(data, box.hw)
        yield box, chunks.chunk(row, column), new


def _extents(labels: np.ndarray, box: Box, boxes: dict[int, Box]) -> None:
    """Extend the boxes of the objects of a chunk."""
    from cellwright.core.masks import MaskSet

    masks, numbers = MaskSet.from_label_map(labels)
    for number, (x0, y0, x1, y1) in zip(numbers.tolist(), masks.boxes.tolist(), strict=True):
        part = Box(y0 + box.y0, x0 + box.x0, y1 + box.y0, x1 + box.x0)
        boxes[number] = part if number not in boxes else boxes[number].united(part)


def _fill_rows(
    annotation: Annotation,
    start: Start,
    result: Replacement,
    boxes: dict[int, Box],
    numbering: tuple[int, np.ndarray, set[int]],
) -> None:
    shift, visible, left_out = numbering
    for row in annotation.table.all_rows():
        if not row.manual:
            result.rows[row.id] = (row, None)
    for row in start.table.all_rows():
        if row.id not in left_out:
            number = row.id + shift
            y0, x0, y1, x1 = boxes[number]
            after = row._replace(id=number, y0=y0, x0=x0, y1=y1, x1=x1, area=int(visible[row.id]))
            result.rows[number] = (annotation.table.get(number), after)
