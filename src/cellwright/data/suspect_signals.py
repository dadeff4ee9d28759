"""What the outlines and the image say about every object of a sample: the evidence that `data.suspects` weighs.

Every object is looked at in its own crop, or in a window of a few diameters around it; nothing has N x H x W pixels.
Lengths are in diameters of the object (of a disc of its area), brightness in standard deviations of the pixels inside
and just outside the image's own masks, along the colour direction that parts the two best (Fisher 1936): so no stain,
polarity or bit depth needs to be known.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cellwright.core.image import Image
from cellwright.core.masks import MaskSet

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
