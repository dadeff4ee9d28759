"""The annotations most likely wrong, worst first: `rank_suspects`.

Five kinds of errors are looked for, each by what it does to an outline and to what the image shows under it:

- merged: two nuclei in one mask; lobes with a neck between them, or loose parts.
- split: one nucleus in two masks; a long, straight border, no seam in the image, together convex.
- displaced: an outline beside its nucleus; little contrast, much more nearby, other objects under it.
- tiny: a speck far below the dataset's 1st percentile.
- open: an outline that was never filled, or a ring left open; thin all over, and little of its hull covered.

The evidence of a kind is added up by a logistic model of two to six terms. Its weights were fitted to errors planted in
a third of DSB2018 (`tests/data/fit_suspects.py`: of each kind 20 among 11,000 good objects, four times over). It makes
the scores of the kinds comparable, so that the list is shared by how sure each is. VRDL, on which it is tested, was not
fitted to. A score is no chance of being wrong in *your* data: that depends on how many errors it holds.
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
from cellwright.core.image import Image
from cellwright.core.masks import MaskSet
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.read import read_image

SuspectKind = Literal["merged", "split", "displaced", "tiny", "open"]
KINDS: tuple[SuspectKind, ...] = ("merged", "split", "displaced", "tiny", "open")
LEAST_SCORE = 0.01  # below, the list would be made of good objects
CRUMB_SHARE = 0.05  # of the median area: what is smaller is tiny, however many there are

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
    """One annotation to look at: where, what it seems to be, how sure (0..1, comparable among kinds), and why."""

    sample_id: str
    object_id: int
    kind: SuspectKind
    score: float
    why: str


def rank_suspects(dataset: Dataset, *, limit: int = 1000, track: Track = no_progress) -> list[Suspect]:
    """Up to ``limit`` suspects, worst first, each object once; of a split pair the smaller id is named.

    One pass: every image and mask is decoded once. A sample without an image, or whose image cannot be read or has
    another size, is judged by its shapes alone; one whose objects cannot be read, empty masks and ignored objects are
    left out (`check_dataset` reports these). No objects give an empty list. Raises `UsageError` for a limit below 1.
    """
    if limit < 1:
        raise UsageError("the list of suspects needs room", where="limit", got=limit, expected="1 or more")
    parts = [_measured(sample) for sample in track(dataset, "looking for suspects", len(dataset))]
    parts = [part for part in parts if part is not None]
    if not parts:
        return []
    pool = _Pool.of(parts)
    found: list[Suspect] = []
    listed: set[int] = set()
    for score, kind, members, why in pool.candidates():
        if listed.isdisjoint(members):
            listed.update(members)
            found.append(Suspect(pool.sample_ids[members[0]], int(pool.object_ids[members[0]]), kind, score, why))
        if len(found) == limit:
            break
    return found


def write_suspects(suspects: list[Suspect], path: Path) -> None:
    """A CSV with a line for each suspect, worst first: rank, sample, object, kind, score, why."""
    import csv
    import io

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("rank", "sample", "object", "kind", "score", "why"))
    for rank, one in enumerate(suspects, 1):
        table.writerow((rank, one.sample_id, one.object_id, one.kind, f"{one.score:.4f}", one.why))
    write_text(path, text.getvalue())


# --- measuring ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """Evidence on the objects of one sample."""

    sample_id: str
    object_ids: np.ndarray
    objects: ObjectSignals
    pairs: PairSignals


def _measured(sample: Sample) -> _Measured | None:
    try:
        cells = sample.read_instances()
    except CellwrightError:
        return None
    kept = cells[(cells.masks.areas > 0) & ~cells.ignore]
    if not len(kept):
        return None
    return _Measured(sample.id, kept.ids, *measure_sample(kept.masks, _image_of(sample, kept.image_hw)))


def _image_of(sample: Sample, image_hw: tuple[int, int]) -> Image | None:
    if sample.image_path is None:
        return None
    try:
        image = read_image(sample.image_path)
    except CellwrightError:
        return None
    return image if image.image_hw == image_hw else None


# --- weighing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pool:
    """The evidence of all samples, one after the other; pairs count their objects through."""

    sample_ids: np.ndarray
    object_ids: np.ndarray
    objects: ObjectSignals
    pairs: PairSignals

    @staticmethod
    def of(parts: list[_Measured]) -> _Pool:
        counts = [len(part.object_ids) for part in parts]
        starts = np.cumsum([0, *counts[:-1]])
        pairs = [
            dataclasses.replace(part.pairs, i=part.pairs.i + start, j=part.pairs.j + start)
            for part, start in zip(parts, starts, strict=True)
        ]
        return _Pool(
            np.repeat(np.array([part.sample_id for part in parts], object), counts),
            np.concatenate([part.object_ids for part in parts]),
            ObjectSignals(*_joined([part.objects for part in parts])),
            PairSignals(*_joined(pairs)),
        )

    def evidence(self) -> dict[SuspectKind, dict[str, np.ndarray]]:
        """The terms of each kind's model, (N,) each, or (P,) for "split". Cut where more would say no more.

        What is usual in this dataset (its median fill and thickness, how much its objects overlap) tells nothing.
        """
        one, pair = self.objects, self.pairs
        fill, thickness = one.fill - np.median(one.fill), one.thickness - np.median(one.thickness)
        usual_overlap = float(np.quantile(one.overlap, 0.95))
        return {
            "merged": {"neck": one.neck, "lobe": one.lobe, "size": one.size_z.clip(-3, 3)},
            "split": {
                "border": pair.border.clip(0, 2),
                "bend": pair.bend.clip(0, 3),
                "fill_gain": pair.fill_gain.clip(-0.1, 0.1),
                "balance": pair.balance.clip(0, 0.7),
                "gap": np.abs(pair.gap).clip(0, 2),
                "difference": pair.difference.clip(0, 2),
            },
            "displaced": {
                "contrast": one.contrast_z.clip(-4, 1),
                "better_place": one.better_place.clip(-1, 3),
                "overlap": (one.overlap - usual_overlap).clip(0, 0.5),
            },
            "tiny": {"size": np.log(one.area / self.tiny_px), "border": one.at_border},
            "open": {"fill": fill.clip(-0.7, 0.1), "thickness": thickness.clip(-0.7, 0.1)},
        }

    @property
    def tiny_px(self) -> float:
        """The area below which an object is small for this dataset: its 1st percentile, if that is not tiny too."""
        return float(max(np.quantile(self.objects.area, 0.01), CRUMB_SHARE * np.median(self.objects.area)))

    def candidates(self) -> Iterator[tuple[float, SuspectKind, tuple[int, ...], str]]:
        """Score, kind, members (one object, or the two of a pair, smaller id first) and why; worst first."""
        logits, kinds, rows = [], [], []
        for kind, terms in self.evidence().items():
            logit = np.add.reduce([_WEIGHTS[kind][name] * values for name, values in terms.items()]) + _BIAS[kind]
            enough = np.flatnonzero(logit > np.log(LEAST_SCORE / (1 - LEAST_SCORE)))
            logits.append(logit[enough])
            kinds.append(np.full(len(enough), KINDS.index(kind)))
            rows.append(enough)
        logit, kind_of, row_of = np.concatenate(logits), np.concatenate(kinds), np.concatenate(rows)
        for at in np.lexsort((row_of, kind_of, -logit)):  # ties in the dataset's order, so that the list is one
            kind, row = KINDS[kind_of[at]], int(row_of[at])
            score = float(1 / (1 + np.exp(-logit[at])))
            yield score, kind, self._members(kind, row), self._why(kind, row)

    def _members(self, kind: SuspectKind, row: int) -> tuple[int, ...]:
        if kind != "split":
            return (row,)
        both = (int(self.pairs.i[row]), int(self.pairs.j[row]))
        return both if self.object_ids[both[0]] < self.object_ids[both[1]] else both[::-1]

    def _why(self, kind: SuspectKind, row: int) -> str:
        one, pair = self.objects, self.pairs
        if kind == "merged":
            if one.loose_part[row] > 0:
                return f"in loose parts: {one.loose_part[row]:.0%} of it lies apart"
            share = f"a lobe of {one.lobe[row]:.0%} of the area"
            return f"{share} hangs on by a neck; in size {one.size_z[row]:+.1f} sd from this image's others"
        if kind == "split":
            other = int(self.object_ids[self._members(kind, row)[1]])
            line = f"a border of {pair.border[row]:.1f} diameters, {pair.bend[row]:.1f} px off a straight line"
            return f"with object {other}: {line}; together they fill {pair.fill[row]:.0%} of their hull"
        if kind == "displaced":
            parts = [f"contrast {one.contrast_z[row]:+.1f} sd from this image's others"]
            if one.better_place[row] > 0:
                parts.append(f"{one.better_place[row]:.1f} sd more of it on free ground nearby")
            if one.overlap[row] > 0:
                parts.append(f"{one.overlap[row]:.0%} of it lies on other objects")
            return "; ".join(parts)
        if kind == "tiny":
            return f"{one.area[row]:.0f} px, where small objects here have {self.tiny_px:.0f}"
        widest = f"at most {one.thickness[row]:.2f} of its diameter thick"
        return f"covers {one.fill[row]:.0%} of its hull and is {widest}"


def _joined(parts: list[ObjectSignals] | list[PairSignals]) -> list[np.ndarray]:
    names = [field.name for field in dataclasses.fields(parts[0])]
    return [np.concatenate([getattr(part, name) for part in parts]) for name in names]


FARTHEST_SHIFT = 1.1  # how far a displaced outline is looked for, in diameters
NEAREST_SHIFT = 0.35  # closer by, every outline finds itself again
COARSE_DIAMETER_PX = 12  # shifts are tried on windows shrunk until the object is about that wide
GROUND_PX = 7  # pixels this near to a mask, and in none, are the ground that it is told from
NECK_LEVELS = 10
SHARPEST_Z = 8.0  # a z-score beyond says no more
LEAST_SPREAD = 0.25  # few objects may lie together by chance; real fields spread at least so in both uses


@dataclass(frozen=True)
class ObjectSignals:
    """Evidence for each of N objects, all (N,) float64.

    area: pixels. size_z: robust z-score of the log area in this image. at_border: 1 where the image cuts the object.
    fill: area over its convex hull's. thickness: widest inscribed disc over the hull's diameter.
    loose_part: share of the area outside the largest connected part.
    neck: 1 - narrowest passage between two lobes over the smaller lobe's width; 0 without lobes. lobe: the smaller
    lobe's share of the area. neck_gap: signal of the lobes over that of the seam between them.
    contrast: signal inside over a ring outside. contrast_z: the same as a robust z-score in this image.
    better_place: contrast gained by the best free place within `FARTHEST_SHIFT`. overlap: share that others cover.
    Without an image what it would say is 0.
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
    """Evidence for each of P pairs of objects that share a border: i, j (P,) int64 with i < j, the rest (P,) float64.

    border: length of the shared border over the smaller object's diameter. bend: deviation of the border from a
    straight line, in pixels. fill: the union's area over its hull's. fill_gain: that over the mean of the two.
    size_z: robust z-score of the union's log area. balance: the smaller area over the larger.
    gap: signal of both insides over that of the border. difference: between the signals of both.
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
    """The evidence on all objects and on the pairs that touch. No objects give arrays of length 0."""
    signal = None if image is None else nuclear_direction(image, masks.foreground())
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


def nuclear_direction(image: Image, foreground: np.ndarray) -> np.ndarray | None:
    """The image (H, W) float32 along the colour direction that best parts ``foreground`` (H, W) from what is near it.

    Zero lies between the two, one is their pooled standard deviation, and inside is positive. None where the image
    has nothing inside or outside, or is flat.
    """
    data = image.data[..., :-1] if image.n_channels > 1 and image.channels[-1] == "A" else image.data
    pixels = cv2.GaussianBlur(np.nan_to_num(data.astype(np.float32)), (0, 0), 0.7).reshape(*image.image_hw, -1)
    near = cv2.dilate(foreground.astype(np.uint8), np.ones((2 * GROUND_PX + 1,) * 2, np.uint8)) > 0
    inside, outside = pixels[foreground].astype(float), pixels[near & ~foreground].astype(float)
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
    """Distance of ``values`` from the median of ``reference`` in its robust standard deviations, cut at +-8."""
    if not reference.size:
        return np.zeros(len(values))
    middle = np.median(reference)
    spread = 1.4826 * np.median(np.abs(reference - middle))
    return np.clip((values - middle) / max(float(spread), LEAST_SPREAD), -SHARPEST_Z, SHARPEST_Z)


# --- one object's shape ---------------------------------------------------------------------------------------------


def hull_area(mask: np.ndarray) -> float:
    """Pixels inside the convex hull of a mask (h, w) uint8; 0 for an empty one."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return 0.0
    hull = cv2.convexHull(np.concatenate(contours))
    # The hull runs through pixel centres; half a pixel more around it is what the pixels cover (Steiner's formula).
    return float(cv2.contourArea(hull) + cv2.arcLength(hull, True) / 2 + 1)


def _shape_of(
    crop: np.ndarray, box: np.ndarray, signal: np.ndarray | None
) -> tuple[float, float, float, float, float, float]:
    """fill, thickness, loose_part, neck, lobe, neck_gap."""
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
    # Each pixel belongs to the nearer lobe; the seam is where both are equally near.
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
    """The deepest neck, 0..1, of a mask by its distance transform (h, w), and its two lobes (1, 2; 0 elsewhere).

    Cuts at rising depths leave parts; a part counts by the lobe's depth left above the cut, so that a wavy outline
    makes no neck. Two loose parts have the cut at depth 0: a neck of 1.
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
        # Half a pixel less: such a rise is what the pixel grid makes of a smooth outline.
        neck = 1 - min((level + 0.5) / peaks[second], 1) if level else 1.0
        weighed = neck * min(2 * peaks[second] / peak, 1.0)
        if weighed > best:
            best, lobes = float(weighed), np.where(parts == first, 1, np.where(parts == second, 2, 0))
    return best, lobes


# --- is there a better place? ---------------------------------------------------------------------------------------


def _places(masks: MaskSet, signal: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """contrast and better_place (N,) of all objects."""
    contrast, better = np.zeros(len(masks)), np.zeros(len(masks))
    if signal is None:
        return contrast, better
    owners = np.zeros(masks.image_hw, np.int32)
    for k, (x0, y0, x1, y1) in enumerate(masks.boxes):
        owners[y0:y1, x0:x1] += masks.crop(k)
    for k in np.flatnonzero(masks.areas > 0).tolist():
        contrast[k], better[k] = _place_of(masks.crop(k), masks.boxes[k], signal, owners)
    return contrast, better


def _place_of(crop: np.ndarray, box: np.ndarray, signal: np.ndarray, owners: np.ndarray) -> tuple[float, float]:
    """The contrast of an object where it is, and what the best free place near it has more."""
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
    free = 1 - np.minimum(_window(owners, top, left, window_hw), 1).astype(np.float32)
    own = np.s_[reach + rim : reach + rim + h, reach + rim : reach + rim + w]
    alone = (crop > 0) & (_window(owners, y0, x0, (h, w)) == 1)
    free[own][alone] = 1
    free[_window(np.ones_like(owners), top, left, window_hw) == 0] = 0
    inside, light, free = (_shrunk(one, shrink) for one in (inside, light * free, free))
    solid = (inside >= 0.5).astype(np.uint8)
    near, far = (cv2.dilate(solid, np.ones((3, 3), np.uint8), iterations=n) for n in (1, max(rim // shrink, 2)))
    ring = (far - near).astype(np.float32)
    room = _correlated(free, inside)
    levels = [
        _correlated(light, part) / np.maximum(_correlated(free, part), 0.15 * float(part.sum()) + 1e-6)
        for part in (inside, ring)
    ]
    contrast = levels[0] - levels[1]
    centre = reach // shrink
    y, x = np.mgrid[: contrast.shape[0], : contrast.shape[1]] - centre
    far_away = np.hypot(y, x) * shrink / diameter
    there = (room >= 0.85 * float(inside.sum())) & (far_away >= NEAREST_SHIFT) & (far_away <= FARTHEST_SHIFT)
    here = float(contrast[centre, centre])
    return here, float(contrast[there].max()) - here if there.any() else 0.0


def _window(values: np.ndarray, top: int, left: int, window_hw: tuple[int, int]) -> np.ndarray:
    """A window (h, w) that may leave the array: zeros outside."""
    (height, width), (h, w) = values.shape, window_hw
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + h, height), min(left + w, width)
    window = np.zeros(window_hw, values.dtype)
    window[y0 - top : y1 - top, x0 - left : x1 - left] = values[y0:y1, x0:x1]
    return window


def _shrunk(values: np.ndarray, by: int) -> np.ndarray:
    """Means of blocks of ``by`` x ``by`` pixels; the shape divides."""
    if by == 1:
        return np.ascontiguousarray(values, np.float32)
    size_wh = (values.shape[1] // by, values.shape[0] // by)
    return cv2.resize(np.ascontiguousarray(values, np.float32), size_wh, interpolation=cv2.INTER_AREA)


def _correlated(window: np.ndarray, part: np.ndarray) -> np.ndarray:
    return cv2.matchTemplate(window, part, cv2.TM_CCORR)


# --- pairs that touch -----------------------------------------------------------------------------------------------


def _pairs(masks: MaskSet, areas: np.ndarray, fills: np.ndarray, signal: np.ndarray | None) -> PairSignals:
    """All pairs whose masks are neighbours along at least one pixel edge."""
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
    found, pair, count = np.unique(np.concatenate(keys), return_inverse=True, return_counts=True)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(pair, values, len(found)) / count

    my, mx = mean(y), mean(x)
    yy, xx, yx = mean((y - my[pair]) ** 2), mean((x - mx[pair]) ** 2), mean((y - my[pair]) * (x - mx[pair]))
    root = np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
    along, across = (yy + xx) / 2 + root, np.maximum((yy + xx) / 2 - root, 0)
    i, j = found // n, found % n
    smaller, larger = np.minimum(areas[i], areas[j]), np.maximum(areas[i], areas[j])
    insides = _mean_signals(masks, signal)
    fill = np.array([_union_fill(masks, a, b) for a, b in zip(i, j, strict=True)]).reshape(-1)
    log_area = np.log(np.maximum(areas, 1))
    return PairSignals(
        i,
        j,
        np.sqrt(12 * along) / np.sqrt(4 * smaller / np.pi),  # the length of a segment of that variance
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
    both = np.pad(pair.union(np.zeros(2, np.int64)).crop(0), 1)
    return min(float(both.sum()) / hull_area(both), 1.0)
