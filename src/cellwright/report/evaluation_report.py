"""The report of an evaluation: metrics with intervals, errors by kind and in pictures, classes, images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.claim import Claim
from cellwright.core.errors import CellwrightError, FormatError
from cellwright.core.files import read_json
from cellwright.core.text import count
from cellwright.data.formats.paths import output_path
from cellwright.report.change_picture import CHANGES
from cellwright.report.error_picture import MARKS, PREDICTED_STYLES, TRUTH_STYLES
from cellwright.report.evaluation_figures import CONFUSION, PR_CURVE
from cellwright.report.page import (
    Cell,
    Charts,
    Command,
    Facts,
    Notes,
    Page,
    Part,
    Pictures,
    Section,
    Table,
    Text,
    decimals,
    embedded,
    joined,
    listed_rows,
)
from cellwright.report.prediction_report import MAX_BARS, read_rows, version_parts
from cellwright.report.svg import Interval, Line, bars, histogram, intervals, line_chart, short

MAX_PICTURES = 8
_PICTURE_PX, _WIDE_PX = 1000, 1600
_THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
# What the most important metrics measure; docs/metrics.md defines them all.
MEANINGS = {
    "AP@all": "average precision of masks over IoU 0.5 to 0.95",
    "AP50@all": "average precision at IoU 0.5",
    "kaggle_score": "mean accuracy over IoU 0.5 to 0.95 (Data Science Bowl 2018)",
    "accuracy@0.5": "matched / (matched + missed + unmatched predictions), at IoU 0.5",
    "pq": "panoptic quality: F1 at IoU 0.5, times the mean IoU of the matched objects",
    "aji": "aggregated Jaccard index: pixels in both / pixels in either, over all objects",
}
_KINDS = {
    "correct": "matched one to one at an IoU of at least 0.5",
    "wrong_class": "matched, but with another class",
    "merged": "several annotated objects in one prediction",
    "split": "one annotated object in several predictions",
    "poorly_outlined": "found, but with an IoU below 0.5",
    "missed": "no prediction corresponds to it",
    "duplicate": "a further prediction of an object that was found already",
    "spurious": "no annotated object corresponds to it",
    "ignored": "in a region that is not evaluated",
}


def evaluation_page(folder: Path) -> Page:
    """The report of an evaluation folder of one prediction, or of two that are compared.

    Raises `InputError` for a folder without the files of an evaluation, and `FormatError` for damaged ones.
    """
    if not (folder / "metrics.json").is_file() and (folder / "comparison.csv").is_file():
        return _comparison_page(folder)
    content = read_json(folder / "metrics.json")
    try:
        return _page(folder, content, values_of(content), read_rows(folder / "per_image.csv"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        remedy = "evaluate again, with `overwrite=True`"
        where = folder / "metrics.json"
        raise FormatError("this evaluation is damaged", where=where, got=repr(error), remedy=remedy) from error


def _page(
    folder: Path, content: Mapping[str, Any], values: Mapping[str, float], rows: Sequence[Mapping[str, str]]
) -> Page:
    n_images, n_truth, n_predicted = (int(values[f"n_{name}"]) for name in ("images", "truth", "predicted"))
    headline = [(name, values[name]) for name in ("AP@all", "AP50@all", "accuracy@0.5", "pq") if name in values]
    figures: list[tuple[Cell, str]] = [
        (n_images, "images"),
        (n_truth, "annotated objects"),
        (n_predicted, "predictions"),
        *((decimals(value), name) for name, value in headline),
    ]
    about = content.get("made_by") or {}
    names = joined(about.get("predictions", []))
    title = f"{names}: {count(n_predicted, 'prediction')} against {count(n_truth, 'annotated object')}"
    sections = [
        Section("Before you quote a value", _notes(content)),
        Section("Metrics", metric_parts(content, values)),
        Section("Errors by kind", error_parts(content)),
        Section("Errors in pictures", error_pictures(folder, rows)),
        Section("Images", _images(rows)),
        Section("Precision, recall and classes", _classes(folder, content)),
        Section("Data", _data(about, values)),
        Section("How it was made", _how(folder, about)),
    ]
    return Page("Evaluation", title if names else title.partition(": ")[2], figures, sections)


def values_of(content: Mapping[str, Any]) -> dict[str, float]:
    """The metrics in a metrics.json; undefined ones are NaN."""
    return {str(name): _float(value) for name, value in content["values"].items()}


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _notes(content: Mapping[str, Any]) -> list[Part]:
    lines = [str(note) for note in content.get("notes", [])]
    return [Notes(lines)] if lines else [Text("There is nothing to watch out for.")]


def metric_parts(content: Mapping[str, Any], values: Mapping[str, float]) -> list[Part]:
    """The metrics of an evaluation with their intervals, as charts and tables."""
    rows = [
        Interval(str(row["metric"]), *(_float(row[key]) for key in ("value", "low", "high")))
        for row in content.get("intervals_95", [])
    ]
    parts: list[Part] = []
    charts = []
    if rows:
        charts.append(("Metrics with 95 % confidence intervals", intervals(rows), ""))
    if curves := _threshold_lines(values):
        chart = line_chart(curves, "IoU threshold", "value", y_range=(0, 1.02), marked=True)
        charts.append(
            ("How accurate the outlines are", chart, "The same objects, matched at increasingly strict IoU thresholds.")
        )
    if reliability := _reliability(content):
        charts.append(reliability)
    parts.append(Charts(charts))
    if rows:
        table = [
            (row.name, MEANINGS.get(row.name, ""), *(decimals(value) for value in (row.value, row.low, row.high)))
            for row in rows
        ]
        note = "95 % confidence intervals (CI): percentile bootstrap over images, 1,000 resamples."
        parts.append(Table(("metric", "definition", "value", "95 % CI from", "to"), table, n_text=2, note=note))
    chosen = [f"{name}@{iou}" for iou in ("0.5", "0.75", "0.9") for name in ("precision", "recall", "f1", "accuracy")]
    if all(name in values for name in chosen):
        by_iou = [
            (f"IoU {chosen[k].partition('@')[2]}", *(decimals(values[name]) for name in chosen[k : k + 4]))
            for k in (0, 4, 8)
        ]
        note = "Means over the images for which they are defined. All metrics are in metrics.json."
        parts.append(Table(("matching threshold", "precision", "recall", "F1", "accuracy"), by_iou, note=note))
    return parts if charts else parts[1:]


def _threshold_lines(values: Mapping[str, float]) -> dict[str, Line]:
    lines = {}
    for name in ("precision", "recall", "f1"):
        ys = np.array([values.get(f"{name}@{iou:g}", np.nan) for iou in _THRESHOLDS])
        if np.isfinite(ys).any():
            lines["F1" if name == "f1" else name] = Line(np.array(_THRESHOLDS), ys)
    return lines


def _reliability(content: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    table = content.get("tables", {}).get("reliability", [])
    rows = [(_float(row["mean_score"]), _float(row["mean_iou"])) for row in table if row.get("n")]
    if len(rows) < 2:
        return None
    scores, ious = (np.array(column) for column in zip(*rows, strict=True))
    chart = line_chart(
        {"": Line(scores, ious)}, "mean score", "mean IoU", y_range=(0, 1.02), marked=True, diagonal=True
    )
    return "What the scores mean", chart, "On the dotted line, a score equals the mean IoU with the annotated objects."


def error_parts(content: Mapping[str, Any]) -> list[Part]:
    """The errors of an evaluation by kind, as a chart and a table."""
    table = content.get("tables", {}).get("errors", [])
    rows = [(str(row["kind"]), int(row["truth"]), int(row["predictions"])) for row in table]
    rows = [row for row in rows if row[1] or row[2]]
    if not rows:
        return []
    names = [kind.replace("_", " ") for kind, _, _ in rows]
    groups = {"annotated objects": [row[1] for row in rows], "predictions": [row[2] for row in rows]}
    totals = [max(sum(group), 1) for group in groups.values()]
    shown = [
        (name, _KINDS.get(row[0], ""), row[1], _percent(row[1], totals[0]), row[2], _percent(row[2], totals[1]))
        for name, row in zip(names, rows, strict=True)
    ]
    columns = ("kind", "meaning", "annotated", "%", "predicted", "%")
    return [Charts([("", bars(names, groups, "number"), "")]), Table(columns, shown, n_text=2)]


def _percent(n: int, total: int) -> str:
    return f"{100 * n / total:.1f}"


def error_pictures(folder: Path, rows: Sequence[Mapping[str, str]]) -> list[Part]:
    """The pictures of the worst images in the folder of an evaluation. rows: those of per_image.csv."""
    ranked = sorted(rows, key=lambda row: float(row.get("accuracy@0.5") or "inf"))
    pairs = [(row, output_path(folder / "errors", row["image"], ".png")) for row in ranked if row["image"]]
    present = [(row, path) for row, path in pairs if path.is_file()]
    pictures = [embedded(path, _caption(row), longest_px=_PICTURE_PX) for row, path in present[:MAX_PICTURES]]
    shown = [picture for picture in pictures if picture is not None]
    if not shown:
        return []
    what = "image" if len(shown) == 1 else f"{len(shown)} images"
    note = f"The {what} with the lowest accuracy, worst first"
    note += f"; {len(present)} pictures are in errors/." if len(present) > len(shown) else "."
    return [Pictures(shown, note=f"{note} {_letters()}", columns=2)]


def change_pictures(folder: Path) -> Pictures | None:
    """The pictures of where two predictions differ, in the folder of their comparison; None if there are none."""
    table = folder / f"{CHANGES}.csv"
    rows = read_rows(table) if table.is_file() else []
    shown = []
    for row in rows:
        values = " → ".join(decimals(float(row[name] or "nan")) for name in ("first", "second"))
        size = f"{int(row['y1']) - int(row['y0'])} x {int(row['x1']) - int(row['x0'])} px"
        place = f"shown: {size} from y {row['y0']}, x {row['x0']}"
        text = f"{short(row['image'])}: accuracy@0.5 of the whole image {values}; {place}"
        shown.append(embedded(folder / row["picture"], text, longest_px=_WIDE_PX))
    present = [picture for picture in shown if picture is not None]
    if not present:
        return None
    what = "image" if len(present) == 1 else f"{len(present)} images"
    note = f"The {what} in which the most objects changed; of each, the part with most of these changes."
    return Pictures(present, note=f"{note} {_letters()}", columns=1)


def _letters() -> str:
    """What the letters in pictures of errors mean."""
    kinds = {kind: style.name.replace(" object", "") for kind, style in (TRUTH_STYLES | PREDICTED_STYLES).items()}
    return f"Letters: {joined(f'{MARKS[kind]} {name}' for kind, name in kinds.items())}."


def _caption(row: Mapping[str, str]) -> str:
    value = row.get("accuracy@0.5")
    accuracy = f", accuracy@0.5 {float(value):.3f}" if value else ""
    counts = f"{count(int(row['n_truth']), 'annotated object')}, {count(int(row['n_predicted']), 'prediction')}"
    return f"{short(row['image'])}: {counts}{accuracy}"


def _images(rows: Sequence[Mapping[str, str]]) -> list[Part]:
    if not rows:
        return []
    ranked = sorted(rows, key=lambda row: float(row.get("accuracy@0.5") or "inf"))
    wanted = ("accuracy@0.5", "pq", "aji", "errors_missed", "errors_merged", "errors_spurious")
    names = [name for name in wanted if name in rows[0]]
    table = [
        (
            row["image"],
            int(row["n_truth"]),
            int(row["n_predicted"]),
            *(_count_or_metric(name, row[name]) for name in names),
        )
        for row in ranked
    ]
    shown, note = listed_rows(table, "per_image.csv")
    titles = [name.removeprefix("errors_") for name in names]
    parts: list[Part] = [Table(("image", "annotated", "predicted", *titles), shown, note=note or "Worst images first.")]
    values = np.array([float(row.get("accuracy@0.5") or "nan") for row in rows])
    if len(rows) > 3 and np.isfinite(values).any():
        parts.insert(0, Charts([("Accuracy of each image at IoU 0.5", _spread(ranked, values), "")]))
    return parts


def _spread(ranked: Sequence[Mapping[str, str]], values: np.ndarray) -> Any:
    if len(ranked) > MAX_BARS:
        return histogram({"images": values}, "accuracy@0.5", "images")
    each = [float(row.get("accuracy@0.5") or "nan") for row in ranked]
    return bars([row["image"] for row in ranked], {"accuracy": each}, "accuracy@0.5", text=".2f")


def _count_or_metric(name: str, text: str) -> Cell:
    if not text:
        return None
    return int(float(text)) if name.startswith("errors_") else decimals(float(text))


def _classes(folder: Path, content: Mapping[str, Any]) -> list[Part]:
    parts: list[Part] = []
    rows = content.get("per_class", [])
    if len(rows) > 1:
        names = ("AP@all", "AP50@all", "pooled_accuracy@0.5", "pooled_pq")
        table = [
            (str(row["class"]), row["n_truth"], row["n_predicted"], *(decimals(row.get(name)) for name in names))
            for row in rows
        ]
        shown, note = listed_rows(table, "per_class.csv")
        columns = ("class", "annotated", "predicted", *(name.replace("pooled_", "") for name in names))
        parts.append(Table(columns, shown, note=note))
    figures = [(PR_CURVE, "Precision over recall")]
    figures += [(CONFUSION, "Annotated and predicted classes")] if len(rows) > 1 else []
    pictures = [embedded(folder / name, caption, longest_px=_PICTURE_PX) for name, caption in figures]
    present = [picture for picture in pictures if picture is not None]
    return [*parts, Pictures(present, columns=2)] if present else parts


def _data(about: Mapping[str, Any], values: Mapping[str, float]) -> list[Part]:
    facts: list[tuple[str, Cell]] = [
        ("ground truth", str(about.get("data") or "")),
        ("split", str(about.get("split") or "")),
        ("classes", joined(about.get("classes"))),
        ("sources", joined(about.get("sources"))),
        ("licence of the data", str(about.get("licence") or "")),
        ("images", int(values["n_images"])),
        ("annotated objects", int(values["n_truth"])),
        ("ignored regions", int(values.get("n_ignored", 0)) or None),
    ]
    return [Facts(facts)]


def _how(folder: Path, about: Mapping[str, Any]) -> list[Part]:
    request: Mapping[str, Any] = {}
    with suppress(CellwrightError):
        claim = Claim.read(folder)
        request = {} if claim is None or claim.request is None else claim.request
    command = about.get("options") or {}
    words = [str(name) for name in about.get("predictions", [])] or ["PREDICTIONS"]
    data = str(about.get("data") or "DATA")
    shown = Command("evaluate", words, {"data": data, **command, "out": "EVALUATION"}, title="Command")
    facts: list[tuple[str, Cell]] = [("digest of the ground truth", str(request.get("the ground truth", "")))]
    if "backend" in about:
        facts.append(("network run with", str(about["backend"])))
    return [Facts(facts), shown, *version_parts(about.get("versions"))]


def comparison_table(folder: Path) -> tuple[Table, tuple[str, str]]:
    """The metrics of two predictions side by side, and their names."""
    rows = read_rows(folder / "comparison.csv")
    columns = list(rows[0]) if rows else ["metric", "first", "second"]
    first, second = columns[1:3]
    table = [(row["metric"], *(decimals(float(row[name] or "nan")) for name in columns[1:])) for row in rows]
    titles = ["metric", first, second, "difference", "95 % CI from", "to", "p"][: len(columns)]
    note = (
        f"Difference: {second} minus {first}, on the same images. 95 % confidence interval (CI): paired percentile "
        "bootstrap over images, 1,000 resamples. If it includes 0, there is no evidence of a difference."
    )
    if all(row.get("p") for row in rows):
        note += " p is two-sided."
    elif titles[-1] == "p":  # too few images
        titles, table = titles[:-1], [row[:-1] for row in table]
    return Table(titles, table, note=note), (first, second)


def _comparison_page(folder: Path) -> Page:
    """The report of two predictions that are compared."""
    table, (first, second) = comparison_table(folder)
    picture = embedded(folder / PR_CURVE, "Precision over recall", longest_px=_PICTURE_PX)
    parts: list[Part] = [table]
    changed = change_pictures(folder)
    parts += [] if picture is None else [Pictures([picture], columns=2)]
    each = f"Each prediction has its own report, in the folders {first} and {second}."
    contents = [_content(folder / name) for name in (first, second)]
    about: Mapping[str, Any] = contents[0].get("made_by") or {}
    values = contents[0].get("values") or {}
    figures = [(values.get(f"n_{key}"), name) for key, name in (("images", "images"), ("truth", "annotated objects"))]
    notes = _shared_notes(
        [(name, content.get("notes") or []) for name, content in zip((first, second), contents, strict=True)]
    )
    sections = [
        Section("Before you quote a value", [Notes(notes)] if notes else []),
        Section("Metrics", parts),
        Section("Where they differ most", [] if changed is None else [changed]),
        Section("How it was made", [Text(each), *_how(folder, {**about, "predictions": [first, second]})]),
    ]
    known = [(int(n), name) for n, name in figures if n is not None]
    return Page("Comparison", f"{second} compared with {first}", known, sections)


def _content(folder: Path) -> Mapping[str, Any]:
    """The metrics.json of an evaluation; empty if it cannot be read."""
    with suppress(CellwrightError):
        content = read_json(folder / "metrics.json")
        return content if isinstance(content, Mapping) else {}
    return {}


def _shared_notes(notes: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """The notes on two predictions: those on both once, the others with the name of the prediction."""
    lines: dict[str, None] = {}
    for k, (name, own) in enumerate(notes):
        for note in map(str, own):
            is_shared, warning = note in notes[1 - k][1], "warning: " * note.startswith("warning: ")
            lines[note if is_shared else f"{warning}for {name}: {note.removeprefix('warning: ')}"] = None
    return list(lines)
