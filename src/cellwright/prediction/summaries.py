"""What a prediction folder says about all its images together: a table, pooled measurements, the wells of plates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.core.notes import Note, joined
from cellwright.core.table import from_csv_cell
from cellwright.core.text import count
from cellwright.prediction.diameter import Diameter
from cellwright.prediction.job import PREDICTIONS, SUMMARY
from cellwright.prediction.record import Prediction

if TYPE_CHECKING:
    import pandas as pd

# B3, b03 or, as Opera microscopes name files, r02c03; not as part of a longer word or number.
_WELL = re.compile(r"(?<![A-Za-z0-9])(?:([A-Pa-p])(\d{1,2})(?!\d)|[rR](\d{2})[cC](\d{2})(?!\d))")
_ROWS, _COLUMNS = 16, 24  # of a 384-well plate
# Rows of a table that are read at once.
TABLE_ROWS = 200_000
_SEPARATORS = " _-./"
# Measurements whose mean over the objects of a well means nothing.
_POSITIONS = re.compile(r"(label|object|t|z|score|((nucleus|cell)_)?(bbox_.*|centroid_.*|orientation_deg))")


@dataclass(frozen=True)
class Well:
    """The place of an image on a plate: row and column from 0. plate: its name, "" if there is only one.

    >>> Well("", 1, 2).name
    'B03'
    """

    plate: str
    row: int
    column: int

    @property
    def name(self) -> str:
        """Letter of the row and number of the column."""
        return f"{chr(ord('A') + self.row)}{self.column + 1:02d}"


def wells_of(image_ids: Sequence[str]) -> list[Well] | None:
    """The well of each image if the ids of all of them name one, and at least two wells are named; otherwise None.

    Where ids contain several such words, the one that differs most between images is the well. What precedes it is the
    plate.

    >>> [well.name for well in wells_of(["p1/A01_s1", "p1/A01_s2", "p1/b12_s1"])]
    ['A01', 'A01', 'B12']
    >>> wells_of(["cells_1", "A01"]) is None, wells_of(["A01_1", "A01_2"]) is None
    (True, True)
    """
    matches = [[match for match in _WELL.finditer(image_id) if _place(match) is not None] for image_id in image_ids]
    n_words = min(map(len, matches), default=0)
    choices = [[_place(found[k]) for found in matches] for k in range(n_words)]
    if not choices:
        return None
    # Of equal ones, the one with two digits, then the last: "p1_A02" is on plate 1.
    padded = [all(re.search(r"\d\d$", found[k].group()) for found in matches) for k in range(n_words)]
    best = max(range(n_words), key=lambda k: (len(set(choices[k])), padded[k], k))
    places = [place for place in choices[best] if place is not None]
    if len(set(places)) < 2:
        return None
    plates = [
        image_id[: found[best].start()].strip(_SEPARATORS) for image_id, found in zip(image_ids, matches, strict=True)
    ]
    if 2 * len(set(plates)) > len(plates):  # what precedes the well numbers the images
        plates = [str(PurePosixPath(image_id).parent).strip(_SEPARATORS) for image_id in image_ids]
    return [Well(plate, *place) for plate, place in zip(plates, places, strict=True)]


def _place(match: re.Match[str]) -> tuple[int, int] | None:
    """Row and column, from 0; None if no plate has them."""
    letter, number, row, column = match.groups()
    place = (ord(letter.upper()) - ord("A"), int(number) - 1) if letter else (int(row) - 1, int(column) - 1)
    return place if 0 <= place[0] < _ROWS and 0 <= place[1] < _COLUMNS else None


def summary_row(
    image_id: str, prediction: Prediction, class_names: Sequence[str], notes: Sequence[Note] = ()
) -> dict[str, Any]:
    """One row of summary.csv. notes: what was assumed about the image."""
    instances = prediction.instances
    height, width = instances.image_hw
    covered = int(np.count_nonzero(instances.masks.foreground()))
    row: dict[str, Any] = {"image": image_id, "height_px": height, "width_px": width, "objects": len(instances)}
    if len(class_names) > 1:
        counts = np.bincount(instances.class_ids, minlength=len(class_names))
        row |= {f"objects_{label}": int(n) for label, n in zip(class_names, counts, strict=True)}
    assert instances.scores is not None
    row |= {
        "mean_score": round(float(instances.scores.mean()), 4) if len(instances) else None,
        "median_area_px": float(np.median(instances.masks.areas)) if len(instances) else None,
        "foreground_share": round(covered / (height * width), 5),
        "left_out_low_score": prediction.n_low_score,
        "left_out_small": prediction.n_small,
        "left_out_border": prediction.n_border,
        "left_out_max_objects": prediction.n_over_cap,
        "model_cap_reached": prediction.model_cap,
        "overlap_pixels_resolved": prediction.pixels_resolved,
        # A label image has one object per pixel: the pixels that lower scores lose there.
        "overlap_pixels_lost_in_label_image": int(instances.masks.areas.sum()) - covered,
    }
    how = {"network": prediction.network or None} | _diameter_columns(prediction.diameter)
    return row | how | {"notes": joined(notes)}


def _diameter_columns(diameter: Diameter | None) -> dict[str, Any]:
    """The diameter by which the image was resized, and the scale; empty for models that do not use one."""
    if diameter is None:
        return dict.fromkeys(("diameter_px", "diameter_from", "network_scale", "network_scale_wanted"))
    px, requested = diameter.px, diameter.requested_scale
    return {
        "diameter_px": None if px is None else round(float(px), 2),
        "diameter_from": "estimated" if diameter.estimated else "given",
        "network_scale": round(diameter.scale, 4),
        "network_scale_wanted": None if requested is None else round(requested, 4),
    }


def notes_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was omitted and by which diameters images were resized, from the rows of the summary."""
    notes = []
    caps = [row["model_cap_reached"] for row in rows if row["model_cap_reached"]]
    if caps:
        notes.append(
            f"{count(len(caps), 'image')} reached the model's own limit of {count(max(caps), 'object')}: some may be "
            "missing"
        )
    over = [row["left_out_max_objects"] for row in rows if row["left_out_max_objects"]]
    if over:
        notes.append(f"`max_objects` omitted {count(sum(over), 'object')} in {count(len(over), 'image')}")
    lost = [row["overlap_pixels_lost_in_label_image"] for row in rows if row["overlap_pixels_lost_in_label_image"]]
    if lost:
        notes.append(
            f"objects overlap in {count(len(lost), 'image')}: in the label images, {count(sum(lost), 'pixel')} went to "
            f"the object with the higher score; {PREDICTIONS} keeps them all"
        )
    networks = Counter(row["network"] for row in rows if row.get("network"))
    chosen = [f"{name} for {count(n, 'image')}" for name, n in sorted(networks.items())]
    notes += ["network, chosen by the colours of each image: " + ", ".join(chosen)] if chosen else []
    return notes + _diameter_notes(rows)


def _diameter_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The diameters by which images were resized, from the rows of the summary."""
    resized = [row for row in rows if row["diameter_from"]]
    diameters = [float(row["diameter_px"]) for row in resized if row["diameter_px"] is not None]
    notes = []
    if diameters:
        low, high, source = min(diameters), max(diameters), resized[0]["diameter_from"]
        shown = f"diameter {low:.1f} px" if f"{low:.1f}" == f"{high:.1f}" else f"diameters {low:.1f} to {high:.1f} px"
        notes.append(f"{shown} ({source}){f', one per image in {SUMMARY}' if low < high else ''}")
    if unmeasured := len(resized) - len(diameters):
        notes.append(f"no object to measure a diameter on in {count(unmeasured, 'image')}")
    scales = [(row["network_scale"], row["network_scale_wanted"]) for row in resized]
    limited = [float(wanted) < float(scale) for scale, wanted in scales if wanted is not None]
    for too_large, remedy in ((False, "cut large images of tiny objects into parts"), (True, "check `diameter`")):
        if n := limited.count(too_large):
            notes.append(
                f"{count(n, 'image')} could not be {'reduced' if too_large else 'enlarged'} as much as the diameter "
                f"requires (network_scale in {SUMMARY}), which reduces quality: {remedy}"
            )
    return notes


def caption(row: Mapping[str, Any]) -> str:
    text = f"{row['image']}: {row['objects']} object{'' if row['objects'] == 1 else 's'}"
    if row["left_out_max_objects"]:
        text += f", {row['left_out_max_objects']} over the maximum omitted"
    return text + (f", the model's cap of {row['model_cap_reached']} reached" if row["model_cap_reached"] else "")


def evenly_chosen(n: int, n_most: int) -> list[int]:
    """Up to ``n_most`` of 0..n-1, ascending, evenly spread.

    >>> evenly_chosen(10, 4), evenly_chosen(3, 4), evenly_chosen(0, 4)
    ([0, 3, 6, 9], [0, 1, 2], [])
    """
    return np.unique(np.linspace(0, n - 1, min(n_most, n)).round().astype(int)).tolist()


def well_table(wells: Sequence[Well], rows: Sequence[Mapping[str, Any]], measurements: Path | None) -> pd.DataFrame:
    """One row per well: images, objects (of each class too), objects per image, and the mean of every measurement.

    wells: of each row of the summary. measurements: the pooled table; None omits the means.
    """
    import pandas as pd

    keys = ["plate", "well"]
    summary = pd.DataFrame([dict(row) for row in rows])
    summary["plate"], summary["well"] = [well.plate for well in wells], [well.name for well in wells]
    grouped = summary.groupby(keys, sort=True)
    counts = [name for name in summary if name == "objects" or name.startswith("objects_")]
    table = pd.DataFrame({"images": grouped.size()}).join(pd.DataFrame(grouped[counts].sum()))
    table.insert(2, "objects_per_image", table["objects"] / table["images"])
    if measurements is not None:
        means = _well_means(measurements, pd.DataFrame(summary.set_index("image")[keys]), exclude=set(table))
        table = table.join(means.add_prefix("mean_"))
    table = table.reset_index()
    return table if any(well.plate for well in wells) else table.drop(columns="plate")


def _well_means(measurements: Path, wells: pd.DataFrame, *, exclude: set[str]) -> pd.DataFrame:
    """The mean of every measurement over the objects of a well, by plate and well; wells: of each image.

    The table is read in parts, for it may be larger than memory.
    """
    import pandas as pd

    keys, total, number = list(wells), pd.DataFrame(), pd.DataFrame()
    for part in pd.read_csv(measurements, dtype={"image": str}, chunksize=TABLE_ROWS):
        part["image"] = part["image"].map(from_csv_cell)
        names = [
            name for name in part.select_dtypes("number") if name not in exclude and not _POSITIONS.fullmatch(name)
        ]
        grouped = part.join(wells, on="image").groupby(keys)[names]
        first = total.empty
        total = grouped.sum() if first else total.add(grouped.sum(), fill_value=0)
        number = grouped.count() if first else number.add(grouped.count(), fill_value=0)
    return total / number
