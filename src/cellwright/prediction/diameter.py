"""Estimate the diameter of the objects of an image, for networks that expect objects of one size.

A recipe with ``input.diameter_px`` trains on images resized so that their objects have that diameter. At prediction the
diameter of an image is given by the user, or estimated here:

1. The network predicts on one window of the image, resized as if its objects were 8, 24 or 72 px wide. Each
   of these sizes covers diameters within a factor of 1.7; together they cover 5 to 125 px.
2. The best size is the one whose objects cover more of the shared pixels, with higher scores and with diameters nearer
   to the one that the network was trained on. Its estimate is the median diameter of its objects, specks excluded.
3. The window is predicted again at the size that follows, so that objects that were too large or too small at first are
   found whole; the median diameter of these objects is the result.

Each of the four predictions costs as much as an image of 384 x 384 px, however large the image is.

Noise that is enlarged, blurred or compressed enough looks like objects to a network. It is told from images of objects
by the pixels: objects are brighter, darker or of another colour than what lies between them, or at least their
brightness is not distributed as symmetrically as that of noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from cellwright.config.input import InputConfig
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.data.network_input import diameter_scale, rescale

WORKING_DIAMETERS_PX = (8.0, 24.0, 72.0)
WINDOW_SIDE_PX = 384
# An image is enlarged to at most this number of pixels; a larger one is never enlarged, however small its objects.
# 16.8 million pixels take a U-Net of width 16 about 6 GB.
MAX_ENLARGED_PX = 4096 * 4096

# An estimate needs evidence: objects of at least so many px, and a median score for the smallest ones. Noise, smoothed
# or not, scores .35 to .51, nuclei of 5 to 9 px .68 to .93.
LEAST_PX = 4.0
LEAST_SCORE = 0.55
# Noise has neither: contrast between objects and the rest, in standard deviations, and skewness of the image without
# its coarse and fine structure. In 190 images of noise (blurred, of few photons, compressed), the contrast was at most
# .8 and the skewness .33; of 411 images of nuclei, those with as low a skewness had a contrast of 1.1 or more.
LEAST_CONTRAST, LEAST_SKEWNESS = 0.85, 0.35
# With fewer objects their contrast says little, and the median score decides.
LEAST_OBJECTS, LEAST_SCORE_OF_FEW = 5, 0.5
# Integer values that differ by less are rounding: the darkest of 1,050 images of nuclei spans 29 levels.
LEAST_LEVELS = 16
NOISE = "no object stands out from the background and its noise"

Detect = Callable[[np.ndarray], Instances]


@dataclass(frozen=True)
class Diameter:
    """The diameter by which an image was resized.

    px: median diameter of its objects, px of the image; None if no object was found to measure.
    estimated: whether it was estimated from the image rather than given.
    scale: factor from the image to the network's input.
    requested_scale: the factor that the diameter requires, if ``scale`` was limited to a smaller change; else None.
    is_noise: whether the image shows nothing but noise, so that no object is predicted; ``px`` is None then.
    """

    px: float | None
    estimated: bool
    scale: float = 1.0
    requested_scale: float | None = None
    is_noise: bool = False

    @staticmethod
    def of(
        px: float | None, image_hw: tuple[int, ...], config: InputConfig, *, estimated: bool, is_noise: bool = False
    ) -> Diameter:
        """With the scale from ``config.diameter_px``, limited to 1/8 to 8 and by `MAX_ENLARGED_PX`."""
        if px is None or config.diameter_px is None:
            return Diameter(px, estimated, is_noise=is_noise)
        largest = max((MAX_ENLARGED_PX / (image_hw[0] * image_hw[1])) ** 0.5, 1.0)
        requested, scale = config.diameter_px / px, min(diameter_scale(px, config), largest)
        return Diameter(px, estimated, scale, None if requested == scale else requested)


@dataclass(frozen=True)
class Estimate:
    """Median diameter of the objects, px of the image; None if there is none to measure, or only noise."""

    px: float | None
    is_noise: bool = False


def estimate_diameter(pixels: np.ndarray, nominal_px: float, detect: Detect) -> Estimate:
    """The diameter of the objects of an image.

    Args:
        pixels: (C, H, W) float32, normalised as the network's input.
        nominal_px: the diameter that the network was trained on.
        detect: the scored objects of a network input (C, h, w), at its own size.
    """
    shared = _most_varied_window(pixels, max(round(WINDOW_SIDE_PX * WORKING_DIAMETERS_PX[0] / nominal_px), 1))

    def trial_at(diameter_px: float) -> _Trial:
        scale = nominal_px / diameter_px
        y0, x0, y1, x1 = _around(shared, max(round(WINDOW_SIDE_PX / scale), 1), pixels.shape[1:])
        seen = rescale(pixels[:, y0:y1, x0:x1], scale)
        return _Trial(detect(seen), scale, (y0, x0), nominal_px, seen)

    trials = [trial_at(diameter_px) for diameter_px in WORKING_DIAMETERS_PX]
    # A few large objects may all be outside the shared window, so ties are broken by the trial's whole window.
    best = max(trials, key=lambda trial: (trial.explained(shared), trial.explained()))
    estimate = best.median_px()
    if estimate is None:
        return Estimate(None)
    final = trial_at(estimate)
    if final.is_noise():
        return Estimate(None, is_noise=True)
    px = final.median_px() or estimate
    is_clear = estimate >= WORKING_DIAMETERS_PX[0] or best.median_score() >= LEAST_SCORE
    return Estimate(px if is_clear and px >= LEAST_PX else None)


def is_rounding(dtype: np.dtype, lowest: float, highest: float) -> bool:
    """Whether the values of an image differ so little that what looks like objects is rounding or compression."""
    return dtype.kind in "iu" and 0 < float(highest) - float(lowest) < LEAST_LEVELS


def noise_notes(*, is_noise: bool, rounding: bool) -> tuple[Note, ...]:
    """What to say about an image in which nothing is predicted."""
    if not is_noise:
        return ()
    reason = f"; its values differ by less than {LEAST_LEVELS} levels" if rounding else ""
    text = f"{NOISE}{reason}: nothing is predicted; give `diameter` to predict all the same"
    return (Note(NOISE, text),)


@dataclass(frozen=True, eq=False)
class _Trial:
    """The objects found in a resized window of the image; ``scale`` is the factor from the image to the input.

    pixels: the input, (C, h, w).
    """

    objects: Instances
    scale: float
    top_left: tuple[int, int]
    nominal_px: float
    pixels: np.ndarray

    def explained(self, window: tuple[int, int, int, int] | None = None) -> float:
        """How well the objects explain the pixels of a window (y0, x0, y1, x1 of the image; None: all), 0 to 1.

        The mean over pixels: a pixel of an object counts the square of its score, reduced with the distance of the
        diameter from the nominal one.
        """
        assert self.objects.scores is not None
        worth = self.objects.scores.astype(np.float64) ** 2 * np.exp(-0.5 * self._octaves() ** 2)
        labels = self.objects.masks.to_label_map()
        if window is not None:
            starts = (*self.top_left, *self.top_left)
            y0, x0, y1, x1 = (round((edge - start) * self.scale) for edge, start in zip(window, starts, strict=True))
            labels = labels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        return float(np.concatenate([[0.0], worth])[labels].mean())

    def median_px(self) -> float | None:
        """Median diameter in pixels of the image, specks excluded; None if there is no object."""
        diameters = self._diameters()[np.abs(self._octaves()) < 2]
        return float(np.median(diameters)) / self.scale if len(diameters) else None

    def median_score(self) -> float:
        """Median score of the objects, specks excluded; 0 without any."""
        assert self.objects.scores is not None
        scores = self.objects.scores[np.abs(self._octaves()) < 2]
        return float(np.median(scores)) if len(scores) else 0.0

    def is_noise(self) -> bool:
        """Whether the window shows nothing but noise, which the network takes for objects."""
        n = int(np.count_nonzero(np.abs(self._octaves()) < 2))
        if not n or _skewness(self.pixels, self.nominal_px) >= LEAST_SKEWNESS:
            return False
        if n < LEAST_OBJECTS:
            return self.median_score() < LEAST_SCORE_OF_FEW
        return _contrast(self.pixels, self.objects.masks.to_label_map() > 0, self.nominal_px) < LEAST_CONTRAST

    def _octaves(self) -> np.ndarray:
        """(N,) base-2 logarithm of each diameter over the nominal one."""
        return np.log2(np.maximum(self._diameters(), 1e-3) / self.nominal_px)

    def _diameters(self) -> np.ndarray:
        return 2 * np.sqrt(self.objects.masks.areas / np.pi)


def _contrast(pixels: np.ndarray, inside: np.ndarray, object_px: float) -> float:
    """How far objects differ from the rest: the Mahalanobis distance of their mean values, in standard deviations.

    pixels: (C, H, W), smoothed here so that the noise of single pixels does not count. inside: (H, W) bool.
    """
    smooth = np.stack([_blurred(channel, object_px / 12) for channel in pixels])
    objects, rest = smooth[:, inside], smooth[:, ~inside]
    if min(objects.shape[1], rest.shape[1]) < 2:
        return 0.0
    spread = np.atleast_2d(np.cov(objects) + np.cov(rest)) / 2
    spread += np.eye(len(spread)) * (1e-6 * np.trace(spread) + 1e-12)
    difference = objects.mean(axis=1) - rest.mean(axis=1)
    return float(np.sqrt(difference @ np.linalg.solve(spread, difference)))


def _skewness(pixels: np.ndarray, object_px: float) -> float:
    """Largest absolute skewness of brightness, and of the differences between channels, at the size of objects."""
    signals = [pixels.mean(axis=0), *np.diff(pixels, axis=0)]
    least = 1e-3 * max(float(signal.std()) for signal in signals)
    values = []
    for signal in (signal for signal in signals if signal.std() > least):
        for sigma in (object_px / 12, object_px / 6):
            band = _blurred(signal, sigma) - _blurred(signal, 1.6 * sigma)
            band = band - band.mean()
            values.append(abs(float((band**3).mean() / ((band**2).mean() ** 1.5 + 1e-12))))
    return max(values, default=0.0)


def _blurred(plane: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def _most_varied_window(pixels: np.ndarray, side: int) -> tuple[int, int, int, int]:
    """y0, x0, y1, x1 of the window of ``side`` px, or of the image's size, in which the brightness varies most."""
    grey = pixels.mean(axis=0)
    height, width = grey.shape
    h, w = min(side, height), min(side, width)
    low, high = np.percentile(grey, (0.1, 99.9))
    grey = np.clip(grey, low, high).astype(np.float64)
    sums = [cv2.integral(values) for values in (grey, grey**2)]
    mean, square = ((s[h:, w:] - s[:-h, w:] - s[h:, :-w] + s[:-h, :-w]) / (h * w) for s in sums)
    y0, x0 = np.unravel_index(np.argmax(square - mean**2), mean.shape)
    return int(y0), int(x0), int(y0) + h, int(x0) + w


def _around(window: tuple[int, int, int, int], side: int, image_hw: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The window of ``side`` px, or of the image's size, centred on another window and inside the image."""
    y0, x0, y1, x1 = window
    starts = [
        min(max((low + high - side) // 2, 0), max(whole - side, 0))
        for low, high, whole in ((y0, y1, image_hw[0]), (x0, x1, image_hw[1]))
    ]
    return starts[0], starts[1], min(starts[0] + side, image_hw[0]), min(starts[1] + side, image_hw[1])
