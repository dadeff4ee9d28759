"""``errors/<stem>.png``: what went wrong on each image, the worst images first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import numpy as np

from cellwright.api.sides import Sides
from cellwright.core.dataset import Sample
from cellwright.core.errors import InputError
from cellwright.core.files import write_png
from cellwright.core.image import Image
from cellwright.core.progress import SILENT, Screen

if TYPE_CHECKING:
    from cellwright.evaluation.report import Report


def write_error_pictures(
    sides: Sides, report: Report, folder: Path, pictures: int | Literal["all"], screen: Screen = SILENT
) -> list[Path]:
    """Draw the worst images (by accuracy@0.5) with their errors by kind; returns the paths, worst first.

    None are drawn where errors were not judged. Where an image's file is absent the objects stand on black.
    """

    from cellwright.data.formats.paths import output_path
    from cellwright.report.error_picture import draw_errors

    judged = report.judged
    if not judged.verdicts or pictures == 0:
        return []
    order = report.worst_images(len(judged.images) if pictures == "all" else pictures).index.tolist()
    paths, without = [], 0
    for k in screen.track(order, "drawing errors", len(order)):
        truth, predicted = sides.truth[k].read_instances(), sides.predicted[k].read_instances()
        image = _image_of(sides.truth[k], sides.predicted[k])
        without += image is None
        shown = predicted[np.isin(predicted.ids, judged.images[k].predicted.ids)]
        picture = draw_errors(
            Image.from_array(np.zeros(truth.image_hw, np.uint8)) if image is None else image,
            truth,
            shown,
            truth_kinds=judged.verdicts[k][0].kind,
            predicted_kinds=judged.verdicts[k][1].kind,
        )
        path = output_path(folder, sides.truth[k].id, ".png")
        write_png(path, picture)
        paths.append(path)
    if without:
        screen.note(f"{without} of {len(order)} pictures of errors are on black: no single image could be read")
    return paths


def pictures_section(paths: Sequence[Path], folder: Path) -> list[str]:
    """The part of report.md that shows the pictures; nothing without any."""
    if not paths:
        return []
    shown = [path.relative_to(folder).as_posix() for path in paths]
    return ["## What went wrong, the worst images first", *(f"![{name}]({quote(name)})" for name in shown)]


def _image_of(*samples: Sample) -> Image | None:
    """The image of whichever sample has it, None where there is none or it cannot be shown as it is (a stack)."""
    from cellwright.data.images.read import read_image

    for sample in samples:
        if sample.image_path is not None and sample.image_path.is_file():
            try:
                image = read_image(sample.image_path)
            except InputError:  # a stack, or channels without a name: the objects can be shown all the same
                continue
            if image.image_hw == sample.image_hw:
                return image
    return None
