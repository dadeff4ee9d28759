"""The samples of each training step: a pure function of the seed and the step number.

The training set is shuffled for each epoch with a seed of its own. The orders of all epochs form one sequence, and
each step takes the next ``batch_size`` samples, across the end of an epoch if necessary. By default an epoch contains
every image once. With repeat factor sampling (LVIS: Gupta, Dollar & Girshick 2019) images with rare classes occur more
often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# First word of the seeds of orders; the others are in `cellwright.data.loader`.
_SHUFFLE = 1


@dataclass(frozen=True)
class SampleOrder:
    """The order of the samples during a training run.

    Attributes:
        seed: of all orders.
        n_images: number of training images, at least 1.
        factors: how often an epoch contains each image on average, at least 1 each; None: once.
    """

    seed: int
    n_images: int
    factors: tuple[float, ...] | None = None

    @property
    def n_samples(self) -> int:
        """Samples per epoch: the number of images, or the sum of the factors, rounded."""
        return self.n_images if self.factors is None else round(sum(self.factors))

    def epoch(self, number: int) -> np.ndarray:
        """The images of epoch ``number`` (0-based) in their order, (n_samples,) int64.

        With factors, each image occurs its factor rounded up or down times, drawn so that the mean is the factor, and
        all epochs have the same length (systematic sampling; the factors are scaled by the rounding of their sum).
        """
        rng = np.random.default_rng([_SHUFFLE, self.seed, number])
        order = rng.permutation(self.n_images)
        if self.factors is None:
            return order
        ends = np.cumsum(np.array(self.factors)[order])
        ends *= self.n_samples / ends[-1]
        # The last end is an integer by definition; set it exactly.
        ends[-1] = self.n_samples
        times = np.diff(np.floor(ends + rng.random()).astype(np.int64), prepend=0)
        return rng.permutation(np.repeat(order, times))

    def batch(self, step: int, batch_size: int) -> np.ndarray:
        """The images of step ``step`` (0-based), (batch_size,) int64."""
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs, offsets = positions // self.n_samples, positions % self.n_samples
        orders = {int(number): self.epoch(int(number)) for number in np.unique(epochs)}
        return np.array([orders[int(e)][o] for e, o in zip(epochs, offsets, strict=True)], dtype=np.int64)


def repeat_factors(classes_of: Iterable[Sequence[int] | np.ndarray], threshold: float) -> tuple[float, ...]:
    """The repeat factor of each image, at least 1.

    A class that occurs in a share f of the images has the factor max(1, sqrt(threshold / f)). An image has the largest
    factor of its classes, or 1 without objects.

    Args:
        classes_of: the class ids of the objects of each image, in any order, with or without repetition.
        threshold: share of the images, 0..1, above which a class counts as frequent.

    >>> repeat_factors([[0], [0, 0], [0], [0, 1]], threshold=1.0)
    (1.0, 1.0, 1.0, 2.0)
    """
    classes = [np.unique(np.asarray(ids, dtype=np.int64)) for ids in classes_of]
    n_images_with = np.bincount(np.concatenate([*classes, np.zeros(0, np.int64)]))
    shares = np.maximum(n_images_with, 1) / max(len(classes), 1)
    of_class = np.maximum(1.0, np.sqrt(threshold / shares))
    return tuple(float(of_class[ids].max(initial=1.0)) for ids in classes)
