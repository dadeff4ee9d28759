"""The report of a training run, finished or not: recipe, data, curves, metrics, and what it takes to repeat it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import CellwrightError
from cellwright.core.files import read_json, read_text
from cellwright.core.text import count
from cellwright.data.identity import Identity
from cellwright.evaluation.data import HEADLINE
from cellwright.report.curves import overall_ap, per_class_ap
from cellwright.report.evaluation_report import (
    MEANINGS,
    change_pictures,
    comparison_table,
    error_parts,
    error_pictures,
    metric_parts,
    values_of,
)
from cellwright.report.page import (
    Cell,
    Charts,
    Command,
    Facts,
    Listing,
    Notes,
    Page,
    Part,
    Section,
    Table,
    Text,
    decimals,
    joined,
)
from cellwright.report.prediction_report import MAX_BARS, read_rows, recipe_line, version_parts
from cellwright.report.run_record import RunRecord, read_record
from cellwright.report.svg import MAX_POINTS, Line, bars, histogram, line_chart
from cellwright.training.run_folder import RunFolder

# Keys of a recipe that describe a training best, with what a report calls them.
_SETTINGS = (
    ("model.kind", "model"),
    ("model.init", "initial weights"),
    ("model.backbone.depth", "backbone depth"),
    ("model.encoder", "encoder"),
    ("model.width", "width"),
    ("model.target.kind", "target"),
    ("conventions", "conventions"),
    ("input.channels", "input channels"),
    ("input.diameter_px", "object diameter after resizing, px"),
    ("input.short_side", "shorter image side after resizing, px"),
    ("augment.crop_px", "crop, px"),
    ("train.length", "length"),
    ("train.batch_size", "images per step"),
    ("train.optimiser", "optimiser"),
    ("train.lr", "learning rate"),
    ("train.schedule", "schedule"),
    ("train.weight_decay", "weight decay"),
    ("train.seed", "seed"),
    ("evaluate.every", "evaluation every"),
    ("evaluate.best_by", "best model chosen by"),
)


def run_page(folder: Path) -> Page:
    """The report of a run. Times and memory are not part of it, so that the same run gives the same bytes.

    Raises `InputError` for a folder without a run, `FormatError` and `RecipeError` for damaged files.
    """
    record, paths = read_record(folder), RunFolder(folder)
    identity = _identity(paths)
    name = str(record.recipe.get("name") or "training")
    state = ""
    if not record.finished:
        state = f"This run is not finished: {record.state}. The same command resumes it."
        if record.diverged:
            state = f"This run {record.state}: its loss or gradient was not a finite number, or too large."
    validation = _validation(record, paths)
    sections = [
        Section("Best model on the validation images", _metrics(record, validation)),
        Section("Before and after training", _before_and_after(paths, validation)),
        Section("Errors on the validation images", _errors(paths, validation)),
        Section("Curves", _curves(record)),
        Section("Data", data_parts(record)),
        Section("Recipe", recipe_parts(record)),
        Section("How it was made", _how(record, paths)),
    ]
    return Page("Training run", name, _figures(record, identity), sections, _first(record, "description"), state)


def _first(record: RunRecord, key: str) -> str:
    return str(record.recipe.get(key) or "")


def _figures(record: RunRecord, identity: Identity | None) -> list[tuple[Cell, str]]:
    figures: list[tuple[Cell, str]] = [(record.step, "steps")]
    if identity is not None:
        splits = Counter(sample.split or "train" for sample in identity.samples.values())
        figures += [(n, f"{_split_name(split)} images") for split, n in splits.items()]
    if record.parameters is not None:
        millions = record.parameters / 1e6
        figures.append((f"{millions:.2f} M" if millions >= 0.1 else record.parameters, "parameters"))
    figures += [(decimals(value), f"{name}, validation") for name, value in _headline(record)[:2]]
    return figures


def _split_name(split: str) -> str:
    return {"train": "training", "val": "validation"}.get(split, split)


def _headline(record: RunRecord) -> list[tuple[str, float]]:
    return [(name, record.best.metrics[name]) for name in HEADLINE if name in record.best.metrics]


def recipe_parts(record: RunRecord) -> list[Part]:
    """The most important settings of the recipe of a run."""

    def value_at(key: str) -> Cell:
        value: Any = record.recipe
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            return joined(f"{name} {one}" for name, one in value.items() if one not in (None, [], {}))
        if isinstance(value, list | tuple):
            return joined(value)
        return value if isinstance(value, int | float) or value is None else _without_folder(key, str(value))

    facts: list[tuple[str, Cell]] = [("recipe", recipe_line(record.recipe))]
    return [Facts([*facts, *((name, value_at(key)) for key, name in _SETTINGS)])]


def _without_folder(key: str, text: str) -> str:
    """A value without a path of this machine."""
    return Path(text).name if key == "model.init" and "/" in text and ":" not in text else text


def _identity(paths: RunFolder) -> Identity | None:
    """The content of the images of a run; None if it was not recorded."""
    with suppress(CellwrightError):
        return Identity.from_dict(read_json(paths.inputs), paths.inputs)
    return None


def data_parts(record: RunRecord) -> list[Part]:
    """The images and objects that a run was trained and validated on."""
    paths = RunFolder(record.folder)
    identity, parts = _identity(paths), list[Part]()
    info: Mapping[str, Any] = {}
    with suppress(CellwrightError):
        info = read_json(paths.model / "model.json")
    if identity is not None:
        splits = list(dict.fromkeys(sample.split for sample in identity.samples.values()))
        rows: list[Sequence[Cell]] = []
        for split in splits:
            own = [sample for sample in identity.samples.values() if sample.split == split]
            counts, empty = identity.counts(split), sum(not sample.classes for sample in own)
            counts = counts if split is not None else Counter(_counted(own))
            classes = [counts[name] for name in identity.classes]
            rows.append((_split_name(split or "train"), len(own), empty, sum(classes), *classes))
        classes = list(identity.classes)
        columns = ("split", "images", "images without objects", "objects", *(classes if len(classes) > 1 else ()))
        rows = [row[: len(columns)] for row in rows]
        parts.append(Table(columns, rows))
        parts += _per_image(identity)
        learned = identity.counts("train") if "train" in splits else Counter(_counted(identity.samples.values()))
        missing = [name for name in identity.classes if not learned[name]]
        if missing:
            text = f"warning: no training image has an object of class {joined(missing)}: the model cannot learn it"
            parts.append(Notes([text]))
    facts: list[tuple[str, Cell]] = [
        ("sources", joined(record.environment.get("sources"))),
        ("licence of the data", str(info.get("data_licence") or "")),
        ("channels", joined(info.get("channels"))),
        ("pixel size, µm", joined(info.get("pixel_size_um"))),
        ("digest of images and annotations", record.data),
    ]
    return [*parts, Facts(facts)]


def _per_image(identity: Identity) -> list[Part]:
    """How many objects the images have, by split; and of each class, if there are several."""
    samples = identity.samples
    groups: dict[str, list[int]] = {}
    for sample in samples.values():
        groups.setdefault(_split_name(sample.split or "train"), []).append(sum(sample.classes.values()))
    charts = []
    if len(samples) > MAX_BARS:
        values = {name: np.array(each, float) for name, each in groups.items()}
        chart = histogram(values, "objects per image", "images", whole=True)
        charts.append(("Objects per image", chart, "The dashed lines are the medians."))
    elif len(samples) > 1:
        named = [f"{name} ({_split_name(sample.split or 'train')})" for name, sample in samples.items()]
        by_class = {name: [sample.classes.get(name, 0) for sample in samples.values()] for name in identity.classes}
        charts.append(("Objects per image", bars(named, by_class, "objects", stacked=True), ""))
    return [Charts(charts)] if charts else []


def _counted(samples: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for sample in samples:
        total.update(sample.classes)
    return total


def _curves(record: RunRecord) -> list[Part]:
    curves = record.curves
    if not len(curves.steps):
        return [Text("No training step has been completed yet.")]

    def lines(values: Mapping[str, np.ndarray]) -> dict[str, Line]:
        return {name: Line(curves.steps, column) for name, column in values.items()}

    losses = curves.named("loss")
    total = {"training": losses.pop("loss")} if "loss" in losses else {}
    total |= {"validation": curves.values["val_loss"]} if curves.named("val_loss") else {}
    parts = {name.removeprefix("loss_").replace("_", " "): values for name, values in losses.items()}
    masks, _ = overall_ap(curves)
    shown = {name: values for name, values in masks.items() if name.startswith(("AP@all", "AP50@all", "AP75@all"))}
    charts = []
    if total:
        charts.append(("Loss", line_chart(lines(total), "step", "loss"), ""))
    if len(parts) > 1:
        charts.append(("Parts of the loss", line_chart(lines(parts), "step", "loss"), ""))
    if any(np.isfinite(values).sum() > 1 for values in shown.values()):
        chart = line_chart(lines(shown), "step", "average precision", y_range=(0, 1.02), marked=True)
        charts.append(("Average precision on the validation images", chart, ""))
    classes = per_class_ap(curves)
    if len(classes) > 1 and any(np.isfinite(values).sum() > 1 for values in classes.values()):
        chart = line_chart(lines(classes), "step", "AP@all", y_range=(0, 1.02), marked=True)
        charts.append(("Average precision of each class", chart, ""))
    if rate := curves.named("lr"):
        charts.append(("Learning rate", line_chart(lines(rate), "step", "learning rate"), ""))
    text = "Lines are means over consecutive steps; the bands span all values. Time and memory: see curves/."
    missing = int(curves.steps[-1]) - len(curves.steps)
    gaps = f"warning: {count(missing, 'step')} of {int(curves.steps[-1]):,} are missing in log.csv, and in the curves"
    notes: list[Part] = [Notes([gaps])] if missing > 0 else []
    return [*notes, Charts(charts), *([Text(text)] if len(curves.steps) > MAX_POINTS else [])]


def _validation(record: RunRecord, paths: RunFolder) -> Mapping[str, Any]:
    """The metrics.json of the evaluation at the end; empty if there is none, or if it is of an earlier model."""
    path = paths.validation / "metrics.json"
    with suppress(CellwrightError, AttributeError):
        content = read_json(path) if path.is_file() else {}
        if content.get("made_by", {}).get("step") == record.best.step:
            return content
    return {}


def _before_and_after(paths: RunFolder, validation: Mapping[str, Any]) -> list[Part]:
    """The model that training started from, compared with the best one."""
    if not validation or not (paths.validation / "comparison.csv").is_file():
        return []
    table, _ = comparison_table(paths.validation)
    text = "Before: the model that training started from. After: the best model of this run, on the same images."
    warnings = [str(line) for line in validation["made_by"].get("warnings_before", [])]
    changed = change_pictures(paths.validation)
    notes = [Notes(warnings)] if warnings else []
    return [Text(text), *notes, table, *([] if changed is None else [changed])]


def _errors(paths: RunFolder, validation: Mapping[str, Any]) -> list[Part]:
    if not validation:
        return []
    return [*error_parts(validation), *error_pictures(paths.validation, read_rows(paths.validation / "per_image.csv"))]


def _metrics(record: RunRecord, validation: Mapping[str, Any]) -> list[Part]:
    best = record.best
    if not best.metrics:
        text = "There are no validation images, so it is not known how well this model works on other images."
        return [Text(text)]
    rows = [(name, MEANINGS.get(name, ""), decimals(value)) for name, value in _headline(record)]
    of_classes = [name for name in best.metrics if "/" in name]
    has_one_class = len({name.partition("/")[2] for name in of_classes}) < 2  # the same values again
    hidden = {*HEADLINE, *(of_classes if has_one_class else ())}
    others = [(name, decimals(value)) for name, value in best.metrics.items() if name not in hidden]
    by = f" by {best.chosen_by}" if best.chosen_by else ""
    chosen = f"The best model{by} is that of step {best.step:,}."
    note = (
        "It was chosen on these images, so the values are optimistic; for a publication, evaluate it on a separate "
        "test split."
    )
    parts: list[Part] = [Text(chosen), Table(("metric", "definition", "value"), rows, n_text=2, note=note)]
    if validation:
        notes = [str(line) for line in validation.get("notes", [])]
        parts = [Text(f"{chosen} {note}"), *([Notes(notes)] if notes else [])]
        parts += metric_parts(validation, values_of(validation))
    half = -(-len(others) // 2)
    pairs = [
        (*left, *(others[half + k] if half + k < len(others) else ("", ""))) for k, left in enumerate(others[:half])
    ]
    return (
        [*parts, Table(("metric", "value", "metric", "value"), pairs, title="All metrics", n_text=4)]
        if pairs
        else parts
    )


def version_facts(record: RunRecord) -> list[Part]:
    """The machine and the versions of a run."""
    environment = record.environment
    git = environment.get("git") or {}
    facts: list[tuple[str, Cell]] = [
        ("device", " ".join(filter(None, (str(environment.get("device", "")), str(environment.get("gpu") or ""))))),
        ("threads", environment.get("threads")),
        ("precision", _precision(environment)),
        ("machine", str(environment.get("platform") or "")),
        ("commit", (str(git.get("commit") or "") + (" with changes" if git.get("changed") else ""))),
    ]
    versions = {"python": environment.get("python"), **(environment.get("versions") or {})}
    return [Facts(facts), *version_parts(versions)]


def _precision(environment: Mapping[str, Any]) -> str:
    """The precision of the forward pass, and the one that the run began in if it was resumed in another."""
    began_in = environment.get("began_in")
    return str(environment.get("precision") or "") + (f" (began in {began_in})" if began_in else "")


def _how(record: RunRecord, paths: RunFolder) -> list[Part]:
    parts = version_facts(record)
    parts += [
        Command("train", ["RUN/recipe.yaml"], {"data": "DATA", "out": "ANOTHER_RUN"}, title="To repeat the training"),
        Command(
            "evaluate", ["RUN"], {"data": "DATA", "split": "test", "out": "EVALUATION"}, title="To evaluate the model"
        ),
    ]
    with suppress(CellwrightError):
        if paths.init_report.is_file():
            parts.append(Listing("How the initial weights were loaded", read_text(paths.init_report)))
        parts.append(Listing("The complete recipe (recipe.yaml)", read_text(paths.recipe)))
    return parts
