"""The objects with which an image begins: those of a prediction folder, a dataset, or a tile job; or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import CellwrightError, FormatError
from cellwright.core.files import read_json
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.result_folders import JOB_FILE, is_job_folder
from cellwright.core.scores import ScoreThreshold, reaches_threshold, recorded_threshold
from cellwright.core.text import count
from cellwright.serve.annotation import Start, State
from cellwright.serve.layer import Box, Chunks, Table, packed

_JOB_COLUMNS = {
    "id": "label",
    "y0": "bbox_y0_px",
    "x0": "bbox_x0_px",
    "y1": "bbox_y1_px",
    "x1": "bbox_x1_px",
    "area": "area_px",
    "score": "score",
}
# Larger label images are painted part by part.
_WHOLE_PX, _THREADS = 1 << 26, 2


def empty_start() -> Start:
    """No objects."""
    return Start("new", Table(), State())


def start_of(sample: Sample, dataset: Dataset) -> Start:
    """All objects of an image, candidates below the score threshold too; where they overlap, the best is on top."""
    return start_from(sample.read_instances(), recorded_threshold(dataset.info))


def start_from(instances: Instances, threshold: ScoreThreshold) -> Start:
    """The objects of an image with their scores; ignored ones become regions that are not annotated.

    The page has one limit for all classes, the lowest; what is above it and below the limit of its class is left out.
    """
    min_score = float(np.float32(np.min(threshold)))
    if instances.scores is not None and isinstance(threshold, tuple):
        reported = reaches_threshold(instances.scores, instances.class_ids, threshold)
        instances = instances[reported | (instances.scores < np.float32(min_score))]
    regions = tuple(
        tuple((float(y), float(x)) for x, y in polygon[0])
        for of_object in instances.masks[instances.ignore].to_polygons()
        for polygon in of_object
    )
    chosen = instances[~instances.ignore & (instances.masks.areas > 0)].by_score()
    if len(chosen) and int(chosen.ids.max()) >= 1 << 32:
        chosen = _renumbered(chosen)
    chunks, boxes, areas = _painted(chosen.masks, chosen.ids)
    seen = np.array([number in areas for number in chosen.ids.tolist()], bool)
    n_covered = int((~seen).sum())
    chosen = chosen[seen]
    order = [boxes[number] for number in chosen.ids.tolist()]
    sides = np.array(order, np.int64).reshape(-1, 4)
    scores = np.full(len(chosen), np.nan, np.float32) if chosen.scores is None else chosen.scores
    columns = {
        "id": chosen.ids,
        "y0": sides[:, 0],
        "x0": sides[:, 1],
        "y1": sides[:, 2],
        "x1": sides[:, 3],
        "area": np.array([areas[number] for number in chosen.ids.tolist()], np.int64),
        "score": scores,
        "class_id": chosen.class_ids,
        "manual": np.isnan(scores),
    }
    message = (
        f"{count(n_covered, 'candidate')} not shown: others with a higher score cover all of it" if n_covered else ""
    )
    return Start("predicted", Table(columns), State(min_score=min_score, regions=regions), chunks, message=message)


def _renumbered(instances: Instances) -> Instances:
    return Instances.from_masks(instances.masks, class_ids=instances.class_ids, scores=instances.scores)


def _painted(masks: MaskSet, ids: np.ndarray) -> tuple[dict[tuple[int, int], bytes], dict[int, Box], dict[int, int]]:
    """The packed chunks of the label image, and the visible box and area of each object that has a visible pixel."""
    grid = Chunks(masks.image_hw)
    chunks: dict[tuple[int, int], bytes] = {}
    boxes: dict[int, Box] = {}
    areas: dict[int, int] = {}
    height, width = masks.image_hw
    whole = masks.to_label_map(ids) if height * width <= _WHOLE_PX and len(masks) else None
    x0, y0, x1, y1 = masks.boxes.T

    def paint(place: tuple[int, int]) -> tuple[bytes, np.ndarray, MaskSet] | None:
        box = grid.box_of(*place)
        if whole is not None:
            pixels = whole[box.y0 : box.y1, box.x0 : box.x1]
        else:
            meets = np.flatnonzero((x0 < box.x1) & (box.x0 < x1) & (y0 < box.y1) & (box.y0 < y1))
            if not meets.size:
                return None
            pixels = masks[meets].window(box.y0, box.x0, box.y1, box.x1).to_label_map(ids[meets])
        parts, numbers = MaskSet.from_label_map(pixels)
        return (packed(pixels), numbers, parts) if len(parts) else None

    with ThreadPoolExecutor(_THREADS) as threads:
        places = list(grid)
        for place, done in zip(places, threads.map(paint, places), strict=True):
            if done is None:
                continue
            chunks[place], numbers, parts = done
            box = grid.box_of(*place)
            for number, part, area in zip(numbers.tolist(), parts.boxes.tolist(), parts.areas.tolist(), strict=True):
                of_part = Box(part[1] + box.y0, part[0] + box.x0, part[3] + box.y0, part[2] + box.x0)
                boxes[number] = of_part if number not in boxes else boxes[number].united(of_part)
                areas[number] = areas.get(number, 0) + area
    return chunks, boxes, areas


def count_of(dataset: Dataset, sample: str, folder: Path) -> int:
    """The number of objects that are shown at first."""
    from cellwright.data.formats.tile_job import read_table

    if is_job_folder(folder):
        return len(read_table(folder, ["label"]))
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
    """Outlines around what was not predicted; holes are joined to the outer line by a cut."""
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
            points = shapely.get_coordinates(polygon.exterior).tolist()
            for hole in polygon.interiors:
                points += [*shapely.get_coordinates(hole).tolist(), points[0]]
            outlines.append(tuple((float(y), float(x)) for x, y in points))
    return tuple(outlines)


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
                    if not page.databytecounts[index]:  # a tile of zeros need not be stored
                        continue
                    tif.filehandle.seek(page.dataoffsets[index])
                    tile = page.decode(tif.filehandle.read(page.databytecounts[index]), index)[0]
                    of_tile = Box(row * height, column * width, (row + 1) * height, (column + 1) * width)
                    part = Box(max(of_tile.y0, box.y0), max(of_tile.x0, box.x0), *of_tile[2:]).clipped((box.y1, box.x1))
                    pixels[part.within(box)] = tile.reshape(tile.shape[-3:-1])[part.within(of_tile)]
        return pixels

    return read


def _damaged(labels: Path, error: Exception) -> FormatError:
    got = f"{type(error).__name__}: {error}"[:200]
    remedy = "write the outputs again: cellwright job finish"
    return FormatError("this label image is damaged", where=labels, got=got, remedy=remedy)
