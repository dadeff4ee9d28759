"""A smaller level of a pyramid as an image of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellwright.core.errors import UsageError
from cellwright.core.notes import Note
from cellwright.data.images.planes import PlaneWindow
from cellwright.data.images.regions import Facts, ImageSource, Level, RegionSource


class LevelSource(RegionSource):
    """Level ``level`` of a source: its size is that of the level, its pixels are larger, and smaller levels follow.

    Raises `UsageError` for a level that the source does not have.
    """

    def __init__(self, source: ImageSource, level: int) -> None:
        if not 0 <= level < len(source.levels):
            sizes = ", ".join(f"{k} ({h} x {w})" for k, (h, w) in enumerate(one.image_hw for one in source.levels))
            raise UsageError("no such level", where=source.path, got=f"`level` {level}", expected=sizes)
        self.source, self.level = source, level
        down_y, down_x = source.levels[level].downsample
        levels = tuple(
            Level(one.image_hw, (one.downsample[0] / down_y, one.downsample[1] / down_x))
            for one in source.levels[level:]
        )
        size = None
        if source.pixel_size_um is not None:
            size = (source.pixel_size_um[0] * down_y, source.pixel_size_um[1] * down_x)
        height, width = levels[0].image_hw
        text = f"level {level} (1/{down_y:.4g}): sizes and positions are in its pixels, {height} x {width}"
        text += "" if size is None else f" of {size[1]:.4g} um"
        notes = (*source.notes, Note("a smaller level of a pyramid was used", text, source.path or ""))
        layout = f"level {level} of {len(source.levels)}"
        facts = Facts(source.path, source.channels, source.dtype, levels, source.tile_hw, layout, size, notes)
        super().__init__(facts, [None] * len(levels))

    def decode(self, level: int, window: PlaneWindow) -> np.ndarray:
        """The pixels (h, w, C) of a window of a level, counted from this one."""
        return self.source.read(*window, self.level + level).data

    def fingerprint(self) -> str:
        """That of the source, and the level."""
        return f"{self.source.fingerprint()}:level {self.level}"


def full_hw(source: Any) -> tuple[int, int]:
    """(H, W) of the full size, of which a source may be a smaller level."""
    height, width = source.source.image_hw if isinstance(source, LevelSource) else source.image_hw
    return height, width


def downsample_of(source: Any) -> tuple[float, float]:
    """(y, x) pixels of the full size per pixel of a source."""
    return source.source.levels[source.level].downsample if isinstance(source, LevelSource) else (1.0, 1.0)
