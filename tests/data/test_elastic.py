"""Elastic maps: bounded, smooth, never folding, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from cellwright.data.elastic import Elastic


@settings(max_examples=50, deadline=None)
@given(
    spacing=st.floats(4, 80),
    share=st.floats(0.01, 0.2499),
    hw=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 2**63 - 1),
)
def test_no_pixel_moves_too_far_and_nothing_folds(spacing: float, share: float, hw: tuple[int, int], seed: int) -> None:
    amplitude = share * spacing
    moved = Elastic(amplitude, spacing, seed).displacement(hw, np.eye(2))
    assert moved.shape == (2, *hw)
    assert moved.dtype == np.float32
    assert np.abs(moved).max() <= amplitude * (1 + 1e-5)
    for axis in (1, 2):
        assert np.abs(np.diff(moved, axis=axis)).max(initial=0) <= 2 * amplitude / spacing + 1e-4
    if min(hw) > 1:
        dy, dx = np.diff(moved, axis=1)[:, :, :-1], np.diff(moved, axis=2)[:, :-1]
        jacobian = (1 + dx[0]) * (1 + dy[1]) - dx[1] * dy[0]
        assert jacobian.min() > 0


def test_the_field_is_the_cubic_spline_of_its_grid_points() -> None:
    elastic = Elastic(5, 32, 7)
    hw = (64, 96)
    points = np.random.default_rng(7).uniform(-1, 1, (int((64 - 2.5) // 32) + 4, int((96 - 2.5) // 32) + 4, 2))
    ys, xs = (np.arange(side) / 32 for side in hw)
    basis = [
        BSpline.design_matrix(v, np.arange(-3, n + 1, dtype=float), 3).toarray()
        for v, n in ((ys, points.shape[0]), (xs, points.shape[1]))
    ]
    expected = 5 * np.einsum("yi,xj,ijc->cyx", *basis, points)
    # Between every fourth pixel the field is linear.
    assert np.abs(elastic.displacement(hw, np.eye(2)) - expected)[:, 2:-2, 2:-2].max() < 0.03


def test_seed_and_linear_part() -> None:
    one = Elastic(3, 20, 1).displacement((40, 50), np.eye(2))
    assert np.array_equal(one, Elastic(3, 20, 1).displacement((40, 50), np.eye(2)))
    assert np.abs(one - Elastic(3, 20, 2).displacement((40, 50), np.eye(2))).max() > 0.5
    linear = np.array([[0.0, 2.0], [-1.0, 0.5]])
    turned = Elastic(3, 20, 1).displacement((40, 50), linear)
    assert np.abs(turned - np.tensordot(linear, one, 1)).max() < 1e-5
    # All of the amplitude's range is used, evenly in both directions.
    big = Elastic(10, 41, 3).displacement((900, 900), np.eye(2))
    assert np.abs(big).max() > 7
    assert np.abs(big.mean(axis=(1, 2))) == pytest.approx(0, abs=0.6)
