"""Estimate the diameter of the objects of an image, for networks that expect objects of one size.

A recipe with ``input.diameter_px`` trains on images resized so that their objects have that diameter. At prediction the
diameter of an image is given by the user, or estimated here:

1. The network predicts on windows of the image, resized as if its objects were 72 and 24 px wide; unless one of the two
   is clear, also 8 px. Each of these sizes covers diameters within a factor of 1.7; together they cover 5 to 125 px.
   The first window is the one in which brightness varies most. At 24 px, the most common size, up to two more are
   seen elsewhere as long as few objects are found: what varies most may be a stain, a fold or a hole.
2. The best size is the one whose objects cover more of the pixels seen by both, with higher scores and with diameters
   nearer to the one that the network was trained on. It must explain `PREFERENCE` times as much as 24 px to be another
   one. Its estimate is the median diameter of its objects, without specks and low scores.
3. The network predicts again at the size that follows, where the objects were found and then elsewhere, until it has
   seen enough of them, so that objects that were too large or too small at first are found whole; the median diameter
   of these objects is the result. If it differs by more than `CLOSE`, this is done once more. A size that shows less
   than the one before is not taken.
4. The result is uncertain if it is far from the first estimate, if the last size showed less, or if hardly any object
   was found.

A window costs as much as an image of 384 x 384 px, however large the image is. The objects of an ordinary image are
measured in two or three windows; an image that shows few objects takes up to eleven.

Noise that is enlarged, blurred or compressed enough looks like objects to a network. It is told from images of objects
by the pixels: objects are brighter, darker or of another colour than what lies between them, or at least their
brightness is not distributed as symmetrically as that of noise. Nothing with clear scores is noise: cells in phase
contrast are as bright as their surroundings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from cellwright.config.input import InputConfig
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.data.network_input import diameter_scale, rescale

SMALL_PX, COMMON_PX, LARGE_PX = 8.0, 24.0, 72.0
WINDOW_SIDE_PX, SMALL_SIDE_PX = 384, 256
MAX_WINDOWS = 3
# The search ends with so many objects of a good score: when sizes are compared, and when objects are measured.
ENOUGH_AT_FIRST, ENOUGH, GOOD_SCORE = 10, 25, 0.5
# A look with this median score, of objects of at least so many px, needs no comparison with smaller ones.
CLEAR_SCORE, CLEAR_PX = 0.7, 16.0
# Objects of the common size are preferred to those of others that explain less than so many times as much. Of 130
# images of six kinds, 119 have a median diameter nearest to it.
PREFERENCE = 4.0
# A size must explain such a share of what the one before explains, and is the result if the median is so close to it.
KEPT, CLOSE, MAX_STEPS = 0.75, 1.25, 2
# A result is sure if it differs from the first estimate by less than this factor, with so many objects of a good score
# or, if there are fewer, with a clear one. Of 154 estimates, 32 were wrong by a factor above 1.25, and 8 of the 16
# that are called uncertain.
AGREE, FEW_OBJECTS = 1.35, 3
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
# A network that outlines the bright parts of smooth noise well reaches a contrast of 1.7 there. So grey images whose
# brightness is distributed normally, with an excess kurtosis below this one too, need more contrast: none of 258 grey
# images of nuclei is one, and of 88 with strong noise added 15 are. So do coloured images whose skewness is below this
# third one too: of 362 stained images, 21 have so low a kurtosis, and one of them so low a skewness (contrast 2.2).
LEAST_KURTOSIS, NORMAL_CONTRAST, NORMAL_SKEWNESS = 0.5, 2.0, 0.1
# With fewer objects their contrast says little, and the median score decides.
LEAST_OBJECTS, LEAST_SCORE_OF_FEW = 5, 0.5
# Integer values that differ by less are rounding. The darkest of 1,050 images of nuclei spans 29 levels, 14 at half the
# exposure. With fewer than `FEW_LEVELS`, compressed noise looks like objects, and skewness or clear scores must show
# that there are some: of 698 images that are not stained, 697 have that skewness.
LEAST_LEVELS, FEW_LEVELS = 12, 16
NOISE = "no object stands out from the background and its noise"
UNCERTAIN = "the estimated diameter of the objects is uncertain"
MEASURE = "look at the picture, and give `diameter` if objects are cut into pieces, run together or missing"

Detect = Callable[[np.ndarray], Instances]
Corners = tuple[int, int, int, int]  # y0, x0, y1, x1


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
    """Median diameter of the objects, px of the image; None if there is none to measure, or only noise.

    is_sure: whether there is no reason to doubt it.
    """

    px: float | None
    is_noise: bool = False
    is_sure: bool = True


def estimate_diameter(
    pixels: np.ndarray, nominal_px: float, detect: Detect, *, n_levels: float = float("inf")
) -> Estimate:
    """The diameter of the objects of an image.

    Args:
        pixels: (C, H, W) float32, normalised as the network's input.
        nominal_px: the diameter that the network was trained on.
        detect: the scored objects of a network input (C, h, w), at its own size.
        n_levels: see `levels_of`; nothing is predicted where they are too few to tell objects from rounding.
    """
    if n_levels < LEAST_LEVELS:
        return Estimate(None, is_noise=True)
    image = _Searched(pixels, nominal_px, detect, n_levels < FEW_LEVELS)
    large = image.look(LARGE_PX)
    common = image.look(COMMON_PX, large, enough=ENOUGH_AT_FIRST, varied_first=True)
    others = [(large, common.windows)]
    if not (common.is_clear() or large.is_clear()):
        small = image.look(SMALL_PX, common, side_px=SMALL_SIDE_PX)
        others.append((small, small.windows))
    best = _best(common, others)
    px = best.median_px()
    if px is None or (px < SMALL_PX and best.median_score() < LEAST_SCORE):
        return Estimate(None, is_noise=all(trial.is_noise() for trial in best.trials))
    first_px, agree = px, True
    for step in range(MAX_STEPS):
        look = image.look(px, best, enough=ENOUGH)
        if step == 0 and all(trial.is_noise() for trial in look.trials):
            return Estimate(None, is_noise=True)
        next_px = look.median_px()
        if next_px is None or look.explained() < KEPT * best.explained():
            agree = False  # this size shows less than the one before
            break
        best, is_last = look, _is_close(px, next_px, CLOSE)
        px = next_px
        if is_last:
            break
    is_sure = agree and best.is_evident() and _is_close(first_px, px, AGREE)
    return Estimate(px, is_sure=is_sure) if px >= LEAST_PX else Estimate(None)


def _best(common: _Look, others: Sequence[tuple[_Look, tuple[Corners, ...]]]) -> _Look:
    """The look at the size that explains most; others are compared with the common size in the windows given."""
    ratios = []
    for look, windows in others:
        preference = PREFERENCE
        if look.is_clear() and not common.is_clear():
            preference = 1
        elif look.n_good() < LEAST_OBJECTS and look.median_score() < CLEAR_SCORE:
            preference = PREFERENCE**2  # a few unsure objects, such as holes, are hardly a reason
        ratios.append(look.explained(windows) / max(preference * common.explained(windows), 1e-9))
    # A few large objects may all lie outside of what all have seen.
    if not common.explained() and not max(ratios):
        return max((look for look, _ in others), key=_Look.explained)
    return others[int(np.argmax(ratios))][0] if max(ratios) > 1 else common


def _is_close(px: float, other_px: float, factor: float) -> bool:
    return 1 / factor <= px / other_px <= factor


def levels_of(dtype: np.dtype, lowest: float, highest: float) -> float:
    """By how many levels the values of an image differ; infinite for floats and for an image of one value."""
    n_levels = float(highest) - float(lowest)
    return n_levels if dtype.kind in "iu" and n_levels > 0 else float("inf")


def estimate_notes(estimate: Estimate, *, n_levels: float) -> tuple[Note, ...]:
    """What to say about an estimate: that nothing is predicted, or that it is uncertain."""
    if estimate.is_noise:
        reason = f"; its values differ by only {n_levels:g} levels" if n_levels < FEW_LEVELS else ""
        text = f"{NOISE}{reason}: nothing is predicted; give `diameter` to predict all the same"
        return (Note(NOISE, text),)
    if estimate.px is None or estimate.is_sure:
        return ()
    return (
        Note(
            UNCERTAIN,
            f"{UNCERTAIN}: {estimate.px:.0f} px, but the image shows other sizes as well, or few objects; {MEASURE}",
        ),
    )


@dataclass(frozen=True, eq=False)
class _Searched:
    """An image (C, H, W) in which objects are searched, window by window."""

    pixels: np.ndarray
    nominal_px: float
    detect: Detect
    has_few_levels: bool = False

    def look(
        self,
        diameter_px: float,
        near: _Look | None = None,
        *,
        enough: int = 0,
        side_px: int = WINDOW_SIDE_PX,
        varied_first: bool = False,
    ) -> _Look:
        """The objects in windows of the image, resized as if they were ``diameter_px`` wide.

        near: where objects have been found; they are seen first, then the windows in which brightness varies most.
        enough: with so many objects of a good score no further window is seen; 0 for a single window.
        side_px: of a window, in the input. varied_first: whether brightness decides on the first window all the same.
        """
        scale = self.nominal_px / diameter_px
        side = max(round(side_px / scale), 1)
        windows: list[Corners] = []
        look = _Look(())
        while not windows or (len(windows) < MAX_WINDOWS and look.n_good() < enough):
            centre = None
            if near is not None and (windows or not varied_first):
                centre = near.densest(side, windows)
            centre = self._most_varied(windows) if centre is None else centre
            if centre is None:
                break
            y0, x0, y1, x1 = window = _around(centre, side, self.pixels.shape[1:])
            if _share_seen(window, windows) > 0.6:
                break
            seen = rescale(self.pixels[:, y0:y1, x0:x1], scale)
            trial = _Trial(self.detect(seen), scale, window, self.nominal_px, seen, tuple(windows), self.has_few_levels)
            look = _Look((*look.trials, trial))
            windows.append(window)
        return look

    def _most_varied(self, seen: Sequence[Corners]) -> tuple[float, float] | None:
        """Centre y, x of the small window in which brightness varies most, outside of others; None if there is none."""
        variance, (h, w) = self._variance
        variance = variance.copy()
        for y0, x0, y1, x1 in seen:
            variance[max(y0 - h // 2, 0) : max(y1 - h // 2, 0), max(x0 - w // 2, 0) : max(x1 - w // 2, 0)] = -np.inf
        y, x = np.unravel_index(np.argmax(variance), variance.shape)
        return None if np.isneginf(variance[y, x]) else (float(y) + h / 2, float(x) + w / 2)

    @cached_property
    def _variance(self) -> tuple[np.ndarray, tuple[int, int]]:
        """Variance of the brightness in each window of one size, by its first row and column; the size (h, w)."""
        grey = self.pixels.mean(axis=0)
        side = max(round(WINDOW_SIDE_PX * SMALL_PX / self.nominal_px), 1)
        h, w = min(side, grey.shape[0]), min(side, grey.shape[1])
        low, high = np.percentile(grey, (0.1, 99.9))
        grey = np.clip(grey, low, high).astype(np.float64)
        sums = [cv2.integral(values) for values in (grey, grey**2)]
        mean, square = ((s[h:, w:] - s[:-h, w:] - s[h:, :-w] + s[:-h, :-w]) / (h * w) for s in sums)
        return square - mean**2, (h, w)


@dataclass(frozen=True, eq=False)
class _Trial:
    """The objects found in a resized window of the image; ``scale`` is the factor from the image to the input.

    window: in the image. pixels: the input, (C, h, w). earlier: windows whose objects are counted
    there.
    """

    objects: Instances
    scale: float
    window: Corners
    nominal_px: float
    pixels: np.ndarray
    earlier: tuple[Corners, ...] = ()
    has_few_levels: bool = False

    @cached_property
    def diameters(self) -> np.ndarray:
        """(N,) px of the input."""
        return 2 * np.sqrt(self.objects.masks.areas / np.pi)

    @cached_property
    def octaves(self) -> np.ndarray:
        """(N,) base-2 logarithm of each diameter over the nominal one."""
        return np.log2(np.maximum(self.diameters, 1e-3) / self.nominal_px)

    @cached_property
    def centres(self) -> np.ndarray:
        """(N, 2) y, x in the image."""
        boxes = self.objects.boxes_xyxy.astype(np.float64)
        return (boxes[:, [1, 0]] + boxes[:, [3, 2]]) / 2 / self.scale + self.window[:2]

    @cached_property
    def scores(self) -> np.ndarray:
        """(N,) float64."""
        assert self.objects.scores is not None
        return self.objects.scores.astype(np.float64)

    def is_noise(self) -> bool:
        """Whether the window shows nothing but noise, which the network takes for objects."""
        sized = np.abs(self.octaves) < 2
        n = int(np.count_nonzero(sized))
        score = float(np.median(self.scores[sized])) if n else 1.0
        skewness = _skewness(self.pixels, self.nominal_px)
        if score >= CLEAR_SCORE or skewness >= LEAST_SKEWNESS:
            return False
        if self.has_few_levels:
            return True
        if n < LEAST_OBJECTS:
            return score < LEAST_SCORE_OF_FEW
        is_normal = _kurtosis(self.pixels, self.nominal_px) < LEAST_KURTOSIS and (
            _is_grey(self.pixels) or skewness < NORMAL_SKEWNESS
        )
        contrast = _contrast(self.pixels, self.objects.masks.to_label_map() > 0, self.nominal_px)
        return contrast < (NORMAL_CONTRAST if is_normal else LEAST_CONTRAST)


@dataclass(frozen=True, eq=False)
class _Look:
    """The objects in windows of the image at one size, each once."""

    trials: tuple[_Trial, ...]

    def explained(self, windows: Sequence[Corners] | None = None) -> float:
        """How well the objects explain windows of the image, 0 to 1; None: all that have been seen.

        The mean over pixels: a pixel of an object counts the fourth power of its score, reduced with the distance of
        its diameter from the nominal one.
        """
        windows = self.windows if windows is None else windows
        area = sum(
            (y1 - y0) * (x1 - x0) * (1 - _share_seen((y0, x0, y1, x1), windows[:k]))
            for k, (y0, x0, y1, x1) in enumerate(windows)
        )
        areas = np.pi / 4 * (self._diameters / self.trials[0].scale) ** 2
        worth = areas * self._scores**4 * np.exp(-(self._octaves**2))
        return float(worth[_inside(self._centres, windows)].sum()) / max(area, 1)

    @property
    def windows(self) -> tuple[Corners, ...]:
        """The windows of the image that have been seen."""
        return tuple(trial.window for trial in self.trials)

    def median_px(self) -> float | None:
        """Median diameter in pixels of the image, without specks and low scores; None if there is no object."""
        px = self._diameters[self._is_kept] / self.trials[0].scale
        return float(np.median(px)) if len(px) else None

    def median_score(self) -> float:
        """Median score of the objects, without specks; 0 without any."""
        scores = self._scores[np.abs(self._octaves) < 2]
        return float(np.median(scores)) if len(scores) else 0.0

    def n_good(self) -> int:
        """Number of objects with a good score."""
        return int(np.count_nonzero((np.abs(self._octaves) < 2) & (self._scores >= GOOD_SCORE)))

    def is_clear(self) -> bool:
        """Whether objects of at least `CLEAR_PX` px have been found so surely that no smaller size can be better."""
        px = self.median_px()
        return (
            px is not None and px >= CLEAR_PX and self.n_good() >= LEAST_OBJECTS and self.median_score() >= CLEAR_SCORE
        )

    def is_evident(self) -> bool:
        """Whether there are enough objects, or sure ones, to rely on their diameter."""
        return self.n_good() >= FEW_OBJECTS or self.median_score() >= CLEAR_SCORE

    def densest(self, side: int, seen: Sequence[Corners]) -> tuple[float, float] | None:
        """Centre y, x of the window of ``side`` px in which objects cover most, outside of others; None if few are."""
        worth = (self._diameters * self._scores) ** 2
        centres, worth = self._centres[self._is_kept], worth[self._is_kept]
        left = ~_inside(centres, seen)
        if worth[left].sum() <= 0.25 * worth.sum():
            return None
        centres, worth = centres[left], worth[left]
        near = (np.abs(centres[:, None] - centres[None]) < side / 2).all(axis=2)
        y, x = centres[np.argmax(near @ worth)]
        return float(y), float(x)

    @cached_property
    def _is_kept(self) -> np.ndarray:
        sized = np.abs(self._octaves) < 2
        if not sized.any():
            return sized
        return sized & (self._scores >= min(GOOD_SCORE, 0.7 * float(np.percentile(self._scores[sized], 90))))

    @cached_property
    def _diameters(self) -> np.ndarray:
        return self._all("diameters")

    @cached_property
    def _octaves(self) -> np.ndarray:
        return self._all("octaves")

    @cached_property
    def _scores(self) -> np.ndarray:
        return self._all("scores")

    @cached_property
    def _centres(self) -> np.ndarray:
        return self._all("centres")

    def _all(self, name: str) -> np.ndarray:
        empty = np.zeros((0, 2) if name == "centres" else 0)
        own = [getattr(trial, name)[~_inside(trial.centres, trial.earlier)] for trial in self.trials]
        return np.concatenate([empty, *own])


def _inside(points: np.ndarray, windows: Sequence[Corners]) -> np.ndarray:
    """(N,) bool: which of the points (N, 2) y, x lie in one of the windows."""
    inside = np.zeros(len(points), bool)
    for y0, x0, y1, x1 in windows:
        inside |= (points >= (y0, x0)).all(axis=1) & (points < (y1, x1)).all(axis=1)
    return inside


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
    bands = [band for signal in signals if signal.std() > least for band in _bands(signal, object_px)]
    return max((abs(float((band**3).mean() / ((band**2).mean() ** 1.5 + 1e-12))) for band in bands), default=0.0)


def _kurtosis(pixels: np.ndarray, object_px: float) -> float:
    """Largest absolute excess kurtosis of brightness at the size of objects: 0 for a normal distribution."""
    bands = _bands(pixels.mean(axis=0), object_px)
    return max(abs(float((band**4).mean() / ((band**2).mean() ** 2 + 1e-24)) - 3) for band in bands)


def _bands(signal: np.ndarray, object_px: float) -> list[np.ndarray]:
    """A plane without its coarse and fine structure, of mean 0, on two scales."""
    bands = [_blurred(signal, s) - _blurred(signal, 1.6 * s) for s in (object_px / 12, object_px / 6)]
    return [band - band.mean() for band in bands]


def _is_grey(pixels: np.ndarray) -> bool:
    """Whether all channels are the same."""
    return bool(np.abs(np.diff(pixels, axis=0)).max(initial=0) < 1e-3)


def _blurred(plane: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def _share_seen(window: Corners, others: Sequence[Corners]) -> float:
    """Share of the pixels of a window that lie in other windows."""
    y0, x0, y1, x1 = window
    seen = np.zeros((y1 - y0, x1 - x0), bool)
    for top, left, bottom, right in others:
        seen[max(top - y0, 0) : max(bottom - y0, 0), max(left - x0, 0) : max(right - x0, 0)] = True
    return float(seen.mean())


def _around(centre: tuple[float, float], side: int, image_hw: tuple[int, ...]) -> Corners:
    """The window of ``side`` px, or of the image's size, as near to the centre y, x as fits into the image."""
    y0, x0 = (
        min(max(round(at - side / 2), 0), max(whole - side, 0)) for at, whole in zip(centre, image_hw, strict=True)
    )
    return y0, x0, min(y0 + side, image_hw[0]), min(x0 + side, image_hw[1])
