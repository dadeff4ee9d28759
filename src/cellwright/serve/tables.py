"""Tables of results as the page draws them: measurements of an image, and evaluations. Columns are lists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.events import plain
from cellwright.core.files import read_json
from cellwright.core.table import from_csv_cell

if TYPE_CHECKING:
    import pandas as pd

    from cellwright.core.instances import Instances
    from cellwright.serve.facts import ImageFacts


# The kinds of errors as the page calls them.
ERRORS = {
    "missed": "missed", "spurious": "extra", "duplicate": "extra", "merged": "merged", "split": "split",
    "poorly_outlined": "poor", "wrong_class": "class",
}  # fmt: skip
MAX_ERRORS = 5000
COMPARED = ("accuracy@0.5", "f1@0.5", "pq", "AP50@all", "AP@all", "aji")


def read_table(path: Path) -> pd.DataFrame:
    """A table that cellwright wrote, with the texts that were meant."""
    import pandas as pd

    table = pd.read_csv(path, dtype={"image": str, "class": str}, keep_default_na=False, na_values=[""])
    texts = {
        name: table[name].map(from_csv_cell, na_action="ignore") for name in table if table[name].dtype.kind in "OT"
    }
    return table.assign(**texts)


class Gate(BaseModel):
    """A range of a measurement, limits included; None is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    column: str
    low: float | None = None
    high: float | None = None


def within(table: pd.DataFrame, gates: Sequence[Gate]) -> pd.DataFrame:
    """The rows in all ranges; a value that is missing is in none. Raises `UsageError` for an unknown column."""
    for gate in gates:
        if gate.column not in table or table[gate.column].dtype.kind not in "iuf":
            numbers = [str(name) for name in table if table[name].dtype.kind in "iuf"]
            raise UsageError("no such measurement", where="`gate`", got=gate.column, expected=", ".join(numbers))
        low, high = -math.inf if gate.low is None else gate.low, math.inf if gate.high is None else gate.high
        table = table.loc[table[gate.column].between(low, high)]
    return table


def measurements_of(image: ImageFacts, objects: Instances, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The measurements of the objects of an image: ``ids``, and ``columns`` with name, unit and values."""
    from cellwright.api.measure import MeasurePlan, measure_sample

    sample = Sample(image.id, image.path, image.hw, Loaded(objects))
    dataset = Dataset((sample,), class_names, info=dict(image.reading))
    table = measure_sample(sample, dataset, MeasurePlan(image.path)).drop(columns="image")
    columns = [
        {"name": str(name), "unit": _unit(str(name)), "values": plain(table[name].tolist())}
        for name in table.columns
        if name != "label"
    ]
    return {"ids": table["label"].tolist(), "columns": columns}


def _unit(name: str) -> str:
    """``"um2"`` for area_um2; "" without a unit."""
    return next((unit for unit in ("px", "um", "um2", "deg") if name.endswith(f"_{unit}")), "")


def comparison_of(folder: Path) -> dict[str, Any]:
    """The metrics before and after a training, of an evaluation folder of one or two models."""
    both = folder / "comparison.csv"
    if both.is_file():
        table = read_table(both)
        first, second = table.columns[1:3]
        table = table.rename(columns={first: "before", second: "after"})
    else:
        import pandas as pd

        table = pd.DataFrame(read_json(folder / "metrics.json")["intervals_95"]).rename(columns={"value": "after"})
    rank = {name: k for k, name in enumerate(COMPARED)}
    rows = sorted(
        (row for row in map(plain, table.to_dict("records")) if row["after"] is not None),
        key=lambda row: rank.get(row["metric"], len(rank)),
    )
    sides = [side for side in ("before", "after") if side in table]
    return {"rows": rows} | {side: {row["metric"]: row[side] for row in rows} for side in sides}


def evaluation_of(folder: Path, image: str | None = None) -> dict[str, Any]:
    """An evaluation: metrics, the images (worst first), and the errors to draw, of one image or of the worst ones.

    An error has the ids of the annotations it is about; a superfluous prediction has none, only its box (y0, x0, y1,
    x1). Raises `InputError` if there is no evaluation.
    """
    if not (folder / "metrics.json").is_file():
        raise InputError("no such evaluation in this project", got=folder.name, expected="one that is done")
    summary = read_json(folder / "metrics.json")
    per_image: Any = read_table(folder / "per_image.csv")
    per_image = per_image.sort_values("accuracy@0.5", kind="stable")
    counts: dict[str, Any] = {f"n_{name}": 0 for name in dict.fromkeys(ERRORS.values())}
    for kind, name in ERRORS.items():
        counts[f"n_{name}"] = counts[f"n_{name}"] + per_image.get(f"errors_{kind}", 0)
    counted = per_image.assign(**counts)
    objects: Any = read_table(folder / "objects.csv")
    objects = objects[objects["kind"].isin(ERRORS)]
    # A missed object is about an annotation, a superfluous one about a prediction; the others are told once.
    objects = objects[(objects["side"] == "truth") | objects["kind"].isin(["spurious", "duplicate"])]
    if image is not None:
        objects = objects[objects["image"] == image]
    rank = {name: k for k, name in enumerate(per_image["image"])}
    objects = objects.sort_values("image", key=lambda names: names.map(rank), kind="stable")
    errors = [
        {
            "image": row.image,
            "kind": ERRORS[row.kind],
            "box": [row.y0, row.x0, row.y1, row.x1],
            "ids": [row.id] if row.side == "truth" else [],
            "iou": row.iou,
        }
        for row in objects.head(MAX_ERRORS).itertuples()
    ]
    return {
        "metrics": summary["values"],
        "headline": summary["intervals_95"],
        "notes": summary["notes"],
        "images": [plain(row) for row in counted.to_dict("records")],
        "n_errors": len(objects),
        "errors": plain(errors),
    }
