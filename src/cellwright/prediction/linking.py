"""Objects of consecutive planes and time points are joined by overlap: the same number through a stack, and tracks.

Planes of one time point are joined first, which gives its objects (of one plane or of many); those are then linked from
one time point to the next in the same way. Only pairs of objects that share pixels are ever listed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cellwright.core.errors import UsageError
from cellwright.core.masks import MaskSet

# A cell divides into two objects that lie in it with more than half of their pixels, cover at least half of it
# together, and of which the smaller is at least half as large as the other.
_INSIDE, _COVERED, _SIMILAR = 0.5, 0.5, 0.5

LoadPlane = Callable[[int, int], MaskSet]
"""The objects of a plane: number of the time point, number of the plane -> masks that share no pixel."""


@dataclass(frozen=True)
class Links:
    """What belongs together in a stack.

    ids: of the objects of each plane, by (number of the time point, number of the plane): (N,) int64, from 1. n: the
    number of ids. parents: the object that divided, by the id of each of the two that it became.
    """

    ids: dict[tuple[int, int], np.ndarray]
    n: int
    parents: dict[int, int] = field(default_factory=dict)


def check_iou(iou: float) -> float:
    """The overlap from which objects are joined. Raises `UsageError` unless it is above 0 and at most 1."""
    if not 0 < iou <= 1:
        raise UsageError("invalid `stitch`", got=iou, expected="an overlap (IoU) above 0, up to 1, such as 0.25")
    return float(iou)


def link_stack(load: LoadPlane, n_times: int, n_planes: int, iou: float) -> Links:
    """Join the objects of a stack; at most two planes are in memory. iou: the smallest overlap that joins two objects.

    Within a time point, an object of a plane goes on with `continued` of the plane before. Objects of a time point are
    linked to those of the one before by the pixels (or voxels) of all planes; there, objects also divide (`divided`).
    Numbers are given in order of time points, planes and objects, without gaps. An object that is missing in one plane
    or time point ends there.
    """
    ids: dict[tuple[int, int], np.ndarray] = {}
    parents: dict[int, int] = {}
    before, n_ids = _Frame([], np.zeros(0, np.int64)), 0
    for t in range(n_times):
        frame = _joined_planes(load, t, n_planes, iou)
        pairs = _shared_voxels(load, t, before, frame) if t else _no_pairs()
        mother = divided(*pairs, before.sizes, frame.sizes)
        origin = np.where(mother >= 0, -1, continued(*_without(pairs, mother), before.sizes, frame.sizes, iou))
        is_new = origin < 0
        number = np.empty(len(frame.sizes), np.int64)
        number[~is_new] = before.ids[origin[~is_new]]
        number[is_new] = np.arange(n_ids + 1, n_ids + 1 + np.count_nonzero(is_new))
        n_ids += int(np.count_nonzero(is_new))
        children = np.flatnonzero(mother >= 0)
        parents |= dict(zip(number[children].tolist(), before.ids[mother[children]].tolist(), strict=True))
        ids |= {(t, z): number[objects] for z, objects in enumerate(frame.planes)}
        before = _Frame(frame.planes, frame.sizes, number)
    return Links(ids, n_ids, parents)


@dataclass(frozen=True)
class _Frame:
    """The objects of one time point.

    planes: of each mask of a plane the number of its object, from 0. sizes: in voxels. ids: in the whole stack.
    """

    planes: list[np.ndarray]
    sizes: np.ndarray
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def _joined_planes(load: LoadPlane, t: int, n_planes: int, iou: float) -> _Frame:
    planes, sizes = list[np.ndarray](), np.zeros(0, np.int64)
    before = None
    for z in range(n_planes):
        masks = load(t, z)
        number = np.full(len(masks), -1, np.int64)
        if before is not None:
            origin = continued(*before.intersections(masks), before.areas, masks.areas, iou)
            number[origin >= 0] = planes[-1][origin[origin >= 0]]
        is_new = number < 0
        number[is_new] = np.arange(len(sizes), len(sizes) + np.count_nonzero(is_new))
        sizes = np.concatenate([sizes, np.zeros(np.count_nonzero(is_new), np.int64)])
        np.add.at(sizes, number, masks.areas)
        planes.append(number)
        before = masks
    return _Frame(planes, sizes)


Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Pairs (i, j) of an object before and one after, and the pixels or voxels that they share, each (P,) int64."""


def _no_pairs() -> Pairs:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)


def _without(pairs: Pairs, mother: np.ndarray) -> Pairs:
    """The pairs in which nothing divided."""
    i, j, shared = pairs
    kept = (mother[j] < 0) & ~np.isin(i, mother[mother >= 0])
    return i[kept], j[kept], shared[kept]


def _shared_voxels(load: LoadPlane, t: int, before: _Frame, after: _Frame) -> Pairs:
    """The voxels that objects of a time point share with those of the one before, summed over the planes."""
    keys, counts = [], []
    for z, (numbers, later) in enumerate(zip(before.planes, after.planes, strict=True)):
        i, j, shared = load(t - 1, z).intersections(load(t, z))
        keys.append(numbers[i] * max(len(after.sizes), 1) + later[j])
        counts.append(shared)
    key, where = np.unique(np.concatenate(keys), return_inverse=True)
    shared = np.bincount(where, weights=np.concatenate(counts), minlength=len(key)).astype(np.int64)
    i, j = np.divmod(key, max(len(after.sizes), 1))
    return i, j, shared


def continued(
    i: np.ndarray, j: np.ndarray, shared: np.ndarray, before: np.ndarray, after: np.ndarray, iou: float
) -> np.ndarray:
    """For each object after, the object before that it continues, or -1: (N after,) int64.

    i, j, shared: pairs and the pixels that they share. before, after: sizes in pixels.

    Only pairs with an overlap (IoU) of at least ``iou`` count. Each object before can go on in that object after which
    it overlaps most; of several that would go on in the same one, the one that overlaps most does. So nothing splits or
    merges. Cellpose's ``stitch3D`` does the same; of equal overlaps, which it may give one number twice, the lower
    numbers count here.

    >>> i, j, shared = np.array([[0, 0, 50], [0, 1, 30], [1, 1, 40]]).T
    >>> continued(i, j, shared, np.array([90, 60]), np.array([60, 90]), 0.25)
    array([0, 1])
    """
    overlap = shared / (before[i] + after[j] - shared)
    kept = overlap >= iou
    i, j, overlap = i[kept], j[kept], overlap[kept]
    goes_on = _largest(i, j, overlap)
    i, j, overlap = i[goes_on], j[goes_on], overlap[goes_on]
    origin = np.full(len(after), -1, np.int64)
    chosen = _largest(j, i, overlap)
    origin[j[chosen]] = i[chosen]
    return origin


def _largest(group: np.ndarray, other: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """The index of the pair with the largest overlap in each group; of equal ones that with the lowest ``other``."""
    order = np.lexsort((other, -overlap, group))
    is_first = np.ones(len(order), bool)
    is_first[1:] = group[order][1:] != group[order][:-1]
    return order[is_first]


def divided(i: np.ndarray, j: np.ndarray, shared: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """For each object after, the object before from whose division it comes, or -1: (N after,) int64.

    An object divides into exactly two that have more than half of their pixels in it, if they are of similar size and
    cover at least half of it; anything less clear is no division. The parameters are those of `continued`.

    >>> divided(np.array([0, 0]), np.array([0, 1]), np.array([40, 45]), np.array([100]), np.array([50, 60]))
    array([0, 0])
    >>> divided(np.array([0, 0]), np.array([0, 1]), np.array([80, 15]), np.array([100]), np.array([80, 15]))
    array([-1, -1])
    """
    inside = shared > _INSIDE * after[j]
    i, j, shared = i[inside], j[inside], shared[inside]
    order = np.lexsort((j, i))
    i, j, shared = i[order], j[order], shared[order]
    mother = np.full(len(after), -1, np.int64)
    first = np.flatnonzero(np.bincount(i, minlength=len(before))[i] == 2)[::2]
    sizes = np.stack([after[j[first]], after[j[first + 1]]])
    is_similar = sizes.min(axis=0) >= _SIMILAR * sizes.max(axis=0)
    covers = shared[first] + shared[first + 1] >= _COVERED * before[i[first]]
    for child in (first, first + 1):
        mother[j[child[is_similar & covers]]] = i[child[is_similar & covers]]
    return mother
