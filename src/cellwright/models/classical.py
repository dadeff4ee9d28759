"""The baseline that needs no training: threshold the nuclear signal, split touching nuclei by a watershed.

A floor for every table and a first result for every new user. The flow of `ClassicalSegmenter.segment`:
signal (stain or grey) -> diameter -> threshold -> cleaning -> distance transform -> watershed -> score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from cellwright.config.model_classical import ClassicalConfig
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.models.classical_signal import nuclear_signal, otsu_level

_DIAMETER_RANGE_PX = (8.0, 120.0)  # what the estimate may say
_UNSEEN_DIAMETER_PX = 15.0  # where the first look finds no object to measure
_OPENING = 0.08  # radius of the opening that removes threads, diameters
_LOCAL_FLOOR = 0.8  # a local threshold never falls below this share of the way from background to Otsu's level
# Expected IoU from contrast, solidity, smallness and 1: least squares on the 10,200 objects found in 72 training images
# of VRDL and DSB2018. In steps of 0.2 the score is within 0.1 of the mean IoU there.
_SCORE_WEIGHTS = np.array([0.82, 2.61, 0.13, -2.39])


@dataclass(frozen=True)
class ClassicalSegmenter:
    """Finds nuclei by threshold and watershed; a `Segmenter`."""

    config: ClassicalConfig = ClassicalConfig()  # noqa: RUF009 - frozen

    def predict(self, images: Sequence[Image]) -> list[Instances]:
        """One `Instances` an image, highest score first; a constant image gives none. `InputError` as in `segment`."""
        return [self.segment(image) for image in images]

    def segment(self, image: Image) -> Instances:
        """The nuclei of one image: masks do not overlap, class 0, scores in [0, 1].

        Raises `InputError` for channels that are neither grey nor RGB(A) and for pixels that are not finite.
        """
        signal, kind = nuclear_signal(image, self.config.signal)
        if otsu_level(signal) is None:
            return Instances.empty(image.image_hw, scored=True)
        diameter = estimate_diameter(signal) if self.config.diameter_px is None else self.config.diameter_px
        foreground = _clean(self._foreground(signal, kind, diameter), diameter)
        labels = self._split(foreground, diameter)
        masks, ids = MaskSet.from_label_map(labels)
        scores = _scores(signal, labels, ids, masks)
        large = masks.areas >= max(self.config.min_area_share * _disc_area(diameter), 1)
        found = Instances.from_masks(masks[large], scores=scores[large]).by_score()
        return replace(found, ids=np.arange(1, len(found) + 1))

    def _foreground(self, signal: np.ndarray, kind: str, diameter: float) -> np.ndarray:
        """Pixels (H, W) bool above the threshold."""
        smooth = cv2.GaussianBlur(signal, (0, 0), max(self.config.smoothing * diameter, 0.7))
        level = otsu_level(smooth)
        if level is None:
            return np.zeros(signal.shape, dtype=bool)
        if self.config.threshold == "otsu" or (self.config.threshold == "auto" and kind != "stain"):
            return smooth > level
        surroundings = cv2.GaussianBlur(smooth, (0, 0), self.config.local_sigma * diameter)
        background = float(smooth[smooth <= level].mean())
        floor = background + _LOCAL_FLOOR * (level - background)
        return smooth > np.maximum(surroundings + self.config.local_offset * float(smooth.std()), floor)

    def _split(self, foreground: np.ndarray, diameter: float) -> np.ndarray:
        """Labels (H, W) int32, one for each peak of the smoothed distance to the background."""
        depth = cv2.GaussianBlur(_depth(foreground), (0, 0), 0.08 * diameter)
        distance = max(int(self.config.peak_distance * diameter), 2)
        peaks = peak_local_max(depth, min_distance=distance, threshold_abs=0.1, exclude_border=False)
        peaks = peaks[foreground[peaks[:, 0], peaks[:, 1]]]
        markers = np.zeros(foreground.shape, dtype=np.int32)
        markers[peaks[:, 0], peaks[:, 1]] = np.arange(1, len(peaks) + 1)
        return watershed(-depth, markers, mask=foreground).astype(np.int32)


def estimate_diameter(signal: np.ndarray) -> float:
    """Typical diameter, px, of what Otsu's level cuts from a signal (H, W) float32; within 8..120.

    Touching nuclei still have one peak each in the distance transform: the answer is twice the median peak, each
    weighted by its area, so that specks do not count. 15 where no peak is found.
    """
    smooth = cv2.GaussianBlur(signal, (0, 0), 1.5)
    level = otsu_level(smooth)
    if level is None:
        return _UNSEEN_DIAMETER_PX
    depth = _depth(_clean(smooth > level, 10.0))
    soft = cv2.GaussianBlur(depth, (0, 0), 1.0)
    peaks = np.sort(depth[(soft == cv2.dilate(soft, np.ones((7, 7), np.uint8))) & (depth > 2)])
    if peaks.size == 0:
        return _UNSEEN_DIAMETER_PX
    weights = np.cumsum(peaks**2)
    median = float(peaks[np.searchsorted(weights, weights[-1] / 2)])
    return float(np.clip(2 * median, *_DIAMETER_RANGE_PX))


def _disc_area(diameter: float) -> float:
    return np.pi / 4 * diameter**2


def _depth(foreground: np.ndarray) -> np.ndarray:
    """Distance (H, W) float32 of every foreground pixel to the background or to the image's border, px."""
    return cv2.distanceTransform(np.pad(foreground, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]


def _clean(foreground: np.ndarray, diameter: float) -> np.ndarray:
    """Open by a small disc and fill holes smaller than half a nucleus."""
    radius = max(round(_OPENING * diameter), 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    opened = cv2.morphologyEx(foreground.astype(np.uint8), cv2.MORPH_OPEN, disc)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(1 - opened, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < 0.5 * _disc_area(diameter)
    small[0] = False  # component 0 is what connectedComponents calls background: the nuclei
    return (opened > 0) | small[np.asarray(parts, np.int32)]


def _scores(signal: np.ndarray, labels: np.ndarray, ids: np.ndarray, masks: MaskSet) -> np.ndarray:
    """Scores (N,) float32: the IoU with the truth to be expected from contrast, shape and size.

    Contrast is an object's mean signal above the background around it, against the background's own spread.
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
    """Share of a mask's convex hull that the mask fills, in (0, 1]; crop (h, w) uint8 over its tight box."""
    contours, _ = cv2.findContours(crop, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = cv2.convexHull(np.concatenate(contours))
    # The hull runs through pixel centres; widening it by half a pixel on all sides (a Minkowski sum with the unit
    # square) adds its width, its height and 1.
    area = cv2.contourArea(hull) + (crop.shape[1] - 1) + (crop.shape[0] - 1) + 1
    return float(crop.sum() / area)
