"""Pictures of where two predictions differ: the annotations, and the errors of both predictions, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from cellwright.core.files import write_png, write_text
from cellwright.core.geometry import Window
from cellwright.core.image import Image
from cellwright.core.table import rows_csv
from cellwright.core.text import count
from cellwright.data.formats.paths import output_path
from cellwright.evaluation.pairing import PairedImages
from cellwright.evaluation.report import Report
from cellwright.report.colours import LineStyle
from cellwright.report.draw import draw_enlarged
from cellwright.report.error_picture import PREDICTED_STYLES, ImageErrors, counted, readable_image
from cellwright.report.legend import legend_strip, text_size

CHANGES = "changes"  # the folder of the pictures; with .csv, the table that lists them
_PANEL_PX, _GAP_PX = 640, 12
_DIAMETERS = 10  # side of the part that is drawn, in median diameters of the annotated objects
_SMALLEST_PX, _LARGEST_PX = 128, 512
_STEPS = 8  # positions of the part that are tried, per side length


@dataclass(frozen=True)
class Change:
    """A part of an image in which two predictions differ. picture: its path in the folder of the evaluation.

    first, second: accuracy@0.5 of the whole image. y0, x0, y1, x1: the part, in pixels.
    """

    image: str
    picture: str
    first: float
    second: float
    y0: int
    x0: int
    y1: int
    x1: int


def write_changes(
    images: Sequence[PairedImages], reports: Sequence[Report], names: Sequence[str], folder: Path, n_images: int
) -> list[Change]:
    """Draw the images in which two predictions differ most, and list them in ``changes.csv``, most different first.

    images, reports, names: of the first and the second prediction. Nothing is written if no
    object has changed.
    """
    accuracy = [report.per_image["accuracy@0.5"].to_numpy() for report in reports]
    differing = [(len(_changed_yx(*_errors(images, reports, k))), k) for k in range(len(images[0].truth))]
    chosen = [k for n, k in sorted(differing, key=lambda pair: -pair[0]) if n][:n_images]
    changes = []
    for k in chosen:
        sides, sample = _errors(images, reports, k), images[0].truth[k]
        window = _window(*sides)
        image = readable_image(images[0], k, window)
        first, second = (float(column[k]) for column in accuracy)
        picture = _draw([side.within(window) for side in sides], image, names, images[0].class_names)
        path = output_path(folder / CHANGES, sample.id, ".png")
        write_png(path, picture)
        changes.append(Change(sample.id, path.relative_to(folder).as_posix(), first, second, *window))
    if changes:
        columns = [field.name for field in fields(Change)]
        write_text(folder / f"{CHANGES}.csv", rows_csv([columns, *map(astuple, changes)]))
    return changes


def _errors(images: Sequence[PairedImages], reports: Sequence[Report], k: int) -> list[ImageErrors]:
    return [ImageErrors.of(own, report, k) for own, report in zip(images, reports, strict=True)]


def _changed_yx(first: ImageErrors, second: ImageErrors) -> np.ndarray:
    """The centres (C, 2) of the objects that one prediction has right and the other has not.

    Of predictions without an annotated object, those count that the other side does not have: their boxes do not
    overlap any of its.
    """
    is_changed = (first.truth_kinds == "correct") != (second.truth_kinds == "correct")
    extra = [side.predicted.boxes_xyxy[np.isin(side.predicted_kinds, [*PREDICTED_STYLES])] for side in (first, second)]
    boxes = [first.truth.boxes_xyxy[is_changed], _alone(extra[0], extra[1]), _alone(extra[1], extra[0])]
    corners = np.concatenate(boxes).reshape(-1, 2, 2)
    return corners.mean(axis=1)[:, ::-1]


def _alone(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The boxes (N, 4) that overlap none of the others."""
    if not len(boxes) or not len(others):
        return boxes
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlaps = (high[..., 0] > low[..., 0]) & (high[..., 1] > low[..., 1])
    return boxes[~overlaps.any(1)]


def _window(first: ImageErrors, second: ImageErrors) -> Window:
    """The part of an image in which most objects have changed."""
    height, width = first.truth.image_hw
    masks = first.truth.masks if len(first.truth) else second.predicted.masks
    diameter = math.sqrt(4 / math.pi * float(np.median(masks.areas))) if len(masks) else 0.0
    side = int(np.clip(_DIAMETERS * diameter, _SMALLEST_PX, _LARGEST_PX))
    h, w = (min(side, length) for length in (height, width))
    centres = _changed_yx(first, second)
    best, chosen = -1.0, Window(0, 0, h, w)
    for y0 in _origins(height, h):
        for x0 in _origins(width, w):
            inside = ((centres >= (y0, x0)) & (centres < (y0 + h, x0 + w))).all(axis=1)
            # Of parts with as many changes, the one that has them in its middle.
            away = np.abs(centres[inside] - (y0 + h / 2, x0 + w / 2)).mean() if inside.any() else 0.0
            value = inside.sum() - away / (h + w)
            if value > best:
                best, chosen = value, Window(y0, x0, y0 + h, x0 + w)
    return chosen


def _origins(length: int, side: int) -> list[int]:
    step = max(side // _STEPS, 1)
    return [*range(0, length - side, step), length - side]


def _draw(
    sides: Sequence[ImageErrors], image: Image | None, names: Sequence[str], class_names: Sequence[str]
) -> np.ndarray:
    """Annotations, first and second prediction of a part of an image, side by side with one legend, uint8 RGB."""
    truth = sides[0].truth[sides[0].truth_kinds != "ignored"]
    shown = Image.from_array(np.zeros(truth.image_hw, np.uint8)) if image is None else image
    panels = [draw_enlarged(shown, truth, class_names=class_names, side_px=_PANEL_PX)]
    panels += [side.draw(image, side_px=_PANEL_PX) for side in sides]
    width = sum(panel.shape[1] for panel in panels) + _GAP_PX * (len(panels) - 1)
    heads = [f"{count(len(truth), 'annotated object')}", *names]
    size = text_size(width)
    headed = [
        np.concatenate([legend_strip(panel.shape[1], [], caption=head, size=size), panel])
        for head, panel in zip(heads, panels, strict=True)
    ]
    gap = np.full((len(headed[0]), _GAP_PX, 3), 255, np.uint8)
    picture = np.concatenate([headed[0], gap, headed[1], gap, headed[2]], axis=1)
    return np.concatenate([picture, legend_strip(width, _legend(sides))])


def _legend(sides: Sequence[ImageErrors]) -> list[LineStyle]:
    """The styles with the numbers of objects of both predictions: "M merged object (3 to 1)"."""
    styles = []
    for (kind, style, first), (_, _, second) in zip(*(side.layers() for side in sides), strict=True):
        numbers = [len(first), len(second)]
        if kind == "correct":  # annotated objects, as those of errors
            numbers = [int((side.truth_kinds == kind).sum()) for side in sides]
        if any(numbers):
            same = numbers[0] == numbers[1]
            styles.append(counted(kind, style, f"{numbers[0]:,}" if same else f"{numbers[0]:,} to {numbers[1]:,}"))
    return styles
