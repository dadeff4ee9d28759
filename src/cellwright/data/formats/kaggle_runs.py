"""Kaggle's run-length text: "start length" pairs, 1-based, counted along rows or down columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cellwright.core.errors import FormatError, UsageError
from cellwright.core.masks import MaskSet

Order = Literal["row", "column"]

# Objects looked at to tell the two orders apart.
_SAMPLED_OBJECTS = 200


@dataclass(frozen=True)
class RunText:
    """One object's text and where it stands (file, line, column), for messages."""

    text: str
    where: str


def parse_runs(runs: RunText, image_hw: tuple[int, int]) -> np.ndarray:
    """Flat 0-based pixel positions (A,) int64, ascending and distinct; `FormatError` for text that is no run-length
    table or leaves the image."""
    tokens = runs.text.split()
    try:
        numbers = np.array(tokens, dtype=np.int64).reshape(-1, 2)
    except (ValueError, OverflowError):
        bad = next((token for token in tokens if not token.isdecimal()), None)
        got = f"{bad[:40]!r}" if bad is not None else f"{len(tokens)} numbers"
        expected = "pairs of whole numbers 'start length start length ...'"
        raise FormatError("this is not run-length text", where=runs.where, got=got, expected=expected) from None
    starts, lengths = numbers[:, 0] - 1, numbers[:, 1]
    size = image_hw[0] * image_hw[1]
    wrong = (starts < 0) | (lengths < 1) | (lengths > size) | (starts > size - lengths)
    if wrong.any():
        start, length = numbers[np.flatnonzero(wrong)[0]]
        raise FormatError(
            "a run leaves its image",
            where=runs.where,
            got=f"start {start}, length {length}",
            expected=f"within 1 to {size}, the pixels of {image_hw[0]} x {image_hw[1]} (height x width)",
            remedy="check that the table belongs to these images, and their width and height",
        )
    total = int(lengths.sum())
    if total > size:
        raise FormatError("runs overlap", where=runs.where, got=f"{total} px of runs", expected=f"at most {size} px")
    before = np.cumsum(lengths) - lengths
    return np.unique(np.repeat(starts - before, lengths) + np.arange(total))


def crop_of(positions: np.ndarray, image_hw: tuple[int, int], order: Order) -> tuple[np.ndarray, np.ndarray]:
    """Box (4,) int32 and crop (h, w) bool of flat positions (A,) counted in ``order``; no pixels give an empty crop."""
    if positions.size == 0:
        return np.zeros(4, np.int32), np.zeros((0, 0), bool)
    if order == "row":
        y, x = np.divmod(positions, image_hw[1])
    else:
        x, y = np.divmod(positions, image_hw[0])
    box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.int32)
    crop = np.zeros((box[3] - box[1], box[2] - box[0]), bool)
    crop[y - box[1], x - box[0]] = True
    return box, crop


def decode(objects: Sequence[RunText], image_hw: tuple[int, int], order: Order) -> MaskSet:
    """The masks of one image."""
    cut = [crop_of(parse_runs(runs, image_hw), image_hw, order) for runs in objects]
    boxes = np.array([box for box, _ in cut], np.int32).reshape(-1, 4)
    return MaskSet.from_crops(boxes, [crop for _, crop in cut], image_hw)


def encode(masks: MaskSet, order: Order) -> list[str]:
    """Run-length text of every mask, sorted and as long as runs get; ``""`` for an empty mask."""
    texts = []
    height, width = masks.image_hw
    for i in range(len(masks)):
        crop, (x0, y0) = masks.crop(i), masks.boxes[i, :2].astype(np.int64)
        if order == "row":
            y, x = np.nonzero(crop)
            positions = (y + y0) * width + x + x0
        else:
            x, y = np.nonzero(crop.T)
            positions = (x + x0) * height + y + y0
        texts.append(_runs_of(positions))
    return texts


def _runs_of(positions: np.ndarray) -> str:
    if positions.size == 0:
        return ""
    breaks = np.flatnonzero(np.diff(positions) > 1) + 1
    starts = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([starts, [positions.size]]))
    pairs = np.stack([positions[starts] + 1, lengths], axis=1)
    return " ".join(map(str, pairs.ravel().tolist()))


def settle_order(
    objects: Sequence[tuple[RunText, tuple[int, int]]], declared: Order | None, asked: Order | None, where: object
) -> Order:
    """The order to decode a table in.

    declared: what the table's columns mean by convention, or None. asked: what the user says, or None.
    An object read in the wrong order falls apart, so a sample is decoded both ways and its connected parts counted (a
    square image tells nothing: there the wrong order only transposes). `FormatError` where the parts contradict what
    is declared or asked, `UsageError` where nothing is declared and the parts do not tell.
    """
    parts, n_objects = _count_parts(objects)
    wanted = asked or declared
    if wanted is None:
        torn: Order = "row" if parts["row"] > parts["column"] else "column"
        kept: Order = "column" if torn == "row" else "row"
        if _much_more(parts[torn], parts[kept]):
            return kept
        raise UsageError(
            "this table does not tell whether its runs go along rows or down columns",
            where=where,
            got=f"{n_objects} objects fall into {parts['row']} parts by rows, {parts['column']} by columns",
            remedy="say it: --rle-order row (as in Sartorius) or --rle-order column (as in DSB2018)",
        )
    other: Order = "column" if wanted == "row" else "row"
    if _much_more(parts[wanted], parts[other]):
        raise FormatError(
            f"objects fall apart when their runs are read in {wanted} order",
            where=where,
            got=f"{n_objects} objects in {parts[wanted]} connected parts, against {parts[other]} in {other} order",
            expected="about one part an object",
            remedy=f"read it with --rle-order {other}, or check the width and height of the images",
        )
    return wanted


def _much_more(torn: int, kept: int) -> bool:
    # A cell of h rows read in the wrong order is h pieces; an object or two of two parts must not look like that.
    return torn > 2 * kept and torn >= kept + 4


def _count_parts(objects: Sequence[tuple[RunText, tuple[int, int]]]) -> tuple[dict[Order, int], int]:
    """Connected parts of a sample of objects in both orders, and how many objects were looked at."""
    from scipy.ndimage import label

    telling = [(runs, hw) for runs, hw in objects if hw[0] != hw[1] and len(runs.text) > 3]
    step = max(1, len(telling) // _SAMPLED_OBJECTS)
    sampled = telling[::step][:_SAMPLED_OBJECTS]
    parts: dict[Order, int] = {"row": 0, "column": 0}
    for runs, image_hw in sampled:
        positions = parse_runs(runs, image_hw)
        for order in parts:
            labelled: Any = label(crop_of(positions, image_hw, order)[1], structure=np.ones((3, 3)))
            parts[order] += labelled[1]
    return parts, len(sampled)
