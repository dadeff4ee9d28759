"""Metrics do not depend on predictions and annotations in regions that are not annotated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawn_pairs import disc, instances_of

import cellwright as cw
from cellwright.core.class_ids import NO_CLASS
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat

HW = (120, 160)
REGION = np.ones(HW, bool)  # all but two boxes that touch: its own box is the whole image
REGION[20:100, 30:90] = REGION[40:110, 90:130] = False


def objects(seed: int, *, scored: bool, inside: bool) -> Instances:
    """Discs of three classes, of which all lie in the region, or none does."""
    rng = np.random.default_rng(seed)
    shapes = [disc(HW, (rng.uniform(0, 120), rng.uniform(0, 160)), rng.uniform(2, 9)) for _ in range(300)]
    chosen = [s for s in shapes if s.any() and ((s & REGION).sum() == s.sum() if inside else not (s & REGION).any())]
    n = min(len(chosen), 25)
    scores = rng.random(n).astype(np.float32) if scored else None
    return instances_of(chosen[:n], HW, class_ids=rng.integers(0, 3, n), scores=scores)


def together(*parts: Instances, region: bool = False) -> Instances:
    masks = [part.masks for part in parts] + [MaskSet.from_dense(REGION[None])] * region
    class_ids = np.concatenate([*(part.class_ids for part in parts), np.full(int(region), NO_CLASS)])
    scores = None if parts[0].scores is None else np.concatenate([p.scores for p in parts if p.scores is not None])
    n = sum(map(len, parts))
    joined = concat(masks)
    return Instances.from_masks(joined, class_ids=class_ids, scores=scores, ignore=np.arange(len(joined)) >= n)


@pytest.mark.parametrize("seed", range(2))
def test_no_metric_depends_on_what_lies_in_the_region(seed: int) -> None:
    truth, predicted = (objects(seed + k, scored=k == 7, inside=False) for k in (3, 7))
    predicted = together(predicted, replace(truth[:6], scores=np.full(6, 0.7, np.float32)))
    metrics = ["coco_ap", "aji", "pq", "kaggle_score", "boundary_iou", "errors", "ranking"]
    first = cw.evaluate([predicted], [together(truth, region=True)], metrics=metrics)
    more = together(predicted, objects(seed + 20, scored=True, inside=True))
    again = cw.evaluate(
        [more], [together(truth, objects(seed + 30, scored=False, inside=True), region=True)], metrics=metrics
    )
    plain = cw.evaluate([more], [truth], metrics=metrics)
    names = [name for name in first.values if name not in ("n_ignored",)]
    assert {"AP@all", "box_AP@all", "aji", "pq", "dice", "accuracy@0.5", "n_predicted", "n_truth"} <= {*names}
    for name in names:
        assert again[name] == pytest.approx(first[name], nan_ok=True), name
    assert plain["accuracy@0.5"] < first["accuracy@0.5"]
    assert plain["box_AP@all"] < first["box_AP@all"]
    columns = [name for name in first.per_class if name != "class"]
    np.testing.assert_allclose(again.per_class[columns].to_numpy(float), first.per_class[columns].to_numpy(float))


def test_regions_of_predictions_are_no_objects() -> None:
    truth = objects(3, scored=False, inside=False)
    report = cw.evaluate([together(truth, region=True)], [truth])
    assert (report["n_predicted"], report["accuracy@0.5"]) == (len(truth), 1)
