"""``export`` of a tile job: all objects of a large image in another format, as a stream."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cellwright.core.errors import InputError, OutputError, UsageError, did_you_mean
from cellwright.core.files import atomic_path
from cellwright.core.progress import Track
from cellwright.data.formats.tile_job import edited_labels
from cellwright.prediction.tiling.finish import FinalTiles, LabelPainter, resolve, write_outlines
from cellwright.prediction.tiling.job import JobFacts
from cellwright.prediction.tiling.label_writers import write_label_tiff
from cellwright.prediction.tiling.spatialdata_store import write_spatialdata

JOB_FORMATS = {
    "geojson": (".geojson", ".gz", ".json"),
    "labels_tiff": (".tif", ".tiff"),
    "coco_results": (".json",),
    "spatialdata": (".zarr",),
}
SPATIALDATA = "spatialdata"  # the only one that is a folder


def check_job_export(folder: Path, to: str, out: Path) -> None:
    """Raise `UsageError` for a format that a job cannot be exported to, `OutputError` if tiles are left."""
    if to not in JOB_FORMATS:
        expected = ", ".join(JOB_FORMATS)
        raise UsageError(
            "a tile job cannot be exported to this format",
            got=to,
            expected=expected,
            remedy=did_you_mean(to, JOB_FORMATS),
        )
    if out.suffix.lower() not in JOB_FORMATS[to]:
        raise UsageError("invalid name of the output", got=out.name, expected=f"a name ending in {JOB_FORMATS[to][0]}")
    job = JobFacts.read(folder)
    if (labels := edited_labels(folder)) is not None:
        remedy = "convert the job to a dataset, which has the corrected objects, and export that"
        raise InputError("the labels of this job were edited", where=labels, expected="as written", remedy=remedy)
    ledger = job.ledger(folder)
    failed = {failure.tile for failure in ledger.failures()}
    if any(tile not in failed for tile in ledger.left(verify=False)):
        raise OutputError("this job is not done", where=folder, remedy="run its predict command again")


def export_job(folder: Path, to: str, out: Path, track: Track) -> int:
    """Write the objects of a job to one file, or into the folder ``out`` of a store; returns their number."""
    job = JobFacts.read(folder)
    size = job.source.get("pixel_size_um")
    pixel_size = None if size is None else (float(size[0]), float(size[1]))
    with tempfile.TemporaryDirectory(prefix=".cellwright-", dir=out.parent) as scratch:
        options = dict(job.request.get("options", {}))
        final = resolve(
            job.ledger(folder),
            job.ledger(Path(scratch)),
            job.grid,
            None,
            max_objects=options.get("max_objects"),
            regions=job.regions,
            track=track,
        )
        match to:
            case "geojson":
                write_outlines(out, final, job.class_names, **job.outline_place, track=track)
                if out.suffix != ".gz":
                    _gunzip(out)
            case "labels_tiff":
                with atomic_path(out) as temporary:
                    write_label_tiff(
                        temporary, job.grid.source_hw, LabelPainter(final), pixel_size_um=pixel_size, track=track
                    )
            case "coco_results":
                _write_results(out, final, job.class_names, track)
            case "spatialdata":
                write_spatialdata(
                    out, final, job.class_names, job.grid.source_hw, pixel_size_um=pixel_size, track=track
                )
        return final.n_objects


def _write_results(out: Path, final: FinalTiles, class_names: Sequence[str], track: Track) -> None:
    """COCO results for one image, number 1; categories are numbered from 1."""
    with atomic_path(out) as temporary, temporary.open("w", encoding="ascii") as file:
        separator = "["
        for _, objects in track(final, "writing results", len(final.ledger.tiles)):
            assert objects.scores is not None
            for k, rle in enumerate(objects.masks.to_rle()):
                x0, y0, x1, y1 = objects.masks.boxes[k].tolist()
                entry = {
                    "image_id": 1,
                    "category_id": int(objects.class_ids[k]) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": float(objects.scores[k]),
                    "segmentation": rle,
                }
                file.write(separator + "\n" + json.dumps(entry))
                separator = ","
        file.write("[]\n" if separator == "[" else "\n]\n")


def _gunzip(path: Path) -> None:
    with atomic_path(path) as temporary, gzip.open(path) as packed, temporary.open("wb") as file:
        while block := packed.read(1 << 20):
            file.write(block)
