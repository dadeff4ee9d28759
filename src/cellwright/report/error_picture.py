"""Pictures of errors: every kind of error with its own colour and line style, and a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np

from cellwright.core.errors import InputError, UsageError
from cellwright.core.files import write_png
from cellwright.core.geometry import Window
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.text import count
from cellwright.data.formats.paths import output_path
from cellwright.evaluation.pairing import PairedImages
from cellwright.evaluation.report import Report
from cellwright.report.colours import (
    DASH_DOT,
    DOTTED,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    WHITE,
    YELLOW,
    LineStyle,
)
from cellwright.report.display import to_display_rgb
from cellwright.report.draw import draw_outlines, enlarged, enlarged_masks, enlargement, line_width
from cellwright.report.legend import draw_marks, draw_scale_bar, legend_strip

LIGHT_GREY = (210, 210, 210)
SIDE_PX = 1800  # images are enlarged by a whole factor to about this size, so that line patterns are visible
# Of an image with more pixels, a part of this side is drawn.
LARGE_PX, PART_PX = 9_000_000, 2048
DIMMED = 0.55  # the image is shown in grey with this share of its brightness, so that the lines stand out

CORRECT = LineStyle("correct", LIGHT_GREY)
INVOLVED = LineStyle("predictions involved in errors", WHITE, (2, 4))
IGNORED = LineStyle("ignored region", GREY, (1, 4))
# Drawn along the annotated outline ...
TRUTH_STYLES: dict[str, LineStyle] = {
    "poorly_outlined": LineStyle("poorly outlined object", PURPLE, (4, 2)),
    "split": LineStyle("split object", GREEN, (12, 4)),
    "merged": LineStyle("merged object", ORANGE, DASH_DOT),
    "wrong_class": LineStyle("object with wrong class", SKY_BLUE, (9, 2)),
    "missed": LineStyle("missed object", YELLOW),
}
# ... and along the predicted one.
PREDICTED_STYLES: dict[str, LineStyle] = {
    "duplicate": LineStyle("duplicate prediction", VERMILLION, (8, 2, 2, 2, 2, 2)),
    "spurious": LineStyle("spurious prediction", VERMILLION, DOTTED),
}
# A letter on each object with an error, so that kinds can be told apart without colours and on small objects.
MARKS = {
    "poorly_outlined": "P",
    "split": "S",
    "merged": "M",
    "wrong_class": "C",
    "missed": "?",
    "duplicate": "D",
    "spurious": "x",
}
INVOLVED_KINDS = ("merged", "split", "poorly_outlined", "wrong_class")


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """The annotated and the predicted objects of an image or a part of it, and the kind of error of each."""

    truth: Instances
    truth_kinds: np.ndarray
    predicted: Instances
    predicted_kinds: np.ndarray

    @staticmethod
    def of(images: PairedImages, report: Report, k: int) -> ImageErrors:
        """Those of image ``k``."""
        predicted = images.predicted[k].read_instances()
        predicted = predicted[np.isin(predicted.ids, report.data.pairs[k].predicted.ids)]
        of_truth, of_predicted = report.data.errors[k]
        return ImageErrors(images.truth[k].read_instances(), of_truth.kind, predicted, of_predicted.kind)

    def within(self, window: Window) -> ImageErrors:
        """The objects that reach a window, cut off there."""
        truth = _part(self.truth, self.truth_kinds, window)
        predicted = _part(self.predicted, self.predicted_kinds, window)
        return ImageErrors(*truth, *predicted)

    def check(self, image: Image) -> None:
        """Raise `InputError` if objects and image differ in size, or kinds and objects in number."""
        sides = (("truth", self.truth, self.truth_kinds), ("predicted", self.predicted, self.predicted_kinds))
        for name, objects, kinds in sides:
            if objects.image_hw != image.image_hw:
                problem = f"`{name}` and `image` differ in size"
                raise InputError(problem, where=image.path, got=objects.image_hw, expected=image.image_hw)
            if len(objects) != len(kinds):
                raise InputError(f"`{name}_kinds` has the wrong length", got=len(kinds), expected=len(objects))

    def layers(self) -> list[tuple[str, LineStyle, MaskSet]]:
        """The masks of every kind with their style, from below."""
        truth, predicted = self.truth.masks, self.predicted.masks
        return [
            ("ignored", IGNORED, truth[self.truth_kinds == "ignored"]),
            ("correct", CORRECT, predicted[self.predicted_kinds == "correct"]),
            ("involved", INVOLVED, predicted[np.isin(self.predicted_kinds, INVOLVED_KINDS)]),
            *((kind, style, truth[self.truth_kinds == kind]) for kind, style in TRUTH_STYLES.items()),
            *((kind, style, predicted[self.predicted_kinds == kind]) for kind, style in PREDICTED_STYLES.items()),
        ]

    def draw(self, image: Image | None, *, side_px: int = SIDE_PX) -> np.ndarray:
        """The picture without its legend, see `draw_errors`; image: None draws on black."""
        image = Image.from_array(np.zeros(self.truth.image_hw, np.uint8)) if image is None else image
        self.check(image)
        factor = enlargement(image.image_hw, side_px)
        grey = cv2.cvtColor(to_display_rgb(image), cv2.COLOR_RGB2GRAY)
        canvas = enlarged(np.repeat((DIMMED * grey).astype(np.uint8)[:, :, None], 3, axis=2), factor)
        masks = self.truth.masks if len(self.truth) else self.predicted.masks
        thick = max(line_width(enlarged_masks(masks, factor)), 2)
        layers = self.layers()
        lines = [
            (enlarged_masks(masks, factor), style, thick if kind in MARKS else max(thick // 2, 1))
            for kind, style, masks in layers
        ]
        draw_outlines(canvas, lines)
        for kind, _, masks in layers:
            if kind in MARKS:
                draw_marks(canvas, masks.boxes * factor, MARKS[kind])
        if image.pixel_size_um is not None:
            draw_scale_bar(canvas, image.pixel_size_um[1] / factor)
        return canvas


def draw_errors(
    image: Image,
    truth: Instances,
    predicted: Instances,
    *,
    truth_kinds: np.ndarray,
    predicted_kinds: np.ndarray,
    caption: str = "",
) -> np.ndarray:
    """An image with the errors of its predictions, uint8 RGB, with a caption and a legend below that counts them.

    truth_kinds: (N,) str, predicted_kinds: (M,) str, as `classify_objects` determines them. Correct objects are shown
    by their predictions. The image is dimmed and grey; a small one is enlarged by a whole factor. Raises `InputError`
    if sizes do not match.
    """
    errors = ImageErrors(truth, truth_kinds, predicted, predicted_kinds)
    canvas = errors.draw(image)
    numbers = [(kind, style, len(masks)) for kind, style, masks in errors.layers()]
    styles = [counted(kind, style, f"{n:,}") for kind, style, n in numbers if n or kind == "correct"]
    return np.concatenate([canvas, legend_strip(canvas.shape[1], styles, caption=caption)])


def counted(kind: str, style: LineStyle, numbers: str) -> LineStyle:
    """The entry of a kind in a legend: ``"M merged object (3)"``."""
    return LineStyle(f"{MARKS.get(kind, '')} {style.name} ({numbers})".strip(), style.colour, style.pattern)


def write_error_pictures(
    images: PairedImages, report: Report, folder: Path, n_images: int, screen: ProgressReporter = SILENT
) -> list[Path]:
    """Draw the worst images (by accuracy@0.5) with their errors; returns the paths, worst first.

    Objects are drawn on black if their image cannot be read. Of a
    large image, the part with most errors is drawn.
    """
    if n_images == 0:
        return []
    order = report.worst_images(n_images).index.tolist()
    paths, n_black = [], 0
    for k in screen.track(order, "drawing errors", len(order)):
        errors, caption, window = ImageErrors.of(images, report, k), _caption(report, k), None
        if math.prod(errors.truth.image_hw) > LARGE_PX:
            window = _worst_window(errors)
            errors = errors.within(window)
            caption += f"; {window.hw[0]} x {window.hw[1]} px from y {window.y0}, x {window.x0}"
        image = readable_image(images, k, window)
        n_black += image is None
        picture = draw_errors(
            Image.from_array(np.zeros(errors.truth.image_hw, np.uint8)) if image is None else image,
            errors.truth,
            errors.predicted,
            truth_kinds=errors.truth_kinds,
            predicted_kinds=errors.predicted_kinds,
            caption=caption,
        )
        path = output_path(folder, images.truth[k].id, ".png")
        write_png(path, picture)
        paths.append(path)
    if n_black:
        screen.note(
            f"{n_black} of {count(len(order), 'picture')} of errors drawn on black: the image could not be read"
        )
    return paths


def _caption(report: Report, k: int) -> str:
    """The name of an image and how well it was predicted."""
    row = report.per_image.iloc[k]
    counts = f"{count(int(row['n_truth']), 'annotated object')}, {count(int(row['n_predicted']), 'prediction')}"
    value = "" if np.isnan(row["accuracy@0.5"]) else f", accuracy@0.5 {row['accuracy@0.5']:.3f}"
    return f"{row['image']}: {counts}{value}"


def pictures_section(paths: Sequence[Path], folder: Path) -> list[str]:
    """The section of report.md that shows the pictures; empty without any."""
    if not paths:
        return []
    names = [path.relative_to(folder).as_posix() for path in paths]
    return ["## Errors, worst images first", *(f"![{name}]({quote(name)})" for name in names)]


def _worst_window(errors: ImageErrors) -> Window:
    """The part of a large image in which most objects have errors."""
    height, width = errors.truth.image_hw
    n_errors = np.zeros((-(-height // PART_PX), -(-width // PART_PX)), np.int64)
    wrong = (
        errors.truth.masks.boxes[np.isin(errors.truth_kinds, list(TRUTH_STYLES))],
        errors.predicted.masks.boxes[np.isin(errors.predicted_kinds, list(PREDICTED_STYLES))],
    )
    for boxes in wrong:
        np.add.at(n_errors, (boxes[:, 1] // PART_PX, boxes[:, 0] // PART_PX), 1)
    row, column = np.unravel_index(int(n_errors.argmax()), n_errors.shape)
    y0, x0 = (min(int(k) * PART_PX, max(side - PART_PX, 0)) for k, side in ((row, height), (column, width)))
    return Window(y0, x0, min(y0 + PART_PX, height), min(x0 + PART_PX, width))


def _part(objects: Instances, kinds: np.ndarray, window: Window) -> tuple[Instances, np.ndarray]:
    """The objects that reach a window, cut off there, and their kinds."""
    masks = objects.masks.window(*window)
    inside = masks.areas > 0
    part = Instances.from_masks(
        masks[inside], ids=objects.ids[inside], class_ids=objects.class_ids[inside], ignore=objects.ignore[inside]
    )
    return part, kinds[inside]


def readable_image(images: PairedImages, k: int, window: Window | None) -> Image | None:
    """Image ``k`` as the annotations or else the predictions have it, or a part of it; None if it cannot be read."""
    for sample in (images.truth[k], images.predicted[k]):
        if sample.image_path is not None and sample.image_path.exists():
            try:
                reading = images.reading.of(sample)
                if window is not None:
                    source = reading.open(sample.image_path, chosen=bool(reading.channels))
                    if source.image_hw == sample.image_hw:
                        return source.read(window.y0, window.x0, *window.hw)
                    continue
                image = reading.chosen(sample.image_path)
            except (InputError, UsageError):  # such as a stack of which no plane was chosen
                continue
            if image.image_hw == sample.image_hw:
                return image
    return None
