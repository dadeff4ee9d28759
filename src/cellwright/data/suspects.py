"""Find annotations that are likely to be wrong, most suspicious first: `rank_suspects`.

Five kinds of errors are detected by their effect on the outline and on the image under it:

- merged: two nuclei in one mask. The mask has two lobes with a neck between them, or separate parts.
- split: one nucleus in two masks. They share a long, straight border without a seam in the image, and are convex
  together.
- displaced: a mask beside its nucleus. It has little contrast, much more contrast nearby, or other objects under it.
- tiny: a mask far below the 1st percentile of the areas in the dataset.
- open: an outline that was not filled or not closed. It is thin everywhere and covers little of its convex hull.

The first part of this file combines the evidence, the second part measures it. The evidence for each kind is combined
by a logistic model of two to six terms, fitted to errors inserted into a third of DSB2018: 20 of each kind among 11,000
correct objects, four times (`tests/data/fit_suspects.py`). This makes the scores of different kinds comparable. VRDL,
on which the result is tested, was not used for fitting. A score is not the probability of an error in *your* data,
which depends on how many errors there are.

Each object is measured in its own crop, or in a window of a few diameters around it. Lengths are relative to the
diameter of the object (of a disc of the same area). Intensities are in standard deviations of the pixels inside and
just outside the masks of the image, along the colour direction that separates the two best (Fisher 1936), so the stain,
the polarity and the bit depth need not be known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import CellwrightError, UsageError
from cellwright.core.files import write_text
from cellwright.core.ignored import counted_objects
from cellwright.core.image import Image
from cellwright.core.masks import MaskSet
from cellwright.core.progress import Track, no_progress
from cellwright.core.table import rows_csv
from cellwright.data.images.reading import Reading

SuspectKind = Literal["merged", "split", "displaced", "tiny", "open"]
KINDS: tuple[SuspectKind, ...] = ("merged", "split", "displaced", "tiny", "open")
LOWEST_SCORE = 0.01  # below this score, nearly all objects are correct
TINY_SHARE = 0.05  # of the median area; smaller objects are tiny, however many there are

_BIAS: Mapping[SuspectKind, float] = {"merged": -7.8, "split": -12.0, "displaced": -8.8, "tiny": -5.1, "open": -18.6}
_WEIGHTS: Mapping[SuspectKind, Mapping[str, float]] = {
    "merged": {"neck": 6.3, "lobe": 4.8, "size": 0.59},
    "split": {"border": 2.8, "bend": -10.0, "fill_gain": 60.0, "balance": 15.0, "gap": -0.35, "difference": -1.5},
    "displaced": {"contrast": -0.61, "better_place": 4.4, "overlap": 8.0},
    "tiny": {"size": -5.2, "border": -1.4},
    "open": {"fill": -6.4, "thickness": -29.0},
}


@dataclass(frozen=True)
class Suspect:
    """An annotation to review: the kind of error, a score (0..1, comparable between kinds), and the reason."""

    sample_id: str
    object_id: int
    kind: SuspectKind
    score: float
    why: str


def rank_suspects(dataset: Dataset, *, limit: int = 1000, track: Track = no_progress) -> list[Suspect]:
    """The ``limit`` most suspicious annotations, worst first; empty without objects.

    Each object is listed once; of the two masks of a split nucleus, the one with the smaller id. Each image and mask is
    decoded once. If an image is missing, unreadable or of another size, its objects are evaluated by shape only.
    Samples whose objects cannot be read, empty masks and ignored objects are omitted; `check_dataset` reports them.
    Raises `UsageError` for a limit below 1.
    """
    if limit < 1:
        raise UsageError("invalid `limit`", got=limit, expected="1 or more")
    reading = Reading.recorded(dataset.info)
    parts = [_measure(sample, reading) for sample in track(dataset, "looking for suspects", len(dataset))]
    parts = [part for part in parts if part is not None]
    if not parts:
        return []
    evidence = _Evidence.of(parts)
    suspects: list[Suspect] = []
    listed: set[int] = set()
    for score, kind, members, why in evidence.candidates():
        if listed.isdisjoint(members):
            listed.update(members)
            first = members[0]
            suspects.append(Suspect(evidence.sample_ids[first], int(evidence.object_ids[first]), kind, score, why))
        if len(suspects) == limit:
            break
    return suspects


def write_suspects(suspects: list[Suspect], path: Path) -> None:
    """Write a CSV with one row per suspect: rank, sample, object, kind, score, why."""
    rows = [
        (rank, suspect.sample_id, suspect.object_id, suspect.kind, f"{suspect.score:.4f}", suspect.why)
        for rank, suspect in enumerate(suspects, 1)
    ]
    write_text(path, rows_csv([("rank", "sample", "object", "kind", "score", "why"), *rows]))


# --- combining the evidence -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """The signals of the objects of one sample."""

    sample_id: str
    object_ids: np.ndarray
    objects: ObjectSignals
    pairs: PairSignals


def _measure(sample: Sample, reading: Reading) -> _Measured | None:
    try:
        cells = sample.read_instances()
    except CellwrightError:
        return None
    cells = counted_objects(cells)
    kept = cells[cells.masks.areas > 0]
    if not len(kept):
        return None
    return _Measured(sample.id, kept.ids, *measure_sample(kept.masks, _image_of(sample, kept.image_hw, reading)))


def _image_of(sample: Sample, image_hw: tuple[int, int], reading: Reading) -> Image | None:
    if sample.image_path is None:
        return None
    try:
        image = reading.of(sample).chosen(sample.image_path)
    except CellwrightError:
        return None
    return image if image.image_hw == image_hw else None


@dataclass(frozen=True)
class _Evidence:
    """The signals of all samples, concatenated; the indices of pairs refer to all objects."""

    sample_ids: np.ndarray
    object_ids: np.ndarray
    objects: ObjectSignals
    pairs: PairSignals

    @staticmethod
    def of(parts: list[_Measured]) -> _Evidence:
        counts = [len(part.object_ids) for part in parts]
        starts = np.cumsum([0, *counts[:-1]])
        pairs = [
            dataclasses.replace(part.pairs, i=part.pairs.i + start, j=part.pairs.j + start)
            for part, start in zip(parts, starts, strict=True)
        ]
        return _Evidence(
            np.repeat(np.array([part.sample_id for part in parts], object), counts),
            np.concatenate([part.object_ids for part in parts]),
            ObjectSignals(*_joined([part.objects for part in parts])),
            PairSignals(*_joined(pairs)),
        )

    def terms(self) -> dict[SuspectKind, dict[str, np.ndarray]]:
        """The terms of the model of each kind, (N,) each, or (P,) for "split", clipped to their informative range.

        Fill, thickness and overlap are relative to their usual values in this dataset.
        """
        objects, pair = self.objects, self.pairs
        fill, thickness = objects.fill - np.median(objects.fill), objects.thickness - np.median(objects.thickness)
        usual_overlap = float(np.quantile(objects.overlap, 0.95))
        return {
            "merged": {"neck": objects.neck, "lobe": objects.lobe, "size": objects.size_z.clip(-3, 3)},
            "split": {
                "border": pair.border.clip(0, 2),
                "bend": pair.bend.clip(0, 3),
                "fill_gain": pair.fill_gain.clip(-0.1, 0.1),
                "balance": pair.balance.clip(0, 0.7),
                "gap": np.abs(pair.gap).clip(0, 2),
                "difference": pair.difference.clip(0, 2),
            },
            "displaced": {
                "contrast": objects.contrast_z.clip(-4, 1),
                "better_place": objects.better_place.clip(-1, 3),
                "overlap": (objects.overlap - usual_overlap).clip(0, 0.5),
            },
            "tiny": {"size": np.log(objects.area / self.tiny_px), "border": objects.at_border},
            "open": {"fill": fill.clip(-0.7, 0.1), "thickness": thickness.clip(-0.7, 0.1)},
        }

    @property
    def tiny_px(self) -> float:
        """The area below which an object is small for this dataset: the 1st percentile, if that is not tiny itself."""
        return float(max(np.quantile(self.objects.area, 0.01), TINY_SHARE * np.median(self.objects.area)))

    def candidates(self) -> Iterator[tuple[float, SuspectKind, tuple[int, ...], str]]:
        """Score, kind, members (an object, or the two of a pair, smaller id first) and reason; highest score first."""
        logits, kinds, rows = [], [], []
        for kind, terms in self.terms().items():
            logit = np.add.reduce([_WEIGHTS[kind][name] * values for name, values in terms.items()]) + _BIAS[kind]
            enough = np.flatnonzero(logit > np.log(LOWEST_SCORE / (1 - LOWEST_SCORE)))
            logits.append(logit[enough])
            kinds.append(np.full(len(enough), KINDS.index(kind)))
            rows.append(enough)
        logit, kind_of, row_of = np.concatenate(logits), np.concatenate(kinds), np.concatenate(rows)
        for k in np.lexsort((row_of, kind_of, -logit)):  # ties in the order of the dataset: the list is deterministic
            kind, row = KINDS[kind_of[k]], int(row_of[k])
            score = float(1 / (1 + np.exp(-logit[k])))
            yield score, kind, self._members(kind, row), self._why(kind, row)

    def _members(self, kind: SuspectKind, row: int) -> tuple[int, ...]:
        if kind != "split":
            return (row,)
        pair = (int(self.pairs.i[row]), int(self.pairs.j[row]))
        return pair if self.object_ids[pair[0]] < self.object_ids[pair[1]] else pair[::-1]

    def _why(self, kind: SuspectKind, row: int) -> str:
        objects, pair = self.objects, self.pairs
        if kind == "merged":
            if objects.loose_part[row] > 0:
                return f"several parts: {objects.loose_part[row]:.0%} of the area is separate"
            lobe = f"a lobe of {objects.lobe[row]:.0%} of the area is attached by a neck"
            return f"{lobe}; size {objects.size_z[row]:+.1f} sd from the other objects of the image"
        if kind == "split":
            other = int(self.object_ids[self._members(kind, row)[1]])
            line = f"a border of {pair.border[row]:.1f} diameters, {pair.bend[row]:.1f} px from a straight line"
            return f"with object {other}: {line}; together they fill {pair.fill[row]:.0%} of their convex hull"
        if kind == "displaced":
            parts = [f"contrast {objects.contrast_z[row]:+.1f} sd from the other objects of the image"]
            if objects.better_place[row] > 0:
                parts.append(f"{objects.better_place[row]:.1f} sd more contrast at a free position nearby")
            if objects.overlap[row] > 0:
                parts.append(f"{objects.overlap[row]:.0%} of it overlaps other objects")
            return "; ".join(parts)
        if kind == "tiny":
            return f"{objects.area[row]:.0f} px; small objects of this dataset have {self.tiny_px:.0f} px"
        hull = f"covers {objects.fill[row]:.0%} of its convex hull"
        return f"{hull}, and its thickness is at most {objects.thickness[row]:.2f} of its diameter"


def _joined(parts: list[ObjectSignals] | list[PairSignals]) -> list[np.ndarray]:
    names = [field.name for field in dataclasses.fields(parts[0])]
    return [np.concatenate([getattr(part, name) for part in parts]) for name in names]


# --- measuring objects and pairs --------------------------------------------------------------------------------------

FARTHEST_SHIFT = 1.1  # search radius for a better position, in diameters
NEAREST_SHIFT = 0.35  # at smaller shifts, every outline still covers its own nucleus
COARSE_DIAMETER_PX = 12  # shifts are evaluated on windows that are shrunk to about this object diameter
BACKGROUND_PX = 7  # background pixels within this distance of a mask are compared with the masks
NECK_LEVELS = 10
LARGEST_Z = 8.0  # z-scores are clipped here
SMALLEST_SPREAD = 0.25  # the spread of a few objects may be small by chance; that of real images is at least this


@dataclass(frozen=True)
class ObjectSignals:
    """Signals of N objects, each (N,) float64. Signals that need the image are 0 without it.

    area: pixels. size_z: robust z-score of the log area within the image.
    at_border: 1 if the object touches the border of the image, else 0.
    fill: area over the area of the convex hull.
    thickness: diameter of the largest inscribed disc over the diameter of the hull.
    loose_part: share of the area outside the largest connected part.
    neck: 1 - width of the narrowest passage between two lobes over the width of the smaller lobe; 0 without lobes.
    lobe: share of the area in the smaller lobe. neck_gap: intensity of the lobes minus that of the seam between them.
    contrast: intensity inside minus that of a ring outside. contrast_z: its robust z-score within the image.
    better_place: contrast gained at the best free position within `FARTHEST_SHIFT`.
    overlap: share of the area that other objects cover.
    """

    area: np.ndarray
    size_z: np.ndarray
    at_border: np.ndarray
    fill: np.ndarray
    thickness: np.ndarray
    loose_part: np.ndarray
    neck: np.ndarray
    lobe: np.ndarray
    neck_gap: np.ndarray
    contrast: np.ndarray
    contrast_z: np.ndarray
    better_place: np.ndarray
    overlap: np.ndarray


@dataclass(frozen=True)
class PairSignals:
    """Signals of P pairs of adjacent objects: i, j (P,) int64 with i < j, the rest (P,) float64.

    border: length of the shared border over the diameter of the smaller object.
    bend: deviation of the border from a straight line, in pixels.
    fill: area of the union over the area of its convex hull. fill_gain: that minus the mean fill of the two objects.
    size_z: robust z-score of the log area of the union. balance: the smaller area over the larger.
    gap: intensity inside both objects minus that of the border. difference: between the intensities of the two.
    """

    i: np.ndarray
    j: np.ndarray
    border: np.ndarray
    bend: np.ndarray
    fill: np.ndarray
    fill_gain: np.ndarray
    size_z: np.ndarray
    balance: np.ndarray
    gap: np.ndarray
    difference: np.ndarray


def measure_sample(masks: MaskSet, image: Image | None) -> tuple[ObjectSignals, PairSignals]:
    """The signals of all objects and of all pairs of adjacent objects. Without objects the arrays have length 0."""
    signal = None if image is None else foreground_signal(image, masks.foreground())
    areas = masks.areas.astype(float)
    shapes = np.array([_shape_of(masks.crop(k), masks.boxes[k], signal) for k in range(len(masks))]).reshape(-1, 6)
    contrast, better_place = _places(masks, signal)
    i, j, shared = masks.intersections(masks)
    overlap = np.bincount(i, shared * (i != j), len(masks)) / np.maximum(areas, 1)
    height, width = masks.image_hw
    at_border = (masks.boxes[:, :2] <= 0).any(1) | (masks.boxes[:, 2] >= width) | (masks.boxes[:, 3] >= height)
    log_area = np.log(np.maximum(areas, 1))
    objects = ObjectSignals(
        areas,
        robust_z(log_area, log_area),
        at_border.astype(float),
        shapes[:, 0],
        shapes[:, 1],
        shapes[:, 2],
        shapes[:, 3],
        shapes[:, 4],
        shapes[:, 5],
        contrast,
        robust_z(contrast, contrast) if signal is not None else np.zeros(len(masks)),
        better_place,
        np.minimum(overlap, 1.0),
    )
    return objects, _pairs(masks, areas, objects.fill, signal)


def foreground_signal(image: Image, foreground: np.ndarray) -> np.ndarray | None:
    """The image (H, W) float32 along the colour direction that best separates ``foreground`` (H, W) from the rest.

    0 is halfway between the two means, 1 is the pooled standard deviation, and the foreground is positive. None if one
    of the two has no pixels, or if the image is constant.
    """
    data = image.without_alpha().data
    pixels = cv2.GaussianBlur(np.nan_to_num(data.astype(np.float32)), (0, 0), 0.7).reshape(*image.image_hw, -1)
    grown = cv2.dilate(foreground.astype(np.uint8), np.ones((2 * BACKGROUND_PX + 1,) * 2, np.uint8)) > 0
    inside, outside = pixels[foreground].astype(float), pixels[grown & ~foreground].astype(float)
    if len(inside) < 2 or len(outside) < 2:
        return None
    spread = np.atleast_2d((np.cov(inside.T) + np.cov(outside.T)) / 2)
    if not np.trace(spread) > 0:
        return None
    step = inside.mean(0) - outside.mean(0)
    ridge = 1e-3 * np.trace(spread) / len(spread) * np.eye(len(spread))
    weights = np.linalg.solve(spread + ridge, step)
    scale = np.sqrt(weights @ spread @ weights)
    if not scale > 0:
        return None
    middle = (inside.mean(0) + outside.mean(0)) / 2
    return np.asarray((pixels - middle.astype(np.float32)) @ (weights / scale).astype(np.float32))


def robust_z(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Robust z-scores of ``values``: median and scaled median absolute deviation of ``reference``, clipped to +-8."""
    if not reference.size:
        return np.zeros(len(values))
    middle = np.median(reference)
    spread = 1.4826 * np.median(np.abs(reference - middle))
    return np.clip((values - middle) / max(float(spread), SMALLEST_SPREAD), -LARGEST_Z, LARGEST_Z)


# --- the shape of an object -------------------------------------------------------------------------------------------


def hull_area(mask: np.ndarray) -> float:
    """Area in pixels of the convex hull of a mask (h, w) uint8; 0 for an empty mask."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return 0.0
    hull = cv2.convexHull(np.concatenate(contours))
    # The contour runs through pixel centres: add a margin of half a pixel (Steiner's formula).
    return float(cv2.contourArea(hull) + cv2.arcLength(hull, True) / 2 + 1)


def _shape_of(
    crop: np.ndarray, box: np.ndarray, signal: np.ndarray | None
) -> tuple[float, float, float, float, float, float]:
    """The signals fill, thickness, loose_part, neck, lobe and neck_gap of one object."""
    if not crop.size:
        return 1.0, 1.0, 0.0, 0.0, 0.0, 0.0
    mask = np.pad(crop, 1)
    hull, area = hull_area(mask), float(crop.sum())
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    thickness = 2 * float(depth.max()) / np.sqrt(4 * hull / np.pi)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    loose = 1 - float(stats[1:, cv2.CC_STAT_AREA].max()) / area
    neck, lobes = _neck(depth)
    if lobes is None:
        return min(area / hull, 1.0), thickness, loose, 0.0, 0.0, 0.0
    # Each pixel belongs to the closer lobe; the seam is where both are equally close.
    to_first = cv2.distanceTransform((lobes != 1).astype(np.uint8), cv2.DIST_L2, 3)
    to_second = cv2.distanceTransform((lobes != 2).astype(np.uint8), cv2.DIST_L2, 3)
    inside = mask > 0
    second_area = float((inside & (to_second < to_first)).sum())
    lobe = min(second_area, area - second_area) / area
    gap = 0.0
    seam = inside & (np.abs(to_first - to_second) <= 1.5)
    if signal is not None and seam.any():
        x0, y0, x1, y1 = box
        window = np.pad(signal[y0:y1, x0:x1], 1)
        gap = float(window[lobes > 0].mean() - window[seam].mean())
    return min(area / hull, 1.0), thickness, loose, neck, lobe, gap


def _neck(depth: np.ndarray) -> tuple[float, np.ndarray | None]:
    """The deepest neck, 0..1, of a mask with the distance transform ``depth`` (h, w), and its lobes (1, 2; else 0).

    The mask is thresholded at increasing depths until it falls into parts. A part is weighted by its largest depth, so
    that an irregular outline is not a neck. Separate parts have a neck of 1, at depth 0.
    """
    peak = float(depth.max())
    best, lobes = 0.0, None
    for level in np.linspace(0, 0.9 * peak, NECK_LEVELS):
        n, parts = cv2.connectedComponents((depth > level).astype(np.uint8), connectivity=8)
        if n < 3:
            continue
        peaks = np.zeros(n)
        np.maximum.at(peaks, parts.ravel(), depth.ravel())
        peaks[0] = 0
        first, second = np.argsort(-peaks, kind="stable")[:2]
        # Half a pixel is the roughness of a smooth outline on the pixel grid.
        neck = 1 - min((level + 0.5) / peaks[second], 1) if level else 1.0
        weighted = neck * min(2 * peaks[second] / peak, 1.0)
        if weighted > best:
            best, lobes = float(weighted), np.where(parts == first, 1, np.where(parts == second, 2, 0))
    return best, lobes


# --- a better position ------------------------------------------------------------------------------------------------


def _places(masks: MaskSet, signal: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The signals contrast and better_place (N,) of all objects."""
    contrast, better = np.zeros(len(masks)), np.zeros(len(masks))
    if signal is None:
        return contrast, better
    n_covering = np.zeros(masks.image_hw, np.int32)
    for k, (x0, y0, x1, y1) in enumerate(masks.boxes):
        n_covering[y0:y1, x0:x1] += masks.crop(k)
    for k in np.flatnonzero(masks.areas > 0).tolist():
        contrast[k], better[k] = _place_of(masks.crop(k), masks.boxes[k], signal, n_covering)
    return contrast, better


def _place_of(crop: np.ndarray, box: np.ndarray, signal: np.ndarray, n_covering: np.ndarray) -> tuple[float, float]:
    """The contrast of an object, and the gain in contrast at the best free position around it."""
    diameter = np.sqrt(4 * crop.sum() / np.pi)
    shrink = max(round(diameter / COARSE_DIAMETER_PX), 1)
    rim = shrink * max(round(0.25 * diameter / shrink), 2)
    reach = shrink * max(round(FARTHEST_SHIFT * diameter / shrink), 1)
    (h, w), (x0, y0) = crop.shape, (int(box[0]), int(box[1]))
    tall, wide = (2 * rim + shrink * -(-side // shrink) for side in (h, w))
    inside = np.zeros((tall, wide), np.float32)
    inside[rim : rim + h, rim : rim + w] = crop
    top, left = y0 - rim - reach, x0 - rim - reach
    window_hw = (tall + 2 * reach, wide + 2 * reach)
    light = _window(signal, top, left, window_hw)
    free = 1 - np.minimum(_window(n_covering, top, left, window_hw), 1).astype(np.float32)
    own = np.s_[reach + rim : reach + rim + h, reach + rim : reach + rim + w]
    alone = (crop > 0) & (_window(n_covering, y0, x0, (h, w)) == 1)
    free[own][alone] = 1
    free[_window(np.ones_like(n_covering), top, left, window_hw) == 0] = 0
    inside, light, free = (_shrunk(values, shrink) for values in (inside, light * free, free))
    solid = (inside >= 0.5).astype(np.uint8)
    inner, outer = (cv2.dilate(solid, np.ones((3, 3), np.uint8), iterations=n) for n in (1, max(rim // shrink, 2)))
    ring = (outer - inner).astype(np.float32)
    room = _correlated(free, inside)
    levels = [
        _correlated(light, part) / np.maximum(_correlated(free, part), 0.15 * float(part.sum()) + 1e-6)
        for part in (inside, ring)
    ]
    contrast = levels[0] - levels[1]
    centre = reach // shrink
    y, x = np.mgrid[: contrast.shape[0], : contrast.shape[1]] - centre
    distance = np.hypot(y, x) * shrink / diameter
    allowed = (room >= 0.85 * float(inside.sum())) & (distance >= NEAREST_SHIFT) & (distance <= FARTHEST_SHIFT)
    here = float(contrast[centre, centre])
    return here, float(contrast[allowed].max()) - here if allowed.any() else 0.0


def _window(values: np.ndarray, top: int, left: int, window_hw: tuple[int, int]) -> np.ndarray:
    """A window (h, w) of an array, with zeros outside the array."""
    (height, width), (h, w) = values.shape, window_hw
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + h, height), min(left + w, width)
    window = np.zeros(window_hw, values.dtype)
    window[y0 - top : y1 - top, x0 - left : x1 - left] = values[y0:y1, x0:x1]
    return window


def _shrunk(values: np.ndarray, by: int) -> np.ndarray:
    """Means of blocks of ``by`` x ``by`` pixels; the shape must be divisible by ``by``."""
    if by == 1:
        return np.ascontiguousarray(values, np.float32)
    size_wh = (values.shape[1] // by, values.shape[0] // by)
    return cv2.resize(np.ascontiguousarray(values, np.float32), size_wh, interpolation=cv2.INTER_AREA)


def _correlated(window: np.ndarray, part: np.ndarray) -> np.ndarray:
    return cv2.matchTemplate(window, part, cv2.TM_CCORR)


# --- adjacent pairs ---------------------------------------------------------------------------------------------------


def _pairs(masks: MaskSet, areas: np.ndarray, fills: np.ndarray, signal: np.ndarray | None) -> PairSignals:
    """All pairs of objects that are adjacent (4-connected)."""
    labels = masks.to_label_map().astype(np.int64) - 1
    n, (height, width) = max(len(masks), 1), masks.image_hw
    keys, ys, xs, sides = [], [], [], []
    for dy, dx in ((0, 1), (1, 0)):
        a, b = labels[: height - dy, : width - dx], labels[dy:, dx:]
        y, x = np.nonzero((a != b) & (a >= 0) & (b >= 0))
        first, second = a[y, x], b[y, x]
        keys.append(np.minimum(first, second) * n + np.maximum(first, second))
        ys.append(y + dy / 2)
        xs.append(x + dx / 2)
        sides.append((signal[y, x] + signal[y + dy, x + dx]) / 2 if signal is not None else np.zeros(len(y)))
    y, x = np.concatenate(ys), np.concatenate(xs)
    pair_keys, pair, count = np.unique(np.concatenate(keys), return_inverse=True, return_counts=True)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(pair, values, len(pair_keys)) / count

    my, mx = mean(y), mean(x)
    yy, xx, yx = mean((y - my[pair]) ** 2), mean((x - mx[pair]) ** 2), mean((y - my[pair]) * (x - mx[pair]))
    root = np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
    along, across = (yy + xx) / 2 + root, np.maximum((yy + xx) / 2 - root, 0)
    i, j = pair_keys // n, pair_keys % n
    smaller, larger = np.minimum(areas[i], areas[j]), np.maximum(areas[i], areas[j])
    insides = _mean_signals(masks, signal)
    fill = np.array([_union_fill(masks, a, b) for a, b in zip(i, j, strict=True)]).reshape(-1)
    log_area = np.log(np.maximum(areas, 1))
    return PairSignals(
        i,
        j,
        np.sqrt(12 * along) / np.sqrt(4 * smaller / np.pi),  # the length of a segment with this variance
        np.sqrt(across),
        fill,
        fill - (areas[i] * fills[i] + areas[j] * fills[j]) / (areas[i] + areas[j]),
        robust_z(np.log(areas[i] + areas[j]), log_area),
        smaller / larger,
        (insides[i] + insides[j]) / 2 - mean(np.concatenate(sides)),
        np.abs(insides[i] - insides[j]),
    )


def _mean_signals(masks: MaskSet, signal: np.ndarray | None) -> np.ndarray:
    means = np.zeros(len(masks))
    if signal is not None:
        for k in np.flatnonzero(masks.areas > 0).tolist():
            x0, y0, x1, y1 = masks.boxes[k]
            means[k] = signal[y0:y1, x0:x1][masks.crop(k) > 0].mean()
    return means


def _union_fill(masks: MaskSet, i: int, j: int) -> float:
    pair = masks[np.array([i, j])]
    union = np.pad(pair.union(np.zeros(2, np.int64)).crop(0), 1)
    return min(float(union.sum()) / hull_area(union), 1.0)
