"""Overlaps between the annotated and the predicted objects of one image, and one-to-one matching.

`pair_image` reads the masks of one image once and keeps sparse overlaps and counts, a few numbers per object. All
metrics are computed from these, so a dataset is evaluated with the masks of one image in memory. There are two ways to
match objects: greedily by score as COCO does (`coco`), and one to one by IoU as StarDist does (`one_to_one`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.errors import InputError, UsageError
from cellwright.core.geometry import overlapping_pairs
from cellwright.core.ignored import ignored_region, pixels_inside, resolve_ignored
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.scores import ScoreThreshold, reaches_threshold

ALL_CLASSES = -1
MATCHED_IOU = 0.5  # minimum IoU at which an object counts as found, where a single threshold is used


@dataclass(frozen=True, eq=False)
class ObjectFacts:
    """N objects without their pixels; every array has N rows.

    areas: int64, pixels. sizes: float64, used for size bands: the column ``area`` if the annotations have one, as COCO
    files do, otherwise the areas. boxes: (N, 4) float64 ``x0, y0, x1, y1``. scores: float64, or None.
    """

    ids: np.ndarray
    class_ids: np.ndarray
    areas: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    ignore: np.ndarray
    scores: np.ndarray | None

    @staticmethod
    def of(instances: Instances) -> ObjectFacts:
        """The facts about these objects."""
        areas = instances.masks.areas
        sizes = instances.columns.get("area", areas)
        scores = None if instances.scores is None else instances.scores.astype(np.float64)
        boxes = instances.boxes_xyxy.astype(np.float64)
        return ObjectFacts(
            instances.ids, instances.class_ids, areas, sizes.astype(np.float64), boxes, instances.ignore, scores
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, keep: np.ndarray) -> ObjectFacts:
        scores = None if self.scores is None else self.scores[keep]
        ids, class_ids, areas = self.ids[keep], self.class_ids[keep], self.areas[keep]
        return ObjectFacts(ids, class_ids, areas, self.sizes[keep], self.boxes[keep], self.ignore[keep], scores)


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Sparse pairs of objects: truth (P,) and predicted (P,) int64 indices, sorted by both, and a value (P,) each."""

    truth: np.ndarray
    predicted: np.ndarray
    value: np.ndarray

    def select(self, truth: np.ndarray, predicted: np.ndarray) -> Overlaps:
        """The pairs whose objects are both kept (bool masks), with their new indices."""
        keep = truth[self.truth] & predicted[self.predicted]
        new_truth, new_predicted = np.cumsum(truth) - 1, np.cumsum(predicted) - 1
        return Overlaps(new_truth[self.truth[keep]], new_predicted[self.predicted[keep]], self.value[keep])


@dataclass(frozen=True)
class PairOptions:
    """What to compute besides mask intersections.

    boxes: box IoU. foreground: pixel counts of the union of all masks. boundary_px: width of the band for boundary IoU,
    or None. repeats: overlaps between predictions, needed to distinguish duplicates from fragments.
    score_threshold: predictions below it do not count as foreground. They stay in the pairs all the same; remove them
    with `ImagePairs.above`.
    """

    boxes: bool = False
    foreground: bool = False
    boundary_px: int | None = None
    repeats: bool = False
    score_threshold: ScoreThreshold = 0.0


@dataclass(frozen=True, eq=False)
class CocoPairs:
    """The annotated objects of one image as COCO's average precision counts them, and their overlaps.

    truth: in the order of `ImagePairs.truth`. Ignored objects of a class are crowds, and objects in them count. What
    has no class is not annotated for any class, as in `resolve_ignored`.
    masks: IoU of every pair that shares pixels. For a crowd it is the share of the prediction that is in the crowd; for
    what has no class, the share that is in all regions of no class.
    boxes: the same of the boxes, with the box of a crowd, but the pixels of regions of no class; None if not requested.
    """

    truth: ObjectFacts
    masks: Overlaps
    boxes: Overlaps | None

    def select(self, truth: np.ndarray, predicted: np.ndarray) -> CocoPairs:
        """The same for a subset of the objects (bool masks)."""
        boxes = self.boxes and self.boxes.select(truth, predicted)
        return CocoPairs(self.truth[truth], self.masks.select(truth, predicted), boxes)


@dataclass(frozen=True, eq=False)
class ImagePairs:
    """Everything the metrics need to know about one image.

    shared: number of shared pixels (int64, above 0) of each pair of an annotated and a predicted object.
    truth: as `resolve_ignored` gives it; ignored regions are of every class.
    ignored_px: (P,) int64, pixels of each prediction inside ignored regions.
    foreground: class id (`ALL_CLASSES` for all) -> pixels in the union of the annotated masks, of the predicted masks,
    and in both, excluding pixels in ignored regions. Empty if not requested.
    coco: the same for average precision. boundary: boundary IoU of every pair that shares pixels of the inner bands of
    width ``boundary_px``, or None. repeats: shared pixels of pairs of predictions, or None.
    """

    image_id: str
    image_hw: tuple[int, int]
    truth: ObjectFacts
    predicted: ObjectFacts
    shared: Overlaps
    ignored_px: np.ndarray
    foreground: dict[int, tuple[int, int, int]]
    coco: CocoPairs
    boundary: Overlaps | None = None
    boundary_px: int | None = None
    repeats: Overlaps | None = None

    @property
    def iou(self) -> np.ndarray:
        """IoU (P,) float64 of every pair."""
        union = self.truth.areas[self.shared.truth] + self.predicted.areas[self.shared.predicted] - self.shared.value
        return self.shared.value / union

    def select(self, truth: np.ndarray, predicted: np.ndarray) -> ImagePairs:
        """The same image with a subset of the objects (bool masks). The foreground counts do not change."""
        return replace(
            self,
            truth=self.truth[truth],
            predicted=self.predicted[predicted],
            shared=self.shared.select(truth, predicted),
            ignored_px=self.ignored_px[predicted],
            coco=self.coco.select(truth, predicted),
            boundary=self.boundary and self.boundary.select(truth, predicted),
            repeats=self.repeats and self.repeats.select(predicted, predicted),
        )

    def of_class(self, class_id: int) -> ImagePairs:
        """Only the annotated and predicted objects of one class, and all ignored regions."""
        foreground = {ALL_CLASSES: self.foreground[class_id]} if class_id in self.foreground else {}
        of_truth = (self.truth.class_ids == class_id) | self.truth.ignore
        kept = self.select(of_truth, self.predicted.class_ids == class_id)
        return replace(kept, foreground=foreground)

    def above(self, score_threshold: ScoreThreshold) -> ImagePairs:
        """Without the predictions below the score threshold; predictions without scores all stay."""
        kept = reaches_threshold(self.predicted.scores, self.predicted.class_ids, score_threshold)
        return self if kept.all() else self.select(np.ones(len(self.truth), bool), kept)

    def without_ignored(self) -> ImagePairs:
        """Without ignored regions and the predictions they excuse.

        A prediction is excused if more than half of its pixels are in ignored regions and it does not reach an IoU of
        0.5 with any object that counts (the rule of the panoptic benchmark).
        """
        return self.select(*self.counted()) if self.truth.ignore.any() else self

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """The annotated objects and the predictions (bool masks) that `without_ignored` keeps."""
        hit = np.zeros(len(self.predicted), bool)
        hit[self.shared.predicted[(self.iou >= MATCHED_IOU) & ~self.truth.ignore[self.shared.truth]]] = True
        return ~self.truth.ignore, hit | (2 * self.ignored_px <= self.predicted.areas)


@dataclass(frozen=True, eq=False)
class Matching:
    """M pairs matched one to one: indices truth (M,) and predicted (M,) int64, and their IoU (M,) float64."""

    truth: np.ndarray
    predicted: np.ndarray
    iou: np.ndarray


def pair_image(truth: Instances, predicted: Instances, image_id: str, options: PairOptions) -> ImagePairs:
    """Compute the overlaps between the objects of one image; there may be none. `InputError` if image sizes differ."""
    if options.boundary_px is not None and options.boundary_px < 1:
        raise UsageError("invalid width of the boundary band", got=options.boundary_px, expected="at least 1 pixel")
    if truth.image_hw != predicted.image_hw:
        raise InputError(
            "prediction and ground truth have different sizes",
            where=f"image {image_id}",
            got=f"{predicted.image_hw[0]} x {predicted.image_hw[1]}",
            expected=f"{truth.image_hw[0]} x {truth.image_hw[1]} (height x width)",
            remedy="predict at the size of the annotated image, or use the annotations of the image predicted on",
        )
    given, truth = truth, resolve_ignored(truth)
    facts = ObjectFacts.of(truth), ObjectFacts.of(predicted)
    shared = Overlaps(*truth.masks.intersections(predicted.masks))
    ignored_px = np.zeros(len(predicted), np.int64)
    if truth.ignore.any():
        ignored_px = pixels_inside(predicted.masks, ignored_region(truth).foreground())
    return ImagePairs(
        image_id,
        truth.image_hw,
        *facts,
        shared,
        ignored_px,
        _foregrounds(truth, _above(predicted, options.score_threshold)) if options.foreground else {},
        _coco_pairs(given, predicted, shared, boxes=options.boxes),
        boundary=_boundary_pairs(truth, predicted, options.boundary_px) if options.boundary_px is not None else None,
        boundary_px=options.boundary_px,
        repeats=Overlaps(*predicted.masks.intersections(predicted.masks)) if options.repeats else None,
    )


def one_to_one(pairs: ImagePairs, threshold: float, *, strict: bool = False) -> Matching:
    """Match as many objects as possible one to one by pairs with IoU >= ``threshold`` (> if ``strict``).

    Among several such matchings, the one with the largest sum of IoU is chosen, where IoU below the threshold counts
    too. This is StarDist's objective: it solves the assignment over all pairs, then drops pairs below the threshold.
    Without pairs the matching is empty.
    """
    iou = pairs.iou
    good = iou > threshold if strict else iou >= threshold
    chosen = _unrivalled(pairs, good)
    if np.count_nonzero(chosen) < np.count_nonzero(good):
        chosen = best_assignment(pairs, threshold, strict=strict) & good
    return Matching(pairs.shared.truth[chosen], pairs.shared.predicted[chosen], iou[chosen])


def best_assignment(pairs: ImagePairs, threshold: float, *, strict: bool = False) -> np.ndarray:
    """Pairs (P,) bool of the assignment that StarDist and Cellpose solve, including pairs below ``threshold``.

    It minimises ``-[IoU >= threshold] - IoU / (2 min(N, M))``: the number of good pairs first, then the sum of IoU.
    """
    iou = pairs.iou
    good = iou > threshold if strict else iou >= threshold
    chosen = _unrivalled(pairs, good)
    # A good pair whose objects are in no other good pair belongs to every optimum; a small problem remains.
    truth_done, predicted_done = np.zeros(len(pairs.truth), bool), np.zeros(len(pairs.predicted), bool)
    truth_done[pairs.shared.truth[chosen]] = True
    predicted_done[pairs.shared.predicted[chosen]] = True
    rest = np.flatnonzero(~truth_done[pairs.shared.truth] & ~predicted_done[pairs.shared.predicted])
    smaller = max(min(len(pairs.truth), len(pairs.predicted)), 1)
    weight = good[rest] + iou[rest] / (2 * smaller)
    chosen[rest] = heaviest_matching(pairs.shared.truth[rest], pairs.shared.predicted[rest], weight)
    return chosen


def heaviest_matching(rows: np.ndarray, columns: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Edges (P,) bool of the one-to-one matching with the largest total weight; edges are unique, weights positive."""
    chosen = np.zeros(len(rows), bool)
    alone = (np.bincount(rows)[rows] == 1) & (np.bincount(columns)[columns] == 1) if len(rows) else chosen
    chosen[alone] = True
    rest = np.flatnonzero(~alone)
    if not len(rest):
        return chosen
    _, row = np.unique(rows[rest], return_inverse=True)
    column_ids, column = np.unique(columns[rest], return_inverse=True)
    order = np.argsort(row, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(row))]).astype(np.int64)
    edges = _kernels().heaviest_edges(start, column[order], weight[rest][order], len(column_ids))
    chosen[rest[order[edges[edges >= 0]]]] = True
    return chosen


def _unrivalled(pairs: ImagePairs, good: np.ndarray) -> np.ndarray:
    """Good pairs (P,) bool whose two objects are in no other good pair."""
    n_truth = np.bincount(pairs.shared.truth[good], minlength=len(pairs.truth))
    n_predicted = np.bincount(pairs.shared.predicted[good], minlength=len(pairs.predicted))
    return good & (n_truth[pairs.shared.truth] == 1) & (n_predicted[pairs.shared.predicted] == 1)


def _coco_pairs(truth: Instances, predicted: Instances, shared: Overlaps, *, boxes: bool) -> CocoPairs:
    """truth: as annotated. shared: shared pixels as in `ImagePairs`, where only crowds make a difference."""
    has_crowds = bool((truth.ignore & (truth.class_ids != NO_CLASS)).any())
    truth = resolve_ignored(truth, crowds=False)
    if has_crowds:
        shared = Overlaps(*truth.masks.intersections(predicted.masks))
    facts, areas = ObjectFacts.of(truth), predicted.masks.areas
    i, j, inter = shared.truth, shared.predicted, shared.value
    union = np.where(truth.ignore[i], areas[j], facts.areas[i] + areas[j] - inter)
    is_region = truth.class_ids == NO_CLASS
    if is_region.any():
        inside = pixels_inside(predicted.masks, truth.masks[is_region].foreground())
        inter = np.where(is_region[i], inside[j], inter)
    masks = Overlaps(i, j, inter / union)
    return CocoPairs(facts, masks, _box_pairs(facts, ObjectFacts.of(predicted), masks) if boxes else None)


def _box_pairs(truth: ObjectFacts, predicted: ObjectFacts, masks: Overlaps) -> Overlaps:
    """IoU of overlapping boxes; for a crowd, the union is the box of the prediction.

    A region of no class is its pixels, as in ``masks``: its box may be most of the image.
    """
    is_region = truth.class_ids == NO_CLASS
    i, j = overlapping_pairs(truth.boxes, predicted.boxes)
    i, j = i[~is_region[i]], j[~is_region[i]]
    a, b = truth.boxes[i], predicted.boxes[j]
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    inter, own = sides.prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    union = np.where(truth.ignore[i], own, (a[:, 2:] - a[:, :2]).prod(1) + own - inter)
    of_region = is_region[masks.truth]
    i, j = np.append(i, masks.truth[of_region]), np.append(j, masks.predicted[of_region])
    order = np.lexsort((j, i))
    return Overlaps(i[order], j[order], np.append(inter / union, masks.value[of_region])[order])


def _boundary_pairs(truth: Instances, predicted: Instances, distance: int) -> Overlaps:
    """Boundary IoU (Cheng et al. 2021): the IoU of the inner bands of two masks, each ``distance`` pixels wide."""
    bands = [inner_band(masks, distance) for masks in (truth.masks, predicted.masks)]
    i, j, value = bands[0].iou(bands[1])
    return Overlaps(i, j, value)


def inner_band(masks: MaskSet, distance: int) -> MaskSet:
    """The pixels of each mask within ``distance`` >= 1 pixels (chessboard metric) of the outside."""
    crops = _kernels().inner_bands(masks.boxes, masks.offsets, masks.crops, distance)
    return replace(masks, crops=crops)  # the outermost pixels of a mask stay, so its box stays tight


def _above(predicted: Instances, score_threshold: ScoreThreshold) -> Instances:
    kept = reaches_threshold(predicted.scores, predicted.class_ids, score_threshold)
    return predicted if kept.all() else predicted[kept]


def _foregrounds(truth: Instances, predicted: Instances) -> dict[int, tuple[int, int, int]]:
    """Pixels in the union of annotated masks, of predicted masks, and in both; for all classes and for each class."""
    classes = np.union1d(truth.class_ids[~truth.ignore], predicted.class_ids[~predicted.ignore])
    counted = ~ignored_region(truth).foreground().astype(bool) if truth.ignore.any() else None
    result = {}
    for class_id in (ALL_CLASSES, *map(int, classes)):
        if class_id != ALL_CLASSES and len(classes) == 1:
            result[class_id] = result[ALL_CLASSES]
            break
        of_class = [(side.class_ids == class_id) | (class_id == ALL_CLASSES) for side in (truth, predicted)]
        planes = [truth.masks[of_class[0] & ~truth.ignore].foreground(), predicted.masks[of_class[1]].foreground()]
        if counted is not None:
            planes = [plane & counted for plane in planes]
        both = np.count_nonzero(planes[0] & planes[1])
        result[class_id] = (np.count_nonzero(planes[0]), np.count_nonzero(planes[1]), both)
    return result


def _kernels() -> Any:
    from cellwright.evaluation import _kernels

    return _kernels
