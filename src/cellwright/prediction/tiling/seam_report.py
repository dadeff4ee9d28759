"""Whether seams show in a job: number and size of objects near the borders of cores, and a little further away."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellwright.core.instances import Instances
from cellwright.prediction.tiling.grid import Grid
from cellwright.prediction.tiling.regions import Regions

# Objects are compared within this distance of a seam and in the three times as wide band beyond it, source px: both
# lie in the same tissue.
NEAR_PX, FAR_PX = 20, 80
# What is told: a difference of this share that chance gives at most once in a million jobs, roughly.
_SHARE, _SIGMAS = 0.08, 5.0
# Points by which it is estimated how much of some regions is near seams: the multiples of a vector, modulo 1 (R2).
_N_POINTS, _SPREAD = 500_000, np.array([0.7548776662466927, 0.5698402909980532])


@dataclass(frozen=True)
class SeamReport:
    """near, far: objects whose centroid is near a seam, or a little further away. area_share: near area / far area.

    near_area, far_area: median areas, px; spread: of the logarithm of the areas.
    """

    near: int
    far: int
    area_share: float
    near_area: float
    far_area: float
    spread: float

    @staticmethod
    def of(grid: Grid, final: Iterable[tuple[int, Instances]], regions: Regions | None = None) -> SeamReport:
        """Over all objects of a job, tile by tile; needs their measurements. regions: where objects were kept."""
        lines = [_seams(grid, axis) for axis in (0, 1)]
        near: list[np.ndarray] = []
        far: list[np.ndarray] = []
        for _, objects in final:
            if not len(objects):
                continue
            ys, xs = objects.columns["centroid_y_px"], objects.columns["centroid_x_px"]
            distance = np.minimum(_distance(ys, lines[0]), _distance(xs, lines[1]))
            areas = objects.masks.areas
            near.append(areas[distance < NEAR_PX])
            far.append(areas[(distance >= NEAR_PX) & (distance < FAR_PX)])
        inside_near, inside_far = _shares(grid, lines) if regions is None else _shares_in(regions, lines)
        a, b = (np.concatenate([*parts, np.zeros(0, np.int64)]) for parts in (near, far))
        logs = np.log(np.concatenate([a, b])) if len(a) + len(b) else np.zeros(1)
        near_median, far_median = (float(np.median(part)) if len(part) else math.nan for part in (a, b))
        share = inside_near / inside_far if inside_far > 0 else math.nan
        return SeamReport(len(a), len(b), share, near_median, far_median, float(logs.std()))

    @property
    def density_ratio(self) -> float:
        """Objects per area near seams over that further away; NaN if it cannot be told."""
        return self.near / (self.far * self.area_share) if self.far and self.area_share > 0 else math.nan

    @property
    def size_ratio(self) -> float:
        """Median area near seams over that further away; NaN if it cannot be told."""
        return self.near_area / self.far_area if self.near and self.far else math.nan

    def columns(self) -> dict[str, Any]:
        """The ratios, for summary.csv."""
        values = {"seam_density_ratio": self.density_ratio, "seam_size_ratio": self.size_ratio}
        return {name: round(value, 4) if math.isfinite(value) else None for name, value in values.items()}

    def warnings(self) -> list[str]:
        """A sentence for each difference that is larger than chance explains."""
        if min(self.near, self.far) < 30:
            return []
        rest = 1 / self.near + 1 / self.far
        checks = (
            ("objects", self.density_ratio, math.sqrt(2 * rest)),  # cells cluster: twice the variance of chance
            ("median size of objects", self.size_ratio, 1.25 * self.spread * math.sqrt(rest)),
        )
        found = []
        for what, ratio, deviation in checks:
            if abs(math.log(max(ratio, 1e-9))) > max(_SHARE, _SIGMAS * deviation):
                change = f"{abs(ratio - 1):.0%} {'more' if ratio > 1 else 'fewer'}"
                change = change if what == "objects" else f"{abs(ratio - 1):.0%} {'larger' if ratio > 1 else 'smaller'}"
                found.append(f"warning: seams of tiles show: {what} within {NEAR_PX} px of them: {change} than beside")
        return found


def _seams(grid: Grid, axis: int) -> np.ndarray:
    """Positions of the seams along an axis, source px."""
    starts = {tile.core[axis] for tile in grid if tile.core[axis] > 0}
    return np.array(sorted(starts)) / grid.scale_yx[axis]


def _distance(values: np.ndarray, lines: np.ndarray) -> np.ndarray:
    if not len(lines):
        return np.full(len(values), np.inf)
    after = np.searchsorted(lines, values)
    left = np.abs(values - lines[np.maximum(after - 1, 0)])
    right = np.abs(values - lines[np.minimum(after, len(lines) - 1)])
    return np.minimum(left, right)


def _shares(grid: Grid, lines: list[np.ndarray]) -> tuple[float, float]:
    """The shares of an image that lie near seams, and a little further away."""
    shares = [_share(lines[axis], grid.source_hw[axis], reach) for axis in (0, 1) for reach in (NEAR_PX, FAR_PX)]
    near = shares[0] + shares[2] - shares[0] * shares[2]
    return near, shares[1] + shares[3] - shares[1] * shares[3] - near


def _shares_in(regions: Regions, lines: list[np.ndarray]) -> tuple[float, float]:
    """The same of the box around regions, where only regions count; estimated on evenly spread points."""
    x0, y0, x1, y1 = regions.area.bounds
    spread = np.arange(_N_POINTS)[:, None] * _SPREAD % 1
    ys, xs = y0 + spread[:, 0] * (y1 - y0), x0 + spread[:, 1] * (x1 - x0)
    distance = np.minimum(_distance(ys, lines[0]), _distance(xs, lines[1]))
    distance[~regions.contain(ys - 0.5, xs - 0.5)] = np.inf
    near = float((distance < NEAR_PX).mean())
    return near, float((distance < FAR_PX).mean()) - near


def _share(lines: np.ndarray, side: int, reach: float) -> float:
    """Share of an axis that lies within ``reach`` of a seam."""
    covered, end = 0.0, 0.0
    for line in lines:
        low, high = max(line - reach, end), min(line + reach, side)
        covered += max(high - low, 0.0)
        end = max(end, high)
    return covered / side
