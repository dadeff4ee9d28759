"""Elastic maps: a smooth random displacement of every pixel that never folds the image.

Free-form deformation (Rueckert et al. 1999): points of a coarse grid move on their own, and cubic B-splines spread
their moves over the pixels. A spline of values within +-a has a slope of at most 2 a / spacing, so that below a quarter
of the spacing the map keeps its orientation everywhere: no object is folded, torn or met twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# The spline is computed at every fourth pixel and is linear in between: that is as smooth to the eye, keeps the bound
# on the slope, and costs a sixteenth.
_STEP_PX = 4


@dataclass(frozen=True)
class Elastic:
    """One elastic map.

    Attributes:
        amplitude_px: no pixel moves further along x or y, output pixels; below a quarter of ``smoothness_px``.
        smoothness_px: distance of the grid points, output pixels.
        seed: of the grid points' moves.
    """

    amplitude_px: float
    smoothness_px: float
    seed: int

    def displacement(self, hw: tuple[int, int], linear: np.ndarray) -> np.ndarray:
        """(2, h, w) float32: ``linear`` (2, 2) times the displacement (x, y) of every pixel of an (h, w) image."""
        coarse_hw = tuple(-(-side // _STEP_PX) for side in hw)
        (ys, y_weights), (xs, x_weights) = (_spline(n, self.smoothness_px) for n in coarse_hw)
        moves = np.random.default_rng(self.seed).uniform(-1, 1, (ys[-1] + 4, xs[-1] + 4, 2))
        moves = np.moveaxis(moves @ (self.amplitude_px * linear.T), 2, 0)
        rows = np.sum([y_weights[k][:, None] * moves[:, ys + k] for k in range(4)], axis=0)
        planes = np.sum([x_weights[k] * rows[:, :, xs + k] for k in range(4)], axis=0).astype(np.float32)
        size_wh = coarse_hw[1] * _STEP_PX, coarse_hw[0] * _STEP_PX
        full = [cv2.resize(plane, size_wh, interpolation=cv2.INTER_LINEAR) for plane in planes]
        return np.stack([plane[: hw[0], : hw[1]] for plane in full])


def _spline(n_samples: int, spacing_px: float) -> tuple[np.ndarray, np.ndarray]:
    """The first of four grid points (n_samples,) around each coarse sample, and their cubic B-spline weights (4, n)."""
    places = ((np.arange(n_samples) + 0.5) * _STEP_PX - 0.5) / spacing_px
    cells = np.floor(places).astype(np.int64)
    t = places - cells
    return cells, np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
