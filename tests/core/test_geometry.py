"""Operations on boxes against computations over all pairs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellwright.core.geometry import box_iou, clip_boxes, overlapping_pairs

boxes = hnp.arrays(np.int64, st.tuples(st.integers(0, 12), st.just(4)), elements=st.integers(0, 20))


@settings(deadline=None)
@given(boxes, boxes)
def test_overlapping_pairs_equal_all_pairs(a: np.ndarray, b: np.ndarray) -> None:
    """Including inverted and empty boxes, which overlap nothing."""
    iou = box_iou(a, b)
    i, j = overlapping_pairs(a, b)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [tuple(p) for p in np.argwhere(iou > 0).tolist()]


def test_clipping_keeps_the_dtype() -> None:
    clipped = clip_boxes(np.array([[-1, -1, 9, 9]], np.float32), (4, 6))
    assert clipped.tolist() == [[0, 0, 6, 4]]
    assert clipped.dtype == np.float32
