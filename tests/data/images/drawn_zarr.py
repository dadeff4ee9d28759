"""OME-Zarr images of every version, written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"t": "time", "c": "channel"}


def write(
    path: Path,
    data: np.ndarray,
    axes: str,
    *,
    version: str = "0.4",
    unit: str | None = "micrometer",
    scale: float = 0.5,
    channels: list[dict[str, Any]] | None = None,
    chunks: tuple[int, ...] | None = None,
    n_levels: int = 2,
) -> Path:
    """An OME-Zarr image with levels of half the size."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for level in range(n_levels):
        part = data[..., :: 2**level, :: 2**level]
        chunk = chunks or (*(1,) * (data.ndim - 2), 32, 40)
        array = group.create_array(str(level), shape=part.shape, chunks=chunk, dtype=part.dtype)
        array[...] = part
        scales = [scale * 2**level if axis in "yx" else 1.0 for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scales}]})
    named: list[Any] = [
        {"name": axis, "type": KINDS.get(axis, "space")} | ({"unit": unit} if unit and axis in "zyx" else {})
        for axis in axes
    ]
    multiscale: dict[str, Any] = {"version": version, "datasets": datasets, "name": "field"}
    if version not in ("0.1", "0.2"):
        multiscale["axes"] = list(axes) if version == "0.3" else named
    metadata: dict[str, Any] = {"multiscales": [multiscale]} | ({"omero": {"channels": channels}} if channels else {})
    group.attrs.update({"ome": metadata | {"version": version}} if version == "0.5" else metadata)
    return path
