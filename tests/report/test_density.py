"""The density picture of a tile job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.prediction.tiling.grid import Grid
from cellwright.prediction.tiling.regions import Regions
from cellwright.report.density import density, draw_density

HW = (600, 900)


class Spots:
    """Objects of 2 x 2 px in a lattice: one per 20 x 20 px on the left half, one per 10 x 10 px on the right."""

    def __init__(self) -> None:
        left = [(y, x) for y in range(5, 600, 20) for x in range(5, 450, 20)]
        self.places = np.array(left + [(y, x) for y in range(2, 600, 10) for x in range(455, 900, 10)])
        self.n_objects = len(self.places)

    def __iter__(self) -> Iterator[tuple[int, Instances]]:
        for k, part in enumerate(np.array_split(self.places, 6)):
            boxes = np.concatenate([part[:, ::-1], part[:, ::-1] + 2], axis=1).astype(np.int32)
            masks = MaskSet.from_crops(boxes, [np.ones((2, 2), bool)] * len(part), HW)
            yield k, Instances.from_masks(masks, scores=np.ones(len(part)))


def test_density_is_objects_per_area_of_what_was_predicted() -> None:
    grid, final = Grid(HW, HW, 16, 160, 32), Spots()
    spots: Any = final
    everything = range(len(grid))
    per_px, cell, sigma = density(spots, grid, everything, None)
    assert sigma < 30
    assert np.nansum(per_px) * cell * cell == pytest.approx(final.n_objects, rel=0.02)
    columns = (np.arange(per_px.shape[1]) + 0.5) * cell
    assert per_px[:, columns < 380].mean() == pytest.approx(1 / 400, rel=0.05)
    assert per_px[:, columns > 520].mean() == pytest.approx(1 / 100, rel=0.05)
    # A tile that failed, and what is outside the regions, is not empty but unknown; borders are no less dense.
    regions = Regions.of_window(Window(0, 0, 300, 900))
    part, cell, _ = density(spots, grid, [tile for tile in everything if tile != 0], regions)
    assert np.isnan(part[int(310 / cell) :]).all()
    assert np.isnan(part[int(20 / cell), int(20 / cell)])
    assert np.isfinite(part[int(290 / cell)]).all()


def test_the_picture_has_units_and_says_what_is_unknown() -> None:
    per_px = np.full((20, 30), 0.002)
    per_px[:, 15:] = 0.004
    per_px[10:, :10] = np.nan
    drawn = draw_density(per_px, 30.0, 40.0, HW, (0.5, 0.5), 999)
    assert drawn.dtype == np.uint8
    middle, low, unknown = (drawn[y, x].astype(int) for y, x in ((250, 600), (250, 150), (480, 150)))
    assert middle.sum() > low.sum()
    assert np.ptp(unknown) == 0
    assert draw_density(np.full((1, 1), np.nan), 600.0, 9.0, HW, None, 0).shape[2] == 3
