"""The training-free baseline: threshold the nuclear signal and separate touching nuclei with a watershed.

The steps of `ClassicalSegmenter.segment`: signal (stain or grey) -> diameter -> threshold -> cleaning -> distance
transform -> watershed -> score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import cv2
import numpy as np

from cellwright.config.model_classical import ClassicalConfig, SignalKind
from cellwright.core.errors import InputError
from cellwright.core.geometry import Window
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet

# Signal. Eosin absorbs hardly any red and much green (Ruifrok and Johnston 2001), so the red density is nearly that of
# haematoxylin alone; subtracting a little green density removes the rest of eosin. On 24 H&E and purple-stained
# training images, this was better than the full deconvolution matrix, which depends on the dyes of one laboratory.
_EOSIN_SHARE = 0.15
_COLOURFUL = 0.03  # minimum mean chroma, as a share of white, at which an RGB image counts as coloured
_BRIGHT_FIELD = 0.2  # minimum median luminance, as a share of white, at which light was absorbed rather than emitted
WHITE_PERCENT = 99.8  # the percentile of the values of an image that counts as white
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
        field = _Field([Region(lambda: image, Window(0, 0, *image.image_hw))], self.config.signal)
        facts = self._facts(field)
        if facts.level is None:
            return Instances.empty(image.image_hw, scored=True)
        return self._objects(field.signal(0), field.map("labels", 0, _missing), facts)

    def facts(self, regions: Sequence[Region], limits: tuple[float, float] | None = None) -> ClassicalFacts:
        """What `segment_part` needs to know about a whole image, from regions that cover it; see `Region`.

        limits: the smallest value, and the 99.8th percentile or, if that is the smallest, the largest value; None takes
        those of a single region. Raises `InputError` as `segment` does.
        """
        return self._facts(_Field(regions, self.config.signal, limits))

    def segment_part(self, image: Image, facts: ClassicalFacts) -> Instances:
        """The nuclei of a part of an image, as `segment` finds them in the whole, except near its borders."""
        if facts.level is None:
            return Instances.empty(image.image_hw, scored=True)
        signal = facts.signal.of(image)
        return self._objects(signal, self._labels(signal, facts), facts)

    def _facts(self, field: _Field) -> ClassicalFacts:
        nothing = ClassicalFacts(field.kind, _DEFAULT_DIAMETER_PX)
        if field.otsu(field.signal) is None:
            return nothing
        diameter = self.config.diameter_px
        nothing = replace(nothing, diameter=field.diameter() if diameter is None else diameter)
        smooth = partial(field.smooth, sigma=self._sigma(nothing.diameter))
        level = field.otsu(smooth)
        if level is None:
            return nothing
        below, everything = _Moments(), _Moments()
        for part in field.parts(smooth):
            below.add(part[part <= level])
            everything.add(part)
        facts = replace(nothing, level=level, background=below.mean, deviation=everything.deviation)
        areas, outside = [np.zeros(0)], _Moments()
        for k, region in enumerate(field.regions):
            signal = field.signal(k)
            labels = field.map("labels", k, partial(self._labels, signal, facts))
            masks, _ = MaskSet.from_label_map(labels)
            (y0, x0, y1, x1), centres = region.inside, (masks.boxes[:, :2] + masks.boxes[:, 2:]) / 2
            areas.append(masks.areas[((centres >= (x0, y0)) & (centres < (x1, y1))).all(axis=1)])
            outside.add(region.inside.of(signal)[region.inside.of(labels) == 0])
        found = np.concatenate(areas)
        return replace(facts, area=float(np.median(found)) if len(found) else 0.0, spread=outside.deviation)

    def _sigma(self, diameter: float) -> float:
        return max(self.config.smoothing * diameter, 0.7)

    def _objects(self, signal: np.ndarray, labels: np.ndarray, facts: ClassicalFacts) -> Instances:
        masks, ids = MaskSet.from_label_map(labels)
        scores = _scores(signal, labels, ids, masks, facts)
        large = masks.areas >= max(self.config.min_area_share * _disc_area(facts.diameter), 1)
        instances = Instances.from_masks(masks[large], scores=scores[large]).by_score()
        return replace(instances, ids=np.arange(1, len(instances) + 1))

    def _labels(self, signal: np.ndarray, facts: ClassicalFacts) -> np.ndarray:
        """Labels (H, W) int32 of all objects, small ones too."""
        return self._separate(_clean(self._foreground(signal, facts), facts.diameter), facts.diameter)

    def _foreground(self, signal: np.ndarray, facts: ClassicalFacts) -> np.ndarray:
        """Pixels (H, W) bool above the threshold."""
        assert facts.level is not None
        smooth = _blurred(signal, self._sigma(facts.diameter))
        kind = facts.signal.kind
        if self.config.threshold == "otsu" or (self.config.threshold == "auto" and kind != "stain"):
            return smooth > facts.level
        surroundings = _blurred(smooth, self.config.local_sigma * facts.diameter)
        floor = facts.background + _LOCAL_FLOOR * (facts.level - facts.background)
        return smooth > np.maximum(surroundings + self.config.local_offset * facts.deviation, floor)

    def _separate(self, foreground: np.ndarray, diameter: float) -> np.ndarray:
        """Labels (H, W) int32, one per peak of the smoothed distance to the background."""
        # Imported here: with SciPy behind them, they take longer than all else on a small image.
        from skimage.feature import peak_local_max
        from skimage.segmentation import watershed

        depth = cv2.GaussianBlur(_depth(foreground), (0, 0), 0.08 * diameter)
        distance = max(int(self.config.peak_distance * diameter), 2)
        peaks = peak_local_max(depth, min_distance=distance, threshold_abs=0.1, exclude_border=False)
        peaks = peaks[foreground[peaks[:, 0], peaks[:, 1]]]
        markers = np.zeros(foreground.shape, dtype=np.int32)
        markers[peaks[:, 0], peaks[:, 1]] = np.arange(1, len(peaks) + 1)
        return watershed(-depth, markers, mask=foreground).astype(np.int32)


# --- facts about the whole image ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignalFacts:
    """What makes the nuclear signal of an image: see `nuclear_signal`.

    low, white: the values that become 0 and 1. zero: the value at which the signal is 0.
    """

    kind: Literal["stain", "bright", "dark"]
    low: float
    white: float
    zero: float = 0.0

    def of(self, image: Image) -> np.ndarray:
        """The signal (H, W) float32 of the image or of a part of it."""
        rgb, grey = _channels(image, (self.low, self.white))
        if self.kind == "stain":
            assert rgb is not None  # of the same image
            return np.ascontiguousarray(_density(rgb) - np.float32(self.zero))
        if self.kind == "dark":
            return np.float32(self.zero) - grey
        # The square root brings dim and bright nuclei of fluorescence closer, as for shot noise (Anscombe 1948).
        return np.sqrt(np.maximum(grey - np.float32(self.zero), 0))


@dataclass(frozen=True)
class ClassicalFacts:
    """What the method knows about a whole image before it segments a part of it.

    diameter: of a typical object, px. level: Otsu's threshold of the smoothed signal; None: there is nothing to find.
    background: mean of what does not exceed it. deviation: of the smoothed signal. area: median of the objects, px.
    spread: standard deviation of the signal outside of objects.
    """

    signal: SignalFacts
    diameter: float
    level: float | None = None
    background: float = 0.0
    deviation: float = 0.0
    area: float = 0.0
    spread: float = 0.0


@dataclass(frozen=True)
class Region:
    """A part of an image. read: its pixels, with a margin where the image goes on. inside: what counts of them; these
    windows of all regions cover the image once."""

    read: Callable[[], Image]
    inside: Window


class _Field:
    """Maps of the regions of an image, and numbers over all of them. The maps of a single region are kept."""

    def __init__(self, regions: Sequence[Region], kind: SignalKind, limits: tuple[float, float] | None = None) -> None:
        self.regions, self._kept = regions, dict[str, np.ndarray]()
        self.kind = self._signal_facts(kind, limits or _limits(regions[0].read()))

    def signal(self, k: int) -> np.ndarray:
        """The nuclear signal (h, w) float32 of a region."""
        return self.map("signal", k, lambda: self.kind.of(self.regions[k].read()))

    def smooth(self, k: int, sigma: float) -> np.ndarray:
        """The blurred signal of a region."""
        return self.map(f"smooth {sigma}", k, lambda: _blurred(self.signal(k), sigma))

    def parts(self, of_region: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
        """What counts of a map of each region."""
        return (region.inside.of(of_region(k)) for k, region in enumerate(self.regions))

    def otsu(self, of_region: Callable[[int], np.ndarray]) -> float | None:
        """Otsu's threshold of a map of all regions, or None if its values are all equal apart from rounding."""
        from skimage.filters import threshold_otsu

        spans = [(float(part.min()), float(part.max())) for part in self.parts(of_region)]
        low, high = min(low for low, _ in spans), max(high for _, high in spans)
        if not high - low > 1e-5 * max(abs(low), abs(high)):
            return None
        # 256 bins can need more precision than float32 has.
        counts = sum(np.histogram(part.astype(np.float64), 256, (low, high))[0] for part in self.parts(of_region))
        edges = np.linspace(low, high, 257)
        return float(threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2)))

    def diameter(self) -> float:
        """Typical diameter, px, within 8..120, of the objects in the signal; 15 if there are none.

        Touching nuclei still have one peak each in the distance transform of what exceeds Otsu's threshold: the
        estimate is twice the median peak, weighted by area so that specks do not count.
        """
        level = self.otsu(partial(self.smooth, sigma=1.5))
        if level is None:
            return _DEFAULT_DIAMETER_PX
        peaks = [_peaks(self.smooth(k, 1.5) > level, region.inside) for k, region in enumerate(self.regions)]
        return _typical(np.concatenate(peaks))

    def map(self, name: str, k: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """A map of a region: made, or kept from before."""
        if len(self.regions) > 1:
            return make()
        if name not in self._kept:
            if name.startswith("smooth"):  # one at a time
                self._kept = {"signal": self._kept["signal"]} if "signal" in self._kept else {}
            self._kept[name] = make()
        return self._kept[name]

    def _signal_facts(self, kind: SignalKind, limits: tuple[float, float]) -> SignalFacts:
        rgb, grey = _channels(first := self.regions[0].read(), limits)
        if kind == "stain" and rgb is None:
            raise InputError(
                "the signal 'stain' needs a colour image",
                where=first.path,
                got=first.describe(),
                expected="channels R, G, B",
                remedy="use model.signal: dark, bright or auto",
            )
        del grey

        def greys(k: int) -> np.ndarray:
            return self.map("grey", k, lambda: _channels(self.regions[k].read(), limits)[1])

        def densities(k: int) -> np.ndarray:
            values = _channels(self.regions[k].read(), limits)[0]
            assert values is not None  # as in the first region
            return _density(values)

        if rgb is not None and (kind == "stain" or (kind == "auto" and self._is_stained(limits))):
            return SignalFacts("stain", *limits, min(float(part.min()) for part in self.parts(densities)))
        own = self._polarity(greys) if kind in ("auto", "stain") else kind
        ends = [part.max() if own == "dark" else part.min() for part in self.parts(greys)]
        return SignalFacts(own, *limits, float(max(ends) if own == "dark" else min(ends)))

    def _is_stained(self, limits: tuple[float, float]) -> bool:
        """Whether the image is coloured and at least half of it bright."""
        chroma, n_bright = _Moments(), 0
        for region in self.regions:
            rgb, grey = _channels(region.read(), limits)
            assert rgb is not None  # as in the first region
            inside = region.inside.of
            chroma.add(inside(rgb.max(axis=2) - rgb.min(axis=2)))
            n_bright += int((inside(grey) > _BRIGHT_FIELD).sum())
        return chroma.mean > _COLOURFUL and n_bright > chroma.n / 2

    def _polarity(self, greys: Callable[[int], np.ndarray]) -> Literal["bright", "dark"]:
        def smooth(k: int) -> np.ndarray:
            return _blurred(greys(k), 2.0)

        level = self.otsu(smooth)
        if level is None:
            return "bright"
        above = _Moments()
        for part in self.parts(smooth):
            above.add(part > level)
        return "bright" if above.mean < 0.5 else "dark"


def _missing() -> np.ndarray:
    raise AssertionError("labels are made when the facts are found")


class _Moments:
    """Number, mean and standard deviation of values that come in parts; 0 without values."""

    def __init__(self) -> None:
        self.n, self._sum, self._squares, self._zero = 0, 0.0, 0.0, None

    def add(self, values: np.ndarray) -> None:
        """Add values of any shape."""
        if values.size:
            self._zero = float(values.flat[0]) if self._zero is None else self._zero
            shifted = values.astype(np.float64) - self._zero  # so that the squares lose no digits
            self.n, self._sum = self.n + values.size, self._sum + float(shifted.sum())
            self._squares += float(np.vdot(shifted, shifted))

    @property
    def mean(self) -> float:
        return (self._zero or 0.0) + self._sum / max(self.n, 1)

    @property
    def deviation(self) -> float:
        return max(self._squares / max(self.n, 1) - (self._sum / max(self.n, 1)) ** 2, 0.0) ** 0.5


# --- signal -------------------------------------------------------------------------------------------------------


def nuclear_signal(image: Image, kind: SignalKind = "auto") -> tuple[np.ndarray, Literal["stain", "bright", "dark"]]:
    """The signal (H, W) float32, high in nuclei, and its kind.

    "stain" needs R, G, B; "auto" selects it for colour images with a bright background, else the grey image with the
    polarity in which the objects are on the side of Otsu's threshold that covers less area. A constant image gives
    zeros.

    Raises `InputError` for channels that are neither grey nor RGB(A), for "stain" without colour, and for pixels that
    are not finite.
    """
    field = _Field([Region(lambda: image, Window(0, 0, *image.image_hw))], kind)
    return field.signal(0), field.kind.kind


def _density(rgb: np.ndarray) -> np.ndarray:
    """The density of the stain of nuclei (H, W) float32."""
    density = -np.log(np.maximum(rgb, np.float32(_DARKEST)))
    return density[..., 0] - np.float32(_EOSIN_SHARE) * density[..., 1]


def _blurred(plane: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(plane, (0, 0), sigma)


def opaque_channels(image: Image) -> np.ndarray:
    """The values (H, W, 1 or 3) without alpha. Raises `InputError` for channels that are neither grey nor RGB(A)."""
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
    return data


def finite_values(image: Image) -> np.ndarray:
    """As `opaque_channels`, float32. Raises `InputError` also for pixels that are not finite."""
    values = opaque_channels(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(
            "the image contains pixels that are not finite",
            where=image.path,
            got=image.describe(),
            remedy="replace NaN and infinity with numbers",
        )
    return values


def _limits(image: Image) -> tuple[float, float]:
    """The values that become 0 and 1; both are equal in an image without light."""
    values = finite_values(image)
    low = min(float(values.min()), 0.0)
    white = float(np.percentile(values, WHITE_PERCENT))
    return low, white if white > low else float(values.max())


def _channels(image: Image, limits: tuple[float, float]) -> tuple[np.ndarray | None, np.ndarray]:
    """RGB (H, W, 3) or None, and grey (H, W); float32, where 1 is the image's own white."""
    values, (low, white) = finite_values(image), limits
    if low:
        values -= np.float32(low)
    values = np.minimum(values / np.float32(white - low), 1.0) if white > low else values
    return (values, values.mean(axis=2)) if values.shape[2] == 3 else (None, values[:, :, 0])


# --- objects ------------------------------------------------------------------------------------------------------


def _peaks(foreground: np.ndarray, inside: Window) -> np.ndarray:
    """The largest distances to the background (N,), px, of the objects whose peak is inside a window."""
    depth = _depth(_clean(foreground, 10.0))
    soft = _blurred(depth, 1.0)
    is_peak = (soft == cv2.dilate(soft, np.ones((7, 7), np.uint8))) & (depth > 2)
    return inside.of(depth)[inside.of(is_peak)]


def _typical(peaks: np.ndarray) -> float:
    """The diameter from the peaks of all objects."""
    if peaks.size == 0:
        return _DEFAULT_DIAMETER_PX
    peaks = np.sort(peaks)
    weights = np.cumsum(peaks.astype(np.float64) ** 2)
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


def _scores(
    signal: np.ndarray, labels: np.ndarray, ids: np.ndarray, masks: MaskSet, facts: ClassicalFacts
) -> np.ndarray:
    """Scores (N,) float32: the IoU with the ground truth that is expected from contrast, shape and size.

    Contrast is the mean signal of an object above the background around it, relative to the spread of the background.
    """
    if len(ids) == 0:
        return np.zeros(0, dtype=np.float32)
    background = (labels == 0).astype(np.float32)
    area = facts.area or float(np.median(masks.areas))
    sigma = max(area**0.5, 2.0)
    weight = cv2.GaussianBlur(background, (0, 0), sigma)
    local = cv2.GaussianBlur(signal * background, (0, 0), sigma) / np.maximum(weight, 1e-3)
    sums = np.bincount(labels.ravel(), weights=(signal - local).ravel(), minlength=int(ids[-1]) + 1)[ids]
    above = np.maximum(sums / masks.areas, 0)
    contrast = above / np.maximum(above + facts.spread, 1e-9)
    solidity = np.array([_solidity(masks.crop(i)) for i in range(len(masks))])
    smallness = np.minimum(np.log(masks.areas / area), 0)
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
