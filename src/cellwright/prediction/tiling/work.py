"""One tile from the source to its record: predict, select, measure, and decide what to store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.morphology import SMOOTH_REACH
from cellwright.core.notes import Note
from cellwright.core.progress import Track, no_progress
from cellwright.core.text import count
from cellwright.data.images.source import ImageSource
from cellwright.measurement.table import measure_instances
from cellwright.prediction.options import PredictOptions, select
from cellwright.prediction.record import Prediction
from cellwright.prediction.tiling.facts import ImageFacts
from cellwright.prediction.tiling.grid import Grid, Tile
from cellwright.prediction.tiling.seams import stored_objects
from cellwright.prediction.tiling.statistics import read_block
from cellwright.prediction.tiling.tile_file import TileRecord

# A tile whose objects are cut off by its window is predicted again with a halo up to so many times as wide.
MAX_HALO_FACTOR = 4
CUT_OFF = "objects too large for the margin of a tile may be cut off"
_SHIFTED = {"centroid_y_px": 0, "centroid_x_px": 1, "bbox_y0_px": 0, "bbox_x0_px": 1, "bbox_y1_px": 0, "bbox_x1_px": 1}


class TileModel(Protocol):
    """A model that predicts tiles of sources, which have the channels that it sees."""

    @property
    def bytes_per_px(self) -> float:
        """About how much memory a tile takes, bytes per pixel of its window at the network's scale."""
        ...

    @property
    def whole_bytes_per_px(self) -> float:
        """About how much memory the model takes for a whole image, bytes per pixel of the image; 0 for little."""
        ...

    def facts(self, source: ImageSource, *, track: Track = no_progress) -> ImageFacts:
        """What it needs to know about a whole image, found once."""
        ...

    def grid(self, facts: ImageFacts, core_px: int) -> Grid:
        """The tiles of an image. core_px: largest side of a core, network px."""
        ...

    def covering(self, facts: ImageFacts, core: Window, output: Window) -> Tile:
        """What it needs to see for a core and an output, source px, of the tile of another model."""
        ...

    def objects(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Instances:
        """All objects in ``tile.output``, in its pixels, best first."""
        ...


@dataclass(frozen=True)
class TileWork:
    """What is done with each tile of a job.

    source: all channels, which are measured. seen: the channels that the model sees. options: which objects are kept;
    ``max_objects`` is that of the whole image, and applied at the end. ring_px: see `measure_instances`.
    """

    model: TileModel
    source: ImageSource
    seen: ImageSource
    facts: ImageFacts
    grid: Grid
    options: PredictOptions
    ring_px: int | None = None

    def record(self, index: int) -> TileRecord:
        """What a tile leaves. Raises `InputError` if its pixels cannot be read."""
        grid = self.grid
        while True:
            tile = grid[index]
            found = self._selected(tile)
            stored = stored_objects(self._in_source(found, tile), grid, tile)
            # Outlines near the edge of the output are smoothed as if nothing were beyond it.
            margin = SMOOTH_REACH if self.options.smooth else 0
            cut = _is_cut(stored.objects.masks, tile, grid.source_hw, margin) & stored.owned
            if not cut.any() or grid.halo_px >= MAX_HALO_FACTOR * self.grid.halo_px:
                break
            grid = replace(grid, halo_px=2 * grid.halo_px)
        notes: tuple[Note, ...] = ()
        if cut.any():
            core = grid.source_window(tile.core)
            text = f"{count(int(cut.sum()), 'object')} from row {core.y0}, column {core.x0} may be cut off"
            notes = (Note(CUT_OFF, text),)
        return TileRecord(stored, notes)

    def _selected(self, tile: Tile) -> Instances:
        """The objects that are kept, measured, in pixels of the tile's output."""
        objects = self.model.objects(self.facts.seen(self.seen), self.facts, tile)
        options = replace(self.options, remove_border=False, max_objects=None)
        found = select(Prediction.of(objects), options).instances
        return measured(found, self.source, tile.output, ring_px=self.ring_px)

    def _in_source(self, objects: Instances, tile: Tile) -> Instances:
        """Objects of the output in pixels of the source, without those at its border if they are to be removed."""
        masks = shifted(objects.masks, tile.output.y0, tile.output.x0, self.grid.source_hw)
        touches = masks.touches_border
        moved = replace(
            objects,
            image_hw=masks.image_hw,
            masks=masks,
            boxes_xyxy=masks.boxes.astype(np.float32),
            columns=objects.columns | {"touches_border": touches.astype(np.float64)},
            soft_masks=None,
        )
        return moved[~touches] if self.options.remove_border else moved


def measured(objects: Instances, source: ImageSource, window: Window, *, ring_px: int | None) -> Instances:
    """Objects of a window of the source, given in its pixels, with measurements in pixels of the source as columns."""
    table = measure_instances(objects, read_block(source, window), ring_px=ring_px)
    columns = {name: table[name].to_numpy(np.float64) for name in table.columns if name not in ("class", "score")}
    for name, axis in _SHIFTED.items():
        columns[name] = columns[name] + window[axis]
    return replace(objects, columns=columns)


def shifted(masks: MaskSet, dy: int, dx: int, image_hw: tuple[int, int]) -> MaskSet:
    """Masks of a part of an image whose first pixel is (dy, dx), as masks of the whole; nothing is cut off."""
    moved = (masks.boxes + np.array([dx, dy, dx, dy])) * (masks.areas > 0)[:, None]
    return MaskSet(image_hw, moved.astype(np.int32), masks.offsets, masks.crops)


def _is_cut(masks: MaskSet, tile: Tile, source_hw: tuple[int, int], margin: int = 0) -> np.ndarray:
    """Which masks (N,) bool reach an edge of the tile's output, or ``margin`` px from it, that is not the image's."""
    x0, y0, x1, y1 = masks.boxes.T
    (top, left, bottom, right), (height, width) = tile.output, source_hw
    return (
        ((y0 <= top + margin) & (top > 0))
        | ((x0 <= left + margin) & (left > 0))
        | ((y1 >= bottom - margin) & (bottom < height))
        | ((x1 >= right - margin) & (right < width))
    )
