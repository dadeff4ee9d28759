"""Which tiles of a slide have only glass: they are skipped.

The image is looked at in cells of about 128 px, at a quarter of its resolution: a level of its pyramid, or means of
squares. A cell is glass if its pixels have the colour of the glass, or if all are equal, as where nothing was scanned.
Specks do not count that absorb less light than a nucleus of 8 px in diameter that is 20 grey levels darker than the
glass: that is half of what the smallest and palest nuclei absorb. A tile is skipped only if it and the cells around it
are glass.

Glass is found only in images that are certainly slides in transmitted light: RGB, with one bright and almost colourless
background on a large part of the image, and objects that are much darker. Fluorescence never has glass.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.geometry import Window
from cellwright.core.notes import Note
from cellwright.core.progress import Track, no_progress
from cellwright.data.identity import FileIdentity
from cellwright.data.images.source import ImageSource, open_image
from cellwright.prediction.tiling.statistics import blocks, read_block

CELL_PX, REDUCTION = 128, 4
# Glass is at least this bright in each colour, differs between colours by at most so much, and covers this share.
_DARKEST_GLASS, _LARGEST_CHROMA, _SMALLEST_SHARE = 180, 30, 0.15
# A pixel of glass differs from the colour of the glass by at most so many standard deviations, within these limits.
_SIGMAS, _TOLERANCES = 6.0, (6.0, 14.0)
# A cell with pixels that differ more is not glass if their differences are this much together, in squares of 4 x 4 px.
_LEAST_AMOUNT = 40.0
# Squares of which the colour of the glass is found.
_SAMPLE = 1_000_000
# Stained objects: this share of the cells that are not glass are darker than it by so much.
_CONTRAST, _STAINED_SHARE = 50.0, 0.1
# The proportions of a mask may differ from those of the image by this share, or by one pixel of the mask.
_ASPECT = 0.01


@dataclass(frozen=True, eq=False)
class Tissue:
    """Where an image may have objects.

    word: how it was found: "auto", or name and digest of a mask. cells (rows, columns) bool, row by row from the corner
    of the image; cell_px: their (height, width), px of the image.
    """

    word: str
    cells: np.ndarray
    cell_px: tuple[float, float]

    def touch(self, windows: Sequence[Window]) -> np.ndarray:
        """Which windows (N,) bool have tissue inside or within one cell around them."""
        edges = np.array(windows, np.float64).reshape(-1, 2, 2) / self.cell_px
        first = np.maximum(np.floor(edges[:, 0]).astype(np.int64) - 1, 0)
        last = np.minimum(np.ceil(edges[:, 1]).astype(np.int64) + 1, self.cells.shape)
        table = np.pad(self.cells.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        (y0, x0), (y1, x1) = np.minimum(first, last).T, last.T
        return table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0] > 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        packed = zlib.compress(np.packbits(self.cells).tobytes(), 9)
        shape, cell_px = list(self.cells.shape), list(self.cell_px)
        return {"word": self.word, "shape": shape, "cell_px": cell_px, "cells": base64.b64encode(packed).decode()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Tissue:
        """The opposite of `to_dict`. Raises `KeyError`, `TypeError` or `ValueError` for other values."""
        (rows, columns), (height, width) = map(int, values["shape"]), map(float, values["cell_px"])
        size = -(-rows * columns // 8)
        if min(rows, columns) < 1 or min(height, width) <= 0:
            raise ValueError("the size of the tissue is out of range")
        try:
            bits = zlib.decompressobj().decompress(base64.b64decode(values["cells"]), size + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if len(bits) != size:
            raise ValueError("the tissue has another size")
        cells = np.unpackbits(np.frombuffer(bits, np.uint8), count=rows * columns).astype(bool)
        return Tissue(str(values["word"]), cells.reshape(rows, columns), (height, width))


def tissue_word(choice: str | None, stored: Tissue | None = None) -> tuple[str | None, tuple[Note, ...]]:
    """What identifies a choice: None, "auto", "none", or name and digest of a mask; and a note.

    stored: that of a job that goes on, taken if a mask is no longer there. Raises `InputError` for no mask.
    """
    if choice in (None, "auto", "none"):
        return choice, ()
    path = Path(choice)
    if path.is_file():
        return f"{path.name} {FileIdentity.of(path).digest[:16]}", ()
    if stored is not None and stored.word.rpartition(" ")[0] == path.name:
        text = f"{path.name} is not there: the tissue is that which the job has stored"
        return stored.word, (Note("the tissue was taken from the job", text),)
    raise InputError("no such mask of tissue", where=choice, got="`tissue`", expected="auto, none, or an image file")


# --- a mask ---------------------------------------------------------------------------------------------------------


def tissue_of_mask(path: Path, word: str, image_hw: tuple[int, int]) -> Tissue:
    """The nonzero pixels of an image file, which shows the image at any size.

    Raises `UsageError` for a mask with other proportions or without tissue.
    """
    mask = open_image(path)
    (height, width), (mask_h, mask_w) = image_hw, mask.image_hw
    expected_w = mask_h * width / height
    slack = max(1.0, width / height) + _ASPECT * max(mask_w, expected_w)
    if abs(mask_w - expected_w) > slack:
        raise UsageError(
            "the mask of tissue has other proportions than the image",
            where=path,
            got=f"{mask_h} x {mask_w} px",
            expected=f"the proportions of {height} x {width} px, such as {mask_h} x {round(expected_w)}",
        )
    colours = [k for k, name in enumerate(mask.channels) if name != "A"]
    step = max(int(CELL_PX * mask_h / height), 1)
    cells = np.zeros((-(-mask_h // step), -(-mask_w // step)), bool)
    for window in blocks(mask.image_hw, (step, step)):
        data = (read_block(mask, window).data[:, :, colours] != 0).any(axis=2)
        part: np.ndarray = np.any(_in_cells(data, step, "constant"), axis=(1, 3))
        cells[window.y0 // step :, window.x0 // step :][: part.shape[0], : part.shape[1]] = part
    if not cells.any():
        raise UsageError("the mask of tissue has no tissue", where=path, got="only zeros", expected="nonzero pixels")
    return Tissue(word, cells, (step * height / mask_h, step * width / mask_w))


def _in_cells(data: np.ndarray, step: int, mode: Any) -> np.ndarray:
    """(h, w, ...) as (rows, step, columns, step, ...); ``mode`` fills up the last cells, as in `np.pad`."""
    height, width = data.shape[:2]
    rest = [(0, 0)] * (data.ndim - 2)
    data = np.pad(data, [(0, -height % step), (0, -width % step), *rest], mode)
    return data.reshape(-(-height // step), step, -(-width // step), step, *data.shape[2:])


# --- glass ----------------------------------------------------------------------------------------------------------


def find_tissue(source: ImageSource, *, track: Track = no_progress) -> Tissue | str:
    """Where a slide is not glass; a reason if it has no glass that can be told from objects."""
    if tuple(source.channels[:3]) != ("R", "G", "B") or source.dtype != np.uint8:
        return "the image is not RGB in 8 bits"
    scan = _Scan.of(source)
    n = max(math.isqrt(scan.shape[0] * scan.shape[1] * scan.side**2 // _SAMPLE), 1)
    glass = _glass(np.concatenate([squares[::n, ::n].reshape(-1, 3) for squares, _ in scan.blocks(source, track)]))
    if glass is None:
        return "the image has no bright, colourless background"
    colour, tolerance = glass
    # Cells that cannot be decoded are not glass: their tiles are predicted, and fail.
    amount, contrast = np.full(scan.shape, np.inf), np.zeros(scan.shape)
    for squares, place in scan.blocks(source, track):
        cells = _in_cells(squares, scan.side, "edge")
        difference = np.abs(cells - colour).max(axis=4)
        difference[difference <= tolerance] = 0
        is_constant = (cells.max(axis=(1, 3)) == cells.min(axis=(1, 3))).all(axis=2)
        amount[place] = difference.sum(axis=(1, 3)) * scan.square_px**2 / REDUCTION**2 * ~is_constant
        contrast[place] = (colour - cells).max(axis=(1, 3, 4))
    is_glass = _around(amount) < _LEAST_AMOUNT
    share = is_glass.mean()
    if share < _SMALLEST_SHARE:
        return f"only {share:.0%} of the image are glass"
    if is_glass.all() or (contrast[~is_glass] >= _CONTRAST).mean() < _STAINED_SHARE:
        return "what is not glass is hardly darker than it"
    return Tissue("auto", ~is_glass, scan.cell_px)


def _around(amount: np.ndarray) -> np.ndarray:
    """The largest sum of the four squares of 2 x 2 cells that contain each cell: what is cut by borders is whole."""
    padded = np.pad(amount, 1)
    sums = padded[:-1, :-1] + padded[:-1, 1:] + padded[1:, :-1] + padded[1:, 1:]
    largest = np.maximum(sums[:-1], sums[1:])
    return np.where(amount > 0, np.maximum(largest[:, :-1], largest[:, 1:]), 0)


@dataclass(frozen=True)
class _Scan:
    """How an image is looked at: squares of a level, in cells.

    shape: rows and columns of cells. side: of a cell, squares. reduce: side of a square, px of the level; square_px: px
    of the image.
    """

    level: int
    reduce: int
    side: int
    shape: tuple[int, int]
    cell_px: tuple[float, float]
    square_px: float

    @staticmethod
    def of(source: ImageSource) -> _Scan:
        downs = [max(level.downsample) for level in source.levels]
        level = max(k for k, down in enumerate(downs) if down <= REDUCTION * 1.001)
        (height, width), (down_y, down_x) = source.levels[level].image_hw, source.levels[level].downsample
        reduce = max(round(REDUCTION / downs[level]), 1)
        side = max(round(CELL_PX / downs[level] / reduce), 1)
        step = side * reduce
        shape, square_px = (-(-height // step), -(-width // step)), reduce * downs[level]
        return _Scan(level, reduce, side, shape, (step * down_y, step * down_x), square_px)

    def blocks(self, source: ImageSource, track: Track) -> Iterator[tuple[np.ndarray, tuple[slice, slice]]]:
        """Squares (h, w, 3) float32 of whole cells, and the place of these, without parts that cannot be decoded."""
        step = self.side * self.reduce
        windows = list(blocks(source.levels[self.level].image_hw, (step, step)))
        for window in track(windows, "looking for tissue", len(windows)):
            try:
                pixels = read_block(source, window, self.level).data[:, :, :3]
            except FormatError:
                continue
            squares = _in_cells(pixels, self.reduce, "edge").mean(axis=(1, 3), dtype=np.float32)
            row, column = window.y0 // step, window.x0 // step
            n_rows, n_columns = (-(-side // self.side) for side in squares.shape[:2])
            yield squares, (slice(row, row + n_rows), slice(column, column + n_columns))


def _glass(colours: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The colour (3,) of the glass, and by how much a pixel of it may differ; None without any.

    Glass is the most frequent bright one of ``colours`` (N, 3). Its noise is that of the brighter half: tissue is
    darker.
    """
    darkest = np.rint(colours.min(axis=1)).astype(np.int64)
    counts = np.bincount(darkest, minlength=256)
    bright = np.where(np.arange(256) >= _DARKEST_GLASS, counts, 0)
    mode = int(bright.argmax())
    if not bright[mode]:
        return None
    colour = colours[np.abs(darkest - mode) <= 1].mean(axis=0, dtype=np.float64).astype(np.float32)
    if np.ptp(colour) > _LARGEST_CHROMA:
        return None
    above = counts[mode : mode + 20].astype(np.float64)
    above[0] /= 2
    sigma = float(np.searchsorted(np.cumsum(above) / above.sum(), 0.683)) + 0.5
    return colour, float(np.clip(_SIGMAS * sigma, *_TOLERANCES))
