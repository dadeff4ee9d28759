"""Which tile's copy of an object is kept, and which object keeps a pixel that several tiles gave away.

A tile stores every candidate that it owns, and every other that reaches its core or the band around it. An object is
owned by the tile whose core holds its anchor: the pixel of its mask nearest to the mean position. Tiles see an object
slightly differently, so that one which none of them owns, or which two of them own, is possible. Therefore:

1. Candidates of different tiles whose intersection covers at least half of the smaller one are counterparts.
2. A candidate that is not owned is dropped only if a counterpart is kept. Of two owned counterparts with an IoU of at
   least .5, one is dropped. Owned candidates come first, then higher scores, then lower tiles.
3. Of the objects that are kept, none are joined. Pixels that two tiles gave to different objects stay with the higher
   score, then with the lower tile.

Tiles are compared with those around them, as far away as the largest object of the image can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.prediction.tiling.grid import Grid, Tile

COUNTERPART_SHARE = 0.5
SAME_IOU = 0.5
# Candidates that come this near to the core are stored, source px.
BAND_PX = 4


@dataclass(frozen=True, eq=False)
class TileObjects:
    """What a tile stores: candidates in source pixels, best first, and which of them it owns (N,) bool."""

    objects: Instances
    owned: np.ndarray


def anchors_of(masks: MaskSet) -> np.ndarray:
    """(N, 2) int64 (y, x): the pixel of each mask nearest to its mean position."""
    from cellwright.prediction.tiling import _seam_kernels

    return _seam_kernels.anchors(masks.boxes, masks.offsets, masks.crops)


def stored_objects(objects: Instances, grid: Grid, tile: Tile) -> TileObjects:
    """The candidates, given in source pixels, that a tile stores."""
    ys, xs = anchors_of(objects.masks).T
    owned = grid.owner(ys, xs) == tile.index
    near = _reaches(objects.masks.boxes, _zone(grid, tile))
    kept = owned | near
    return TileObjects(objects[kept], owned[kept])


class Seams:
    """The final objects of each tile, from what the tiles stored.

    load: the stored candidates of a tile; called three times per tile, row by row, so that about three rows of tiles
    are in memory at once. Creating one decides what is kept; `objects` then gives it.

    n_copies: candidates that were dropped because another tile's copy was kept. n_adopted: objects that no tile owned.
    """

    def __init__(self, grid: Grid, load: Callable[[int], TileObjects]) -> None:
        self.grid, self._load = grid, load
        self.n_copies = self.n_adopted = 0
        self._keep: list[np.ndarray] = [np.zeros(0, bool)] * len(grid)
        self._reach = grid.reach_of(self._largest())
        self._decide()

    def objects(self) -> Iterator[tuple[int, Instances]]:
        """The final objects of each tile in order, in source pixels, with the ids of the tile; no two share a pixel
        if they are of different tiles."""
        n_rows, n_columns = self.grid.shape
        rows: dict[int, list[Instances]] = {}
        for row in range(n_rows):
            for r in range(max(row - self._reach, 0), min(row + self._reach + 1, n_rows)):
                if r not in rows:
                    tiles = range(r * n_columns, (r + 1) * n_columns)
                    rows[r] = [self._load(t).objects[self._keep[t]] for t in tiles]
            rows.pop(row - self._reach - 1, None)
            for column in range(n_columns):
                index = row * n_columns + column
                neighbours = self.grid.neighbours(index, self._reach)
                around = {t: rows[t // n_columns][t % n_columns] for t in neighbours}
                yield index, _without_shared(rows[row][column], index, around)

    def _largest(self) -> tuple[int, int]:
        """Height and width of the largest objects, source px."""
        sides = np.zeros(2, np.int64)
        for tile in range(len(self.grid)):
            boxes = self._load(tile).objects.masks.boxes
            if len(boxes):
                sides = np.maximum(sides, (boxes[:, [3, 2]] - boxes[:, [1, 0]]).max(axis=0))
        return int(sides[0]), int(sides[1])

    def _decide(self) -> None:
        n_rows, n_columns = self.grid.shape
        rows: dict[int, list[_Candidates]] = {}
        pending, start = _Graph(), 0
        for row in range(n_rows):
            for r in range(row, min(row + self._reach + 1, n_rows)):
                if r not in rows:
                    rows[r] = []
                    for tile in range(r * n_columns, (r + 1) * n_columns):
                        stored = self._load(tile)
                        self._keep[tile] = np.ones(len(stored.owned), bool)
                        neighbours = self.grid.neighbours(tile, self._reach)
                        rows[r].append(_Candidates.of(self.grid, tile, neighbours, stored, start))
                        start += len(stored.owned)
                        self.n_adopted += int((~stored.owned).sum())
            rows.pop(row - 1, None)
            for column in range(n_columns):
                index = row * n_columns + column
                for other in self.grid.neighbours(index, self._reach):
                    if other > index:
                        pending.compare(rows[row][column], rows[other // n_columns][other % n_columns])
            # Groups that reach the next row may still grow.
            n_open = rows[row + 1][0].start if row + 1 < n_rows else start
            for tile, local, keep, owned in pending.solve(n_open):
                self._keep[tile][local] = keep
                self.n_copies += int((~keep).sum())
                self.n_adopted -= int((~owned & ~keep).sum())


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The stored candidates of a tile near its seams. start: number of the tile's first candidate among all tiles."""

    tile: int
    start: int
    local: np.ndarray
    masks: MaskSet
    scores: np.ndarray
    owned: np.ndarray

    @staticmethod
    def of(grid: Grid, tile: int, neighbours: Sequence[int], stored: TileObjects, start: int) -> _Candidates:
        objects = stored.objects
        near = ~stored.owned
        for other in neighbours:
            near = near | _reaches(objects.masks.boxes, _zone(grid, grid[other]))
        local = np.flatnonzero(near)
        assert objects.scores is not None
        return _Candidates(tile, start, local, objects.masks[local], objects.scores[local], stored.owned[local])


@dataclass
class _Graph:
    """Pairs of counterparts whose groups are not yet complete: nodes are numbered across all tiles."""

    edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    known: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def compare(self, a: _Candidates, b: _Candidates) -> None:
        """Add the counterparts between two tiles."""
        i, j, shared = a.masks.intersections(b.masks)
        areas_a, areas_b = a.masks.areas[i], b.masks.areas[j]
        counterpart = shared >= COUNTERPART_SHARE * np.minimum(areas_a, areas_b)
        same = shared >= SAME_IOU * (areas_a + areas_b - shared)
        i, j = i[counterpart], j[counterpart]
        if not len(i):
            return
        self.edges.append((a.start + a.local[i], b.start + b.local[j], same[counterpart]))
        for one, k in ((a, np.unique(i)), (b, np.unique(j))):
            tiles = np.full(len(k), one.tile)
            self.known.append((one.start + one.local[k], tiles, one.local[k], one.scores[k], one.owned[k]))

    def solve(self, n_open: int) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Decide all groups without a node from ``n_open`` on: per tile its candidates, what is kept, what is owned."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        from cellwright.prediction.tiling import _seam_kernels

        if not self.edges:
            return []
        a, b, same = (np.concatenate(parts) for parts in zip(*self.edges, strict=True))
        ids, tiles, local, scores, owned = (np.concatenate(parts) for parts in zip(*self.known, strict=True))
        ids, first = np.unique(ids, return_index=True)
        tiles, local, scores, owned = tiles[first], local[first], scores[first], owned[first]
        a, b = np.searchsorted(ids, a), np.searchsorted(ids, b)
        n = len(ids)
        _, group = connected_components(coo_array((np.ones(len(a), bool), (a, b)), shape=(n, n)), directed=False)
        grows = np.zeros(group.max() + 1, bool)
        grows[group[ids >= n_open]] = True
        left = grows[group]
        self.edges = [(ids[a[left[a]]], ids[b[left[a]]], same[left[a]])] if left.any() else []
        self.known = [(ids[left], tiles[left], local[left], scores[left], owned[left])] if left.any() else []
        # Both directions of each edge, by node.
        ends, others, both = np.concatenate([a, b]), np.concatenate([b, a]), np.concatenate([same, same])
        by_end = np.argsort(ends, kind="stable")
        starts = np.searchsorted(ends[by_end], np.arange(n + 1))
        order = np.lexsort((ids, -scores, ~owned))
        keep = _seam_kernels.keep_greedily(order, starts, others[by_end], both[by_end], owned)
        solved = []
        for tile in np.unique(tiles[~left]):
            mine = ~left & (tiles == tile)
            solved.append((int(tile), local[mine], keep[mine], owned[mine]))
        return solved


def _zone(grid: Grid, tile: Tile) -> Window:
    """The source pixels from which a tile stores every candidate."""
    core, (height, width) = grid.source_window(tile.core), grid.source_hw
    return Window(
        max(core.y0 - BAND_PX, 0),
        max(core.x0 - BAND_PX, 0),
        min(core.y1 + BAND_PX, height),
        min(core.x1 + BAND_PX, width),
    )


def _reaches(boxes: np.ndarray, zone: Window) -> np.ndarray:
    """Which boxes (N,) bool overlap a window."""
    x0, y0, x1, y1 = boxes.T
    return (x0 < zone.x1) & (x1 > zone.x0) & (y0 < zone.y1) & (y1 > zone.y0)


def _without_shared(objects: Instances, tile: int, around: dict[int, Instances]) -> Instances:
    """The objects of a tile without the pixels that better objects of other tiles have; none stays without a pixel."""
    from cellwright.prediction.tiling import _seam_kernels

    masks, crops = objects.masks, None
    for other, theirs in around.items():
        i, j, _ = masks.intersections(theirs.masks)
        assert objects.scores is not None
        assert theirs.scores is not None
        mine, their = objects.scores[i], theirs.scores[j]
        lost = (their > mine) | ((their == mine) & (other < tile))
        if lost.any():
            crops = masks.crops.copy() if crops is None else crops
            args = theirs.masks.offsets, theirs.masks.crops, theirs.masks.boxes
            _seam_kernels.clear_shared(masks.offsets, crops, masks.boxes, i[lost], j[lost], *args)
    if crops is None:
        return objects
    cut = MaskSet.from_flat(masks.image_hw, masks.boxes, masks.offsets, crops)
    changed = replace(objects, masks=cut, boxes_xyxy=cut.boxes.astype(np.float32))
    return changed[cut.areas > 0]
