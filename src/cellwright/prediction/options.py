"""Which of a model's objects become a result: thresholds, cap and overlaps, the same for every family of models."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.scores import Calibration, reaches_threshold
from cellwright.prediction.diameter import Diameter


@dataclass(frozen=True)
class PredictOptions:
    """What is kept of what a model finds.

    score_threshold: objects that score less are left out, 0..1; one number, or one a class. It goes by the scores that
        the result shows: the calibrated ones where there is a calibration.
    min_area_px: smaller objects are left out, pixels of the image; one number, or one a class.
    max_objects: at most so many objects an image, best first; None keeps all.
    resolve_overlaps: give every shared pixel to the object that scores higher, so that no pixel lies in two.
    calibration: turns the model's scores into expected IoU; None leaves them as they are.
    """

    score_threshold: float | tuple[float, ...] = 0.0
    min_area_px: int | tuple[int, ...] = 0
    max_objects: int | None = None
    resolve_overlaps: bool = False
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        scores, areas = np.array(self.score_threshold, float), np.array(self.min_area_px)
        limits = (
            ("score_threshold", self.score_threshold, bool(((scores >= 0) & (scores <= 1)).all()), "0 to 1"),
            ("min_area_px", self.min_area_px, bool((areas >= 0).all()), "0 or more"),
            ("max_objects", self.max_objects, self.max_objects is None or self.max_objects >= 1, "1 or more, or none"),
        )
        for name, value, fits, expected in limits:
            if not fits:
                raise UsageError("an option of predict is out of range", where=name, got=value, expected=expected)

    def calibrated(self, found: Instances) -> Instances:
        """The objects, best first, with the scores that the result shows."""
        ranked = found.by_score()  # by the model's own scores: a calibration may tie some, but turns none around
        return ranked if self.calibration is None else replace(ranked, scores=self.calibration(_scores(ranked)))

    def good(self, objects: Instances) -> np.ndarray:
        """Which calibrated objects (N,) bool score enough for their class."""
        return reaches_threshold(_scores(objects), objects.class_ids, self.score_threshold)

    def large(self, objects: Instances) -> np.ndarray:
        """Which objects (N,) bool are large enough for their class."""
        limits = np.array(self.min_area_px)
        return objects.masks.areas >= (limits[objects.class_ids] if limits.ndim else limits)


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of one image and what was left out of it, in the order in which it was left out.

    instances: best first, ids 1..N.
    candidates: these, and behind them what only scored less than the threshold, ids going on: average precision rewards
        uncertain objects too, and a submission wants them.
    n_low_score, n_small, n_over_cap: objects left out by score, by area, by ``max_objects``.
    pixels_resolved: pixels taken from objects that scored less, where overlaps were resolved.
    model_cap: the model's own cap where the image reached it, so that objects may be missing; None where it did not.
    diameter: by which the image was resized; None for models that do not go by one.
    """

    instances: Instances
    candidates: Instances
    n_low_score: int = 0
    n_small: int = 0
    n_over_cap: int = 0
    pixels_resolved: int = 0
    model_cap: int | None = None
    diameter: Diameter | None = None


def select(found: Instances, options: PredictOptions, model_cap: int | None = None) -> Outcome:
    """Apply ``options`` to what a model found. ``model_cap`` is the most objects that the model gives for an image."""
    if found.scores is None:
        raise UsageError(
            "these objects are truth, not predictions", got="objects without scores", remedy="give objects with scores"
        )
    capped = model_cap is not None and len(found) >= model_cap
    kept = options.calibrated(found)
    # With a threshold for each class, what is good enough is no longer simply the top of the list.
    kept = kept[np.argsort(~options.good(kept), kind="stable")]
    good = options.good(kept)
    n_good, pixels_before = int(good.sum()), int(kept.masks.areas[good].sum())
    if options.resolve_overlaps:
        kept = _without_overlaps(kept)
    pixels_resolved = pixels_before - int(kept.masks.areas[options.good(kept)].sum())
    kept = kept[options.large(kept)]
    n_left = int(options.good(kept).sum())
    n_over_cap = 0 if options.max_objects is None else max(n_left - options.max_objects, 0)
    candidates = kept[: options.max_objects]
    candidates = replace(candidates, ids=np.arange(1, len(candidates) + 1))
    return Outcome(
        instances=candidates[: n_left - n_over_cap],
        candidates=candidates,
        n_low_score=len(found) - n_good,
        n_small=n_good - n_left,
        n_over_cap=n_over_cap,
        pixels_resolved=pixels_resolved,
        model_cap=model_cap if capped else None,
    )


def _scores(found: Instances) -> np.ndarray:
    assert found.scores is not None  # `select` sees to it
    return found.scores


def _without_overlaps(found: Instances) -> Instances:
    """Objects, best first, whose masks share no pixel; objects that lie wholly under others are gone."""
    masks, labels = MaskSet.from_label_map(found.masks.to_label_map())
    left = found[labels - 1]
    # A box that held lost pixels would no longer fit its mask; probabilities would bring them back.
    return replace(left, masks=masks, boxes_xyxy=masks.boxes.astype(np.float32), soft_masks=None)
