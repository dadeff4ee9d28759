"""The report of a prediction folder: counts and distributions, pictures, what was assumed and what failed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from yaml import YAMLError

from cellwright.core.claim import Claim, is_as_written
from cellwright.core.errors import CellwrightError, InputError
from cellwright.core.files import read_text
from cellwright.core.notes import separate
from cellwright.core.safe_yaml import parse_yaml
from cellwright.core.table import from_csv_cell
from cellwright.core.text import count, listed
from cellwright.data.formats.json_stream import stream_json
from cellwright.data.formats.paths import output_path
from cellwright.data.formats.predictions import EDITABLE
from cellwright.prediction.job import (
    CONTACT_SHEET,
    ENDINGS,
    FAILURES,
    MEASUREMENTS,
    PLATE,
    PREDICTIONS,
    RECIPE,
    SUMMARY,
    WELLS,
)
from cellwright.prediction.stacks import PICTURE, STACKS
from cellwright.prediction.summaries import caption, evenly_chosen, notes_of
from cellwright.report.corrected import Corrections
from cellwright.report.distributions import Objects, distributions, read_objects
from cellwright.report.page import (
    Cell,
    Charts,
    Command,
    Facts,
    Listing,
    Notes,
    Page,
    Part,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    decimals,
    embedded,
    embedded_pixels,
    joined,
    listed_rows,
)
from cellwright.report.svg import bars, histogram, short

MAX_PICTURES, MAX_BARS = 12, 16
_STACK_PICTURES = 4
_WIDE_PX = 1500
_TEXT_COLUMNS = ("image", "network", "diameter_from", "notes")


@dataclass(frozen=True)
class _Found:
    """What the files of a prediction folder say. rows: of summary.csv. about: `made_by`, see `prediction.job`."""

    folder: Path
    about_all: Path
    rows: Sequence[Mapping[str, Any]]
    failures: Sequence[Mapping[str, str]]
    class_names: Sequence[str]
    about: Mapping[str, Any]
    request: Mapping[str, Any]
    recipe_yaml: str
    corrections: Corrections | None = None
    objects: Objects | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_objects(self) -> int:
        return sum(row["objects"] for row in self.rows)


def prediction_page(folder: Path, about_all: Path | None = None) -> Page:
    """The report of a prediction folder. about_all: where the files about all images are, while they are written.

    Reads one picture at a time, and of measurements what is shown. Raises `InputError` for a folder that is not
    complete, and `FormatError` for damaged files.
    """
    found = _read(folder, folder if about_all is None else about_all, is_new=about_all is not None)
    is_fused = found.about.get("verb") == "fuse" or "fuse" in found.recipe
    title = f"{count(found.n_objects, 'object')} in {count(len(found.rows), 'image')}"
    sections = [
        Section("Assumptions and failures", _problems(found)),
        Section("Pictures", _pictures(found)),
        Section("Stacks", _stacks(found)),
        Section("Counts", _counts(found)),
        Section("Wells", _wells(found)),
        Section("Measurements", _measurements(found)),
        Section("How it was made", _how(found)),
    ]
    state = ""
    if found.failures:
        state = (
            f"{count(len(found.failures), 'image')} could not be predicted and {_is(len(found.failures))} missing here."
        )
    return Page("Fused predictions" if is_fused else "Prediction", title, _figures(found), sections, state=state)


def _is(n: int) -> str:
    return "is" if n == 1 else "are"


def _read(folder: Path, about_all: Path, *, is_new: bool) -> _Found:
    info: dict[str, Any] = {}
    names: list[str] = []
    for element in stream_json(about_all / PREDICTIONS, frozenset({"images"})):
        if element.section == "info":
            info = dict(element.text_value())
        elif element.section == "categories":
            names = [str(category["name"]) for category in element.text_value()]
        elif element.section == "images":
            break  # all that follows is large
    rows = [_typed_row(row) for row in read_rows(about_all / SUMMARY)]
    claim = None
    with suppress(CellwrightError):
        claim = Claim.read(folder)
    is_changed = not is_new and claim is not None and _is_changed(folder, rows, claim)
    corrections = Corrections.of(folder) if is_changed else None
    if corrections is not None:
        rows, names = [corrections.row(row) for row in rows], list(corrections.class_names)
    about = info.get("made_by")
    recipe_yaml = read_text(about_all / RECIPE) if (about_all / RECIPE).is_file() else ""
    recipe = {}
    with suppress(YAMLError):
        recipe = parse_yaml(recipe_yaml)
    return _Found(
        folder,
        about_all,
        rows,
        read_rows(about_all / FAILURES) if (about_all / FAILURES).is_file() else (),
        names,
        about if isinstance(about, dict) else {},
        dict(claim.request or {}) if claim is not None else {},
        recipe_yaml,
        corrections,
        _objects(about_all / MEASUREMENTS, sum(row["objects"] for row in rows), corrections),
        recipe if isinstance(recipe, dict) else {},
    )


def _objects(path: Path, n_objects: int, corrections: Corrections | None) -> Objects | None:
    if corrections is None or not path.is_file():
        return read_objects(path, n_objects)
    return read_objects(path, n_objects, instead=(frozenset(corrections.samples), corrections.tables()))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a small CSV table that was written by `core.table`. Raises `InputError` if it is missing."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: from_csv_cell(text or "") for name, text in row.items()} for row in csv.DictReader(file)]
    except OSError as error:
        remedy = "run the command that writes this folder again"
        raise InputError("a file that the report needs is missing", where=path, remedy=remedy) from error


def _typed_row(row: Mapping[str, str]) -> dict[str, Any]:
    return {name: text if name in _TEXT_COLUMNS else _number(text) for name, text in row.items()}


def _number(text: str) -> int | float | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)


def _is_changed(folder: Path, rows: Sequence[Mapping[str, Any]], claim: Claim) -> bool:
    """Whether a file that can be corrected has other bytes than were written."""
    endings = EDITABLE.values()
    names = (output_path(Path(), row["image"], ending).as_posix() for row in rows for ending in endings)
    return any(name in claim.files and not is_as_written(folder, name, claim.files[name]) for name in names)


# --- the sections


def _figures(found: _Found) -> list[tuple[Cell, str]]:
    figures: list[tuple[Cell, str]] = [
        (found.n_objects, "objects" if len(found.class_names) != 1 else f"objects ({found.class_names[0]})"),
        (len(found.rows), "images"),
    ]
    if found.failures:
        figures.append((len(found.failures), "images failed"))
    if found.rows:
        each = [row["objects"] for row in found.rows]
        figures.append((float(np.median(each)), f"objects per image, median ({min(each):,} to {max(each):,})"))
        figures.append(
            (f"{100 * np.mean([row['foreground_share'] for row in found.rows]):.1f} %", "of the area in objects")
        )
    if found.objects is not None and len(found.objects):
        area, unit = found.objects.median_area
        figures.append((area, f"median area, {unit}"))
    return figures


def _problems(found: _Found) -> list[Part]:
    lines = []
    if found.corrections is not None:
        corrected, conflicts = list(found.corrections.samples), found.corrections.conflicts
        if corrected:
            images = f"{count(len(corrected), 'image')} ({listed(corrected)})"
            lines.append(
                f"the objects of {images} were corrected after the prediction; this report shows the corrected ones"
            )
        if conflicts:
            images = f"{count(len(conflicts), 'image')} ({listed(list(conflicts))})"
            reasons = joined(dict.fromkeys(conflicts.values()))
            lines.append(f"warning: the corrections of {images} are not shown: {reasons}")
    lines += notes_of(found.rows) if found.rows else []
    lines += grouped_notes({row["image"]: row.get("notes") or "" for row in found.rows})
    parts: list[Part] = [Notes(lines)] if lines else []
    if found.failures:
        parts.append(failure_table(found.failures, FAILURES))
    elif not lines:
        parts.append(Text("No image failed, and no assumption about the images was needed."))
    else:
        parts.append(Text("No image failed."))
    omitted = [
        (what, sum(row[name] or 0 for row in found.rows))
        for what, name in (
            ("score below the threshold", "left_out_low_score"),
            ("smaller than the minimum area", "left_out_small"),
            ("touching the image border", "left_out_border"),
            ("beyond the maximum number of objects", "left_out_max_objects"),
        )
    ]
    rows = [(what, n) for what, n in omitted if n]
    return [*parts, Table(("omitted objects", "number"), rows)] if rows else parts


def grouped_notes(by_image: Mapping[str, str], most: int = 8) -> list[str]:
    """Notes of images: each text once, with the images that it is about."""
    images: dict[str, list[str]] = {}
    for image, notes in by_image.items():
        for note in separate(notes):
            images.setdefault(note, []).append(image)
    lines = [f"{text} ({count(len(names), 'image')}: {listed(names)})" for text, names in images.items()]
    rest = [f"{len(lines) - most} further notes: see {SUMMARY}"] if len(lines) > most else []
    return lines[:most] + rest


def failure_table(failures: Sequence[Mapping[str, str]], rest: str, name: str = "image") -> Table:
    """What failed, and why."""
    columns = (name, "problem", "got", "fix")
    rows, note = listed_rows([[row.get(column) or "" for column in columns] for row in failures], rest)
    return Table((name, "problem", "found", "what to do"), rows, title="Failures", note=note, n_text=4)


def _pictures(found: _Found) -> list[Part]:
    if not found.rows:
        return []
    overlays = [output_path(found.folder, row["image"], ENDINGS["overlay"]) for row in found.rows]
    present = [k for k, path in enumerate(overlays) if path.is_file()]
    chosen = [present[k] for k in evenly_chosen(len(present), MAX_PICTURES)]
    pictures = [_picture(found, found.rows[k], overlays[k]) for k in chosen]
    shown = [picture for picture in pictures if picture is not None]
    if shown:
        note = f"{len(shown)} of {count(len(found.rows), 'image')}, evenly spaced; the folder has them all."
        note = note if len(shown) < len(found.rows) else ""
        return [Pictures(shown, note=note, columns=2 if len(shown) in (1, 2, 4) else 3)]
    sheet = embedded(found.about_all / CONTACT_SHEET, "Contact sheet", longest_px=_WIDE_PX)
    return [] if sheet is None else [Pictures([sheet], columns=1)]


def _picture(found: _Found, row: Mapping[str, Any], overlay: Path) -> Picture | None:
    text = caption({**row, "image": short(row["image"])})
    if found.corrections is not None and row["image"] in found.corrections.samples:
        return embedded_pixels(found.corrections.picture(row["image"]), f"{text}, corrected")
    return embedded(overlay, text)


def _stacks(found: _Found) -> list[Part]:
    """The stacks whose planes were joined."""
    path = found.about_all / STACKS
    rows = read_rows(path) if path.is_file() else []
    if not rows:
        return []
    numbers = ("time_points", "planes", "objects_in_planes", "objects", "divisions")
    titles = ("image", "time points", "planes", "objects in planes", "objects or tracks", "divisions", "notes")
    table = [[row["image"], *(_number(row[name]) for name in numbers), row["notes"]] for row in rows]
    shown, note = listed_rows(table, STACKS)
    iou = next((row["stitch_iou"] for row in rows), "")
    text = f"Objects of consecutive planes or time points are one object from an overlap (IoU) of {iou} on."
    paths = (output_path(found.about_all, row["image"], PICTURE) for row in rows[:_STACK_PICTURES])
    pictures = [picture for one in paths if (picture := embedded(one, "", longest_px=_WIDE_PX)) is not None]
    return [Text(text), Table(titles, shown, note=note), *([Pictures(pictures, columns=1)] if pictures else [])]


def _counts(found: _Found) -> list[Part]:
    rows, classes = found.rows, found.class_names
    if not rows:
        return []
    columns = [f"objects_{name}" for name in classes] if len(classes) > 1 else ["objects"]
    columns = [name for name in columns if any(name in row for row in rows)] or ["objects"]
    parts: list[Part] = []
    if len(columns) > 1:
        totals = [sum(row.get(name) or 0 for row in rows) for name in columns]
        share = [100 * n / max(found.n_objects, 1) for n in totals]
        table = [(name, n, f"{part:.1f}") for name, n, part in zip(classes, totals, share, strict=False)]
        parts.append(Table(("class", "objects", "% of all"), table, title="Objects per class"))
    if 1 < len(rows) <= MAX_BARS:
        groups = {name.removeprefix("objects_"): [row.get(name) or 0 for row in rows] for name in columns}
        chart = bars([row["image"] for row in rows], groups, "objects", stacked=True)
        parts.append(Charts([("Objects per image", chart, "")]))
    elif len(rows) > MAX_BARS:
        each = np.array([row["objects"] for row in rows], float)
        chart = histogram({"images": each}, "objects per image", "images", whole=True)
        parts.append(Charts([("Objects per image", chart, "The dashed line is the median.")]))
    return [*parts, _image_table(rows, columns)]


def _image_table(rows: Sequence[Mapping[str, Any]], counted: Sequence[str]) -> Table:
    has_diameter = any(row.get("diameter_px") for row in rows)
    table: list[Sequence[Cell]] = []
    for row in rows:
        share = f"{100 * row['foreground_share']:.1f}"
        sizes = (f"{row['height_px']} x {row['width_px']}", *(row.get(name, 0) for name in counted))
        more = (row["diameter_px"],) if has_diameter else ()
        table.append((row["image"], *sizes, row["median_area_px"], share, decimals(row["mean_score"]), *more))
    objects = [name.removeprefix("objects_") for name in counted]
    columns = ("image", "size, px", *objects, "median area, px", "% of area in objects", "mean score")
    columns += ("diameter, px",) if has_diameter else ()
    shown, note = listed_rows(table, SUMMARY)
    return Table(columns, shown, note=note)


def _wells(found: _Found) -> list[Part]:
    path = found.about_all / WELLS
    if not path.is_file():
        return []
    rows = read_rows(path)
    known = [*(rows[0] if rows else {})]
    wanted = ("plate", "well", "images", "objects", "objects_per_image", "mean_area_um2", "mean_area_px")
    wanted += ("mean_nucleus_area_um2", "mean_nucleus_area_px", "mean_cell_area_um2", "mean_cell_area_px")
    columns = [name for name in wanted if name in known]
    n_text = sum(name in ("plate", "well") for name in columns)
    table = [[row[name] if k < n_text else _number(row[name]) for k, name in enumerate(columns)] for row in rows]
    shown, note = listed_rows(table, WELLS)
    titles = [name.replace("_px", ", px").replace("_um2", ", µm²").replace("_", " ") for name in columns]
    plates = sorted({found.about_all / PLATE, *found.about_all.glob(f"*_{PLATE}")})[:4]
    pictures = [embedded(plate, "", longest_px=_WIDE_PX) for plate in plates]
    present = [picture for picture in pictures if picture is not None]
    return [Table(titles, shown, note=note, n_text=n_text), *([Pictures(present, columns=1)] if present else [])]


def _measurements(found: _Found) -> list[Part]:
    if found.objects is None:
        return [Text("Measurements were not written with this prediction.")] if found.rows else []
    return [*distributions(found.objects), Text(f"All measurements of each object are in {MEASUREMENTS}.")]


def _how(found: _Found) -> list[Part]:
    about, options = found.about, dict(found.request.get("options") or {})
    reading = dict(found.request.get("reading") or {})
    names = about.get("model") or []
    facts = [
        ("model", joined(names)),
        ("recipe", recipe_line(found.recipe)),
        ("model digest", str(found.request.get("model", ""))),
        *([("network run with", str(about["backend"]))] if "backend" in about else []),
        *option_facts(options, found.class_names),
        *((name.replace("_", " "), _shown(value)) for name, value in reading.items()),
    ]
    if about.get("verb") == "fuse":
        words, chosen = [str(name) for name in about.get("predictions", [])], dict(about.get("options", {}))
    else:
        words, chosen = ["IMAGES"], {"model": names or ["MODEL"], **about.get("options", {})}
    command = Command(str(about.get("verb", "predict")), words, {**chosen, "out": "PREDICTIONS"}, title="Command")
    parts: list[Part] = [Facts(facts), command]
    parts += version_parts(about.get("versions"))
    if found.recipe_yaml:
        parts.append(Listing(f"The complete recipe ({RECIPE})", found.recipe_yaml))
    return parts


def recipe_line(recipe: Mapping[str, Any]) -> str:
    """Name and description of a recipe."""
    return ": ".join(str(recipe[key]) for key in ("name", "description") if recipe.get(key))


_OUTLINES = {"smooth": "smoothed", "fill_holes": "holes filled"}


def option_facts(options: Mapping[str, Any], class_names: Sequence[str]) -> list[tuple[str, Cell]]:
    """The options that decide which objects are kept, in words."""

    def by_class(value: Any, text: str) -> str:
        if value is None:
            return ""
        values = value if isinstance(value, list | tuple) else [value]
        if len(set(values)) == 1:
            return f"{values[0]:{text}}"
        return joined(f"{name} {one:{text}}" for name, one in zip(class_names, values, strict=False))

    return [
        ("score threshold", by_class(options.get("score"), ".3g")),
        ("minimum area, px", by_class(options.get("min_area"), "g")),
        ("maximum number of objects", options.get("max_objects")),
        ("objects touching the border", "omitted" if options.get("remove_border") else ""),
        ("outlines", joined(word for name, word in _OUTLINES.items() if options.get(name))),
        ("cells", f"objects expanded by {options['expand']}" if options.get("expand") else ""),
        ("scores", "calibrated: the expected IoU with the true outline" if options.get("calibration") else ""),
        ("diameter, px", options.get("diameter")),
        ("views (test-time augmentation)", _shown(options.get("views"))),
        ("network pruned to depth", options.get("pruned_to")),
        ("background ring, px", options.get("ring")),
    ]


def _shown(value: Any) -> str:
    if value is None or value in ([], ()):
        return ""
    return joined(value) if isinstance(value, list | tuple) else str(value)


def version_parts(versions: Any) -> list[Part]:
    """The versions with which a result was made, if they were recorded."""
    if not isinstance(versions, Mapping) or not versions:
        return []
    shown = [f"{name} {version}" for name, version in versions.items() if version]
    return [Facts([("versions", joined(shown))])]
