"""Label images larger than memory: a tiled BigTIFF, or OME-Zarr 0.5 with a pyramid. uint32, 0 is background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cellwright.core.errors import UsageError
from cellwright.core.geometry import Window
from cellwright.core.progress import Track, no_progress

LabelKind = Literal["tiff", "zarr"]
Paint = Callable[[Window], np.ndarray]
"""The labels (h, w) uint32 of a window."""

TILE_PX, CHUNK_PX = 512, 1024
# The smallest level of a pyramid fits into this.
TOP_PX = 512
# Chunks are painted several at a time, so that the objects of a tile are loaded once or twice.
_PAINTED_PX = 4096


def write_label_tiff(
    path: Path,
    image_hw: tuple[int, int],
    paint: Paint,
    *,
    pixel_size_um: tuple[float, float] | None = None,
    track: Track = no_progress,
) -> None:
    """Write a BigTIFF of tiles of 512 px, compressed with deflate, row by row of tiles."""
    import tifffile

    height, width = image_hw
    resolution: dict[str, Any] = {}
    if pixel_size_um is not None:
        y, x = pixel_size_um
        resolution = {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}

    def tiles() -> Iterator[np.ndarray]:
        rows = range(0, height, TILE_PX)
        for y in track(rows, "writing labels", len(rows)):
            for left in range(0, width, _PAINTED_PX):
                window = Window(y, left, min(y + TILE_PX, height), min(left + _PAINTED_PX, width))
                painted = paint(window)
                for x in range(0, painted.shape[1], TILE_PX):
                    tile = np.zeros((TILE_PX, TILE_PX), np.uint32)
                    part = painted[:, x : x + TILE_PX]
                    tile[: part.shape[0], : part.shape[1]] = part
                    yield tile

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            tiles(),
            shape=image_hw,
            dtype=np.uint32,
            tile=(TILE_PX, TILE_PX),
            compression="zlib",
            predictor=True,
            photometric="minisblack",
            metadata={"axes": "YX"},
            **resolution,
        )


def check_zarr() -> None:
    """Raise `UsageError` if OME-Zarr cannot be written."""
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        remedy = 'pip install "cellwright[zarr]", or use `labels="tiff"`'
        raise UsageError("OME-Zarr needs another package", got=f"no {error.name}", remedy=remedy) from error


def write_label_zarr(
    path: Path,
    image_hw: tuple[int, int],
    paint: Paint,
    *,
    pixel_size_um: tuple[float, float] | None = None,
    track: Track = no_progress,
) -> None:
    """Write an OME-Zarr 0.5 label image; each level keeps every second pixel of the one before, down to 512 px."""
    check_zarr()
    import zarr

    root = zarr.open_group(path, mode="w", zarr_format=3)
    y_um, x_um = pixel_size_um or (1.0, 1.0)
    datasets, level, hw = [], 0, image_hw
    above: Any = None
    while True:
        array: Any = root.create_array(
            str(level), shape=hw, chunks=(CHUNK_PX, CHUNK_PX), dtype="uint32", dimension_names=("y", "x")
        )
        windows = [
            Window(y, x, min(y + _PAINTED_PX, hw[0]), min(x + _PAINTED_PX, hw[1]))
            for y in range(0, hw[0], _PAINTED_PX)
            for x in range(0, hw[1], _PAINTED_PX)
        ]
        for window in track(windows, f"writing labels, level {level}", len(windows)):
            y0, x0, y1, x1 = window
            array[y0:y1, x0:x1] = paint(window) if above is None else above[2 * y0 : 2 * y1 : 2, 2 * x0 : 2 * x1 : 2]
        scale = {"type": "scale", "scale": [y_um * 2**level, x_um * 2**level]}
        datasets.append({"path": str(level), "coordinateTransformations": [scale]})
        if max(hw) <= TOP_PX:
            break
        above, level, hw = array, level + 1, (-(-hw[0] // 2), -(-hw[1] // 2))
    unit = {} if pixel_size_um is None else {"unit": "micrometer"}
    axes = [{"name": name, "type": "space", **unit} for name in "yx"]
    root.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": "labels", "axes": axes, "datasets": datasets, "type": "nearest"}],
        "image-label": {},
    }
