"""Run-length text of Kaggle's tables: "start length start length ...", along rows or down columns, counted from 1.

A table does not say in which order it counts, nor from which number. `settle_order` and `settle_first` compare what the
objects look like either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.masks import MaskSet
from cellwright.core.notes import Note
from cellwright.core.text import count

Order = Literal["row", "column"]
First = Literal[0, 1]

# How many objects are decoded in both orders to detect a wrong one, and how many images are compared with them.
_SAMPLED_OBJECTS = 200
_SAMPLED_IMAGES = 4


@dataclass(frozen=True)
class RunText:
    """The runs of one object as text, and the location (file, line, column) for messages."""

    text: str
    where: str


def _numbers(runs: RunText) -> np.ndarray:
    """Starts and lengths (R, 2) int64 as they are in the text."""
    tokens = runs.text.split()
    try:
        return np.array(tokens, dtype=np.int64).reshape(-1, 2)
    except (ValueError, OverflowError):
        bad = next((token for token in tokens if not token.isdecimal()), None)
        got = f"{bad[:40]!r}" if bad is not None else f"{len(tokens)} numbers"
        expected = "pairs of whole numbers 'start length start length ...'"
        raise FormatError("not run-length text", where=runs.where, got=got, expected=expected) from None


def parse_runs(runs: RunText, image_hw: tuple[int, int], first: First = 1) -> np.ndarray:
    """First and last-plus-one pixels (R, 2) int64 of the runs, 0-based, ascending and apart.

    first: the number of the first pixel. Raises `FormatError` for text that is not run-length text, and for runs that
    extend beyond the image.
    """
    numbers = _numbers(runs)
    starts, lengths = numbers[:, 0] - first, numbers[:, 1]
    size = image_hw[0] * image_hw[1]
    wrong = (starts < 0) | (lengths < 1) | (lengths > size) | (starts > size - lengths)
    if wrong.any():
        start, length = numbers[np.flatnonzero(wrong)[0]]
        raise FormatError(
            "a run extends beyond its image",
            where=runs.where,
            got=f"start {start}, length {length}",
            expected=f"{first} to {size - 1 + first}, the pixels of {image_hw[0]} x {image_hw[1]} (height x width)",
            remedy="check that the table belongs to these images, and their width and height",
        )
    total = sum(lengths.tolist())
    if total > size:
        raise FormatError("runs overlap", where=runs.where, got=f"{total} px of runs", expected=f"at most {size} px")
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate((starts + lengths)[order])
    apart = np.flatnonzero(starts[1:] > ends[:-1]) + 1
    return np.stack([starts[np.r_[0, apart]], ends[np.r_[apart - 1, -1]]], axis=1) if len(starts) else numbers


def decode(objects: Sequence[RunText], image_hw: tuple[int, int], order: Order, first: First = 1) -> MaskSet:
    """The masks of one image."""
    size = image_hw[0] * image_hw[1]
    counts = []
    for runs in objects:
        edges = parse_runs(runs, image_hw, first).ravel()
        counts.append(np.diff(np.concatenate([[0], edges, [size]])))
    try:
        if order == "column":
            return MaskSet.from_counts(counts, image_hw)
        return MaskSet.from_counts(counts, (image_hw[1], image_hw[0])).rot90(1).flip("vertical")
    except InputError as error:
        raise error.at(f"the image of {objects[0].where}") from error


def encode(masks: MaskSet, order: Order) -> list[str]:
    """Run-length text of each mask, with sorted runs of maximal length; ``""`` for an empty mask."""
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


# Pixel order


@dataclass(frozen=True)
class Evidence:
    """The objects of one image, and its file if there is one."""

    runs: tuple[RunText, ...]
    image_hw: tuple[int, int]
    image_path: Path | None = None


def settle_order(
    images: Sequence[Evidence], declared: Order | None, requested: Order | None, first: First, where: object
) -> tuple[Order, list[Note]]:
    """The pixel order in which to decode a table, and what was assumed.

    declared: what the columns of the table imply by convention, or None. requested: what the user asks for, or None.

    An object that is decoded in the wrong order falls apart. A sample of the objects is therefore decoded in both
    orders, and the connected parts are counted. In a square image the wrong order only transposes the objects; there,
    the contrast between objects and background in the images decides. Raises `FormatError` if parts or contrast
    contradict the declared or requested order, and `UsageError` if nothing tells the order.
    """
    parts, n_objects = _count_parts(images, first)
    order = requested or declared
    seen = _order_seen(images, first) if not n_objects and requested is None else None
    if order is None:
        torn: Order = "row" if parts["row"] > parts["column"] else "column"
        if _many_more(parts[torn], parts[_other(torn)]):
            return _other(torn), []
        if seen is not None:
            return seen, [_seen_note(seen)]
        raise UsageError(
            "this table does not say whether its runs follow rows or columns",
            where=where,
            got=f"{n_objects} objects have {parts['row']} parts by rows, {parts['column']} by columns",
            remedy='set `rle_order="row"` (as in Sartorius) or `rle_order="column"` (as in DSB2018), in cellwright '
            "data convert",
        )
    other = _other(order)
    if _many_more(parts[order], parts[other]):
        raise FormatError(
            f"objects fall apart when their runs are read in {order} order",
            where=where,
            got=f"{n_objects} objects in {parts[order]} connected parts, compared to {parts[other]} in {other} order",
            expected="about one part per object",
            remedy=f'set `rle_order="{other}"` (in cellwright data convert), or check the size of the images',
        )
    if seen == other:
        raise FormatError(
            f"objects do not lie where the images show them when runs are read in {order} order",
            where=where,
            got=f"objects stand out from the background in {other} order only",
            expected=f"runs in {order} order, by the names of the columns",
            remedy=f'set `rle_order="{other}"` (in cellwright data convert)',
        )
    if requested is None and seen is None and not n_objects and any(image.runs for image in images):
        return order, [_assumed_note(order)]
    return order, []


def settle_first(
    images: Sequence[Evidence], order: Order, requested: First | None, where: object
) -> tuple[First, list[Note]]:
    """Whether runs count pixels from 1, as in Kaggle's tables, or from 0; and what was assumed.

    A start of 0 tells, and so do runs of objects at the border: counted from the wrong number, they reach one pixel
    into the next row or column.
    """
    if requested is not None:
        return requested, []
    if has_start_0(images):
        return 0, [_first_note("a run starts at 0", where)]
    from_1 = sum(_n_torn(image, order, 1) for image in images)
    from_0 = sum(_n_torn(image, order, 0) for image in images)
    if from_1 >= 4 and not from_0:
        return 0, [_first_note(f"else {count(from_1, 'run')} would reach one pixel beyond the border", where)]
    if from_0 or not any(image.runs for image in images):
        return 1, []
    text = (
        "runs were assumed to count pixels from 1, as in Kaggle's tables, since no object touches the border; if the "
        "masks lie one pixel off, set `rle_first=0` (in cellwright data convert)"
    )
    return 1, [Note("runs were assumed to count from 1", text, Path(str(where)).name)]


def has_start_0(images: Iterable[Evidence]) -> bool:
    """Whether a run starts at 0, so that pixels are counted from 0."""
    return any(runs.text.split(maxsplit=1)[:1] == ["0"] for image in images for runs in image.runs)


def _n_torn(image: Evidence, order: Order, first: First) -> int:
    """The number of runs that have one pixel beyond the end of a row or column, if they are counted from ``first``."""
    side = image.image_hw[1] if order == "row" else image.image_hw[0]
    n = 0
    for runs in image.runs:
        numbers = _numbers(runs)
        starts, lengths = numbers[:, 0] - first, numbers[:, 1]
        crosses = starts // side != (starts + lengths - 1) // side
        one_before = starts % side == side - 1
        one_after = (starts + lengths - 1) % side == 0
        n += int((crosses & (one_before if first else one_after)).sum())
    return n


def _first_note(why: str, where: object) -> Note:
    text = f"runs were read as counting pixels from 0, not from 1 as Kaggle's do: {why}"
    return Note("runs were read as counting pixels from 0", text, Path(str(where)).name)


def _assumed_note(order: Order) -> Note:
    text = (
        f"runs were assumed to follow {order}s, by the names of the columns; as all images are square, this cannot be "
        f'checked: if objects lie mirrored along the diagonal, set `rle_order="{_other(order)}"` (in cellwright data '
        "convert)"
    )
    return Note("the order of runs could not be checked", text)


def _seen_note(order: Order) -> Note:
    text = f"runs were read along {order}s: there, objects stand out from the background of the images"
    return Note("the order of runs was taken from the images", text)


def _other(order: Order) -> Order:
    return "column" if order == "row" else "row"


def _order_seen(images: Sequence[Evidence], first: First) -> Order | None:
    """The order in which objects stand out from the background of square images; None if neither clearly does."""
    contrasts: dict[Order, list[float]] = {"row": [], "column": []}
    for image in [image for image in images if image.runs and image.image_path is not None][:_SAMPLED_IMAGES]:
        pixels = _grey(image)
        if pixels is None:
            return None
        for order, found in contrasts.items():
            inside = decode(image.runs, image.image_hw, order, first).foreground()
            if inside.all() or not inside.any():
                return None
            difference = abs(float(pixels[inside].mean()) - float(pixels[~inside].mean()))
            found.append(difference / max(float(pixels.std()), 1e-6))
    if not contrasts["row"]:
        return None
    row, column = float(np.mean(contrasts["row"])), float(np.mean(contrasts["column"]))
    better: Order = "row" if row > column else "column"
    return better if max(row, column) > 0.5 and max(row, column) > 2 * min(row, column) else None


def _grey(image: Evidence) -> np.ndarray | None:
    """The mean of the channels (H, W); None for an image that cannot be read without a choice."""
    from cellwright.data.images.read import read_image

    try:
        pixels = read_image(str(image.image_path)).data.astype(np.float32).mean(2)
    except InputError:
        return None
    return pixels if pixels.shape == image.image_hw else None


def _many_more(torn: int, whole: int) -> bool:
    # In the wrong order, a cell of h rows has h parts. A few objects that really have two parts must not count.
    return torn > 2 * whole and torn >= whole + 4


def _count_parts(images: Sequence[Evidence], first: First) -> tuple[dict[Order, int], int]:
    """The number of connected parts of a sample of objects in both orders, and the number of objects in the sample."""
    from scipy.ndimage import label

    useful = [
        (runs, image.image_hw)
        for image in images
        for runs in image.runs
        if image.image_hw[0] != image.image_hw[1] and len(runs.text) > 3
    ]
    step = max(1, len(useful) // _SAMPLED_OBJECTS)
    sampled = useful[::step][:_SAMPLED_OBJECTS]
    parts: dict[Order, int] = {"row": 0, "column": 0}
    for runs, image_hw in sampled:
        for order in parts:
            labelled: Any = label(decode([runs], image_hw, order, first).crop(0), structure=np.ones((3, 3)))
            parts[order] += labelled[1]
    return parts, len(sampled)
