"""Which objects of an image share pixels, computed once; every metric reads it.

`pair_image` looks at the masks of one image and keeps sparse pairs and counts, a few numbers an object. The masks may
then be dropped, so that a data set is judged with the masks of one image in memory. Two ways to match follow: greedy by
score as COCO does (in `coco`), and one to one by IoU as StarDist does (`one_to_one`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cellwright.core.errors import InputError, UsageError
from cellwright.core.geometry import overlapping_pairs
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet

ALL_CLASSES = -1
ScoreThreshold = float | tuple[float, ...]  # for all classes, or one a class


@dataclass(frozen=True, eq=False)
class Side:
    """The objects of one side, without their pixels; every array has N rows.

    areas: int64, pixels. sizes: float64, what size bands go by: column ``area`` where the annotations bring one, as in
    a COCO file, else the areas. boxes: (N, 4) float64 ``x0, y0, x1, y1``. scores: float64, or None.
    """

    ids: np.ndarray
    class_ids: np.ndarray
    areas: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    ignore: np.ndarray
    scores: np.ndarray | None

    @staticmethod
    def of(instances: Instances) -> Side:
        """The facts about these objects."""
        areas = instances.masks.areas
        sizes = instances.columns.get("area", areas)
        scores = None if instances.scores is None else instances.scores.astype(np.float64)
        boxes = instances.boxes_xyxy.astype(np.float64)
        return Side(
            instances.ids, instances.class_ids, areas, sizes.astype(np.float64), boxes, instances.ignore, scores
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, keep: np.ndarray) -> Side:
        scores = None if self.scores is None else self.scores[keep]
        ids, class_ids, areas = self.ids[keep], self.class_ids[keep], self.areas[keep]
        return Side(ids, class_ids, areas, self.sizes[keep], self.boxes[keep], self.ignore[keep], scores)


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Sparse pairs: truth (P,) and predicted (P,) int64 indices, sorted by both, with a value (P,) each."""

    truth: np.ndarray
    predicted: np.ndarray
    value: np.ndarray

    def select(self, truth: np.ndarray, predicted: np.ndarray) -> Overlaps:
        """The pairs of the objects kept (bool masks of both sides), with their new indices."""
        keep = truth[self.truth] & predicted[self.predicted]
        new_truth, new_predicted = np.cumsum(truth) - 1, np.cumsum(predicted) - 1
        return Overlaps(new_truth[self.truth[keep]], new_predicted[self.predicted[keep]], self.value[keep])


@dataclass(frozen=True)
class PairOptions:
    """What to look at beyond mask intersections.

    boxes: box IoU. foreground: union masks. boundary_px: width of the band for boundary IoU, None for none.
    repeats: overlaps among the predictions themselves, which tell duplicates from fragments. score_threshold: of the
    predictions that make up the foreground, one or one a class; all stay in the pairs, and `ImagePairs.above` leaves
    the others out.
    """

    boxes: bool = False
    foreground: bool = False
    boundary_px: int | None = None
    repeats: bool = False
    score_threshold: ScoreThreshold = 0.0


@dataclass(frozen=True, eq=False)
class ImagePairs:
    """All that the metrics need to know about one image.

    pairs: shared pixels (int64, above 0) of truth and prediction. ignored_px: (P,) int64 pixels of each prediction that
    lie in ignored regions (summed over them). boxes: IoU of boxes in COCO's sense, or None. repeats: shared pixels of
    pairs of predictions, or None. boundary: boundary IoU of every pair that shares pixels of the ``boundary_px`` wide
    inner bands, or None.
    foreground: class id (`ALL_CLASSES` for all) -> pixels of the truth's union, of the prediction's, of both; pixels in
    ignored regions of that class are left out. Empty when not asked for.
    """

    image_id: str
    image_hw: tuple[int, int]
    truth: Side
    predicted: Side
    pairs: Overlaps
    ignored_px: np.ndarray
    foreground: dict[int, tuple[int, int, int]]
    boxes: Overlaps | None = None
    boundary: Overlaps | None = None
    boundary_px: int | None = None
    repeats: Overlaps | None = None

    @property
    def iou(self) -> np.ndarray:
        """IoU (P,) float64 of every pair."""
        union = self.truth.areas[self.pairs.truth] + self.predicted.areas[self.pairs.predicted] - self.pairs.value
        return self.pairs.value / union

    @property
    def coco_iou(self) -> Overlaps:
        """IoU of every pair as COCO has it: over the prediction's own area where the truth is an ignored region."""
        own = self.predicted.areas[self.pairs.predicted]
        union = self.truth.areas[self.pairs.truth] + own - self.pairs.value
        return replace(self.pairs, value=self.pairs.value / np.where(self.truth.ignore[self.pairs.truth], own, union))

    def select(self, truth: np.ndarray, predicted: np.ndarray) -> ImagePairs:
        """The same image with some objects (bool masks of both sides); pairs are kept as they are."""
        parts = {name: getattr(self, name) for name in ("boxes", "boundary")}
        parts = {name: value and value.select(truth, predicted) for name, value in parts.items()}
        return replace(
            self,
            truth=self.truth[truth],
            predicted=self.predicted[predicted],
            pairs=self.pairs.select(truth, predicted),
            ignored_px=self.ignored_px[predicted],
            repeats=self.repeats and self.repeats.select(predicted, predicted),
            **parts,
        )

    def of_class(self, class_id: int) -> ImagePairs:
        """The objects of one class on both sides."""
        foreground = {ALL_CLASSES: self.foreground[class_id]} if class_id in self.foreground else {}
        kept = self.select(self.truth.class_ids == class_id, self.predicted.class_ids == class_id)
        return replace(kept, foreground=foreground)

    def above(self, score_threshold: ScoreThreshold) -> ImagePairs:
        """Without the predictions that score less; without scores all stay."""
        kept = reaches(self.predicted.scores, self.predicted.class_ids, score_threshold)
        return self if kept.all() else self.select(np.ones(len(self.truth), bool), kept)

    def judged(self) -> ImagePairs:
        """Without ignored regions, and without the predictions that they excuse.

        A prediction is excused when more than half of its pixels lie in ignored regions and it reaches IoU .5 with no
        object that counts (the rule of the panoptic benchmark).
        """
        return self.select(*self.counted()) if self.truth.ignore.any() else self

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """Which truth and which predictions (bool masks) `judged` keeps."""
        hit = np.zeros(len(self.predicted), bool)
        hit[self.pairs.predicted[(self.iou >= 0.5) & ~self.truth.ignore[self.pairs.truth]]] = True
        return ~self.truth.ignore, hit | (2 * self.ignored_px <= self.predicted.areas)


@dataclass(frozen=True, eq=False)
class Matching:
    """Pairs matched one to one: truth (M,), predicted (M,) int64 and their IoU (M,) float64."""

    truth: np.ndarray
    predicted: np.ndarray
    iou: np.ndarray


def pair_image(truth: Instances, predicted: Instances, image_id: str, options: PairOptions) -> ImagePairs:
    """Compare the objects of one image; either side may be empty. `InputError` when the image sizes differ."""
    if options.boundary_px is not None and options.boundary_px < 1:
        raise UsageError("a boundary band needs a width", got=options.boundary_px, expected="1 pixel or more")
    if truth.image_hw != predicted.image_hw:
        raise InputError(
            "prediction and truth are of different sizes",
            where=f"image {image_id}",
            got=f"{predicted.image_hw[0]} x {predicted.image_hw[1]}",
            expected=f"{truth.image_hw[0]} x {truth.image_hw[1]} (height x width)",
            remedy="predict at the size of the annotated image, or compare with the annotations of that image",
        )
    sides = Side.of(truth), Side.of(predicted)
    pairs = Overlaps(*truth.masks.intersections(predicted.masks))
    ignored = truth.ignore[pairs.truth]
    covered = np.bincount(pairs.predicted[ignored], pairs.value[ignored], minlength=len(predicted)).astype(np.int64)
    return ImagePairs(
        image_id,
        truth.image_hw,
        *sides,
        pairs,
        covered,
        _foregrounds(truth, _above(predicted, options.score_threshold)) if options.foreground else {},
        boxes=_box_pairs(*sides) if options.boxes else None,
        boundary=_boundary_pairs(truth, predicted, options.boundary_px) if options.boundary_px is not None else None,
        boundary_px=options.boundary_px,
        repeats=Overlaps(*predicted.masks.intersections(predicted.masks)) if options.repeats else None,
    )


def one_to_one(pairs: ImagePairs, threshold: float, *, above: bool = False) -> Matching:
    """The pairs of IoU >= ``threshold`` (> with ``above``) that match most objects one to one.

    Of several ways the one of the largest sum of IoU, where IoU below the threshold counts too (StarDist's objective:
    it solves the assignment over all pairs and then drops what is below). No pairs give an empty matching.
    """
    iou = pairs.iou
    good = iou > threshold if above else iou >= threshold
    chosen = _unrivalled(pairs, good)
    if np.count_nonzero(chosen) < np.count_nonzero(good):
        chosen = assign(pairs, threshold, above=above) & good
    return Matching(pairs.pairs.truth[chosen], pairs.pairs.predicted[chosen], iou[chosen])


def assign(pairs: ImagePairs, threshold: float, *, above: bool = False) -> np.ndarray:
    """Pairs (P,) bool of the assignment that StarDist and Cellpose solve, pairs below ``threshold`` included.

    It minimises ``-[IoU >= threshold] - IoU / (2 min(N, M))``: first as many good pairs as can be, then most IoU.
    """
    iou = pairs.iou
    good = iou > threshold if above else iou >= threshold
    chosen = _unrivalled(pairs, good)
    # A good pair without a rival belongs to every optimum; what is left is a small problem.
    truth_done, predicted_done = np.zeros(len(pairs.truth), bool), np.zeros(len(pairs.predicted), bool)
    truth_done[pairs.pairs.truth[chosen]] = True
    predicted_done[pairs.pairs.predicted[chosen]] = True
    left = np.flatnonzero(~truth_done[pairs.pairs.truth] & ~predicted_done[pairs.pairs.predicted])
    smaller = max(min(len(pairs.truth), len(pairs.predicted)), 1)
    weight = good[left] + iou[left] / (2 * smaller)
    chosen[left] = heaviest_matching(pairs.pairs.truth[left], pairs.pairs.predicted[left], weight)
    return chosen


def heaviest_matching(rows: np.ndarray, columns: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Edges (P,) bool of the one-to-one matching of the largest total weight; edges are unique, weights above 0."""
    chosen = np.zeros(len(rows), bool)
    alone = (np.bincount(rows)[rows] == 1) & (np.bincount(columns)[columns] == 1) if len(rows) else chosen
    chosen[alone] = True
    left = np.flatnonzero(~alone)
    if not len(left):
        return chosen
    _, row = np.unique(rows[left], return_inverse=True)
    column_ids, column = np.unique(columns[left], return_inverse=True)
    order = np.argsort(row, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(row))]).astype(np.int64)
    edges = _kernels().heaviest_edges(start, column[order], weight[left][order], len(column_ids))
    chosen[left[order[edges[edges >= 0]]]] = True
    return chosen


def _unrivalled(pairs: ImagePairs, good: np.ndarray) -> np.ndarray:
    """Good pairs (P,) bool whose two objects are in no other good pair."""
    n_truth = np.bincount(pairs.pairs.truth[good], minlength=len(pairs.truth))
    n_predicted = np.bincount(pairs.pairs.predicted[good], minlength=len(pairs.predicted))
    return good & (n_truth[pairs.pairs.truth] == 1) & (n_predicted[pairs.pairs.predicted] == 1)


def _box_pairs(truth: Side, predicted: Side) -> Overlaps:
    """IoU of overlapping boxes, over the prediction's own area where the truth is an ignored region."""
    i, j = overlapping_pairs(truth.boxes, predicted.boxes)
    a, b = truth.boxes[i], predicted.boxes[j]
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    inter = sides.prod(1)
    own = (b[:, 2:] - b[:, :2]).prod(1)
    union = np.where(truth.ignore[i], own, (a[:, 2:] - a[:, :2]).prod(1) + own - inter)
    return Overlaps(i, j, inter / union)


def _boundary_pairs(truth: Instances, predicted: Instances, distance: int) -> Overlaps:
    """Boundary IoU (Cheng et al. 2021): the IoU of the inner bands of two masks, ``distance`` pixels wide."""
    bands = [inner_band(masks, distance) for masks in (truth.masks, predicted.masks)]
    i, j, value = bands[0].iou(bands[1])
    return Overlaps(i, j, value)


def inner_band(masks: MaskSet, distance: int) -> MaskSet:
    """The pixels of each mask within ``distance`` pixels (chessboard, 1 or more) of its outside."""
    crops = _kernels().inner_bands(masks.boxes, masks.offsets, masks.crops, distance)
    return replace(masks, crops=crops)  # a mask's outermost pixels stay, so its box stays tight


def reaches(scores: np.ndarray | None, class_ids: np.ndarray, threshold: ScoreThreshold) -> np.ndarray:
    """Which predictions (N,) bool score at least the threshold (of their class); without scores all do.

    `UsageError` for a class without a threshold.
    """
    limits = np.asarray(threshold, np.float32)
    if limits.ndim and class_ids.max(initial=-1) >= len(limits):
        got = f"class id {class_ids.max()} with {len(limits)} thresholds"
        raise UsageError("a class has no score threshold", got=got, expected="one threshold, or one a class")
    if scores is None:
        return np.ones(len(class_ids), bool)
    # Compared as float32, as the predictor does, so that a score of the threshold itself stays.
    return scores.astype(np.float32) >= (limits[class_ids] if limits.ndim else limits)


def _above(predicted: Instances, score_threshold: ScoreThreshold) -> Instances:
    kept = reaches(predicted.scores, predicted.class_ids, score_threshold)
    return predicted if kept.all() else predicted[kept]


def _foregrounds(truth: Instances, predicted: Instances) -> dict[int, tuple[int, int, int]]:
    """Pixels of the truth's union, the prediction's and both, for all classes and for each that occurs."""
    classes = np.union1d(truth.class_ids, predicted.class_ids)
    result = {}
    for class_id in (ALL_CLASSES, *map(int, classes)):
        if class_id != ALL_CLASSES and len(classes) == 1:
            result[class_id] = result[ALL_CLASSES]
            break
        of_class = [(side.class_ids == class_id) | (class_id == ALL_CLASSES) for side in (truth, predicted)]
        planes = [truth.masks[of_class[0] & ~truth.ignore].foreground(), predicted.masks[of_class[1]].foreground()]
        ignored = of_class[0] & truth.ignore
        if ignored.any():
            counted = ~truth.masks[ignored].foreground()
            planes = [plane & counted for plane in planes]
        both = np.count_nonzero(planes[0] & planes[1])
        result[class_id] = (np.count_nonzero(planes[0]), np.count_nonzero(planes[1]), both)
    return result


def _kernels() -> Any:
    from cellwright.evaluation import _kernels

    return _kernels
