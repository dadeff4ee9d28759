"""Which tiles of a slide have only glass: they are skipped.

The image is looked at in cells of about 128 px, at about a quarter of its resolution: a level of its pyramid, or means
of squares. A cell is glass only if all its pixels have the colour of the glass, or all are equal, as where nothing was
scanned; a tile is skipped only if it and the cells around it are glass. So a single pale cell keeps its tile.

Glass is found only in images that are certainly slides in transmitted light: RGB, with one bright and almost colourless
background on a large part of the image, and objects that are much darker. Fluorescence never has glass.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
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
        part = _in_cells(data, step, "constant").any(axis=(1, 3))
        cells[window.y0 // step :, window.x0 // step :][: part.shape[0], : part.shape[1]] = part
    if not cells.any():
        raise UsageError("the mask of tissue has no tissue", where=path, got="only zeros", expected="nonzero pixels")
    return Tissue(word, cells, (step * height / mask_h, step * width / mask_w))


def _in_cells(data: np.ndarray, step: int, mode: Any) -> np.ndarray:
    """(h, w, ...) as (rows, step, columns, step, ...); ``mode`` fills up the last cells, as in `np.pad`."""
    height, width = data.shape[:2]
    rest = [(0, 0)] * (data.ndim - 2)
    data = np.pad(data, [(0, -height % step), (0, -width % step), *rest], mode)
    return data.reshape(data.shape[0] // step, step, data.shape[1] // step, step, *data.shape[2:])


# --- glass ----------------------------------------------------------------------------------------------------------


def find_tissue(source: ImageSource, *, track: Track = no_progress) -> Tissue | str:
    """Where a slide is not glass; a reason if it has no glass that can be told from objects."""
    if tuple(source.channels[:3]) != ("R", "G", "B") or source.dtype != np.uint8:
        return "the image is not RGB in 8 bits"
    scan = _Scan.of(source, track)
    glass = scan.glass()
    if glass is None:
        return "the image has no bright, colourless background"
    colour, tolerance = glass
    is_glass = ((scan.lowest >= colour - tolerance) & (scan.highest <= colour + tolerance)).all(axis=2)
    is_glass |= (scan.lowest == scan.highest).all(axis=2)
    is_glass &= scan.is_read
    share = is_glass.mean()
    if share < _SMALLEST_SHARE:
        return f"only {share:.0%} of the image are glass"
    contrast = (colour - scan.lowest).max(axis=2)[~is_glass & scan.is_read]
    if not len(contrast) or (contrast >= _CONTRAST).mean() < _STAINED_SHARE:
        return "what is not glass is hardly darker than it"
    return Tissue("auto", ~is_glass, scan.cell_px)


@dataclass(frozen=True, eq=False)
class _Scan:
    """The colours of an image at about a quarter of its resolution.

    lowest, highest: (rows, columns, 3) of each cell. is_read: whether the cell could be decoded. counts (256,), sums
    (256, 3): number and total of the pixels, by the darkest of their colours.
    """

    cell_px: tuple[float, float]
    lowest: np.ndarray
    highest: np.ndarray
    is_read: np.ndarray
    counts: np.ndarray
    sums: np.ndarray

    @staticmethod
    def of(source: ImageSource, track: Track) -> _Scan:
        downs = [max(level.downsample) for level in source.levels]
        level = max(k for k, down in enumerate(downs) if down <= REDUCTION * 1.001)
        (height, width), down = source.levels[level].image_hw, source.levels[level].downsample
        reduce = max(round(REDUCTION / downs[level]), 1)
        step = max(round(CELL_PX / downs[level] / reduce), 1) * reduce
        shape = (-(-height // step), -(-width // step))
        scan = _Scan(
            (step * down[0], step * down[1]),
            np.zeros((*shape, 3), np.float32),
            np.full((*shape, 3), 255, np.float32),
            np.zeros(shape, bool),
            np.zeros(256, np.int64),
            np.zeros((256, 3), np.float64),
        )
        windows = list(blocks((height, width), (step, step)))
        for window in track(windows, "looking for tissue", len(windows)):
            try:
                pixels = read_block(source, window, level).data[:, :, :3]
            except FormatError:
                continue  # is not glass; its tiles are predicted, and fail
            squares = _in_cells(pixels, reduce, "edge").mean(axis=(1, 3), dtype=np.float32)
            scan._add(squares, _in_cells(squares, step // reduce, "edge"), window.y0 // step, window.x0 // step)
        return scan

    def _add(self, squares: np.ndarray, cells: np.ndarray, row: int, column: int) -> None:
        place = slice(row, row + cells.shape[0]), slice(column, column + cells.shape[2])
        self.lowest[place], self.highest[place] = cells.min(axis=(1, 3)), cells.max(axis=(1, 3))
        self.is_read[place] = True
        colours = squares.reshape(-1, 3)
        darkest = np.rint(colours.min(axis=1)).astype(np.int64)
        self.counts[:] += np.bincount(darkest, minlength=256)
        for c in range(3):
            self.sums[:, c] += np.bincount(darkest, colours[:, c], minlength=256)

    def glass(self) -> tuple[np.ndarray, float] | None:
        """The colour (3,) of the glass, and by how much a pixel of it may differ; None without any.

        Glass is the most frequent bright colour. Its noise is that of the brighter half: tissue is darker.
        """
        bright = np.where(np.arange(256) >= _DARKEST_GLASS, self.counts, 0)
        mode = int(bright.argmax())
        if not bright[mode]:
            return None
        near = slice(max(mode - 1, 0), mode + 2)
        colour = self.sums[near].sum(axis=0) / self.counts[near].sum()
        if np.ptp(colour) > _LARGEST_CHROMA:
            return None
        above = self.counts[mode : mode + 20].astype(np.float64)
        above[0] /= 2
        sigma = float(np.searchsorted(np.cumsum(above) / above.sum(), 0.683)) + 0.5
        return colour, float(np.clip(_SIGMAS * sigma, *_TOLERANCES))
