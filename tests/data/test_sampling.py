"""The line of samples: every image as often as it should, whatever the step it is asked from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwright.data.sampling import SampleOrder, repeat_factors


def test_every_sample_is_seen_once_an_epoch() -> None:
    order = SampleOrder(3, 7)
    line = np.concatenate([order.batch(step, 4) for step in range(14)])
    epochs = line.reshape(8, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert order.batch(5, 4).tolist() == SampleOrder(3, 7).batch(5, 4).tolist()
    assert SampleOrder(0, 1).batch(0, 5).tolist() == [0] * 5
    assert SampleOrder(4, 7).epoch(0).tolist() != order.epoch(0).tolist()


def test_repeat_factors_by_hand() -> None:
    """Ten images; class 0 is in all, class 1 in four, class 2 in one: t = .4 makes 1, 1 and 2 of them."""
    classes = [[0], [0, 0], [0], [0], [0], [0], [0, 1], [0, 1], [1, 0, 1], [0, 1, 2]]
    assert repeat_factors(classes, 0.4) == pytest.approx((1,) * 9 + (2,))
    assert repeat_factors(classes, 0.9) == pytest.approx((1,) * 6 + (1.5,) * 3 + (3,))
    assert repeat_factors(classes, 0.05) == (1.0,) * 10
    assert repeat_factors([[], [3]], 1.0) == pytest.approx((1, math.sqrt(2)))
    assert repeat_factors([[], []], 0.5) == (1.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=12), threshold=st.floats(0.001, 1)
)
def test_repeat_factors_equal_the_papers_formula(classes: list[list[int]], threshold: float) -> None:
    expected = []
    for held in classes:
        shares = [sum(c in other for other in classes) / len(classes) for c in held]
        expected.append(max([1.0] + [math.sqrt(threshold / share) for share in shares]))
    assert repeat_factors(classes, threshold) == pytest.approx(tuple(expected))


@settings(max_examples=40, deadline=None)
@given(factors=st.lists(st.floats(1, 6), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_an_epoch_holds_each_image_its_factor_rounded_either_way(factors: list[float], seed: int) -> None:
    order = SampleOrder(seed, len(factors), tuple(factors))
    assert order.n_samples == round(sum(factors))
    scaled = np.array(factors) * order.n_samples / sum(factors)
    for number in range(4):
        epoch = order.epoch(number)
        assert len(epoch) == order.n_samples
        counts = np.bincount(epoch, minlength=len(factors))
        assert (counts >= np.floor(scaled - 1e-6)).all()
        assert (counts <= np.ceil(scaled + 1e-6)).all()
        assert np.array_equal(epoch, order.epoch(number))


def test_the_fraction_is_met_on_average_and_epochs_are_shuffled() -> None:
    factors = (1.0, 1.25, 2.5, 1.0, 3.75, 1.5)
    order = SampleOrder(1, 6, factors)
    line = np.concatenate([order.batch(step, 4) for step in range(2750)])
    assert order.n_samples == 11
    counts = np.bincount(line) / 1000
    assert counts == pytest.approx(factors, abs=0.05)
    # An image that comes several times does not come in a row: all places of an epoch are alike.
    places = [np.flatnonzero(epoch == 4).mean() for epoch in line.reshape(1000, 11)]
    assert np.mean(places) == pytest.approx(5, abs=0.2)


def test_factors_of_one_are_no_factors() -> None:
    plain, ones = SampleOrder(5, 9), SampleOrder(5, 9, (1.0,) * 9)
    assert ones.n_samples == plain.n_samples
    assert sorted(ones.epoch(3)) == sorted(plain.epoch(3))
