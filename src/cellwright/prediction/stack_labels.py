"""The labels of a stack in one file, written plane by plane: OME-TIFF, or OME-Zarr 0.5 with a pyramid. uint32."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.files import atomic_path
from cellwright.prediction.tiling.label_writers import CHUNK_PX, TOP_PX

# Above this, a TIFF needs 64-bit offsets.
_BIG_BYTES = 1 << 31
Places = Iterator[tuple[tuple[int, ...], np.ndarray]]
"""The place of each plane along the leading axes, in order, and its labels (H, W) uint32."""


@dataclass(frozen=True)
class LabelStack:
    """The form of the labels of a stack. axes: the leading ones, "Z", "T" or "TZ", and how long they are.

    um: distance of planes and size of pixels (z, y, x) in microns, None where unknown. content: tells other labels of
    the same form apart.
    """

    axes: str
    lengths: tuple[int, ...]
    image_hw: tuple[int, int]
    um: tuple[float | None, float | None, float | None]
    content: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return (*self.lengths, *self.image_hw)


def write_tiff(path: Path, stack: LabelStack, planes: Places) -> None:
    """Write an OME-TIFF; the same labels give the same file."""
    import tifffile

    metadata: dict[str, Any] = {"axes": f"{stack.axes}YX", "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, stack.content))}
    for axis, size in zip("ZYX", stack.um, strict=True):
        if size is not None and (axis != "Z" or "Z" in stack.axes):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    is_big = 4 * int(np.prod(stack.shape, dtype=np.int64)) >= _BIG_BYTES
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=is_big, ome=True) as tif:
        tif.write(
            (labels for _, labels in planes),
            shape=stack.shape,
            dtype=np.uint32,
            compression="zlib",
            photometric="minisblack",
            metadata=metadata,
        )


def write_zarr(path: Path, stack: LabelStack, planes: Places) -> None:
    """Write an OME-Zarr label image, whose levels keep every second pixel of the one before, down to 512 px."""
    import zarr

    units = {"T": {"type": "time"}, **{axis: {"type": "space"} for axis in "ZYX"}}
    sizes: list[float] = []
    for axis in f"{stack.axes}YX":
        um = None if axis == "T" else stack.um["ZYX".index(axis)]
        sizes.append(1.0 if um is None else um)
        units[axis] |= {} if um is None else {"unit": "micrometer"}
    with atomic_path(path) as temporary:
        root = zarr.open_group(temporary, mode="w", zarr_format=3)
        names, lead = [axis.lower() for axis in f"{stack.axes}YX"], (1,) * len(stack.axes)
        arrays: list[Any] = [
            root.create_array(
                str(level),
                shape=(*stack.lengths, *hw),
                chunks=(*lead, CHUNK_PX, CHUNK_PX),
                dtype="uint32",
                dimension_names=names,
            )
            for level, hw in enumerate(_levels(stack.image_hw))
        ]
        for place, labels in planes:
            for level, array in enumerate(arrays):
                array[(*place, slice(None), slice(None))] = labels[:: 2**level, :: 2**level]
        datasets = []
        for level in range(len(arrays)):
            scale = [*sizes[:-2], *(size * 2**level for size in sizes[-2:])]
            datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
        axes = [{"name": axis.lower(), **units[axis]} for axis in f"{stack.axes}YX"]
        root.attrs["ome"] = {
            "version": "0.5",
            "multiscales": [{"name": "labels", "axes": axes, "datasets": datasets, "type": "nearest"}],
            "image-label": {},
        }


def _levels(image_hw: tuple[int, int]) -> list[tuple[int, int]]:
    """The size (height, width) of each level."""
    levels = [image_hw]
    while max(levels[-1]) > TOP_PX:
        levels.append((-(-levels[-1][0] // 2), -(-levels[-1][1] // 2)))
    return levels
