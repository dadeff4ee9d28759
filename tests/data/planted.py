"""Annotation errors planted in a dataset, seeded: what `cellwright.data.suspects` has to find again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from cellwright.core.dataset import Dataset, Loaded
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet

KINDS = ("merged", "split", "displaced", "tiny", "open")
SMALLEST_PX = 40  # a smaller nucleus has no two halves and no interior worth the name
TRIES = 4000


@dataclass(frozen=True)
class Planted:
    """One error: the kind, the sample, and the ids that carry it (two halves of a split nucleus, else one)."""

    kind: str
    sample_id: str
    object_ids: tuple[int, ...]


def plant(dataset: Dataset, seed: int, per_kind: int = 20) -> tuple[Dataset, list[Planted]]:
    """The dataset with ``per_kind`` errors of each kind, and where they are. No object carries two errors.

    Samples are drawn in proportion to their objects. Half of the merged pairs touch, half are nearest neighbours that
    do not; half of the open masks are rings, half are C-shaped.
    """
    rng = np.random.default_rng(seed)
    fields = [_Field(sample.id, sample.read_instances().masks) for sample in dataset]
    share = np.array([len(field.crops) for field in fields], float)
    planted: list[Planted] = []
    for kind in KINDS:
        for k in range(per_kind):
            for _ in range(TRIES):
                field = fields[rng.choice(len(fields), p=share / share.sum())]
                ids = getattr(field, kind)(rng, k)
                if ids:
                    planted.append(Planted(kind, field.sample_id, ids))
                    break
            else:
                raise AssertionError(f"no room for {kind} number {k}")
    samples = [dataclasses.replace(s, load=Loaded(f.instances())) for s, f in zip(dataset, fields, strict=True)]
    return dataset.with_samples(samples), planted


class _Field:
    """The masks of one image while errors are planted: id -> (y0, x0, bool crop)."""

    def __init__(self, sample_id: str, masks: MaskSet) -> None:
        self.sample_id, self.image_hw = sample_id, masks.image_hw
        self.crops = {
            i + 1: (int(masks.boxes[i, 1]), int(masks.boxes[i, 0]), masks.crop(i).astype(bool))
            for i in range(len(masks))
            if masks.offsets[i + 1] > masks.offsets[i]
        }
        self.labels = masks.to_label_map().astype(np.int64)
        self.next_id = len(masks) + 1
        self.touched: set[int] = set()

    def instances(self) -> Instances:
        boxes = [(x, y, x + crop.shape[1], y + crop.shape[0]) for y, x, crop in self.crops.values()]
        crops = [crop for _, _, crop in self.crops.values()]
        masks = MaskSet.from_crops(np.array(boxes).reshape(-1, 4), crops, self.image_hw)
        return Instances.from_masks(masks, ids=np.array(list(self.crops), np.int64))

    def merged(self, rng: np.random.Generator, k: int) -> tuple[int, ...]:
        one = self._pick(rng)
        if not one:
            return ()
        y, x, crop = self.crops[one]
        near = cv2.dilate(np.pad(crop, 1).astype(np.uint8), np.ones((3, 3), np.uint8))
        around = self._labels(y - 1, x - 1, near.shape)[near > 0]
        touching = [t for t in np.unique(around[around > 0]).tolist() if t != one and t not in self.touched]
        if k % 2 == 0:
            touching = [t for t in touching if self.crops[t][2].sum() >= SMALLEST_PX]
            other = touching[0] if touching else 0
        else:
            other = 0 if touching else self._nearest(one)
        if not other:
            return ()
        (ya, xa, a), (yb, xb, b) = self.crops[one], self.crops.pop(other)
        y0, x0 = min(ya, yb), min(xa, xb)
        both = np.zeros((max(ya + a.shape[0], yb + b.shape[0]) - y0, max(xa + a.shape[1], xb + b.shape[1]) - x0), bool)
        for y, x, crop in ((ya, xa, a), (yb, xb, b)):
            both[y - y0 : y - y0 + crop.shape[0], x - x0 : x - x0 + crop.shape[1]] |= crop
        self.crops[one] = (y0, x0, both)
        self.touched |= {one, other}
        return (one,)

    def split(self, rng: np.random.Generator, k: int) -> tuple[int, ...]:
        one = self._pick(rng)
        if not one:
            return ()
        y, x, crop = self.crops[one]
        rows, columns = np.nonzero(crop)
        angle = rng.uniform(0, np.pi)
        grid = np.mgrid[: crop.shape[0], : crop.shape[1]]
        side = (grid[0] - rows.mean()) * np.cos(angle) + (grid[1] - columns.mean()) * np.sin(angle) > 0
        second = self.next_id
        self.crops[one], self.crops[second] = (y, x, crop & side), (y, x, crop & ~side)
        self.next_id += 1
        self.touched |= {one, second}
        return one, second

    def displaced(self, rng: np.random.Generator, k: int) -> tuple[int, ...]:
        one = self._pick(rng)
        if not one:
            return ()
        y, x, crop = self.crops[one]
        reach, angle = rng.uniform(0.5, 1) * np.sqrt(4 * crop.sum() / np.pi), rng.uniform(0, 2 * np.pi)
        y, x = y + round(reach * np.sin(angle)), x + round(reach * np.cos(angle))
        if y < 0 or x < 0 or y + crop.shape[0] > self.image_hw[0] or x + crop.shape[1] > self.image_hw[1]:
            return ()
        self.crops[one] = (y, x, crop)
        self.touched.add(one)
        return (one,)

    def tiny(self, rng: np.random.Generator, k: int) -> tuple[int, ...]:
        y, x = (int(rng.integers(2, side - 4)) for side in self.image_hw)
        if self.labels[y - 2 : y + 5, x - 2 : x + 5].any():
            return ()
        speck = np.zeros(6, bool)
        speck[: rng.integers(2, 7)] = True
        one = self.next_id
        self.crops[one] = (y, x, speck.reshape(2, 3))
        self.next_id += 1
        self.touched.add(one)
        return (one,)

    def open(self, rng: np.random.Generator, k: int) -> tuple[int, ...]:
        one = self._pick(rng)
        if not one:
            return ()
        y, x, crop = self.crops[one]
        rows, columns = np.nonzero(crop)
        diameter = np.sqrt(4 * crop.sum() / np.pi)
        thick = int(rng.integers(1, 3)) if k % 2 == 0 else max(round(0.15 * diameter), 2)
        padded = np.pad(crop, 1).astype(np.uint8)
        inner = cv2.erode(padded, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)), iterations=thick)[1:-1, 1:-1]
        if inner.sum() < 0.3 * crop.sum():
            return ()
        left = crop & (inner == 0)
        if k % 2:
            grid = np.mgrid[: crop.shape[0], : crop.shape[1]]
            turn = np.arctan2(grid[0] - rows.mean(), grid[1] - columns.mean()) - rng.uniform(0, 2 * np.pi)
            left &= np.abs((turn + np.pi) % (2 * np.pi) - np.pi) > np.radians(rng.uniform(30, 60))
        self.crops[one] = (y, x, left)
        self.touched.add(one)
        return (one,)

    def _pick(self, rng: np.random.Generator) -> int:
        one = int(rng.choice(list(self.crops)))
        return 0 if one in self.touched or self.crops[one][2].sum() < SMALLEST_PX else one

    def _nearest(self, one: int) -> int:
        def gap(other: int) -> float:
            (ya, xa, a), (yb, xb, b) = self.crops[one], self.crops[other]
            dy = max(ya - yb - b.shape[0], yb - ya - a.shape[0], 0)
            return float(np.hypot(dy, max(xa - xb - b.shape[1], xb - xa - a.shape[1], 0)))

        free = [t for t in self.crops if t != one and t not in self.touched and self.crops[t][2].sum() >= SMALLEST_PX]
        return min(free, key=gap) if free else 0

    def _labels(self, y: int, x: int, hw: tuple[int, ...]) -> np.ndarray:
        """Labels of a window that may leave the image: 0 outside."""
        window = np.zeros(hw, np.int64)
        y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + hw[0], self.image_hw[0]), min(x + hw[1], self.image_hw[1])
        window[y0 - y : y1 - y, x0 - x : x1 - x] = self.labels[y0:y1, x0:x1]
        return window
