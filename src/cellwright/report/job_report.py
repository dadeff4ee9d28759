"""The report of a tile job, one image of any size: what was found and where, how the tiles fit, what failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellwright.core.claim import Claim, is_as_written
from cellwright.core.notes import separate
from cellwright.core.text import count
from cellwright.data.formats.tile_job import TABLE_CSV, TABLE_PARQUET
from cellwright.prediction.tiling.job import DENSITY, FAILURES, OVERVIEW, SUMMARY, TISSUE, JobFacts
from cellwright.prediction.tiling.seam_report import FAR_PX, NEAR_PX
from cellwright.report.distributions import Objects, chosen_columns, distributions, objects_of, read_objects, step_of
from cellwright.report.page import (
    Cell,
    Command,
    Facts,
    Notes,
    Page,
    Part,
    Pictures,
    Section,
    Table,
    Text,
    embedded,
    joined,
)
from cellwright.report.prediction_report import failure_table, option_facts, read_rows, version_parts
from cellwright.report.svg import short

_WIDE_PX, _PICTURE_PX = 1400, 1000
_CORRECTED = (
    "warning: the label image was corrected after the prediction. This report shows the objects as they were "
    "predicted; cellwright measure, evaluate and export use the corrected ones"
)
_BATCH_ROWS = 20_000
_NAMED = ("reading", "channel", "tile", "roi", "tissue", "labels")


def job_page(folder: Path, about_all: Path | None = None) -> Page:
    """The report of a tile job. about_all: where the outputs are, while they are written.

    Of a job that is not finished, it says what is done. Raises `FormatError` for damaged files.
    """
    outputs = folder if about_all is None else about_all
    job = JobFacts.read(folder)
    if not (outputs / SUMMARY).is_file():
        return _unfinished_page(folder, job)
    (row,) = read_rows(outputs / SUMMARY)
    failures = read_rows(outputs / FAILURES) if (outputs / FAILURES).is_file() else []
    n_objects = int(row["objects"])
    objects = _read_objects(outputs, n_objects)
    state = ""
    if failures:
        n = f"{count(len(failures), 'tile')} of {len(job.tiles):,}"
        state = f"{n} could not be predicted; their objects are missing here."
    sections = [
        Section(
            "Assumptions and failures",
            _problems(row, failures, is_corrected=about_all is None and _is_corrected(folder)),
        ),
        Section("Pictures", _pictures(outputs, job)),
        Section("Measurements", [] if objects is None else _measurements(objects, outputs)),
        Section("Tiles", _tiles(job, row)),
        Section("How it was made", _how(job)),
    ]
    figures = _figures(job, n_objects, len(failures), objects)
    return Page(
        "Prediction of a large image",
        f"{count(n_objects, 'object')} in {short(job.name)}",
        figures,
        sections,
        state=state,
    )


def _unfinished_page(folder: Path, job: JobFacts) -> Page:
    ledger = job.ledger(folder)
    failures = ledger.failures()
    n_left = len(ledger.left(verify=False)) - len(failures)
    done = len(job.tiles) - n_left - len(failures)
    figures: list[tuple[Cell, str]] = [(done, "tiles done"), (n_left, "tiles left"), (len(failures), "tiles failed")]
    reasons = Counter(failure.problem for failure in failures)
    rows = [(problem, n) for problem, n in reasons.items()]
    problems: list[Part] = [Table(("problem", "tiles"), rows)] if rows else [Text("No tile has failed so far.")]
    state = (
        "This job is not finished, and its objects have not been counted yet. Run the same command again to resume it."
    )
    sections = [Section("Failures", problems), Section("How it was made", _how(job))]
    return Page("Prediction of a large image", short(job.name), figures, sections, state=state)


def _read_objects(outputs: Path, n_objects: int) -> Objects | None:
    """The objects of the table; None without one, or without the package that reads it."""
    path = outputs / TABLE_PARQUET
    if not path.is_file():
        return read_objects(outputs / TABLE_CSV, n_objects)
    try:
        import pyarrow.parquet as pq
    except ImportError:
        return None
    with pq.ParquetFile(path, pre_buffer=False) as file:
        columns = ["class", *chosen_columns(file.schema_arrow.names)]
        parts = file.iter_batches(_BATCH_ROWS, columns=columns)
        tables = ({name: part[name].to_numpy(zero_copy_only=False) for name in columns} for part in parts)
        return objects_of(tables, step_of(n_objects))


def _figures(job: JobFacts, n_objects: int, n_failed: int, objects: Objects | None) -> list[tuple[Cell, str]]:
    height, width = job.grid.source_hw
    size = job.source.get("pixel_size_um")
    figures: list[tuple[Cell, str]] = [(n_objects, "objects"), (f"{height:,} x {width:,}", "size of the image, px")]
    if size is not None:
        um_y, um_x = size
        figures.append((f"{height * um_y / 1000:.3g} x {width * um_x / 1000:.3g}", "size of the image, mm"))
    cores = [job.grid.source_window(job.grid[tile].core).hw for tile in job.tiles]
    area = sum(h * w for h, w in cores)
    if area and job.regions is None and not n_failed:
        per_mm2 = None if size is None else n_objects / (area * size[0] * size[1] / 1e6)
        figures.append(
            (n_objects / (area / 1e6), "objects per megapixel") if per_mm2 is None else (per_mm2, "objects per mm²")
        )
    if objects is not None and len(objects):
        median, unit = objects.median_area
        figures.append((median, f"median area, {unit}"))
    figures.append((len(job.tiles), "tiles"))
    return [*figures, (n_failed, "tiles failed")] if n_failed else figures


def _is_corrected(folder: Path) -> bool:
    """Whether the label image was changed after it was written."""
    claim = Claim.read(folder)
    labels = {name: one for name, one in claim.files.items() if name.startswith("labels.")} if claim is not None else {}
    return any(not is_as_written(folder, name, one) for name, one in labels.items())


def _problems(row: Mapping[str, str], failures: Sequence[Mapping[str, str]], *, is_corrected: bool) -> list[Part]:
    lines = [_CORRECTED] if is_corrected else []
    lines += separate(row.get("notes", ""))
    if row.get("network"):
        lines.append(f"Network, chosen by the colours of the image: {row['network']}")
    if row.get("diameter_px"):
        lines.append(f"Object diameter: {row['diameter_px']} px ({row['diameter_from']})")
    parts: list[Part] = [Notes(lines)] if lines else []
    if failures:
        return [*parts, failure_table(failures, FAILURES, "tile")]
    return [
        *parts,
        Text("No tile failed." if lines else "No tile failed, and no assumption about the image was needed."),
    ]


def _pictures(outputs: Path, job: JobFacts) -> list[Part]:
    whole = embedded(
        outputs / OVERVIEW, "The whole image at reduced size, with the outlines of all objects", longest_px=_WIDE_PX
    )
    texts = {DENSITY: "Object density", TISSUE: "The tissue that was found; skipped tiles are dark"}
    others = [embedded(outputs / name, text, longest_px=_PICTURE_PX) for name, text in texts.items()]
    present = [picture for picture in others if picture is not None]
    parts: list[Part] = [] if whole is None else [Pictures([whole], columns=1)]
    return [*parts, *([Pictures(present, columns=2)] if present else [])]


def _measurements(objects: Objects, outputs: Path) -> list[Part]:
    table = TABLE_PARQUET if (outputs / TABLE_PARQUET).is_file() else TABLE_CSV
    return [*distributions(objects), Text(f"All measurements of each object are in {table}.")]


def _tiles(job: JobFacts, row: Mapping[str, str]) -> list[Part]:
    """The grid, and whether seams show."""
    facts: list[tuple[str, Cell]] = [
        ("tiles predicted", int(row["tiles"])),
        ("tiles skipped (no tissue, or outside the regions)", int(row["tiles_skipped"]) or None),
        ("tiles failed", int(row["tiles_failed"]) or None),
        ("tile side and overlap, in network pixels", f"{job.grid.core_px:,}, {job.grid.halo_px:,}"),
        ("network pixels per image pixel", row.get("network_scale", "")),
        ("duplicates in overlaps, removed", int(row["copies_dropped"])),
        ("objects found only by a neighbouring tile", int(row["objects_without_owner"])),
    ]
    ratios = [
        (name, row.get(key) or None)
        for key, name in (
            ("seam_density_ratio", f"density within {NEAR_PX} px of a seam, relative to up to {FAR_PX} px away"),
            ("seam_size_ratio", "median area, likewise"),
        )
    ]
    note = "Both ratios are 1, apart from chance, if the seams have no effect. A dash: too few objects to tell."
    return [
        Facts(facts),
        Table(("seams between tiles", "ratio"), [(name, _ratio(text)) for name, text in ratios], note=note),
    ]


def _ratio(text: str | None) -> Cell:
    return None if text is None or math.isnan(float(text)) else f"{float(text):.3f}"


def _word(value: Any) -> str:
    return joined(value) if isinstance(value, list | tuple) else str(value or "")


def _how(job: JobFacts) -> list[Part]:
    options = dict(job.request.get("options") or {})
    about = job.made_by
    shown = {name: options.get(name) for name in _NAMED}
    reading: Any = shown.pop("reading") or {}
    facts: list[tuple[str, Cell]] = [
        ("model", joined(about.get("model"))),
        ("model digest", str(job.request.get("the model", ""))),
        *([("network run with", str(about["backend"]))] if "backend" in about else []),
        ("channels of the image", joined(job.source.get("channels"))),
        ("pixel size (y, x), µm", joined(job.source.get("pixel_size_um"))),
        *option_facts(options, job.class_names),
        *((name, _word(value)) for name, value in shown.items() if value != "default"),
        *(
            (str(name).replace("_", " "), _word(value))
            for name, value in dict(reading).items()
            if value and name != "pixel_size"
        ),
    ]
    command = Command(
        "predict",
        [job.name],
        {"model": about.get("model") or ["MODEL"], **dict(about.get("options") or {}), "out": "JOB"},
        title="Command",
    )
    return [Facts(facts), command, *version_parts(about.get("versions"))]
