"""Which of a model's objects are kept: thresholds, limits and overlaps, the same for all families of models."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cellwright.core import morphology
from cellwright.core.distance import Distance
from cellwright.core.errors import UsageError
from cellwright.core.events import plain
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.core.scores import Calibration, ScoreThreshold, reaches_threshold
from cellwright.prediction.record import Prediction

# What a user calls the options that are named otherwise here.
_PARAMETERS = {"score_threshold": "score", "min_area_px": "min_area"}
# Options that change the shapes of objects.
_SHAPES = ("smooth", "fill_holes", "expand")


@dataclass(frozen=True)
class PredictOptions:
    """Which objects are kept.

    score_threshold: objects with a lower score are omitted, 0 to 1; one number, or one per class. If there is a
        calibration, the threshold applies to the calibrated scores.
    min_area_px: smaller objects are omitted, pixels of the image; one number, or one per class.
    max_objects: the largest number of objects per image, best first; None keeps all.
    remove_border: omit objects that touch the border of the image, which may be cut off.
    smooth, fill_holes: smooth the outlines of objects, and fill their holes, before their area is compared.
    candidates: also return the objects below the score threshold, as candidates, which average precision uses; without,
        an R-CNN computes no masks for them.
    expand: also give cells: the objects with the background within this distance, such as "8px" or "5um"; 0 and
        None do not.
    resolve_overlaps: assign each shared pixel to the object with the higher score, so that no pixel is in two objects.
    calibration: maps the model's scores to the expected IoU; None leaves them as they are.

    Raises `UsageError` for a value out of range.
    """

    score_threshold: ScoreThreshold = 0.0
    min_area_px: int | tuple[int, ...] = 0
    max_objects: int | None = None
    remove_border: bool = False
    resolve_overlaps: bool = False
    calibration: Calibration | None = None
    smooth: bool = False
    fill_holes: bool = False
    expand: str | None = None
    candidates: bool = True

    def __post_init__(self) -> None:
        scores, areas = np.array(self.score_threshold, float), np.array(self.min_area_px)
        limits = (
            ("score", self.score_threshold, bool(((scores >= 0) & (scores <= 1)).all()), "0 to 1"),
            ("min_area", self.min_area_px, bool((areas >= 0).all()), "0 or more pixels"),
            ("max_objects", self.max_objects, self.max_objects is None or self.max_objects >= 1, "1 or more, or None"),
        )
        for name, value, fits, expected in limits:
            if not fits:
                raise UsageError(f"`{name}` is out of range", got=value, expected=expected)
        if self.expand is not None:
            distance = Distance.of(self.expand)
            object.__setattr__(self, "expand", str(distance) if distance.value else None)  # frozen

    def as_values(self) -> dict[str, Any]:
        """The options as JSON values, under the names that users know."""
        values: dict[str, Any] = plain(asdict(self))
        # Jobs of earlier versions do not have these.
        values = {name: value for name, value in values.items() if value or name not in _SHAPES}
        if self.candidates:
            del values["candidates"]
        return {_PARAMETERS.get(name, name): value for name, value in values.items()}

    def calibrated(self, objects: Instances) -> Instances:
        """The objects, best first, with calibrated scores."""
        ranked = objects.by_score()  # by the model's own scores: a calibration may tie some, but reorders none
        return ranked if self.calibration is None else replace(ranked, scores=self.calibration(_scores(ranked)))

    def reaches(self, scores: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
        """Which objects (N,) bool with the model's own scores (N,) reach the score threshold of their class."""
        calibrated = scores if self.calibration is None else self.calibration(scores)
        return reaches_threshold(calibrated, class_ids, self.score_threshold)

    def good(self, objects: Instances) -> np.ndarray:
        """Which calibrated objects (N,) bool reach the score threshold of their class."""
        return reaches_threshold(_scores(objects), objects.class_ids, self.score_threshold)

    def large(self, objects: Instances) -> np.ndarray:
        """Which objects (N,) bool reach the smallest area of their class."""
        limits = np.array(self.min_area_px)
        return objects.masks.areas >= (limits[objects.class_ids] if limits.ndim else limits)


def select(
    prediction: Prediction,
    options: PredictOptions,
    pixel_size_um: tuple[float, float] | None = None,
    where: object = None,
) -> Prediction:
    """Apply options to all candidates of a prediction; ids are numbered from 1.

    pixel_size_um, where: of the image, for cells by a distance in microns, and for the error if it is not known.
    """
    objects = prediction.candidates
    if objects.scores is None:
        raise UsageError(
            "predicted objects need scores", got="objects without scores, as in ground truth", remedy="give them scores"
        )
    kept = options.calibrated(objects)
    # With one threshold per class, the objects that reach theirs need not be the first ones.
    kept = kept[np.argsort(~options.good(kept), kind="stable")]
    good = options.good(kept)
    n_good, pixels_before = int(good.sum()), int(kept.masks.areas[good].sum())
    if options.resolve_overlaps:
        kept = _without_overlaps(kept)
    pixels_resolved = pixels_before - int(kept.masks.areas[options.good(kept)].sum())
    kept = _shaped(kept, options)
    kept = kept[options.large(kept)]
    n_large = int(options.good(kept).sum())
    # Objects that are omitted because of the border or the limit still take the space around them.
    cells = None if options.expand is None else _cells(kept[:n_large], options.expand, pixel_size_um, where)
    if options.remove_border:
        inside = ~kept.masks.touches_border
        kept, cells = kept[inside], None if cells is None else cells[inside[:n_large]]
    n_left = int(options.good(kept).sum())
    n_over_cap = 0 if options.max_objects is None else max(n_left - options.max_objects, 0)
    candidates = kept[: options.max_objects]
    candidates = replace(candidates, ids=np.arange(1, len(candidates) + 1))
    instances = candidates[: n_left - n_over_cap]
    return replace(
        prediction,
        instances=instances,
        cells=None if cells is None else replace(cells[: n_left - n_over_cap], ids=instances.ids),
        candidates=candidates if options.candidates else instances,
        n_low_score=len(objects) - n_good,
        n_small=n_good - n_large,
        n_border=n_large - n_left,
        n_over_cap=n_over_cap,
        pixels_resolved=pixels_resolved,
    )


def _scores(objects: Instances) -> np.ndarray:
    assert objects.scores is not None  # checked by `select`
    return objects.scores


def _shaped(objects: Instances, options: PredictOptions) -> Instances:
    """Objects, the good ones first, with the outlines that the options ask for; the others are not in their way."""
    if not (options.smooth or options.fill_holes):
        return objects
    good = options.good(objects)
    parts = [objects.masks[good], objects.masks[~good]]
    if options.fill_holes:
        parts = [morphology.fill_holes(masks) for masks in parts]
    if options.smooth:
        parts = [morphology.smooth(masks) for masks in parts]
    masks = concat(parts)
    return replace(objects, masks=masks, boxes_xyxy=masks.boxes.astype(np.float32), soft_masks=None)


def _cells(nuclei: Instances, distance: str, pixel_size_um: tuple[float, float] | None, where: object) -> Instances:
    """The cells of nuclei, best first: where distances are equal, the better one gets the pixel."""
    reach, spacing = Distance.of(distance).in_pixels(pixel_size_um, where=where)
    masks = morphology.expand(nuclei.masks, reach, spacing)
    return replace(nuclei, masks=masks, boxes_xyxy=masks.boxes.astype(np.float32), soft_masks=None, columns={})


def _without_overlaps(objects: Instances) -> Instances:
    """Objects, best first, whose masks share no pixel; objects that are wholly covered by others are removed."""
    masks, labels = MaskSet.from_label_map(objects.masks.to_label_map())
    left = objects[labels - 1]
    # Boxes that include removed pixels would no longer fit the masks; probabilities would bring the pixels back.
    return replace(left, masks=masks, boxes_xyxy=masks.boxes.astype(np.float32), soft_masks=None)
