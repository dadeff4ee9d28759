"""Which samples a step sees: a pure function of the seed and the step's number.

Epoch after epoch of seeded orders stand in one line, and a step takes the next ``batch_size`` of it, across the border
of two epochs if need be. Without repeat factors an epoch is every sample once. With them (LVIS: Gupta, Dollar &
Girshick 2019) images with a rare class come more often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# First word of the seeds of orders; `loader` has the others.
_SHUFFLE = 1


@dataclass(frozen=True)
class SampleOrder:
    """The line of samples of a run.

    Attributes:
        seed: of every order.
        n_images: training images, at least 1.
        factors: how often an epoch holds each image, on average, each at least 1; None: once.
    """

    seed: int
    n_images: int
    factors: tuple[float, ...] | None = None

    @property
    def n_samples(self) -> int:
        """Samples of an epoch: the images, or the sum of the factors rounded to a whole number."""
        return self.n_images if self.factors is None else round(sum(self.factors))

    def epoch(self, number: int) -> np.ndarray:
        """(n_samples,) int64: the images of epoch ``number`` (0-based) in their order.

        With factors each image comes its factor rounded down or up times, drawn so that the factor is the mean, and all
        epochs have the same length (systematic sampling; the factors are scaled by the rounding of their sum).
        """
        rng = np.random.default_rng([_SHUFFLE, self.seed, number])
        order = rng.permutation(self.n_images)
        if self.factors is None:
            return order
        ends = np.cumsum(np.array(self.factors)[order])
        ends *= self.n_samples / ends[-1]
        # The last end is a whole number by definition, not up to rounding.
        ends[-1] = self.n_samples
        times = np.diff(np.floor(ends + rng.random()).astype(np.int64), prepend=0)
        return rng.permutation(np.repeat(order, times))

    def batch(self, step: int, batch_size: int) -> np.ndarray:
        """(batch_size,) int64: the images of step ``step`` (0-based)."""
        places = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs, offsets = places // self.n_samples, places % self.n_samples
        orders = {int(number): self.epoch(int(number)) for number in np.unique(epochs)}
        return np.array([orders[int(e)][o] for e, o in zip(epochs, offsets, strict=True)], dtype=np.int64)


def repeat_factors(classes_of: Iterable[Sequence[int] | np.ndarray], threshold: float) -> tuple[float, ...]:
    """Each image's repeat factor, at least 1.

    A class that a share f of the images holds has the factor max(1, sqrt(threshold / f)); an image has the largest of
    its classes', 1 where it holds none.

    Args:
        classes_of: the class ids of each image's objects, in any order, repeated or not.
        threshold: share of the images, 0..1, above which a class counts as frequent.
    """
    held = [np.unique(np.asarray(ids, dtype=np.int64)) for ids in classes_of]
    images_with = np.bincount(np.concatenate([*held, np.zeros(0, np.int64)]))
    shares = np.maximum(images_with, 1) / max(len(held), 1)
    of_class = np.maximum(1.0, np.sqrt(threshold / shares))
    return tuple(float(of_class[ids].max(initial=1.0)) for ids in held)
