"""Regions that are not annotated: `Instances.ignore`, and what follows for the objects in and beside them.

Training, evaluation and statistics all use the rule of `resolve_ignored`: an object counts as a whole or not at all,
and more than half of its pixels decide.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat


def resolve_ignored(instances: Instances) -> Instances:
    """The same objects in the same order, with ``ignore`` and the masks of ignored regions as they count.

    - An object with more than half of its pixels in ignored regions, of whatever class, is ignored too.
    - An ignored region does not cover the other objects; they count as a whole.

    >>> masks = MaskSet.from_dense(np.array([[[1, 1, 1, 1, 0, 0]], [[0, 1, 1, 0, 0, 0]], [[0, 0, 0, 1, 1, 1]]], bool))
    >>> resolved = resolve_ignored(Instances.from_masks(masks, ignore=[True, False, False]))
    >>> resolved.ignore, resolved.masks[0].to_dense()[0].astype(int)
    (array([ True,  True, False]), array([[1, 1, 1, 0, 0, 0]]))
    """
    if not instances.ignore.any():
        return instances
    masks = instances.masks
    inside = pixels_inside(masks, masks[instances.ignore].foreground())
    ignore = instances.ignore | (2 * inside > masks.areas)
    if not inside[~ignore].any():
        return replace(instances, ignore=ignore)
    covered = masks[~ignore].foreground().astype(bool)
    regions = masks[ignore]
    crops = [regions.crop(i).astype(bool) & ~covered[y0:y1, x0:x1] for i, (x0, y0, x1, y1) in enumerate(regions.boxes)]
    cut = MaskSet.from_crops(regions.boxes, crops, instances.image_hw)
    order = np.argsort(np.concatenate([np.flatnonzero(~ignore), np.flatnonzero(ignore)]))
    boxes = instances.boxes_xyxy.copy()
    boxes[ignore] = cut.boxes
    return replace(instances, masks=concat([masks[~ignore], cut])[order], boxes_xyxy=boxes, ignore=ignore)


def counted_objects(instances: Instances) -> Instances:
    """The objects that count: neither regions that are not annotated, nor objects mostly in them."""
    resolved = resolve_ignored(instances)
    return resolved[~resolved.ignore] if resolved.ignore.any() else resolved


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


def with_regions(instances: Instances, ignored: MaskSet, annotated: MaskSet | None = None) -> Instances:
    """The objects, and regions that are not annotated, as far as these are not among them yet.

    ignored: R regions; each becomes one object. annotated: what lies outside all of these becomes another; None: the
    whole image is annotated. The new objects have class 0, and the lowest free ids above all others.
    """
    parts = [ignored]
    if annotated is not None:
        parts.append(MaskSet.from_dense(~annotated.foreground().astype(bool)[None]))
    masks = concat(parts)
    if instances.ignore.any():
        known = instances.masks[instances.ignore].foreground().astype(bool)
        crops = [masks.crop(i).astype(bool) & ~known[y0:y1, x0:x1] for i, (x0, y0, x1, y1) in enumerate(masks.boxes)]
        masks = MaskSet.from_crops(masks.boxes, crops, instances.image_hw)
    masks = masks[masks.areas > 0]
    if not len(masks):
        return instances
    n, first = len(masks), int(instances.ids.max(initial=0)) + 1
    columns = {name: np.append(values, _no_values(values, n)) for name, values in instances.columns.items()}
    return Instances(
        instances.image_hw,
        np.append(instances.ids, np.arange(first, first + n)),
        np.append(instances.boxes_xyxy, masks.boxes.astype(np.float32), axis=0),
        concat([instances.masks, masks]),
        np.append(instances.class_ids, np.zeros(n, np.int64)),
        None if instances.scores is None else np.append(instances.scores, np.ones(n, np.float32)),
        np.append(instances.ignore, np.ones(n, bool)),
        columns=columns,
    )


def _no_values(values: np.ndarray, n: int) -> np.ndarray:
    """``n`` missing values of a column."""
    if values.dtype.kind == "f":
        return np.full(n, np.nan, values.dtype)
    return np.full(n, None, object) if values.dtype.kind == "O" else np.zeros(n, values.dtype)
