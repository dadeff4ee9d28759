"""Every edit once more, slowly: on the whole label array, pixel by pixel, without anything of `cellwright.serve`."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, field

import numpy as np
from skimage import measure

Points = list[tuple[float, float]]


@dataclass
class SlowImage:
    """labels: (H, W). objects: class, score and whether changed by hand, by id. limits: score and area."""

    labels: np.ndarray
    objects: dict[int, tuple[int, float | None, bool]]
    min_score: float = 0.0
    min_area: int = 0
    regions: list[Points] = field(default_factory=list)
    next_id: int = 1

    def __post_init__(self) -> None:
        self.next_id = max([*self.objects, 0]) + 1

    def copied(self) -> SlowImage:
        return copy.deepcopy(self)

    def hidden(self, min_score: float, min_area: int) -> set[int]:
        return {
            number
            for number, (_, score, manual) in self.objects.items()
            if not manual and ((score is not None and score < min_score) or (self.labels == number).sum() < min_area)
        }

    def settle(self, before: SlowImage, hidden: set[int]) -> None:
        """What every edit entails: objects without pixels vanish, shown ones that were changed count as by hand."""
        for number in list(self.objects):
            if not (self.labels == number).any():
                del self.objects[number]
            elif number not in hidden and ((self.labels == number) != (before.labels == number)).any():
                kind, score, _ = self.objects[number]
                self.objects[number] = (kind, score, True)

    def paint(self, where: np.ndarray, number: int | None, kind: int, hidden: set[int]) -> None:
        free = [0, number or self.next_id, *hidden]
        chosen = where & np.isin(self.labels, free)
        if number is None:
            if not chosen.any():
                return
            number, self.next_id = self.next_id, self.next_id + 1
            self.objects[number] = (kind, None, True)
        self.labels[chosen] = number


def near_path(path: Points, radius: float, hw: tuple[int, int]) -> np.ndarray:
    covered = np.zeros(hw, bool)
    for y, x in np.ndindex(hw):
        covered[y, x] = distance_to_path(y + 0.5, x + 0.5, path) <= radius
    return covered


def distance_to_path(y: float, x: float, path: Points) -> float:
    """By the angles at both ends of each segment."""
    best = min(math.dist((y, x), point) for point in path)
    for (ay, ax), (by, bx) in itertools.pairwise(path):
        length = math.dist((ay, ax), (by, bx))
        if (
            length
            and (y - ay) * (by - ay) + (x - ax) * (bx - ax) > 0
            and (y - by) * (ay - by) + (x - bx) * (ax - bx) > 0
        ):
            best = min(best, abs((bx - ax) * (ay - y) - (ax - x) * (by - ay)) / length)
    return best


def inside_outline(outline: Points, hw: tuple[int, int]) -> np.ndarray:
    """By the number of edges that a ray to the left crosses."""
    covered = np.zeros(hw, bool)
    for row, column in np.ndindex(hw):
        y, x = row + 0.5, column + 0.5
        crossings = 0
        for (ay, ax), (by, bx) in zip(outline, [*outline[1:], outline[0]], strict=True):
            if (ay > y) != (by > y) and ax + (y - ay) / (by - ay) * (bx - ax) < x:
                crossings += 1
        covered[row, column] = crossings % 2 == 1
    return covered


def with_holes_filled(mask: np.ndarray) -> np.ndarray:
    """Everything that the outside does not reach by sides of pixels."""
    outside = measure.label(~np.pad(mask, 1), connectivity=1)
    return (outside != outside[0, 0])[1:-1, 1:-1]


def smoothed(mask: np.ndarray) -> np.ndarray:
    """Where a mask has most of the weight around a pixel; beyond the border as at it. Parts that fall apart: None."""
    weight = {
        (dy, dx): round(1000 * math.exp(-(dy * dy + dx * dx) / 4.5)) for dy in range(-3, 4) for dx in range(-3, 4)
    }
    radius = math.sqrt(mask.sum() / math.pi)
    least = sum(weight.values()) * (0.5 - 1.5 / (2 * math.sqrt(2 * math.pi) * radius))
    padded = np.pad(mask, 3, mode="edge")
    result = np.zeros(mask.shape, bool)
    for y, x in np.ndindex(mask.shape):
        result[y, x] = sum(w for (dy, dx), w in weight.items() if padded[y + 3 + dy, x + 3 + dx]) > least
    return result
