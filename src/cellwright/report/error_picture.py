"""What went wrong on one image: every kind of error in a colour and a line of its own, with a legend."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from cellwright.core.errors import InputError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.report.colours import (
    BLUE,
    DASH_DOT,
    DASHED,
    DOTTED,
    GREEN,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    WHITE,
    YELLOW,
    LineStyle,
)
from cellwright.report.display import to_display_rgb
from cellwright.report.draw import draw_outlines
from cellwright.report.text import legend_strip

GREY = (160, 160, 160)
SIDE_PX = 1800  # images are enlarged by a whole factor to about this: patterns need room
DIMMED = 0.55  # share of its brightness that the image keeps, in grey: nothing then competes with the lines

FOUND = LineStyle("found", SKY_BLUE)
INVOLVED = LineStyle("predictions at fault", WHITE)
IGNORED = LineStyle("ignored region", GREY, DOTTED)
# Drawn along the true outline ...
TRUTH_STYLES: Mapping[str, LineStyle] = {
    "poorly_outlined": LineStyle("truth poorly outlined", PURPLE, (4, 2)),
    "split": LineStyle("truth split", GREEN, (12, 4)),
    "merged": LineStyle("truth merged", ORANGE, DASH_DOT),
    "wrong_class": LineStyle("truth given a wrong class", BLUE, (9, 2)),
    "missed": LineStyle("truth missed", YELLOW, DASHED),
}
# ... and along the predicted one.
PREDICTED_STYLES: Mapping[str, LineStyle] = {
    "duplicate": LineStyle("duplicate", VERMILLION, (8, 2, 2, 2, 2, 2)),
    "spurious": LineStyle("spurious", VERMILLION, DOTTED),
}
INVOLVED_KINDS = ("merged", "split", "poorly_outlined", "wrong_class")


def draw_errors(
    image: Image, truth: Instances, predicted: Instances, *, truth_kinds: np.ndarray, predicted_kinds: np.ndarray
) -> np.ndarray:
    """Truth against prediction with the errors by kind, uint8 RGB with a legend below that counts them.

    truth_kinds: (N,) str, predicted_kinds: (M,) str, as ``evaluate`` judges them: what an object is called is the
    judge's business. Found objects are shown by their prediction. The image is dimmed grey; one that is small is
    enlarged by a whole factor. Raises `InputError` where sizes do not fit.
    """
    for name, objects, kinds in (("truth", truth, truth_kinds), ("predicted", predicted, predicted_kinds)):
        if objects.image_hw != image.image_hw:
            raise InputError(
                f"{name} and image differ in size", where=image.path, got=objects.image_hw, expected=image.image_hw
            )
        if len(objects) != len(kinds):
            raise InputError(f"{name}_kinds does not fit", got=f"{len(kinds)} kinds", expected=f"{len(objects)}")
    factor = max(round(SIDE_PX / max(image.image_hw)), 1)
    grey = cv2.cvtColor(to_display_rgb(image), cv2.COLOR_RGB2GRAY)
    canvas = _enlarged(np.repeat((DIMMED * grey).astype(np.uint8)[:, :, None], 3, axis=2), factor)
    drawn = [
        (IGNORED, truth.masks[truth_kinds == "ignored"]),
        (FOUND, predicted.masks[predicted_kinds == "correct"]),
        (INVOLVED, predicted.masks[np.isin(predicted_kinds, INVOLVED_KINDS)]),
        *((style, truth.masks[truth_kinds == kind]) for kind, style in TRUTH_STYLES.items()),
        *((style, predicted.masks[predicted_kinds == kind]) for kind, style in PREDICTED_STYLES.items()),
    ]
    styles = []
    for style, masks in drawn:
        thin = factor == 1 or style is INVOLVED
        wide = LineStyle(style.name, style.colour, tuple(2 * length for length in style.pattern))
        draw_outlines(canvas, _enlarged_masks(masks, factor), style if thin else wide, 1 if thin else 2)
        if len(masks) or style is FOUND:
            styles.append(LineStyle(f"{style.name} ({len(masks):,})", style.colour, style.pattern))
    return np.concatenate([canvas, legend_strip(canvas.shape[1], styles)])


def _enlarged(rgb: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return rgb.copy()
    size_wh = rgb.shape[1] * factor, rgb.shape[0] * factor
    return np.asarray(cv2.resize(rgb, size_wh, interpolation=cv2.INTER_NEAREST))


def _enlarged_masks(masks: MaskSet, factor: int) -> MaskSet:
    return masks if factor == 1 else masks.resize((masks.image_hw[0] * factor, masks.image_hw[1] * factor))
