"""The order of samples: each image occurs as often as it should, whichever step is requested."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwright.data.sampling import SampleOrder, repeat_factors


def test_every_sample_occurs_once_per_epoch() -> None:
    order = SampleOrder(3, 7)
    sequence = np.concatenate([order.batch(step, 4) for step in range(14)])
    epochs = sequence.reshape(8, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert order.batch(5, 4).tolist() == SampleOrder(3, 7).batch(5, 4).tolist()
    assert SampleOrder(0, 1).batch(0, 5).tolist() == [0] * 5
    assert SampleOrder(4, 7).epoch(0).tolist() != order.epoch(0).tolist()


def test_repeat_factors_of_an_example() -> None:
    """Ten images: class 0 in all, class 1 in four, class 2 in one. A threshold of .4 gives factors 1, 1 and 2."""
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
    for image in classes:
        shares = [sum(c in other for other in classes) / len(classes) for c in image]
        expected.append(max([1.0] + [math.sqrt(threshold / share) for share in shares]))
    assert repeat_factors(classes, threshold) == pytest.approx(tuple(expected))


@settings(max_examples=40, deadline=None)
@given(factors=st.lists(st.floats(1, 6), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_an_epoch_contains_each_image_its_factor_rounded_up_or_down(factors: list[float], seed: int) -> None:
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


def test_factors_are_reached_on_average_and_epochs_are_shuffled() -> None:
    factors = (1.0, 1.25, 2.5, 1.0, 3.75, 1.5)
    order = SampleOrder(1, 6, factors)
    sequence = np.concatenate([order.batch(step, 4) for step in range(2750)])
    assert order.n_samples == 11
    counts = np.bincount(sequence) / 1000
    assert counts == pytest.approx(factors, abs=0.05)
    # Repetitions of an image are spread over the epoch: the mean position is the middle.
    positions = [np.flatnonzero(epoch == 4).mean() for epoch in sequence.reshape(1000, 11)]
    assert np.mean(positions) == pytest.approx(5, abs=0.2)


def test_factors_of_one_change_nothing() -> None:
    plain, ones = SampleOrder(5, 9), SampleOrder(5, 9, (1.0,) * 9)
    assert ones.n_samples == plain.n_samples
    assert sorted(ones.epoch(3)) == sorted(plain.epoch(3))
