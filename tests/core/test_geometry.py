"""Operations on boxes against computations over all pairs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellwright.core import _kernels
from cellwright.core.geometry import box_iou, clip_boxes, overlapping_pairs

boxes = hnp.arrays(np.int64, st.tuples(st.integers(0, 12), st.just(4)), elements=st.integers(0, 20))


def all_pairs(a: np.ndarray, b: np.ndarray) -> list[list[int]]:
    """The pairs (i, j) that overlap, by comparing all."""
    return np.argwhere(box_iou(a, b) > 0).tolist()


def scattered(n: int, side: float, seed: int = 0) -> np.ndarray:
    """Boxes (n, 4) float64 of 5 to 25 px, n per side x side px."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, side, (n, 2))
    return np.concatenate([corners, corners + rng.uniform(5, 25, (n, 2))], axis=1)


@settings(deadline=None)
@given(boxes, boxes)
def test_overlapping_pairs_equal_all_pairs(a: np.ndarray, b: np.ndarray) -> None:
    """Including inverted and empty boxes, which overlap nothing."""
    assert np.stack(overlapping_pairs(a, b), axis=1).tolist() == all_pairs(a, b)


def test_overlapping_pairs_in_many_strips() -> None:
    """Small boxes, some that span the image, empty ones, and boxes that touch the ends of strips."""
    a, b = scattered(300, 400.0), scattered(200, 400.0, seed=1)
    a[:3], a[3], b[5] = (0, 50, 425, 60), (7, 9, 7, 30), (-30, -30, 500, 500)
    grid = np.stack(np.meshgrid(np.arange(0, 400, 20), np.arange(0, 400, 20)), -1).reshape(-1, 2).astype(np.float64)
    grid = np.concatenate([grid, grid + 20], axis=1)
    for first, second in ((a, b), (a, a), (grid, grid), (grid, b), (a[:0], b)):
        assert np.stack(overlapping_pairs(first, second), axis=1).tolist() == all_pairs(first, second)


def test_boxes_without_end_overlap() -> None:
    endless = np.array([[-np.inf, 0, np.inf, 5.0], [3, 3, 4, np.inf], [9, 9, 11, 12]])
    assert np.stack(overlapping_pairs(endless, endless), axis=1).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]]


def test_comparisons_of_boxes_grow_with_their_number() -> None:
    """At equal density, 16 times the boxes take 16 times the comparisons; a sweep over whole rows would take 64."""
    few, many = (_kernels.box_pairs(own, own)[2] for own in (scattered(1000, 1000.0), scattered(16000, 4000.0)))
    assert 14 < many / few < 18


def test_clipping_keeps_the_dtype() -> None:
    clipped = clip_boxes(np.array([[-1, -1, 9, 9]], np.float32), (4, 6))
    assert clipped.tolist() == [[0, 0, 6, 4]]
    assert clipped.dtype == np.float32
