"""The training-free baseline: threshold the nuclear signal and separate touching nuclei with a watershed.

The steps of `ClassicalSegmenter.segment`: signal (stain or grey) -> diameter -> threshold -> cleaning -> distance
transform -> watershed -> score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import cv2
import numpy as np
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from cellwright.config.model_classical import ClassicalConfig, SignalKind
from cellwright.core.errors import InputError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet

# Signal. Eosin absorbs hardly any red and much green (Ruifrok and Johnston 2001), so the red density is nearly that of
# haematoxylin alone; subtracting a little green density removes the rest of eosin. On 24 H&E and purple-stained
# training images, this was better than the full deconvolution matrix, which depends on the dyes of one laboratory.
_EOSIN_SHARE = 0.15
_COLOURFUL = 0.03  # minimum mean chroma, as a share of white, at which an RGB image counts as coloured
_BRIGHT_FIELD = 0.2  # minimum median luminance, as a share of white, at which light was absorbed rather than emitted
_DARKEST = 1.0 / 255.0  # lower limit of the light before the logarithm

# Objects.
_DIAMETER_RANGE_PX = (8.0, 120.0)  # limits of the estimate
_DEFAULT_DIAMETER_PX = 15.0  # if there is nothing to estimate it from
_OPENING = 0.08  # radius of the opening that removes threads, diameters
_LOCAL_FLOOR = 0.8  # smallest local threshold, as a share of the way from the background to Otsu's threshold
# Expected IoU from contrast, solidity, smallness and 1: least squares on the 10,200 objects found in 72 training images
# of VRDL and DSB2018. In bins of 0.2, the score is within 0.1 of the mean IoU there.
_SCORE_WEIGHTS = np.array([0.82, 2.61, 0.13, -2.39])


@dataclass(frozen=True)
class ClassicalSegmenter:
    """Finds nuclei by threshold and watershed; a `Segmenter`.

    >>> image = np.zeros((40, 60), np.uint8)
    >>> image[10:25, 8:23] = image[12:27, 35:50] = 200
    >>> [instances] = ClassicalSegmenter().predict([Image.from_array(image)])
    >>> len(instances)
    2
    """

    n_channels: ClassVar[int] = 3  # grey or RGB
    trained_channels: ClassVar[tuple[str, ...]] = ("nuclei",)
    config: ClassicalConfig = ClassicalConfig()  # noqa: RUF009 - frozen

    def predict(self, images: Sequence[Image]) -> list[Instances]:
        """The nuclei of each image; see `segment`."""
        return [self.segment(image) for image in images]

    def segment(self, image: Image) -> Instances:
        """The nuclei of one image, best first: masks do not overlap, class 0, scores in [0, 1].

        A constant image has none. Raises `InputError` for channels that are neither grey nor RGB(A), and for pixels
        that are not finite.
        """
        signal, kind = nuclear_signal(image, self.config.signal)
        if _otsu(signal) is None:
            return Instances.empty(image.image_hw, scored=True)
        diameter = signal_diameter(signal) if self.config.diameter_px is None else self.config.diameter_px
        foreground = _clean(self._foreground(signal, kind, diameter), diameter)
        labels = self._separate(foreground, diameter)
        masks, ids = MaskSet.from_label_map(labels)
        scores = _scores(signal, labels, ids, masks)
        large = masks.areas >= max(self.config.min_area_share * _disc_area(diameter), 1)
        instances = Instances.from_masks(masks[large], scores=scores[large]).by_score()
        return replace(instances, ids=np.arange(1, len(instances) + 1))

    def _foreground(self, signal: np.ndarray, kind: str, diameter: float) -> np.ndarray:
        """Pixels (H, W) bool above the threshold."""
        smooth = cv2.GaussianBlur(signal, (0, 0), max(self.config.smoothing * diameter, 0.7))
        level = _otsu(smooth)
        if level is None:
            return np.zeros(signal.shape, dtype=bool)
        if self.config.threshold == "otsu" or (self.config.threshold == "auto" and kind != "stain"):
            return smooth > level
        surroundings = cv2.GaussianBlur(smooth, (0, 0), self.config.local_sigma * diameter)
        background = float(smooth[smooth <= level].mean())
        floor = background + _LOCAL_FLOOR * (level - background)
        return smooth > np.maximum(surroundings + self.config.local_offset * float(smooth.std()), floor)

    def _separate(self, foreground: np.ndarray, diameter: float) -> np.ndarray:
        """Labels (H, W) int32, one per peak of the smoothed distance to the background."""
        depth = cv2.GaussianBlur(_depth(foreground), (0, 0), 0.08 * diameter)
        distance = max(int(self.config.peak_distance * diameter), 2)
        peaks = peak_local_max(depth, min_distance=distance, threshold_abs=0.1, exclude_border=False)
        peaks = peaks[foreground[peaks[:, 0], peaks[:, 1]]]
        markers = np.zeros(foreground.shape, dtype=np.int32)
        markers[peaks[:, 0], peaks[:, 1]] = np.arange(1, len(peaks) + 1)
        return watershed(-depth, markers, mask=foreground).astype(np.int32)


# --- signal -------------------------------------------------------------------------------------------------------


def nuclear_signal(image: Image, kind: SignalKind = "auto") -> tuple[np.ndarray, Literal["stain", "bright", "dark"]]:
    """The signal (H, W) float32, high in nuclei, and its kind.

    "stain" needs R, G, B; "auto" selects it for colour images with a bright background, else the grey image with the
    polarity in which the objects are on the side of Otsu's threshold that covers less area. A constant image gives
    zeros.

    Raises `InputError` for channels that are neither grey nor RGB(A), for "stain" without colour, and for pixels that
    are not finite.
    """
    rgb, grey = _channels(image)
    if kind == "stain" and rgb is None:
        raise InputError(
            "the signal 'stain' needs a colour image",
            where=image.path,
            got=image.describe(),
            expected="channels R, G, B",
            remedy="use model.signal: dark, bright or auto",
        )
    if rgb is not None and (kind == "stain" or (kind == "auto" and _is_stained(rgb))):
        density = -np.log(np.maximum(rgb, np.float32(_DARKEST)))
        signal = density[..., 0] - np.float32(_EOSIN_SHARE) * density[..., 1]
        return np.ascontiguousarray(signal - signal.min()), "stain"
    polarity = _polarity(grey) if kind == "auto" else kind
    if polarity == "dark":
        return grey.max() - grey, "dark"
    # The square root brings dim and bright nuclei of a fluorescence image closer, as for shot noise (Anscombe 1948).
    return np.sqrt(grey - grey.min()), "bright"


def _otsu(values: np.ndarray) -> float | None:
    """Otsu's threshold of float values, or None if they are all equal apart from rounding."""
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    if not high - low > 1e-5 * max(abs(low), abs(high)):
        return None
    return float(threshold_otsu(values.astype(np.float64)))  # 256 bins can need more precision than float32 has


def _channels(image: Image) -> tuple[np.ndarray | None, np.ndarray]:
    """RGB (H, W, 3) or None, and grey (H, W); float32, where 1 is the image's own white."""
    data, names = image.data, image.channels
    if names[-1] == "A" and len(names) > 1:
        data, names = data[:, :, :-1], names[:-1]
    if len(names) != 1 and names != ("R", "G", "B"):
        raise InputError(
            "the classical method takes one channel or R, G, B",
            where=image.path,
            got=image.describe(),
            remedy="choose the nuclear channel with `channel`",
        )
    values = data.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(
            "the image contains pixels that are not finite",
            where=image.path,
            got=image.describe(),
            remedy="replace NaN and infinity with numbers",
        )
    values -= min(float(values.min()), 0.0)
    white = float(np.percentile(values, 99.8)) or float(values.max())
    values = np.minimum(values / white, 1.0) if white > 0 else values
    return (values, values.mean(axis=2)) if len(names) == 3 else (None, values[:, :, 0])


def _is_stained(rgb: np.ndarray) -> bool:
    chroma = rgb.max(axis=2) - rgb.min(axis=2)
    return float(chroma.mean()) > _COLOURFUL and float(np.median(rgb.mean(axis=2))) > _BRIGHT_FIELD


def _polarity(grey: np.ndarray) -> Literal["bright", "dark"]:
    smooth = cv2.GaussianBlur(grey, (0, 0), 2.0)
    level = _otsu(smooth)
    return "bright" if level is None or float((smooth > level).mean()) < 0.5 else "dark"


# --- objects ------------------------------------------------------------------------------------------------------


def signal_diameter(signal: np.ndarray) -> float:
    """Typical diameter, px, within 8..120, of the objects in a signal (H, W) float32; 15 if there are none.

    Touching nuclei still have one peak each in the distance transform of what exceeds Otsu's threshold: the estimate is
    twice the median peak, weighted by area so that specks do not count.
    """
    smooth = cv2.GaussianBlur(signal, (0, 0), 1.5)
    level = _otsu(smooth)
    if level is None:
        return _DEFAULT_DIAMETER_PX
    depth = _depth(_clean(smooth > level, 10.0))
    soft = cv2.GaussianBlur(depth, (0, 0), 1.0)
    peaks = np.sort(depth[(soft == cv2.dilate(soft, np.ones((7, 7), np.uint8))) & (depth > 2)])
    if peaks.size == 0:
        return _DEFAULT_DIAMETER_PX
    weights = np.cumsum(peaks**2)
    median = float(peaks[np.searchsorted(weights, weights[-1] / 2)])
    return float(np.clip(2 * median, *_DIAMETER_RANGE_PX))


def _disc_area(diameter: float) -> float:
    return np.pi / 4 * diameter**2


def _depth(foreground: np.ndarray) -> np.ndarray:
    """Distance (H, W) float32 of every foreground pixel to the background or to the image border, px."""
    return cv2.distanceTransform(np.pad(foreground, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]


def _clean(foreground: np.ndarray, diameter: float) -> np.ndarray:
    """Open by a small disc and fill holes smaller than half a nucleus."""
    radius = max(round(_OPENING * diameter), 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    opened = cv2.morphologyEx(foreground.astype(np.uint8), cv2.MORPH_OPEN, disc)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(1 - opened, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < 0.5 * _disc_area(diameter)
    small[0] = False  # component 0, the background of the inverted image: the nuclei
    return (opened > 0) | small[np.asarray(parts, np.int32)]


def _scores(signal: np.ndarray, labels: np.ndarray, ids: np.ndarray, masks: MaskSet) -> np.ndarray:
    """Scores (N,) float32: the IoU with the ground truth that is expected from contrast, shape and size.

    Contrast is the mean signal of an object above the background around it, relative to the spread of the background.
    """
    if len(ids) == 0:
        return np.zeros(0, dtype=np.float32)
    background = (labels == 0).astype(np.float32)
    sigma = max(float(np.sqrt(np.median(masks.areas))), 2.0)
    weight = cv2.GaussianBlur(background, (0, 0), sigma)
    local = cv2.GaussianBlur(signal * background, (0, 0), sigma) / np.maximum(weight, 1e-3)
    sums = np.bincount(labels.ravel(), weights=(signal - local).ravel(), minlength=int(ids[-1]) + 1)[ids]
    above = np.maximum(sums / masks.areas, 0)
    spread = float(signal[labels == 0].std()) if (labels == 0).any() else 0.0
    contrast = above / np.maximum(above + spread, 1e-9)
    solidity = np.array([_solidity(masks.crop(i)) for i in range(len(masks))])
    smallness = np.minimum(np.log(masks.areas / np.median(masks.areas)), 0)
    columns = np.stack([contrast, solidity, smallness, np.ones(len(ids))], axis=1)
    return np.clip(columns @ _SCORE_WEIGHTS, 0, 1).astype(np.float32)


def _solidity(crop: np.ndarray) -> float:
    """Share of its convex hull that a mask fills, in (0, 1]; crop (h, w) uint8 over its tight box."""
    contours, _ = cv2.findContours(crop, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = cv2.convexHull(np.concatenate(contours))
    # The hull passes through pixel centres; widening it by half a pixel on all sides (a Minkowski sum with the unit
    # square) adds its width, its height and 1.
    area = cv2.contourArea(hull) + (crop.shape[1] - 1) + (crop.shape[0] - 1) + 1
    return float(crop.sum() / area)
