"""Regions that are not annotated: `Instances.ignore`, and what follows for the objects in and beside them.

Training, evaluation and statistics all use the rule of `resolve_ignored`: an object counts as a whole or not at all,
and more than half of its pixels decide. Only COCO's average precision tells regions of no class from crowds, which are
of one class: objects in a crowd count there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat


def resolve_ignored(instances: Instances, *, crowds: bool = True) -> Instances:
    """The same objects in the same order, with ``ignore`` and the masks of ignored regions as they count.

    - An object with more than half of its pixels in ignored regions, of whatever class, is ignored too.
    - An ignored region does not cover the other objects; they count as a whole.

    crowds: whether ignored regions with a class are treated so. If not, they stay as they are, unless most of one lies
    in regions of no class; it is then part of these, as objects are: it has no class either.

    >>> masks = MaskSet.from_dense(np.array([[[1, 1, 1, 1, 0, 0]], [[0, 1, 1, 0, 0, 0]], [[0, 0, 0, 1, 1, 1]]], bool))
    >>> resolved = resolve_ignored(Instances.from_masks(masks, ignore=[True, False, False]))
    >>> resolved.ignore, resolved.masks[0].to_dense()[0].astype(int)
    (array([ True,  True, False]), array([[1, 1, 1, 0, 0, 0]]))
    """
    given = instances.ignore if crowds else instances.class_ids == NO_CLASS
    if not given.any():
        return instances
    masks = instances.masks
    inside = pixels_inside(masks, masks[given].foreground())
    is_region = given | (2 * inside > masks.areas)
    ignore = instances.ignore | is_region
    class_ids = instances.class_ids if crowds else np.where(is_region, NO_CLASS, instances.class_ids)
    if not inside[~ignore].any():
        return replace(instances, ignore=ignore, class_ids=class_ids)
    covered = masks[~ignore].foreground().astype(bool)
    regions = masks[is_region]
    crops = [regions.crop(i).astype(bool) & ~covered[y0:y1, x0:x1] for i, (x0, y0, x1, y1) in enumerate(regions.boxes)]
    cut = MaskSet.from_crops(regions.boxes, crops, instances.image_hw)
    order = np.argsort(np.concatenate([np.flatnonzero(~is_region), np.flatnonzero(is_region)]))
    boxes = instances.boxes_xyxy.copy()
    boxes[is_region] = cut.boxes
    masks = concat([masks[~is_region], cut])[order]
    return replace(instances, masks=masks, boxes_xyxy=boxes, ignore=ignore, class_ids=class_ids)


def counted_objects(instances: Instances) -> Instances:
    """The objects that count: neither regions that are not annotated, nor objects mostly in them."""
    resolved = resolve_ignored(instances)
    return resolved[~resolved.ignore] if resolved.ignore.any() else resolved


def objects_only(instances: Instances) -> Instances:
    """The objects without ignored regions, for what has no place for these."""
    return instances[~instances.ignore] if instances.ignore.any() else instances


def pixels_inside(masks: MaskSet, region: np.ndarray) -> np.ndarray:
    """Pixels (N,) int64 of each mask in a region (H, W) bool."""
    k, _, shared = masks.intersections(MaskSet.from_dense(region.astype(bool)[None]))
    return np.bincount(k, shared, minlength=len(masks)).astype(np.int64)


def ignored_region(instances: Instances) -> MaskSet:
    """The union of the ignored regions: one mask, or none without any."""
    regions = instances.masks[instances.ignore]
    return regions.union(np.zeros(len(regions), np.int64)) if len(regions) else regions


def annotated_px(instances: Instances) -> int:
    """The number of pixels of the image that are annotated."""
    height, width = instances.image_hw
    return height * width - int(ignored_region(resolve_ignored(instances)).areas.sum())


def with_regions(
    instances: Instances,
    ignored: MaskSet,
    annotated: MaskSet | None = None,
    *,
    ids: Sequence[int | None] | None = None,
) -> Instances:
    """The objects, and regions that are not annotated for any class, as far as these are not among them yet.

    ignored: R regions; each becomes one object. annotated: what lies outside all of these becomes another; None: the
    whole image is annotated. ids: wanted by the R regions; where None or not free, the new objects have the lowest free
    ids above all others.
    """
    parts, wanted = [ignored], [None] * len(ignored) if ids is None else list(ids)
    if annotated is not None:
        parts.append(MaskSet.from_dense(~annotated.foreground().astype(bool)[None]))
        wanted.append(None)
    masks, known = concat(parts), instances.class_ids == NO_CLASS
    if known.any():
        covered = instances.masks[known].foreground().astype(bool)
        crops = [masks.crop(i).astype(bool) & ~covered[y0:y1, x0:x1] for i, (x0, y0, x1, y1) in enumerate(masks.boxes)]
        masks = MaskSet.from_crops(masks.boxes, crops, instances.image_hw)
    kept = np.flatnonzero(masks.areas > 0)
    masks, n = masks[kept], len(kept)
    if not n:
        return instances
    columns = {name: np.append(values, _no_values(values, n)) for name, values in instances.columns.items()}
    return Instances(
        instances.image_hw,
        np.append(instances.ids, _free_ids(instances.ids, [wanted[k] for k in kept])),
        np.append(instances.boxes_xyxy, masks.boxes.astype(np.float32), axis=0),
        concat([instances.masks, masks]),
        np.append(instances.class_ids, np.full(n, NO_CLASS)),
        None if instances.scores is None else np.append(instances.scores, np.ones(n, np.float32)),
        np.append(instances.ignore, np.ones(n, bool)),
        columns=columns,
    )


def _free_ids(taken: np.ndarray, wanted: Sequence[int | None]) -> np.ndarray:
    """The ids (n,) int64 that are wanted, each once; where None or not free, above all others."""
    known, chosen = set(taken.tolist()), []
    for number in wanted:
        chosen.append(0 if number is None or number in known else number)
        known.add(chosen[-1])
    following = itertools.count(max(known, default=0) + 1)
    return np.array([number or next(following) for number in chosen], np.int64)


def _no_values(values: np.ndarray, n: int) -> np.ndarray:
    """``n`` missing values of a column."""
    if values.dtype.kind == "f":
        return np.full(n, np.nan, values.dtype)
    return np.full(n, None, object) if values.dtype.kind == "O" else np.zeros(n, values.dtype)
