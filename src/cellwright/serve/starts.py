"""The objects with which an image begins: those of a prediction folder, a dataset, or a tile job; or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import CellwrightError, FormatError
from cellwright.core.files import read_json
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, join_extents, label_extents
from cellwright.core.progress import Track, no_progress
from cellwright.core.result_folders import JOB_FILE, is_job_folder
from cellwright.core.scores import ScoreThreshold, reaches_threshold, recorded_threshold
from cellwright.core.text import count
from cellwright.serve import layer
from cellwright.serve.annotation import Start, State
from cellwright.serve.layer import Box, Chunks, Table, packed

if TYPE_CHECKING:
    from cellwright.data.formats.large_labels import LargeLabels

_JOB_COLUMNS = {
    "id": "label",
    "y0": "bbox_y0_px",
    "x0": "bbox_x0_px",
    "y1": "bbox_y1_px",
    "x1": "bbox_x1_px",
    "area": "area_px",
    "score": "score",
}
_THREADS = 2


def empty_start() -> Start:
    """No objects."""
    return Start("new", Table(), State())


def start_of(sample: Sample, dataset: Dataset, track: Track = no_progress) -> Start:
    """All objects of an image, candidates below the score threshold too; where they overlap, the best is on top."""
    labels = _large_labels(sample)
    if labels is not None:
        with suppress(OverflowError):
            chunks, numbers, boxes, areas = _packed(labels.bands(layer.CHUNK), labels.image_hw, track)
            return Start("predicted", _table(numbers, boxes, areas), State(), chunks)
    return start_from(sample.read_instances(), recorded_threshold(dataset.info), track)


def _large_labels(sample: Sample) -> LargeLabels | None:
    """The labels of an image, if its objects are those of a large label image and have nothing but their pixels."""
    from cellwright.data.formats.label_images import LoadLabels
    from cellwright.data.formats.large_labels import LargeLabels

    if isinstance(sample.load, LargeLabels):
        return sample.load
    return sample.load.large() if isinstance(sample.load, LoadLabels) else None


def start_from(instances: Instances, threshold: ScoreThreshold, track: Track = no_progress) -> Start:
    """The objects of an image with their scores; ignored ones become regions that are not annotated.

    The page has one limit for all classes, the lowest; what is above it and below the limit of its class is left out.
    """
    min_score = float(np.float32(np.min(threshold)))
    if instances.scores is not None and isinstance(threshold, tuple):
        reported = reaches_threshold(instances.scores, instances.class_ids, threshold)
        instances = instances[reported | (instances.scores < np.float32(min_score))]
    regions = tuple(
        _outline([[*ring, ring[0]] for ring in polygon])
        for of_object in instances.masks[instances.ignore].to_polygons()
        for polygon in of_object
    )
    chosen = instances[~instances.ignore & (instances.masks.areas > 0)].by_score()
    if len(chosen) and int(chosen.ids.max()) >= 1 << 32:
        chosen = _renumbered(chosen)
    bands = _painted(chosen.masks, chosen.ids)
    chunks, numbers, boxes, areas = _packed(bands, chosen.image_hw, track)
    order = np.argsort(chosen.ids)
    rows = order[np.searchsorted(chosen.ids[order], numbers)]
    scores = None if chosen.scores is None else chosen.scores[rows]
    table = _table(numbers, boxes, areas, chosen.class_ids[rows], scores)
    n_covered = len(chosen) - len(numbers)
    message = (
        f"{count(n_covered, 'candidate')} not shown: others with a higher score cover all of it" if n_covered else ""
    )
    return Start("predicted", table, State(min_score=min_score, regions=regions), chunks, message=message)


def _table(
    numbers: np.ndarray,
    boxes: np.ndarray,
    areas: np.ndarray,
    class_ids: np.ndarray | None = None,
    scores: np.ndarray | None = None,
) -> Table:
    """The objects with these ids, boxes x0, y0, x1, y1 and areas; by default of the first class, without scores."""
    own_scores = np.full(len(numbers), np.nan, np.float32) if scores is None else scores
    columns = {
        "id": numbers,
        "y0": boxes[:, 1],
        "x0": boxes[:, 0],
        "y1": boxes[:, 3],
        "x1": boxes[:, 2],
        "area": areas,
        "score": own_scores,
        "class_id": np.zeros(len(numbers), np.int64) if class_ids is None else class_ids,
        "manual": np.isnan(own_scores),
    }
    return Table(columns)


def _renumbered(instances: Instances) -> Instances:
    return Instances.from_masks(instances.masks, class_ids=instances.class_ids, scores=instances.scores)


def _painted(masks: MaskSet, ids: np.ndarray) -> Iterator[np.ndarray]:
    """The label image in bands as high as a chunk; where masks overlap, the first is on top."""
    height, width = masks.image_hw
    for top in range(0, height, layer.CHUNK):
        bottom = min(top + layer.CHUNK, height)
        meets = np.flatnonzero((masks.boxes[:, 1] < bottom) & (masks.boxes[:, 3] > top))
        yield masks[meets].window(top, 0, bottom, width).to_label_map(ids[meets])


def _packed(
    bands: Iterator[np.ndarray], image_hw: tuple[int, int], track: Track
) -> tuple[dict[tuple[int, int], bytes], np.ndarray, np.ndarray, np.ndarray]:
    """The packed chunks of a label image that comes in bands as high as a chunk; and its `label_extents`.

    Raises `OverflowError` for an id that needs more than 32 bits.
    """
    chunks: dict[tuple[int, int], bytes] = {}
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    side = layer.CHUNK
    n_bands, n_columns = -(-image_hw[0] // side), -(-image_hw[1] // side)

    def pack(pixels: np.ndarray) -> bytes | None:
        return packed(pixels) if pixels.any() else None

    with ThreadPoolExecutor(_THREADS) as threads:
        for row, band in enumerate(track(bands, "opening", n_bands)):
            numbers, boxes, areas = label_extents(band)
            if numbers.size and numbers[-1] >= 1 << 32:
                raise OverflowError("an id does not fit into the pixels of the page")
            places = [(row, column) for column in range(n_columns)]
            made = threads.map(pack, (band[:, side * column : side * (column + 1)] for column in range(n_columns)))
            parts.append((numbers, boxes + np.array([0, row * side] * 2, np.int32), areas))
            chunks.update((place, data) for place, data in zip(places, made, strict=True) if data is not None)
    return chunks, *join_extents(parts)


def count_of(dataset: Dataset, sample: str, folder: Path, track: Track = no_progress) -> int:
    """The number of objects that are shown at first. track: around the reading of a large label image."""
    from cellwright.data.formats.tile_job import read_table

    if is_job_folder(folder):
        return len(read_table(folder, ["label"]))
    if (labels := _large_labels(dataset.sample(sample))) is not None:
        return labels.count(track)
    instances = dataset.sample(sample).read_instances()
    threshold = recorded_threshold(dataset.info)
    shown = reaches_threshold(instances.scores, instances.class_ids, threshold)
    return int((shown & ~instances.ignore & (instances.masks.areas > 0)).sum())


def start_of_job(folder: Path, image_hw: tuple[int, int], class_names: Sequence[str]) -> Start:
    """The objects of a tile job: its labels stay where they are, and are read chunk by chunk.

    What was not predicted, outside of regions and in tiles that failed, is a region that is not annotated. class_names:
    the class ids of the page are places among them.
    """
    from cellwright.core.claim import Claim
    from cellwright.data.formats.tile_job import LABELS_TIFF, LABELS_ZARR, read_table

    table = read_table(folder)
    labels = next(folder / name for name in (LABELS_ZARR, LABELS_TIFF) if (folder / name).exists())
    class_of = {name: k for k, name in enumerate(class_names)}
    try:
        columns = {name: table[column].to_numpy(np.float64) for name, column in _JOB_COLUMNS.items()}
        columns["class_id"] = np.array([class_of[name] for name in table["class"].tolist()], np.int64)
        columns["manual"] = np.zeros(len(table), bool)
        regions = _not_predicted(folder, image_hw)
    except (KeyError, TypeError, ValueError) as error:
        remedy = "write the outputs again: cellwright job finish"
        raise FormatError("this job is damaged", where=folder, got=str(error)[:200], remedy=remedy) from error
    claim = Claim.read(folder)
    files = {} if claim is None else claim.files
    written = sorted((name, getattr(files[name], "digest", "")) for name in files if name.split("/")[0] == labels.name)
    state = labels.stat()
    source = f"{labels.name}:{hash_of(written or (state.st_size, state.st_mtime_ns))}"
    start = Start("predicted", Table(columns), State(regions=regions), base=_reader(labels, image_hw), source=source)
    note = "what was not predicted is marked as not annotated"
    return replace(start, message=note) if regions else start


def _not_predicted(folder: Path, image_hw: tuple[int, int]) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Outlines around what was not predicted."""
    import shapely

    from cellwright.prediction.tiling.job import JobFacts
    from cellwright.prediction.tiling.regions import Regions

    stored, parts = read_json(folder / JOB_FILE).get("regions"), list[Any]()
    if stored is not None:
        parts.append(shapely.box(0, 0, image_hw[1], image_hw[0]).difference(Regions.from_dict(stored).area))
    if any((folder / "tiles").glob("*.failed.json")):
        job = JobFacts.read(folder)
        for failure in job.ledger(folder).failures():
            y0, x0, y1, x1 = job.grid.source_window(job.grid[failure.tile].core)
            parts.append(shapely.box(x0, y0, x1, y1))
    if not parts:
        return ()
    rest = shapely.union_all(parts)
    outlines = []
    for polygon in shapely.get_parts(rest):
        if isinstance(polygon, shapely.Polygon):
            rings = [polygon.exterior, *polygon.interiors]
            outlines.append(_outline([shapely.get_coordinates(ring).tolist() for ring in rings]))
    return tuple(outlines)


def _outline(rings: Sequence[Sequence[Sequence[float]]]) -> tuple[tuple[float, float], ...]:
    """One outline of y, x from closed rings of x, y; holes are joined to the first, the outer one, by cuts."""
    points = list(rings[0])
    for hole in rings[1:]:
        points += [*hole, points[0]]
    return tuple((float(y), float(x)) for x, y in points)


def hash_of(value: Any) -> str:
    """A short digest of a value."""
    import hashlib

    return hashlib.blake2b(repr(value).encode(), digest_size=12).hexdigest()


def _reader(labels: Path, image_hw: tuple[int, int]) -> Callable[[int, int], np.ndarray]:
    """Reads chunks of a label image on disk."""
    grid = Chunks(image_hw)
    try:
        read = (_zarr_reader if labels.is_dir() else _tiff_reader)(labels, image_hw)
    except (CellwrightError, MemoryError):
        raise
    except Exception as error:  # on damaged files, readers raise whatever their codecs raise
        raise _damaged(labels, error) from error

    def chunk(row: int, column: int) -> np.ndarray:
        try:
            return read(grid.box_of(row, column))
        except Exception as error:  # as above
            raise _damaged(labels, error) from error

    return chunk


def _zarr_reader(labels: Path, image_hw: tuple[int, int]) -> Callable[[Box], np.ndarray]:
    import zarr

    from cellwright.data.formats.large_labels import level_of

    values = level_of(zarr.open_group(labels, mode="r"))
    if tuple(values.shape) != tuple(image_hw):
        raise ValueError(f"{values.shape} instead of {image_hw}")
    return lambda box: np.asarray(values[box.y0 : box.y1, box.x0 : box.x1])


def _tiff_reader(labels: Path, image_hw: tuple[int, int]) -> Callable[[Box], np.ndarray]:
    """Of the tiled TIFFs that tile jobs write; the file is open only while it is read."""
    from cellwright.data.formats.large_labels import tile_labels
    from cellwright.data.images.tiff import open_tiff

    with open_tiff(labels) as tif:
        first: Any = tif.pages.first
        if tuple(first.shape) != tuple(image_hw) or not first.is_tiled:
            raise ValueError(f"{first.shape} instead of tiles of {image_hw}")

    def read(box: Box) -> np.ndarray:
        pixels = np.zeros(box.hw, np.uint32)
        with open_tiff(labels) as tif:
            page: Any = tif.pages.first
            height, width = page.tilelength, page.tilewidth
            per_row = -(-image_hw[1] // width)
            for row in range(box.y0 // height, -(-box.y1 // height)):
                for column in range(box.x0 // width, -(-box.x1 // width)):
                    index = row * per_row + column
                    tile = tile_labels(tif, page, index)
                    if tile is None:
                        continue
                    of_tile = Box(row * height, column * width, (row + 1) * height, (column + 1) * width)
                    part = Box(max(of_tile.y0, box.y0), max(of_tile.x0, box.x0), *of_tile[2:]).clipped((box.y1, box.x1))
                    pixels[part.within(box)] = tile[part.within(of_tile)]
        return pixels

    return read


def _damaged(labels: Path, error: Exception) -> FormatError:
    got = f"{type(error).__name__}: {error}"[:200]
    remedy = "write the outputs again: cellwright job finish"
    return FormatError("this label image is damaged", where=labels, got=got, remedy=remedy)
