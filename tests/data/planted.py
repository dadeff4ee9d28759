"""Insert annotation errors into a dataset, from a seed, to test whether `cellwright.data.suspects` finds them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from cellwright.core.dataset import Dataset, Loaded
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet

KINDS = ("merged", "split", "displaced", "tiny", "open")
SMALLEST_PX = 40  # smaller nuclei cannot be divided or hollowed
TRIES = 4000


@dataclass(frozen=True)
class Planted:
    """One error: its kind, the sample, and the ids concerned (two for a split nucleus, otherwise one)."""

    kind: str
    sample_id: str
    object_ids: tuple[int, ...]


def plant(dataset: Dataset, seed: int, per_kind: int = 20) -> tuple[Dataset, list[Planted]]:
    """The dataset with ``per_kind`` errors of each kind, and the list of them. No object has two errors.

    Samples are drawn in proportion to their number of objects. Half of the merged pairs touch, half are nearest
    neighbours that do not touch; half of the open masks are rings, half are C-shaped.
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
                raise AssertionError(f"no suitable object for {kind} error {k}")
    samples = [dataclasses.replace(s, load=Loaded(f.instances())) for s, f in zip(dataset, fields, strict=True)]
    return dataset.with_samples(samples), planted


class _Field:
    """The masks of one image while errors are inserted: id -> (y0, x0, bool crop)."""

    def __init__(self, sample_id: str, masks: MaskSet) -> None:
        self.sample_id, self.image_hw = sample_id, masks.image_hw
        self.crops = {
            i + 1: (int(masks.boxes[i, 1]), int(masks.boxes[i, 0]), masks.crop(i).astype(bool))
            for i in range(len(masks))
            if masks.offsets[i + 1] > masks.offsets[i]
        }
        self.labels = masks.to_label_map().astype(np.int64)
        self.next_id = len(masks) + 1
        self.changed: set[int] = set()

    def instances(self) -> Instances:
        boxes = [(x, y, x + crop.shape[1], y + crop.shape[0]) for y, x, crop in self.crops.values()]
        crops = [crop for _, _, crop in self.crops.values()]
        masks = MaskSet.from_crops(np.array(boxes).reshape(-1, 4), crops, self.image_hw)
        return Instances.from_masks(masks, ids=np.array(list(self.crops), np.int64))

    def merged(self, rng: np.random.Generator, k: int) -> tuple[int, ...]:
        chosen = self._pick(rng)
        if not chosen:
            return ()
        y, x, crop = self.crops[chosen]
        grown = cv2.dilate(np.pad(crop, 1).astype(np.uint8), np.ones((3, 3), np.uint8))
        around = self._labels(y - 1, x - 1, grown.shape)[grown > 0]
        touching = [t for t in np.unique(around[around > 0]).tolist() if t != chosen and t not in self.changed]
        if k % 2 == 0:
            touching = [t for t in touching if self.crops[t][2].sum() >= SMALLEST_PX]
            other = touching[0] if touching else 0
        else:
            other = 0 if touching else self._nearest(chosen)
        if not other:
            return ()
        (ya, xa, a), (yb, xb, b) = self.crops[chosen], self.crops.pop(other)
        y0, x0 = min(ya, yb), min(xa, xb)
        both = np.zeros((max(ya + a.shape[0], yb + b.shape[0]) - y0, max(xa + a.shape[1], xb + b.shape[1]) - x0), bool)
        for y, x, crop in ((ya, xa, a), (yb, xb, b)):
            both[y - y0 : y - y0 + crop.shape[0], x - x0 : x - x0 + crop.shape[1]] |= crop
        self.crops[chosen] = (y0, x0, both)
        self.changed |= {chosen, other}
        return (chosen,)

    def split(self, rng: np.random.Generator, k: int) -> tuple[int, ...]:
        chosen = self._pick(rng)
        if not chosen:
            return ()
        y, x, crop = self.crops[chosen]
        rows, columns = np.nonzero(crop)
        angle = rng.uniform(0, np.pi)
        grid = np.mgrid[: crop.shape[0], : crop.shape[1]]
        side = (grid[0] - rows.mean()) * np.cos(angle) + (grid[1] - columns.mean()) * np.sin(angle) > 0
        second = self.next_id
        self.crops[chosen], self.crops[second] = (y, x, crop & side), (y, x, crop & ~side)
        self.next_id += 1
        self.changed |= {chosen, second}
        return chosen, second

    def displaced(self, rng: np.random.Generator, k: int) -> tuple[int, ...]:
        chosen = self._pick(rng)
        if not chosen:
            return ()
        y, x, crop = self.crops[chosen]
        reach, angle = rng.uniform(0.5, 1) * np.sqrt(4 * crop.sum() / np.pi), rng.uniform(0, 2 * np.pi)
        y, x = y + round(reach * np.sin(angle)), x + round(reach * np.cos(angle))
        if y < 0 or x < 0 or y + crop.shape[0] > self.image_hw[0] or x + crop.shape[1] > self.image_hw[1]:
            return ()
        self.crops[chosen] = (y, x, crop)
        self.changed.add(chosen)
        return (chosen,)

    def tiny(self, rng: np.random.Generator, k: int) -> tuple[int, ...]:
        y, x = (int(rng.integers(2, side - 4)) for side in self.image_hw)
        if self.labels[y - 2 : y + 5, x - 2 : x + 5].any():
            return ()
        pixels = np.zeros(6, bool)
        pixels[: rng.integers(2, 7)] = True
        new = self.next_id
        self.crops[new] = (y, x, pixels.reshape(2, 3))
        self.next_id += 1
        self.changed.add(new)
        return (new,)

    def open(self, rng: np.random.Generator, k: int) -> tuple[int, ...]:
        chosen = self._pick(rng)
        if not chosen:
            return ()
        y, x, crop = self.crops[chosen]
        rows, columns = np.nonzero(crop)
        diameter = np.sqrt(4 * crop.sum() / np.pi)
        thick = int(rng.integers(1, 3)) if k % 2 == 0 else max(round(0.15 * diameter), 2)
        padded = np.pad(crop, 1).astype(np.uint8)
        inner = cv2.erode(padded, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)), iterations=thick)[1:-1, 1:-1]
        if inner.sum() < 0.3 * crop.sum():
            return ()
        outline = crop & (inner == 0)
        if k % 2:
            grid = np.mgrid[: crop.shape[0], : crop.shape[1]]
            turn = np.arctan2(grid[0] - rows.mean(), grid[1] - columns.mean()) - rng.uniform(0, 2 * np.pi)
            outline &= np.abs((turn + np.pi) % (2 * np.pi) - np.pi) > np.radians(rng.uniform(30, 60))
        self.crops[chosen] = (y, x, outline)
        self.changed.add(chosen)
        return (chosen,)

    def _pick(self, rng: np.random.Generator) -> int:
        chosen = int(rng.choice(list(self.crops)))
        return 0 if chosen in self.changed or self.crops[chosen][2].sum() < SMALLEST_PX else chosen

    def _nearest(self, chosen: int) -> int:
        def gap(other: int) -> float:
            (ya, xa, a), (yb, xb, b) = self.crops[chosen], self.crops[other]
            dy = max(ya - yb - b.shape[0], yb - ya - a.shape[0], 0)
            return float(np.hypot(dy, max(xa - xb - b.shape[1], xb - xa - a.shape[1], 0)))

        free = [
            t for t in self.crops if t != chosen and t not in self.changed and self.crops[t][2].sum() >= SMALLEST_PX
        ]
        return min(free, key=gap) if free else 0

    def _labels(self, y: int, x: int, hw: tuple[int, ...]) -> np.ndarray:
        """The labels in a window, 0 outside the image."""
        window = np.zeros(hw, np.int64)
        y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + hw[0], self.image_hw[0]), min(x + hw[1], self.image_hw[1])
        window[y0 - y : y1 - y, x0 - x : x1 - x] = self.labels[y0:y1, x0:x1]
        return window
