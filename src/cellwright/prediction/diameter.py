"""How large the objects of an image are, for networks that want them at one size (``input.diameter_px``).

    three looks   at a window of the image, resized as if its objects were 8, 24 or 72 px wide; each serves diameters
                  of a factor of 1.7 around its own, together 5 to 125 px
    the best      is the look whose objects cover more of the pixels that all looks share, with higher scores and
                  nearer to the size that the network is used to
    the median    diameter of that look's objects, specks left out
    once more     at the size that follows, where objects that were seen too large or too small come out whole

A look costs as much as predicting an image of 384 x 384 px, however large the image is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np

from cellwright.config.input import InputConfig
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.data.network_input import diameter_scale, rescale
from cellwright.models.contract import Segmenter

WORKING_DIAMETERS_PX = (8.0, 24.0, 72.0)
LOOK_SIDE_PX = 384
# An image is enlarged to so many pixels at most; larger ones are seen at their own size, however small their objects.
# 16.8 million take a U-Net of width 16 about 6 GB.
MAX_ENLARGED_PX = 4096 * 4096

Look = Callable[[np.ndarray], Instances]


@dataclass(frozen=True)
class Diameter:
    """By which diameter an image was resized, and how far.

    px: median diameter of its objects, px of the image; None where no object was there to measure.
    estimated: whether it was measured here, not given.
    scale: factor from the image to what the network saw. wanted_scale: the factor that the diameter asks for, where
        ``scale`` is nearer to 1 than that; None where it is not.
    """

    px: float | None
    estimated: bool
    scale: float = 1.0
    wanted_scale: float | None = None

    @staticmethod
    def of(px: float | None, image_hw: tuple[int, ...], config: InputConfig, *, estimated: bool) -> Diameter:
        """With the scale that ``config.diameter_px`` makes of it, within 1/8 to 8 and `MAX_ENLARGED_PX`."""
        if px is None or config.diameter_px is None:
            return Diameter(px, estimated)
        largest = max((MAX_ENLARGED_PX / (image_hw[0] * image_hw[1])) ** 0.5, 1.0)
        wanted, scale = config.diameter_px / px, min(diameter_scale(px, config), largest)
        return Diameter(px, estimated, scale, None if wanted == scale else wanted)


@runtime_checkable
class Sizes(Protocol):
    """A segmenter that tells by which diameter it resized each image."""

    def find(self, images: Sequence[Image]) -> list[tuple[Instances, Diameter | None]]:
        """One pair an image: its objects, and None where it was resized by no diameter."""
        ...


def find(segmenter: Segmenter, images: Sequence[Image]) -> list[tuple[Instances, Diameter | None]]:
    """What any segmenter finds, with the diameters where it tells them."""
    if isinstance(segmenter, Sizes):
        return segmenter.find(images)
    return [(found, None) for found in segmenter.predict(images)]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one look found: objects at the network's size, and ``scale``, the factor from the image to there."""

    found: Instances
    scale: float
    top_left: tuple[int, int]
    nominal_px: float

    def explained(self, window: tuple[int, int, int, int] | None = None) -> float:
        """How well the pixels of ``window`` (y0, x0, y1, x1 of the image; None: all) are explained on average, 0 to 1.

        A pixel of an object counts the square of its score, less the further its diameter is from nominal.
        """
        assert self.found.scores is not None
        worth = self.found.scores.astype(np.float64) ** 2 * np.exp(-0.5 * self._octaves() ** 2)
        labels = self.found.masks.to_label_map()
        if window is not None:
            starts = (*self.top_left, *self.top_left)
            y0, x0, y1, x1 = (round((at - start) * self.scale) for at, start in zip(window, starts, strict=True))
            labels = labels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        return float(np.concatenate([[0.0], worth])[labels].mean())

    def median_px(self) -> float | None:
        """Median diameter in pixels of the image, specks left out; None where nothing was found."""
        diameters = self._diameters()[np.abs(self._octaves()) < 2]
        return float(np.median(diameters)) / self.scale if len(diameters) else None

    def _octaves(self) -> np.ndarray:
        """(N,) how often each diameter is doubled from nominal."""
        return np.log2(np.maximum(self._diameters(), 1e-3) / self.nominal_px)

    def _diameters(self) -> np.ndarray:
        return 2 * np.sqrt(self.found.masks.areas / np.pi)


def estimate_diameter(pixels: np.ndarray, nominal_px: float, look: Look) -> float | None:
    """Median diameter, px of the image, of the objects of an image (C, H, W) float32 as the network's input is
    normalised; None where no object is found.

    nominal_px: the diameter that the network is used to. look: the scored objects of an input (C, h, w) at its size.
    """
    shared = _busiest(pixels, max(round(LOOK_SIDE_PX * WORKING_DIAMETERS_PX[0] / nominal_px), 1))

    def seen_at(diameter_px: float) -> _Seen:
        scale = nominal_px / diameter_px
        y0, x0, y1, x1 = _around(shared, max(round(LOOK_SIDE_PX / scale), 1), pixels.shape[1:])
        return _Seen(look(rescale(pixels[:, y0:y1, x0:x1], scale)), scale, (y0, x0), nominal_px)

    looks = [seen_at(diameter_px) for diameter_px in WORKING_DIAMETERS_PX]
    # Large objects that are few may lie outside the shared window.
    best = max(looks, key=lambda one: (one.explained(shared), one.explained()))
    found = best.median_px()
    return None if found is None else seen_at(found).median_px() or found


def _busiest(pixels: np.ndarray, side: int) -> tuple[int, int, int, int]:
    """y0, x0, y1, x1 of the window, ``side`` px wide or the image's width, in which the brightness varies most."""
    grey = pixels.mean(axis=0)
    height, width = grey.shape
    h, w = min(side, height), min(side, width)
    low, high = np.percentile(grey, (0.1, 99.9))
    grey = np.clip(grey, low, high).astype(np.float64)
    sums = [cv2.integral(one) for one in (grey, grey**2)]
    mean, square = ((s[h:, w:] - s[:-h, w:] - s[h:, :-w] + s[:-h, :-w]) / (h * w) for s in sums)
    y0, x0 = np.unravel_index(np.argmax(square - mean**2), mean.shape)
    return int(y0), int(x0), int(y0) + h, int(x0) + w


def _around(window: tuple[int, int, int, int], side: int, image_hw: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The window of ``side`` px, or of the image's size, about the centre of another and inside the image."""
    y0, x0, y1, x1 = window
    starts = [
        min(max((low + high - side) // 2, 0), max(whole - side, 0))
        for low, high, whole in ((y0, y1, image_hw[0]), (x0, x1, image_hw[1]))
    ]
    return starts[0], starts[1], min(starts[0] + side, image_hw[0]), min(starts[1] + side, image_hw[1])
