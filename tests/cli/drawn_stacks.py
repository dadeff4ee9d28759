"""Drawn stacks with known objects: ellipsoids through planes, and discs that move and divide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

UM = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2000.0, "PhysicalSizeZUnit": "nm"}


def ellipsoids(seed: int = 0, shape: tuple[int, int, int] = (7, 96, 128), n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A stack (Z, H, W) uint8 and its labels; objects are apart in all directions."""
    rng = np.random.default_rng(seed)
    depth, height, width = shape
    z, y, x = np.mgrid[:depth, :height, :width]
    labels, image = np.zeros(shape, int), np.full(shape, 15.0)
    for _ in range(200):
        radius = rng.uniform(7, 11)
        at = rng.uniform((0, radius + 2, radius + 2), (depth, height - radius - 2, width - radius - 2))
        far = ((z - at[0]) / (radius / 3)) ** 2 + ((y - at[1]) / radius) ** 2 + ((x - at[2]) / radius) ** 2
        if labels.max() < n and not labels[far <= 2].any():
            image[far <= 1] = rng.uniform(120, 220)
            labels[far <= 1] = labels.max() + 1
    image = ndimage.gaussian_filter(image, (0, 1, 1)) + rng.normal(0, 3, shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels


def moving(seed: int = 0, n_times: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W) uint8 and labels: three discs, of which 1 becomes 4 and 5 in the middle."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:100, :130]
    labels = np.zeros((n_times, 100, 130), int)
    for t in range(n_times):
        discs = [(2, 25 + t, 90, 10, 10), (3, 75, 95 - 2 * t, 10, 10)]
        if t < n_times // 2:
            discs.append((1, 50, 30, 13, 13))
        else:
            apart = 8 + t - n_times // 2
            discs += [(4, 50, 30 - apart, 11, 7), (5, 50, 30 + apart, 11, 7)]
        for number, cy, cx, ry, rx in discs:
            labels[t][((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1] = number
    image = ndimage.gaussian_filter(np.where(labels > 0, 150.0, 15.0), (0, 1, 1)) + rng.normal(0, 3, labels.shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels


def write_ome(path: Path, stack: np.ndarray, axes: str, **options: object) -> Path:
    """An OME-TIFF of pixels of .5 um and planes that are 2 um apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, stack, ome=True, metadata={"axes": axes, **UM}, **options)  # type: ignore[arg-type]
    return path


def numbers_of(labels: np.ndarray, truth: np.ndarray) -> dict[int, set[int]]:
    """The labels that objects have in each object of the truth, at pixels well inside."""
    return {k: set(np.unique(labels[truth == k]).tolist()) - {0} for k in range(1, int(truth.max()) + 1)}
