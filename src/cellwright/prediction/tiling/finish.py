"""From the tile files of a job to its outputs, as a stream: nothing holds all objects or all pixels.

1. Seams are resolved, and objects numbered from 1 in the order of tiles: the final tile files.
2. Tables and outlines are written from these, tile by tile.
3. Labels are painted window by window, from the tiles whose objects reach it.

After an interruption all of this is done again: tiles that had failed may be there now.
"""

from __future__ import annotations

import gzip
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from cellwright.core.errors import FormatError, UsageError
from cellwright.core.files import atomic_path
from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.core.notes import Note, with_where
from cellwright.core.progress import Track, no_progress
from cellwright.core.table import frame_csv
from cellwright.data.formats.geojson import MEMBER, features
from cellwright.data.images.source import ImageSource
from cellwright.prediction.tiling.grid import Grid
from cellwright.prediction.tiling.ledger import Ledger
from cellwright.prediction.tiling.regions import Regions
from cellwright.prediction.tiling.seams import Seams, TileObjects, anchors_of
from cellwright.prediction.tiling.tile_file import TileRecord
from cellwright.prediction.tiling.work import measured, shifted

LABEL = "label"
SCORE_STEP = 0.001
# Final tiles that are kept in memory while labels are painted.
_KEPT_TILES = 32


@dataclass(frozen=True)
class FinalTiles:
    """The final objects of all tiles: ids 1..N without gaps, in the order of tiles.

    first_ids: (tiles + 1,) the id of the first object of each tile. reach: (tiles, 4) y0, x0, y1, x1 of all objects of
    each tile; empty windows for tiles without any. notes: of all tiles, with the tile as ``where``. score_counts: the
    number of objects with each score, in steps of `SCORE_STEP` from 0 to 1.
    """

    ledger: Ledger
    first_ids: np.ndarray
    reach: np.ndarray
    n_copies: int
    n_adopted: int
    score_counts: np.ndarray
    notes: tuple[Note, ...] = ()

    @property
    def n_objects(self) -> int:
        """Number of objects of the image."""
        return int(self.first_ids[-1]) - 1

    def __iter__(self) -> Iterator[tuple[int, Instances]]:
        """The tile and its objects, in source pixels, with their final ids."""
        for k, tile in enumerate(self.ledger.tiles):
            yield tile, self.objects(k)

    def objects(self, k: int) -> Instances:
        """The objects of the k-th tile of the job. Raises `FormatError` if their number is another than was counted."""
        path = self.ledger.path(self.ledger.tiles[k])
        objects = self.ledger.read(self.ledger.tiles[k]).stored.objects
        if len(objects) != (n := self.first_ids[k + 1] - self.first_ids[k]):
            raise FormatError("this file of a tile does not fit to its job", where=path, got=len(objects), expected=n)
        return replace(objects, ids=np.arange(self.first_ids[k], self.first_ids[k + 1]))


def resolve(
    ledger: Ledger,
    final: Ledger,
    grid: Grid,
    source: ImageSource | None,
    *,
    ring_px: int | None = None,
    max_objects: int | None = None,
    regions: Regions | None = None,
    track: Track = no_progress,
) -> FinalTiles:
    """Decide the seams and write the final tile files.

    A tile that is not in ``ledger`` (skipped, or failed) has no objects. Objects that lost pixels to another tile are
    measured again; without ``source``, they keep their measurements. Of all objects, those in ``regions`` are kept, and
    of these the best ``max_objects``.
    """
    tiles = list(ledger.tiles)
    position = {tile: k for k, tile in enumerate(tiles)}
    nothing = TileObjects(Instances.empty(grid.source_hw, scored=True), np.zeros(0, bool))

    notes: dict[int, tuple[Note, ...]] = {}

    def load(tile: int) -> TileObjects:
        if tile not in position or not ledger.has(tile):
            return nothing
        record = ledger.read(tile)
        if record.notes:
            notes[tile] = with_where(record.notes, f"tile {tile}")
        return record.stored

    seams = Seams(grid, load)
    lowest = _lowest_score(seams, regions, max_objects) if max_objects is not None else None
    counts, reach = np.zeros(len(tiles), np.int64), np.zeros((len(tiles), 4), np.int64)
    score_counts = np.zeros(round(1 / SCORE_STEP) + 1, np.int64)
    n_left = 0 if max_objects is None else max_objects
    for tile, found in track(_in_regions(seams, regions), "resolving seams", len(grid)):
        if tile not in position:
            continue
        objects, k = found, position[tile]
        if lowest is not None:
            assert objects.scores is not None
            kept = np.flatnonzero(objects.scores >= lowest)[:n_left]
            objects, n_left = objects[kept], n_left - len(kept)
        objects = objects if source is None else _measured_again(objects, source, ring_px)
        final.write(tile, TileRecord(TileObjects(objects, np.ones(len(objects), bool))))
        counts[k] = len(objects)
        if objects.scores is not None:
            steps = np.rint(objects.scores / SCORE_STEP).astype(np.int64)
            score_counts += np.bincount(steps, minlength=len(score_counts))
        if len(objects):
            boxes = objects.masks.boxes
            reach[k] = (boxes[:, 1].min(), boxes[:, 0].min(), boxes[:, 3].max(), boxes[:, 2].max())
    first_ids = np.concatenate([[1], 1 + np.cumsum(counts)])
    of_tiles = tuple(note for tile in sorted(notes) for note in notes[tile])
    return FinalTiles(final, first_ids, reach, seams.n_copies, seams.n_adopted, score_counts, of_tiles)


def _in_regions(seams: Seams, regions: Regions | None) -> Iterator[tuple[int, Instances]]:
    """The final objects of each tile whose anchors are in a region."""
    for tile, objects in seams.objects():
        yield tile, objects if regions is None else objects[regions.contain(*anchors_of(objects.masks).T)]


def _lowest_score(seams: Seams, regions: Regions | None, max_objects: int) -> float | None:
    """The score of the last object that is kept; None if there are no more than ``max_objects``."""
    scores = [objects.scores for _, objects in _in_regions(seams, regions) if objects.scores is not None]
    together = np.concatenate(scores)
    if len(together) <= max_objects:
        return None
    return float(-np.partition(-together, max_objects - 1)[max_objects - 1])


def _measured_again(objects: Instances, source: ImageSource, ring_px: int | None) -> Instances:
    """The objects of a tile with the measurements of their final pixels."""
    areas = objects.columns.get("area_px")
    if areas is None or np.array_equal(areas, objects.masks.areas):
        return objects
    height, width = objects.image_hw
    margin = 2 + (ring_px or 0)
    boxes = objects.masks.boxes
    window = Window(
        max(int(boxes[:, 1].min()) - margin, 0),
        max(int(boxes[:, 0].min()) - margin, 0),
        min(int(boxes[:, 3].max()) + margin, height),
        min(int(boxes[:, 2].max()) + margin, width),
    )
    masks = shifted(objects.masks, -window.y0, -window.x0, window.hw)
    local = replace(objects, image_hw=window.hw, masks=masks, boxes_xyxy=masks.boxes.astype(np.float32), columns={})
    columns = measured(local, source, window, ring_px=ring_px).columns
    return replace(objects, columns=columns | {"touches_border": objects.columns["touches_border"]})


# --- tables and outlines --------------------------------------------------------------------------------------------


def write_objects_table(
    path: Path, final: FinalTiles, class_names: Sequence[str], *, track: Track = no_progress
) -> None:
    """One row per object: label, tile, class, score, then all measurements. Parquet, or CSV if the suffix says so."""
    with atomic_path(path) as temporary:
        if ".csv" in path.suffixes:
            _write_csv(temporary, final, class_names, track)
        else:
            _write_parquet(temporary, final, class_names, track)


def _table(tile: int, objects: Instances, class_names: Sequence[str]) -> dict[str, np.ndarray]:
    names = np.array(class_names, object)[objects.class_ids]
    assert objects.scores is not None
    columns = dict(objects.columns)
    touches = columns.pop("touches_border", np.zeros(len(objects)))
    fixed = {
        LABEL: objects.ids.astype(np.uint32),
        "tile": np.full(len(objects), tile, np.int32),
        "class": names,
        "score": objects.scores,
        "touches_border": touches.astype(bool),
    }
    return fixed | columns


def _write_parquet(path: Path, final: FinalTiles, class_names: Sequence[str], track: Track) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        remedy = 'pip install "cellwright[pyarrow]"'
        raise UsageError("Parquet needs another package", got=f"no {error.name}", remedy=remedy) from error
    writer: Any = None
    columns: list[str] = []
    for tile, objects in track(final, "writing the table", len(final.ledger.tiles)):
        if not len(objects):
            continue
        values = _table(tile, objects, class_names)
        table = pa.table({name: pa.array(column) for name, column in values.items()})
        if writer is None:
            columns, writer = list(values), pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table.select(columns))
    if writer is None:
        names = _table(0, Instances.empty((1, 1), scored=True), class_names)
        kinds = {LABEL: pa.uint32(), "tile": pa.int32(), "class": pa.string(), "score": pa.float32()}
        schema = pa.schema([(name, kinds.get(name, pa.bool_())) for name in names])
        writer = pq.ParquetWriter(path, schema, compression="zstd")
    writer.close()


def _write_csv(path: Path, final: FinalTiles, class_names: Sequence[str], track: Track) -> None:
    import pandas as pd

    header = True
    with _gzip_file(path) as file:
        for tile, objects in track(final, "writing the table", len(final.ledger.tiles)):
            if len(objects):
                frame = pd.DataFrame(_table(tile, objects, class_names))
                file.write(frame_csv(frame, header=header).encode())
                header = False
        if header:
            names = _table(0, Instances.empty((1, 1), scored=True), class_names)
            file.write((",".join(names) + "\n").encode())


@contextmanager
def _gzip_file(path: Path) -> Iterator[IO[bytes]]:
    """A gzip file without name and time, so that its bytes depend only on its content."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0) as file:
        yield cast("IO[bytes]", file)


def write_outlines(
    path: Path,
    final: FinalTiles,
    class_names: Sequence[str],
    *,
    image_name: str | None,
    sample_id: str,
    full_hw: tuple[int, int] | None = None,
    downsample: tuple[float, float] = (1.0, 1.0),
    track: Track = no_progress,
) -> None:
    """All outlines as gzipped GeoJSON for QuPath, one object per line.

    full_hw, downsample: the full size of an image of which a smaller level was predicted, and its pixels (y, x) per
    pixel of the level; outlines are in pixels of the full size.
    """
    head = {"image": image_name, "image_hw": list(full_hw or final_hw(final)), "scored": True}
    with atomic_path(path) as temporary, _gzip_file(temporary) as file:
        file.write(f'{{"type": "FeatureCollection", "{MEMBER}": {json.dumps(head)}, "features": ['.encode())
        separator = b"\n"
        for _, objects in track(final, "writing outlines", len(final.ledger.tiles)):
            for feature in features(objects, class_names, sample_id=sample_id):
                if downsample != (1.0, 1.0):
                    feature["geometry"]["coordinates"] = _scaled(feature["geometry"]["coordinates"], downsample)
                file.write(separator + json.dumps(feature, separators=(",", ":"), allow_nan=False).encode())
                separator = b",\n"
        file.write(b"\n]}\n")


def _scaled(coordinates: Any, scale_yx: tuple[float, float]) -> Any:
    """Points (x, y), in lists of any depth, in the pixels of an image of another size."""
    if isinstance(coordinates[0], list):
        return [_scaled(part, scale_yx) for part in coordinates]
    return [round(coordinates[0] * scale_yx[1], 3), round(coordinates[1] * scale_yx[0], 3)]


def final_hw(final: FinalTiles) -> tuple[int, int]:
    """(H, W) of the source."""
    return final.objects(0).image_hw


# --- labels ---------------------------------------------------------------------------------------------------------


class LabelPainter:
    """Paints windows of the label image; the most recently used tiles stay in memory."""

    def __init__(self, final: FinalTiles) -> None:
        self._final = final
        self._kept: OrderedDict[int, Instances] = OrderedDict()

    def __call__(self, window: Window) -> np.ndarray:
        """The labels (h, w) uint32 of a window."""
        from cellwright.core import _kernels

        canvas = np.zeros(window.hw, np.uint32)
        reach = self._final.reach
        near = (reach[:, :2] < (window.y1, window.x1)).all(axis=1) & (reach[:, 2:] > (window.y0, window.x0)).all(axis=1)
        for k in np.flatnonzero(near):
            objects = self._objects(int(k))
            x0, y0, x1, y1 = objects.masks.boxes.T
            inside = (x0 < window.x1) & (x1 > window.x0) & (y0 < window.y1) & (y1 > window.y0)
            part = objects.masks[inside].window(*window)
            ids = objects.ids[inside].astype(np.uint32)
            _kernels.paint(canvas, ids, part.boxes, part.offsets, part.crops)
        return canvas

    def _objects(self, k: int) -> Instances:
        if k in self._kept:
            self._kept.move_to_end(k)
        else:
            self._kept[k] = self._final.objects(k)
            if len(self._kept) > _KEPT_TILES:
                self._kept.popitem(last=False)
        return self._kept[k]
