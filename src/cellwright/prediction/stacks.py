"""The files about a stack whose planes or time points are images of a prediction folder, joined by overlap.

<image id>_masks.tif    all planes and time points, with the number of an object through the stack (OME-TIFF or -Zarr)
<image id>_objects.csv  of planes: one row per object (and time point), with its volume
<image id>_tracks.csv   of time points: one row per object and time point, with the number of its track
<image id>_stack.png    some of the planes; an object has one colour
<image id>_ctc/01_RES   of time points: the layout of the Cell Tracking Challenge
stacks.csv              one row per stack
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.class_ids import values_of_class
from cellwright.core.files import atomic_path, write_png, write_text
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.table import columns_csv
from cellwright.core.text import count
from cellwright.data.formats.ctc_tracks import MAX_LABEL
from cellwright.data.formats.paths import output_path
from cellwright.measurement.table import FLOATS
from cellwright.prediction.linking import Links, link_stack
from cellwright.prediction.sources import Stack
from cellwright.prediction.stack_labels import LabelStack, write_tiff, write_zarr
from cellwright.prediction.summaries import evenly_chosen
from cellwright.prediction.tiling.label_writers import LabelKind

STACKS = "stacks.csv"
MASKS: dict[LabelKind, str] = {"tiff": "_masks.tif", "zarr": "_masks.zarr"}
OBJECTS, TRACKS, PICTURE, CTC = "_objects.csv", "_tracks.csv", "_stack.png", "_ctc"
_SEQUENCE, _TABLE = "01_RES", "res_track.txt"
_PICTURES, _TILE_PX = 12, 480

ReadObjects = Callable[[int], Instances]
"""The objects of a source, by its number, that are in its label image."""
DrawStack = Callable[[Sequence[tuple[str, np.ndarray]], str], np.ndarray]
"""Draws label images (caption, (H, W)) of planes under a title, uint8 RGB."""


@dataclass(frozen=True)
class StackReport:
    """What became of a stack.

    row: of stacks.csv. objects: the number in the stack of each object, by source and its label in the plane. in_um:
    whether volumes, if there are any, are in microns too.
    """

    row: Mapping[str, Any]
    objects: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    in_um: bool = True


def stack_files(stack: Stack, known: Iterable[str] = ()) -> list[str]:
    """The names of the files that `write_stack` may write. known: what was written; Zarr is a folder of many files."""
    folder = f"{output_path(Path(), stack.id, MASKS['zarr']).as_posix()}/"
    inside = [f"{folder}zarr.json", *(name for name in known if name.startswith(folder))]
    endings = [MASKS["tiff"], PICTURE, *([OBJECTS] if stack.z is not None else [])]
    if stack.t is not None:
        frames = [f"{CTC}/{_SEQUENCE}/{name}" for name in (_TABLE, *_frame_names(stack))]
        endings += [TRACKS, *frames]
    return [*inside, *(output_path(Path(), stack.id, ending).as_posix() for ending in endings)]


def write_stack(
    root: Path,
    stack: Stack,
    read: ReadObjects,
    iou: float,
    *,
    class_names: Sequence[str],
    pixel_size_um: tuple[float, float] | None,
    draw: DrawStack | None = None,
    labels: LabelKind = "tiff",
) -> StackReport:
    """Join the objects of a stack and write its files; a few planes at most are in memory.

    iou: the smallest overlap of two objects of consecutive planes or time points that are one object. draw: its
    picture; None: there is none. labels: the form of its labels.
    """
    planes = _Planes(stack, read)
    n_t, n_z = len(stack.numbers), len(stack.numbers[0])
    links = link_stack(lambda t, z: planes.at(t, z).masks, n_t, n_z, iou)
    y_um, x_um = pixel_size_um or (None, None)
    um = (stack.z_step_um, y_um, x_um)
    _write_labels(root, planes, links, um, labels)
    if draw is not None:
        write_png(output_path(root, stack.id, PICTURE), _picture(planes, links, draw))
    table = _object_table(planes, links)
    if stack.z is not None:
        columns = _volume_columns(table, stack, class_names, um)
        write_text(output_path(root, stack.id, OBJECTS), columns_csv(columns, FLOATS))
    row = {
        "image": stack.id,
        "time_points": n_t,
        "planes": n_z,
        "stitch_iou": iou,
        "objects_in_planes": sum(len(ids) for ids in links.ids.values()),
        "objects": links.n,
        "divisions": len(links.parents) // 2 if stack.t is not None else None,
        "z_step_um": stack.z_step_um if stack.z is not None else None,
        "notes": _write_tracks(root, stack, planes, links, (table, class_names)) if stack.t is not None else None,
    }
    return StackReport(row, planes.numbered(links), stack.z is None or None not in um)


def not_joined(stack: Stack, iou: float, n_failed: int) -> StackReport:
    """The report of a stack of which some planes could not be predicted."""
    text = f"not joined: {count(n_failed, 'plane')} could not be predicted"
    n_t, n_z = len(stack.numbers), len(stack.numbers[0])
    row = {"image": stack.id, "time_points": n_t, "planes": n_z, "stitch_iou": iou, "notes": text}
    return StackReport(row)


STACK_COLUMNS = (
    *("image", "time_points", "planes", "stitch_iou", "objects_in_planes", "objects", "divisions", "z_step_um"),
    "notes",
)


def stack_notes(reports: Sequence[StackReport]) -> list[str]:
    """What a user should know, one sentence each."""
    joined = [report.row for report in reports if "objects" in report.row]
    notes = [f"{report.row['image']}: {report.row['notes']}" for report in reports if report.row.get("notes")]
    for row in joined[:5]:
        over = "time points" if row["time_points"] > 1 else "planes"
        parts = f"{count(row['objects_in_planes'], 'object')} in {row['planes'] * row['time_points']} images"
        what = "track" if over == "time points" else "object"
        divisions = f", {count(row['divisions'], 'division')}" if row["divisions"] else ""
        text = f"{row['image']}: {parts} joined to {count(row['objects'], what)}{divisions}"
        notes.append(f"{text}, by overlap from one image to the next (IoU of at least {row['stitch_iou']:g})")
    if len(joined) > 5:
        notes.append(f"{len(joined) - 5} more stacks were joined: see {STACKS}")
    if not all(report.in_um for report in reports):
        notes.append("the size of a pixel or the distance of planes is not in the file, so volumes are in voxels only")
    return notes


# --- the objects of planes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Plane:
    """The objects of a plane as its label image shows them: masks without shared pixels, their labels, classes and
    scores.
    """

    masks: MaskSet
    labels: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray


class _Planes:
    """The planes of a stack, of which the last few are kept."""

    def __init__(self, stack: Stack, read: ReadObjects) -> None:
        self.stack, self._read = stack, read
        self._kept: dict[int, _Plane] = {}
        self._labels: dict[int, np.ndarray] = {}

    def at(self, t: int, z: int) -> _Plane:
        """The plane at these positions in the stack."""
        number = self.stack.numbers[t][z]
        if number not in self._kept:
            while len(self._kept) >= 2:
                self._kept.pop(next(iter(self._kept)))
            self._kept[number] = _shown(self._read(number))
            self._labels[number] = self._kept[number].labels
        return self._kept[number]

    def each(self) -> Iterator[tuple[tuple[int, int], _Plane]]:
        """Positions and planes, time point by time point."""
        for t, numbers in enumerate(self.stack.numbers):
            for z in range(len(numbers)):
                yield (t, z), self.at(t, z)

    def numbered(self, links: Links) -> dict[int, dict[int, int]]:
        """The number in the stack of each label, by source."""
        sources = {number: (t, z) for t, row in enumerate(self.stack.numbers) for z, number in enumerate(row)}
        return {
            number: dict(zip(labels.tolist(), links.ids[sources[number]].tolist(), strict=True))
            for number, labels in self._labels.items()
        }


def _shown(instances: Instances) -> _Plane:
    best_first = instances.by_score()
    masks, labels = MaskSet.from_label_map(best_first.masks.to_label_map(best_first.ids))
    where = np.argsort(instances.ids, kind="stable")
    where = where[np.searchsorted(instances.ids[where], labels)]
    assert instances.scores is not None
    return _Plane(masks, labels, instances.class_ids[where], instances.scores[where])


# --- label images ---------------------------------------------------------------------------------------------------


def _write_labels(
    root: Path, planes: _Planes, links: Links, um: tuple[float | None, float | None, float | None], kind: LabelKind
) -> None:
    """Write the labels of all planes, plane by plane."""
    stack = planes.stack
    leading = {"T": (stack.t, len(stack.numbers)), "Z": (stack.z, len(stack.numbers[0]))}
    axes = "".join(axis for axis, (numbers, _) in leading.items() if numbers is not None)
    content = repr((stack.id, [(place, ids.tolist()) for place, ids in links.ids.items()]))
    form = LabelStack(axes, tuple(leading[axis][1] for axis in axes), planes.at(0, 0).masks.image_hw, um, content)
    kept = [k for k, axis in enumerate("TZ") if axis in axes]
    pages = (
        (tuple(place[k] for k in kept), plane.masks.to_label_map(links.ids[place])) for place, plane in planes.each()
    )
    write = write_zarr if kind == "zarr" else write_tiff
    write(output_path(root, stack.id, MASKS[kind]), form, pages)


def _picture(planes: _Planes, links: Links, draw: DrawStack) -> np.ndarray:
    """Some of the planes, evenly chosen and reduced."""
    stack = planes.stack
    places = [(t, z) for t, numbers in enumerate(stack.numbers) for z in range(len(numbers))]
    tiles = []
    for k in evenly_chosen(len(places), _PICTURES):
        t, z = places[k]
        labels = planes.at(t, z).masks.to_label_map(links.ids[t, z])
        step = max(-(-max(labels.shape) // _TILE_PX), 1)
        named = [f"{axis} {of[at]}" for axis, of, at in (("t", stack.t, t), ("z", stack.z, z)) if of is not None]
        tiles.append((", ".join(named), labels[::step, ::step]))
    what = "track" if stack.t is not None else "object"
    return draw(tiles, f"{stack.id}: {count(links.n, what)}, each in one colour")


# --- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Parts:
    """The objects of all planes, each (P,): number in the stack, position, pixels, sums of y and x, class and score."""

    ids: np.ndarray
    t: np.ndarray
    z: np.ndarray
    areas: np.ndarray
    sum_y: np.ndarray
    sum_x: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray
    at_border: np.ndarray


def _object_table(planes: _Planes, links: Links) -> dict[str, np.ndarray]:
    """One row per object and time point, in order of both: what `_volume_columns` and `_track_columns` are made of."""
    parts = _parts(planes, links)
    n_t, n_z = len(planes.stack.numbers), len(planes.stack.numbers[0])
    keys, row = np.unique(parts.ids * n_t + parts.t, return_inverse=True)
    n = len(keys)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(row, weights=values, minlength=n)

    volume = total(parts.areas)
    z_first, z_last = np.full(n, n_z), np.full(n, -1)
    np.minimum.at(z_first, row, parts.z)
    np.maximum.at(z_last, row, parts.z)
    n_classes = int(parts.class_ids.max(initial=0)) + 1
    votes = np.bincount(row * n_classes + parts.class_ids, weights=parts.areas, minlength=n * n_classes)
    n_planes = np.bincount(row, minlength=n)
    return {
        "object": keys // n_t,
        "t": keys % n_t,
        "class": votes.reshape(n, n_classes).argmax(axis=1),
        "score": total(parts.scores) / n_planes,
        "planes": n_planes,
        "z_first": z_first,
        "z_last": z_last,
        "volume": volume.astype(np.int64),
        "z": total(parts.z * parts.areas) / volume,
        "y": total(parts.sum_y) / volume,
        "x": total(parts.sum_x) / volume,
        "touches_border": total(parts.at_border) > 0,
    }


def _parts(planes: _Planes, links: Links) -> _Parts:
    from cellwright.measurement._kernels import raw_moments

    columns: list[list[np.ndarray]] = [[] for _ in range(9)]
    for (t, z), plane in planes.each():
        masks, n = plane.masks, len(plane.masks)
        moments = raw_moments(masks.boxes, masks.offsets, masks.crops)
        areas = moments[:, 0]
        # The pixel in column x covers [x, x + 1), as in all measurements.
        sum_y, sum_x = (moments[:, k] + areas * (masks.boxes[:, side] + 0.5) for k, side in ((2, 1), (1, 0)))
        place = np.full(n, t), np.full(n, z)
        values = links.ids[t, z], *place, areas, sum_y, sum_x, plane.class_ids, plane.scores, masks.touches_border
        for column, of_plane in zip(columns, values, strict=True):
            column.append(of_plane)
    return _Parts(*(np.concatenate(column) for column in columns))


def _volume_columns(
    table: Mapping[str, np.ndarray],
    stack: Stack,
    class_names: Sequence[str],
    um: tuple[float | None, float | None, float | None],
) -> dict[str, np.ndarray]:
    """The columns of ``_objects.csv``; planes and time points have their numbers in the file."""
    z, n_z = np.array(stack.z), len(stack.numbers[0])
    columns = {"image": np.full(len(table["object"]), stack.id, object), "object": table["object"]}
    if stack.t is not None:
        columns["t"] = np.array(stack.t)[table["t"]]
    columns |= {
        "class": values_of_class(table["class"], class_names, ""),
        "score": table["score"],
        "planes": table["planes"],
        "z_first": z[table["z_first"]],
        "z_last": z[table["z_last"]],
        "volume_voxels": table["volume"],
    }
    if None not in um:
        volume = table["volume"] * math.prod(side for side in um if side is not None)
        columns |= {"volume_um3": volume, "equivalent_diameter_um": np.cbrt(6 * volume / np.pi)}
    return columns | {
        "centroid_z": np.interp(table["z"], np.arange(n_z), z),
        "centroid_y_px": table["y"],
        "centroid_x_px": table["x"],
        "touches_border": table["touches_border"],
        "touches_end": (table["z_first"] == 0) | (table["z_last"] == n_z - 1),
    }


# --- tracks ---------------------------------------------------------------------------------------------------------


def _write_tracks(
    root: Path, stack: Stack, planes: _Planes, links: Links, named: tuple[Mapping[str, np.ndarray], Sequence[str]]
) -> str | None:
    """Write the table of tracks and the layout of the Cell Tracking Challenge, or say why there is none of that."""
    table, class_names = named
    columns = {"track": table["object"], "t": np.array(stack.t)[table["t"]]}
    if stack.z is not None:
        columns["z"] = np.interp(table["z"], np.arange(len(stack.z)), stack.z)
    size = "area_px" if stack.z is None else "volume_voxels"
    columns |= {
        "y": table["y"],
        "x": table["x"],
        "parent": np.array([links.parents.get(number, 0) for number in table["object"].tolist()], np.int64),
        size: table["volume"],
        "class": values_of_class(table["class"], class_names, ""),
        "score": table["score"],
    }
    write_text(output_path(root, stack.id, TRACKS), columns_csv(columns, FLOATS))
    if links.n > MAX_LABEL:
        return (
            f"{links.n:,} tracks do not fit the 16-bit label images of the Cell Tracking Challenge, so there are none"
        )
    _write_ctc(output_path(root, stack.id, CTC) / _SEQUENCE, planes, links, table)
    return None


def _write_ctc(folder: Path, planes: _Planes, links: Links, table: Mapping[str, np.ndarray]) -> None:
    import tifffile

    stack = planes.stack
    hw = planes.at(0, 0).masks.image_hw
    for t, (name, numbers) in enumerate(zip(_frame_names(stack), stack.numbers, strict=True)):
        pages = (planes.at(t, z).masks.to_label_map(links.ids[t, z]).astype(np.uint16) for z in range(len(numbers)))
        shape = hw if stack.z is None else (len(numbers), *hw)
        with atomic_path(folder / name) as temporary:
            tifffile.imwrite(
                temporary,
                pages,
                shape=shape,
                dtype=np.uint16,
                compression="zlib",
                photometric="minisblack",
                metadata=None,
            )
    first, last = np.full(links.n, len(stack.numbers)), np.full(links.n, -1)
    np.minimum.at(first, table["object"] - 1, table["t"])
    np.maximum.at(last, table["object"] - 1, table["t"])
    rows = zip(range(1, links.n + 1), first.tolist(), last.tolist(), strict=True)
    text = "".join(f"{number} {begin} {end} {links.parents.get(number, 0)}\n" for number, begin, end in rows)
    write_text(folder / _TABLE, text)


def _frame_names(stack: Stack) -> list[str]:
    """The names of the label images of the frames, which the challenge counts from 0."""
    n = len(stack.numbers)
    digits = max(len(str(n - 1)), 3)
    return [f"mask{t:0{digits}d}.tif" for t in range(n)]
