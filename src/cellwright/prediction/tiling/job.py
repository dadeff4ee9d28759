"""A job: one image of any size, predicted tile by tile into a folder, resumed and finished.

job.json            what the job is: source, model, options, facts, grid, tiles
tiles/              one file per tile
failures.csv        tiles that could not be predicted, and why
labels.tif or labels.zarr, objects.csv.gz or objects.parquet, objects.geojson.gz, summary.csv, overview.png, density.png
tissue.png          which tiles are skipped as background, if any
report.html         what was found, on one page
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.claim import Claim, Files, is_as_written, remove_ours
from cellwright.core.errors import CellwrightError, FormatError, OutputError
from cellwright.core.events import emit, plain
from cellwright.core.file_identity import FileIdentity
from cellwright.core.files import read_json, sweep, write_json, write_png, write_text
from cellwright.core.instances import Instances
from cellwright.core.notes import joined, summarise
from cellwright.core.output_folder import OutputFolder
from cellwright.core.progress import Track, no_progress
from cellwright.core.result_folders import JOB_FILE, REPORT
from cellwright.core.text import count, differences
from cellwright.data.formats.tile_job import LABELS_TIFF, LABELS_ZARR, OUTLINES, TABLE_CSV, TABLE_PARQUET
from cellwright.data.identity import digest_of
from cellwright.data.images.source import ImageSource
from cellwright.prediction.doubt import doubts, nothing_found
from cellwright.prediction.ledger import ABOUT_ALL
from cellwright.prediction.ledger import Ledger as Records
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.runners import Running
from cellwright.prediction.tiling.facts import ImageFacts
from cellwright.prediction.tiling.finish import (
    SCORE_STEP,
    FinalTiles,
    LabelPainter,
    resolve,
    write_objects_table,
    write_outlines,
)
from cellwright.prediction.tiling.grid import Grid
from cellwright.prediction.tiling.label_writers import LabelKind, write_label_tiff, write_label_zarr
from cellwright.prediction.tiling.ledger import TILES, Failure, Ledger
from cellwright.prediction.tiling.regions import Regions
from cellwright.prediction.tiling.seam_report import SeamReport
from cellwright.prediction.tiling.tissue import Tissue
from cellwright.prediction.tiling.units import MakeWork, TileUnits

FAILURES, SUMMARY = "failures.csv", "summary.csv"
OVERVIEW, DENSITY, TISSUE = "overview.png", "density.png", "tissue.png"
SCHEMA_VERSION = 1
MAX_TILES = 10_000_000
Draw = Callable[["JobFacts", ImageSource, FinalTiles, Sequence[Failure]], Mapping[str, np.ndarray]]
"""The pictures, uint8 RGB, by the names of their files; passed in, because `report` is above this package."""


@dataclass(frozen=True)
class JobFacts:
    """What ``job.json`` says.

    source: path, fingerprint, size, channels, pixel size. request: what identifies the job: digests and options.
    tiles: the numbers of the tiles to predict. regions: where objects are kept; None: everywhere. tissue: what tells
    which of the other tiles are skipped; None: no tile is. made_by: the names of models, the chosen options and the
    versions, which do not identify the job. key: what identifies the job in its tile files, a digest of the rest of
    what ``job.json`` says, whichever version wrote it.
    """

    source: Mapping[str, Any]
    request: Mapping[str, Any]
    class_names: tuple[str, ...]
    facts: ImageFacts
    grid: Grid
    tiles: tuple[int, ...]
    regions: Regions | None = None
    tissue: Tissue | None = None
    key: str = ""
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", _key_of(self._content()))

    @property
    def name(self) -> str:
        """The name of the file of the image."""
        return Path(str(self.source["path"])).name if self.source.get("path") else "image"

    @property
    def outline_place(self) -> dict[str, Any]:
        """The image to which outlines belong, and where: see `write_outlines`."""
        height, width = self.source.get("full_hw", self.facts.source_hw)
        down_y, down_x = self.source.get("downsample", (1.0, 1.0))
        place = {"full_hw": (int(height), int(width)), "downsample": (float(down_y), float(down_x))}
        return {"image_name": self.name, "sample_id": self.name, **place}

    def ledger(self, root: Path) -> Ledger:
        """The tile files of the job below ``root/tiles``."""
        return Ledger(root, self.tiles, self.key)

    def write(self, root: Path) -> None:
        """Write ``job.json``."""
        write_json(root / JOB_FILE, self._content())

    def _content(self) -> dict[str, Any]:
        grid = {"stride": self.grid.stride, "core_px": self.grid.core_px, "halo_px": self.grid.halo_px}
        is_all = self.tiles == tuple(range(len(self.grid)))
        return {
            "schema_version": SCHEMA_VERSION,
            "source": plain(dict(self.source)),
            "request": plain(dict(self.request)),
            "class_names": list(self.class_names),
            "facts": plain(self.facts.to_dict()),
            "grid": grid,
            "tiles": None if is_all else list(self.tiles),
            "regions": None if self.regions is None else self.regions.to_dict(),
            "tissue": None if self.tissue is None else self.tissue.to_dict(),
            **({"made_by": plain(dict(self.made_by))} if self.made_by else {}),
        }

    @staticmethod
    def read(root: Path) -> JobFacts:
        """Read ``job.json``. Raises `FormatError` if it is damaged, and `InputError` if it cannot be read."""
        path = root / JOB_FILE
        content = read_json(path)
        try:
            if content["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema_version {content['schema_version']!r}")
            facts = ImageFacts.from_dict(content["facts"])
            sizes = (int(content["grid"][name]) for name in ("stride", "core_px", "halo_px"))
            grid = Grid(facts.source_hw, facts.net_hw, *sizes)
            if min(grid.stride, grid.core_px) < 1 or grid.halo_px < 0 or len(grid) > MAX_TILES:
                raise ValueError("a size of the grid is out of range")
            Instances.empty(facts.source_hw)  # raises for a size that no image has
            _check_values(content["source"], content["request"])
            tiles = range(len(grid)) if content["tiles"] is None else map(int, content["tiles"])
            job = JobFacts(
                dict(content["source"]),
                dict(content["request"]),
                tuple(map(str, content["class_names"])),
                facts,
                grid,
                tuple(tiles),
                None if content.get("regions") is None else Regions.from_dict(content["regions"]),
                None if content.get("tissue") is None else Tissue.from_dict(content["tissue"]),
                _key_of(content),
                dict(content.get("made_by", {})),
            )
            if any(not 0 <= tile < len(grid) for tile in job.tiles):
                raise ValueError("a tile is not in the grid")
            if min(job.outline_place["downsample"]) <= 0:
                raise ValueError("the scale of the level is out of range")
        except (CellwrightError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            remedy = "start the job again in another folder"
            raise FormatError("the record of this job is damaged", where=path, got=str(error), remedy=remedy) from error
        return job


def _key_of(content: Mapping[str, Any]) -> str:
    """The digest of all that decides what a tile finds, which does not depend on the other tiles."""
    identifying = {name: value for name, value in content.items() if name != "made_by"}
    return digest_of(json.dumps({**identifying, "tiles": None}, sort_keys=True))


def _check_values(source: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    """Raise `ValueError` or `TypeError` if a value that is used later is not what was written."""
    options = request.get("options", {})
    size, path = source.get("pixel_size_um"), source.get("path")
    if not (size is None or (len(size) == 2 and all(isinstance(side, int | float) and side > 0 for side in size))):
        raise ValueError(f"pixel_size_um {size!r}")
    if not (path is None or isinstance(path, str)):
        raise TypeError(f"path {path!r}")
    for name in ("ring", "max_objects"):
        value = options.get(name)
        if not (value is None or (isinstance(value, int) and value >= 0)):
            raise ValueError(f"{name} {value!r}")
    if options.get("labels") not in (None, "tiff", "zarr"):
        raise ValueError(f"labels {options['labels']!r}")


@dataclass(frozen=True)
class JobReport:
    """What a job did.

    n_tiles: of the job, of which n_resumed were done before and failures failed. n_objects: in the whole image; None if
    other shards have not finished. seconds: of this run. notes: what a user should know, one sentence each.
    """

    n_tiles: int
    n_resumed: int
    n_objects: int | None
    seconds: float
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = field(default=())


def changed(
    job: JobFacts, source: Mapping[str, Any], request: Mapping[str, Any], own: PredictOptions | None = None
) -> list[str]:
    """What of a request differs from that of a job, in words. own: options that are the model's own."""
    found = []
    if source["fingerprint"] != job.source.get("fingerprint"):
        found.append("the image")
    before, now = dict(job.request), dict(request)
    known = {} if own is None else own.as_values()
    options = differences(now.pop("options", {}), before.pop("options", {}), known)
    return found + [name for name in {**before, **now} if before.get(name) != now.get(name)] + options


def check_under_way(folder: Path, job: JobFacts) -> None:
    """Raise `OutputError` if a folder has not this job any more, or if it is complete."""
    claim = Claim.read(folder)
    with suppress(CellwrightError):
        if claim is not None and claim.state == "writing" and JobFacts.read(folder).key == job.key:
            return
    problem = "the job was finished, replaced or removed by another process while this one predicted its tiles"
    raise OutputError(problem, where=folder, remedy="run the same command again")


def run_tiles(
    ledger: Ledger,
    job: JobFacts,
    make_work: MakeWork,
    running: Running,
    *,
    check: Callable[[], None],
    track: Track,
) -> tuple[int, float]:
    """Predict the tiles that are left; returns how many were done before, and the seconds per megapixel.

    check: called after each tile; raises if the folder is not that of the job any more.
    """
    mine = running.mine(ledger.tiles)
    left = ledger.left(mine)
    start, done, n_objects = time.perf_counter(), len(mine) - len(left), 0
    n_before, area = done, 0.0

    def seconds_per_mpx() -> float:
        return (time.perf_counter() - start) / max(area, 1e-9)

    def description() -> str:
        if not area:
            return "predicting tiles"
        where = "" if job.regions is None else " in and around the regions"
        return f"predicting tiles ({count(n_objects, 'object')}{where}, {seconds_per_mpx():.1f} s per megapixel)"

    outcomes = running.outcomes(TileUnits(make_work, ledger), left)
    with closing(outcomes):
        for outcome in track(outcomes, description, len(left)):
            n_found = outcome.result or 0
            done, n_objects = done + 1, n_objects + n_found
            check()
            if running.progress is not None:
                running.progress(done, len(mine))
            core = job.grid.source_window(job.grid[outcome.unit].core)
            area += core.hw[0] * core.hw[1] / 1e6
            fields = {"tile": outcome.unit, "objects": n_found, "progress": {"done": done, "total": len(mine)}}
            if outcome.failure is None:
                text = f"tile {outcome.unit}: {count(n_found, 'object')}"
                emit("tile", text, fields | {"seconds": round(outcome.seconds, 3)})
            else:
                text = f"tile {outcome.unit}: {outcome.failure.problem}"
                emit("failure", text, fields | outcome.failure.parts())
    return n_before, seconds_per_mpx() if area else 0.0


def finish(
    output: OutputFolder,
    job: JobFacts,
    source: ImageSource,
    *,
    draw: Draw | None = None,
    report: Callable[[Path, Path], str] | None = None,
    track: Track = no_progress,
) -> tuple[FinalTiles, Files, list[str]]:
    """Write the outputs of a job whose tiles are done or failed: the final tiles, all files of the job, and notes.

    The options are those of the job's request. report: the folder, and where the outputs are -> report.html.
    """
    options = dict(job.request.get("options", {}))
    root, ledger, records = output.root, job.ledger(output.root), Records(output.progress)
    failures = ledger.failures()
    limits = {"ring_px": options.get("ring"), "max_objects": options.get("max_objects"), "regions": job.regions}
    final = job.ledger(output.progress / "final")
    tiles = resolve(ledger, final, job.grid, source, **limits, track=track)
    if job.made_by.get("calibrated"):
        doubt = doubts(np.arange(len(tiles.score_counts)) * SCORE_STEP, tiles.score_counts)
        tiles = replace(tiles, notes=(*tiles.notes, *doubt))
    diameter = job.facts.diameter
    if not tiles.n_objects and not (diameter is not None and diameter.is_noise):
        tiles = replace(tiles, notes=(*tiles.notes, nothing_found(uses_diameter=diameter is not None)))
    with records.staging(ABOUT_ALL) as staging:
        _write_large(staging, job, tiles, source, options.get("labels"), track)
        seams = SeamReport.of(job.grid, tiles, job.regions)
        write_text(staging / SUMMARY, _summary(job, tiles, seams, failures))
        write_text(staging / FAILURES, _failures_csv(failures))
        for name, picture in ({} if draw is None else draw(job, source, tiles, failures)).items():
            write_png(staging / name, picture)
        if report is not None:
            write_text(staging / REPORT, report(root, staging))
        claim = Claim.read(root)
        known = {} if claim is None else claim.files
        files: dict[str, FileIdentity | None] = {}
        files |= records.move_in(ABOUT_ALL, staging, root, shown=output.shown, known=known)
    sweep(root / TILES)  # of processes that were killed
    others = [JOB_FILE, *(f"{TILES}/{p.name}" for p in (root / TILES).iterdir() if not p.name.startswith("."))]
    for name in known.keys() - files.keys() - {*others}:  # of a job that goes on
        if is_as_written(root, name, known[name]):
            remove_ours(root, name)
    notes = summarise(tiles.notes, noun="tile") + seams.warnings()
    return tiles, dict.fromkeys(others) | files, notes


def _write_large(
    root: Path, job: JobFacts, tiles: FinalTiles, source: ImageSource, labels: LabelKind | None, track: Track
) -> None:
    """The table, the outlines and the label image."""
    if labels is None:
        labels = "zarr" if find_spec("zarr") is not None else "tiff"
    table = TABLE_PARQUET if find_spec("pyarrow") is not None else TABLE_CSV
    write_objects_table(root / table, tiles, job.class_names, track=track)
    write_outlines(root / OUTLINES, tiles, job.class_names, **job.outline_place, track=track)
    hw, painter, pixel_size = job.grid.source_hw, LabelPainter(tiles), source.pixel_size_um
    if labels == "zarr":
        write_label_zarr(root / LABELS_ZARR, hw, painter, pixel_size_um=pixel_size, track=track)
    else:
        write_label_tiff(root / LABELS_TIFF, hw, painter, pixel_size_um=pixel_size, track=track)


def _summary(job: JobFacts, tiles: FinalTiles, report: SeamReport, failures: Sequence[Failure]) -> str:
    """One row: what was found, and how."""
    diameter = job.facts.diameter
    row: dict[str, Any] = {
        "image": job.name,
        "height_px": job.grid.source_hw[0],
        "width_px": job.grid.source_hw[1],
        "objects": tiles.n_objects,
        "tiles": len(job.tiles),
        "tiles_skipped": len(job.grid) - len(job.tiles),
        "tiles_failed": len(failures),
        "copies_dropped": tiles.n_copies,
        "objects_without_owner": tiles.n_adopted,
        **report.columns(),
        "network": job.facts.method.get("network"),
        "diameter_px": None if diameter is None or diameter.px is None else round(float(diameter.px), 2),
        "diameter_from": None if diameter is None else "estimated" if diameter.estimated else "given",
        "network_scale": round(job.grid.scale_yx[0], 4),
        "notes": joined((*job.facts.notes, *tiles.notes)),
    }
    return _csv([row])


def _failures_csv(failures: Sequence[Failure]) -> str:
    rows = [vars(failure) | {"where": Path(failure.where).name} for failure in failures]
    return _csv(rows, ("tile", "problem", "where", "got", "fix"))


def _csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names or rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def refuse_other(output: OutputFolder, differences: Sequence[str], *, unfinished: bool) -> None:
    """Raise `OutputError` if a folder has the job of another request."""
    if differences:
        kind = "another unfinished job" if unfinished else "another job"
        raise OutputError(
            f"this folder has {kind}",
            where=output.shown,
            got=f"changed since: {', '.join(differences)}",
            remedy="use `overwrite=True` to start again, or choose another `out`",
        )
