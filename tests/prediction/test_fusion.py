"""Fusion and suppression against `ensemble-boxes`, against plain references, and on hand-drawn masks."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from make_fusion_references import CASES, SIGMA, THRESHOLD, Case, drawn_boxes

from cellwright.core.errors import InputError, UsageError
from cellwright.core.geometry import box_iou
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, SoftMasks
from cellwright.ops.weighted_boxes import weighted_boxes
from cellwright.prediction.fusion import FusionOptions, fuse
from cellwright.prediction.suppression import box_pairs, gaussian_decay, hard_nms, linear_decay, mask_pairs, soft_nms

STORED = json.loads(Path(__file__).with_name("fusion_references.json").read_text())["cases"]
HW = (20, 30)


def pooled(case: Case, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, shares and classes of all members' objects that reach the score, best first."""
    members = drawn_boxes(case)
    kept = [scores >= case.score for _, scores, _ in members]
    boxes = np.concatenate([member[0][k] for member, k in zip(members, kept, strict=True)])
    shares = np.concatenate([member[1][k] * w for member, k, w in zip(members, kept, weights, strict=True)])
    classes = np.concatenate([member[2][k] for member, k in zip(members, kept, strict=True)])
    order = np.argsort(-shares)
    return boxes[order], shares[order], classes[order]


@pytest.mark.parametrize(("case", "stored"), list(zip(CASES, STORED, strict=True)), ids=[str(c.seed) for c in CASES])
def test_weighted_boxes_equal_those_of_ensemble_boxes(case: Case, stored: dict) -> None:
    weights = np.ones(case.n_members) if case.weights is None else np.array(case.weights)
    boxes, shares, classes = pooled(case, weights)
    cluster, fused, scores = weighted_boxes(boxes, shares, classes, weights, case.iou)
    order = np.argsort(-scores)
    assert len(fused) == len(stored["wbf"]["scores"])
    np.testing.assert_allclose(scores[order], stored["wbf"]["scores"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(fused[order], stored["wbf"]["boxes"], atol=1e-6, rtol=0)
    fused_classes = np.array([classes[cluster == k][0] for k in order])
    assert fused_classes.tolist() == stored["wbf"]["classes"]


@pytest.mark.parametrize(("case", "stored"), list(zip(CASES, STORED, strict=True)), ids=[str(c.seed) for c in CASES])
def test_fused_instances_equal_those_of_ensemble_boxes(case: Case, stored: dict) -> None:
    """With thresholds before weights, float32 boxes, and scores limited to 1."""
    side = 512
    members = [
        Instances.from_masks(
            MaskSet.from_flat((side, side), np.zeros((len(boxes), 4)), np.zeros(len(boxes) + 1), np.zeros(0, np.uint8)),
            class_ids=classes,
            scores=scores,
            boxes_xyxy=boxes * side,
        )
        for boxes, scores, classes in drawn_boxes(case)
    ]
    fused = fuse(members, FusionOptions(iou=case.iou, score=case.score, weights=case.weights))
    expected = np.array(stored["wbf"]["scores"])
    np.testing.assert_allclose(fused.scores, np.minimum(expected, 1), atol=1e-6, rtol=0)
    below = expected < 1  # scores of 1 are in no particular order
    np.testing.assert_allclose(
        fused.boxes_xyxy[below] / side, np.array(stored["wbf"]["boxes"])[below], atol=1e-6, rtol=0
    )
    assert fused.class_ids[below].tolist() == np.array(stored["wbf"]["classes"])[below].tolist()


@pytest.mark.parametrize(("case", "stored"), list(zip(CASES, STORED, strict=True)), ids=[str(c.seed) for c in CASES])
def test_suppression_keeps_the_same_boxes_as_ensemble_boxes(case: Case, stored: dict) -> None:
    boxes, scores, classes = pooled(replace(case, score=0.0), np.ones(case.n_members))
    pairs = box_pairs(boxes, classes)
    kept = hard_nms(scores, pairs, case.iou)
    assert sorted(scores[kept]) == pytest.approx(stored["nms"], abs=1e-9)
    decays = {"linear": linear_decay(pairs.overlap, case.iou), "gaussian": gaussian_decay(pairs.overlap, SIGMA)}
    for name, factors in decays.items():
        order, left = soft_nms(scores, pairs, factors)
        assert sorted(order) == list(range(len(boxes)))
        assert sorted(scores[left > THRESHOLD]) == pytest.approx(stored[f"soft_nms_{name}"], abs=1e-9)


def plain_soft_nms(boxes: np.ndarray, scores: np.ndarray, decay) -> tuple[list[int], np.ndarray]:
    """The pseudocode of the paper."""
    left, scores, order = list(range(len(boxes))), scores.copy(), []
    while left:
        m = max(left, key=lambda k: scores[k])
        left.remove(m)
        order.append(m)
        for k in left:
            scores[k] *= decay(box_iou(boxes[m : m + 1], boxes[k : k + 1]))[0, 0]
    return order, scores


@pytest.mark.parametrize("decay", [lambda o: linear_decay(o, 0.3), lambda o: gaussian_decay(o, 0.5)])
def test_soft_nms_equals_the_pseudocode_of_the_paper(decay) -> None:
    boxes, scores, _ = pooled(CASES[2], np.ones(4))
    pairs = box_pairs(boxes, np.zeros(len(boxes), np.int64))
    order, left = soft_nms(scores, pairs, decay(pairs.overlap))
    expected_order, expected = plain_soft_nms(boxes, scores, decay)
    assert order.tolist() == expected_order
    np.testing.assert_allclose(left, expected, rtol=1e-12)
    assert all(a >= b for a, b in pairwise(left[order]))


def test_crowded_boxes_cluster_as_without_the_grid() -> None:
    """Boxes of very different sizes: the grid that finds clusters must miss none."""
    rng = np.random.default_rng(5)
    centres, sides = rng.random((600, 2)) * 150, 4 + 200 * rng.random((600, 2)) ** 6
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    shares = np.sort(rng.random(600))[::-1]
    groups = rng.integers(0, 2, 600)
    cluster, fused, _ = weighted_boxes(boxes, shares, groups, np.ones(3), 0.2)
    members: list[list[int]] = []
    expected = np.zeros((0, 4))
    for k in range(600):
        iou = box_iou(boxes[k : k + 1], expected)[0]
        iou[[groups[member[0]] != groups[k] for member in members]] = 0
        best = int(iou.argmax()) if members and iou.max() > 0.2 else len(members)
        if best == len(members):
            members.append([])
            expected = np.concatenate([expected, np.zeros((1, 4))])
        members[best].append(k)
        expected[best] = np.average(boxes[members[best]], axis=0, weights=shares[members[best]])
        assert cluster[k] == best
    np.testing.assert_allclose(fused, expected)
    assert max(map(len, members)) > 3


# --- whole predictions ------------------------------------------------------------------------------------------------


def rectangles(*rows: tuple[int, int, int, int, float], classes: tuple[int, ...] | None = None) -> Instances:
    """Filled boxes ``x0, y0, x1, y1, score``."""
    dense = np.zeros((len(rows), *HW), bool)
    for mask, (x0, y0, x1, y1, _) in zip(dense, rows, strict=True):
        mask[y0:y1, x0:x1] = True
    masks = MaskSet.from_dense(dense) if rows else MaskSet.empty(HW)
    scores = np.array([row[4] for row in rows], np.float32)
    return Instances.from_masks(masks, scores=scores, class_ids=None if classes is None else np.array(classes))


ALONE = (20, 2, 28, 10, 0.6)


def test_wbf_of_two_members() -> None:
    first = rectangles((2, 2, 12, 12, 0.9))
    second = rectangles((4, 2, 14, 12, 0.3), ALONE, (0, 15, 5, 19, 0.04))
    fused = fuse([first, second])
    assert fused.ids.tolist() == [1, 2]
    assert fused.scores.tolist() == pytest.approx([0.6, 0.3])  # (.9 + .3) / 2; .6 / 2: one of two members has it
    np.testing.assert_allclose(fused.boxes_xyxy, [[2.5, 2, 12.5, 12], [20, 2, 28, 10]], rtol=1e-6)
    # Pixels of the second mask only have 0.3 of 1.2, those of the first only 0.9 of 1.2.
    assert fused.masks == MaskSet.from_crops(
        np.array([[2, 2, 12, 12], [20, 2, 28, 10]]), [np.ones((10, 10)), np.ones((8, 8))], HW
    )


def test_weights_decide_boxes_scores_and_masks() -> None:
    first, second = rectangles((2, 2, 12, 12, 0.9)), rectangles((4, 2, 14, 12, 0.3))
    fused = fuse([first, second], FusionOptions(weights=(1, 9)))
    assert fused.scores.tolist() == pytest.approx([(0.9 + 2.7) / 10])
    np.testing.assert_allclose(fused.boxes_xyxy, [[3.5, 2, 13.5, 12]], rtol=1e-6)
    assert fused.masks == second.masks


def test_mask_probabilities_are_averaged() -> None:
    """A member with probabilities 0.4 and 0.8 and one with a binary mask, with weights 0.5 and 0.25."""
    plain, soft = rectangles((2, 2, 6, 4, 0.5)), rectangles((2, 2, 6, 4, 0.25))
    probs = np.tile(np.array([102, 204, 204, 204, 102, 0], np.uint8), 2)
    wide = SoftMasks(HW, np.array([[2, 2, 8, 4]], np.int32), np.array([0, 12]), probs)
    fused = fuse([plain, replace(soft, soft_masks=wide)])
    mean = (0.5 * np.array([1, 1, 1, 1, 0, 0]) + 0.25 * np.array([0.4, 0.8, 0.8, 0.8, 0.4, 0])) / 0.75
    assert fused.masks.crop(0).tolist() == np.tile(mean >= 0.5, (2, 1))[:, :4].astype(int).tolist()
    # Of a single member with probabilities, these decide.
    alone = fuse([replace(soft, soft_masks=wide)])
    assert alone.masks == wide.threshold(0.5)
    assert alone.masks.areas.tolist() == [6]
    heavy = fuse([plain, replace(soft, soft_masks=wide)], FusionOptions(weights=(1, 20)))
    assert heavy.masks == wide.threshold(0.5)


def test_fused_masks_against_dense_arithmetic() -> None:
    rng = np.random.default_rng(3)
    dense = np.zeros((3, *HW), bool)
    dense[:, 4:14, 6:18] = rng.random((3, 10, 12)) < 0.7
    scores, weights = np.array([0.9, 0.7, 0.4], np.float32), (1.0, 2.0, 1.5)
    box = np.array([[6, 4, 18, 14]], np.float32)
    members = [
        Instances.from_masks(MaskSet.from_dense(dense[k : k + 1]), scores=scores[k : k + 1], boxes_xyxy=box)
        for k in range(3)
    ]
    fused = fuse(members, FusionOptions(weights=weights))
    shares = scores.astype(float) * weights
    assert np.array_equal(fused.masks.to_dense()[0], np.average(dense, axis=0, weights=shares) >= 0.5)
    voted = fuse(members, FusionOptions(method="mask_vote", iou=0.3, weights=weights))
    assert np.array_equal(voted.masks.to_dense()[0], np.average(dense, axis=0, weights=weights) > 0.5)
    assert voted.scores.tolist() == pytest.approx([shares.sum() / 4.5])
    assert np.array_equal(voted.boxes_xyxy, voted.masks.boxes)


def test_scores_above_one_become_one() -> None:
    twice = rectangles((2, 2, 12, 12, 0.9), (2, 2, 12, 11, 0.95))
    fused = fuse([rectangles((2, 2, 12, 12, 0.8)), twice], FusionOptions(weights=(1, 10)))
    assert fused.scores.tolist() == [1.0]


@pytest.mark.parametrize("method", ["wbf", "nms", "soft_nms", "mask_nms", "mask_vote"])
def test_classes_compete_only_on_request(method) -> None:
    first = rectangles((2, 2, 12, 12, 0.9), classes=(1,))
    second = rectangles((2, 2, 12, 11, 0.8), classes=(0,))
    apart = fuse([first, second], FusionOptions(method=method))
    assert apart.class_ids.tolist() == [1, 0]
    together = fuse([first, second], FusionOptions(method=method, class_agnostic=True, score=0.2))
    assert together.class_ids.tolist() == [1]


def test_nms_returns_the_better_object_unchanged() -> None:
    first, second = rectangles((2, 2, 12, 12, 0.5)), rectangles((3, 2, 12, 12, 0.8), ALONE)
    fused = fuse([first, second], FusionOptions(method="nms"))
    assert fused.masks == second.masks
    assert fused.scores.tolist() == pytest.approx([0.8, 0.6])
    heavy = fuse([first, second], FusionOptions(method="nms", weights=(2, 1)))
    assert heavy.scores.tolist() == pytest.approx([0.5, 0.3])
    assert heavy.masks[[0]] == first.masks


def test_soft_nms_lowers_scores_and_then_omits_objects() -> None:
    members = [rectangles((2, 2, 12, 12, 0.8)), rectangles((2, 2, 12, 7, 0.6))]  # IoU .5
    options = FusionOptions(method="soft_nms", decay="linear", iou=0.4)
    assert fuse(members, options).scores.tolist() == pytest.approx([0.8, 0.3])
    assert len(fuse(members, replace(options, score=0.31))) == 1
    assert fuse(members, replace(options, iou=0.5)).scores.tolist() == pytest.approx([0.8, 0.6])
    gaussian = fuse(members, FusionOptions(method="soft_nms", sigma=0.5))
    assert gaussian.scores.tolist() == pytest.approx([0.8, 0.6 * np.exp(-0.5)])


def test_separate_masks_with_overlapping_boxes_are_kept() -> None:
    """Two triangles with the same box."""
    lower = np.tril(np.ones((12, 12), bool), -1)
    box = np.array([[3, 3, 15, 15]])
    a, b = (
        Instances.from_masks(MaskSet.from_crops(box, [crop], HW), scores=np.array([score]), boxes_xyxy=box)
        for crop, score in ((lower, 0.9), (lower.T, 0.7))
    )
    assert len(fuse([a, b], FusionOptions(method="nms"))) == 1
    assert len(fuse([a, b], FusionOptions(method="mask_nms"))) == 2
    assert len(fuse([a, b], FusionOptions(method="mask_vote"))) == 2


def test_a_fragment_inside_an_object_is_removed_over_the_smaller_mask() -> None:
    members = [rectangles((2, 2, 12, 12, 0.9)), rectangles((4, 4, 7, 7, 0.8))]
    assert len(fuse(members, FusionOptions(method="mask_nms"))) == 2
    assert len(fuse(members, FusionOptions(method="mask_nms", over_smaller=True))) == 1
    pairs = mask_pairs(MaskSet.from_dense(np.ones((1, 3, 3))), np.zeros(1, np.int64))
    assert not len(pairs.others)  # no pair of an object with itself


@pytest.mark.parametrize("over_smaller", [False, True])
def test_mask_nms_against_dense_masks(over_smaller: bool) -> None:
    rng = np.random.default_rng(8)
    y, x = np.mgrid[: HW[0], : HW[1]]
    centres, radii = rng.random((40, 2)) * HW, 2 + 5 * rng.random(40)
    dense = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2 <= radii[:, None, None] ** 2
    scores, classes = rng.random(40).astype(np.float32), rng.integers(0, 2, 40)
    objects = Instances.from_masks(MaskSet.from_dense(dense), scores=scores, class_ids=classes)
    members = [objects[:15], objects[15:]]
    kept: list[int] = []
    for k in np.argsort(-scores, kind="stable"):
        shared = [(dense[k] & dense[m]).sum() for m in kept]
        whole = [min(dense[k].sum(), dense[m].sum()) if over_smaller else (dense[k] | dense[m]).sum() for m in kept]
        meets = [classes[k] == classes[m] and s / w > 0.3 for m, s, w in zip(kept, shared, whole, strict=True)]
        if scores[k] >= np.float32(0.05) and not any(meets):
            kept.append(int(k))
    options = FusionOptions(method="mask_nms", iou=0.3, over_smaller=over_smaller)
    assert fuse(members, options).masks == objects[kept].masks
    assert 5 < len(kept) < 38


def test_a_vote_of_three_members() -> None:
    members = [rectangles((2, 2, 12, 12, 0.9)), rectangles((4, 2, 14, 12, 0.6)), rectangles((4, 2, 14, 12, 0.3), ALONE)]
    fused = fuse(members, FusionOptions(method="mask_vote"))
    assert fused.boxes_xyxy.tolist() == [[4, 2, 14, 12], [20, 2, 28, 10]]
    assert fused.scores.tolist() == pytest.approx([0.6, 0.2])
    # Of two voters with equal weights, the better object decides the pixels that only one of them covers.
    assert fuse(members[:2], FusionOptions(method="mask_vote")).masks == members[0].masks
    # A member votes once, with the object that overlaps most.
    twice = rectangles((2, 2, 12, 13, 0.9), (2, 2, 12, 11, 0.8))
    again = fuse([members[0], twice], FusionOptions(method="mask_vote"))
    assert again.scores.tolist() == pytest.approx([0.9])


def test_members_without_scores_and_regions_to_ignore() -> None:
    labels = replace(rectangles((2, 2, 12, 12, 0), ALONE), scores=None, ignore=np.array([False, True]))
    fused = fuse([labels, rectangles((2, 2, 12, 12, 0.5))])
    assert fused.scores.tolist() == pytest.approx([0.75])


@pytest.mark.parametrize("method", ["wbf", "nms", "soft_nms", "mask_nms", "mask_vote"])
def test_images_without_objects(method) -> None:
    options = FusionOptions(method=method)
    nothing = Instances.empty(HW, scored=True)
    assert len(fuse([nothing, nothing], options)) == 0
    assert fuse([nothing, nothing], options).scores is not None
    single = fuse([nothing, rectangles(ALONE)], options)
    assert single.masks == rectangles(ALONE).masks
    assert single.scores.tolist() == pytest.approx([0.3 if method in ("wbf", "mask_vote") else 0.6])
    assert len(fuse([rectangles((2, 2, 5, 5, 0.01))], options)) == 0


@pytest.mark.parametrize("method", ["wbf", "nms", "soft_nms", "mask_nms", "mask_vote"])
def test_cost_follows_the_foreground(method) -> None:
    """Two objects at opposite corners of an image for which no array of its size would fit into memory."""
    boxes = np.array([[0, 0, 10, 10], [499_980, 499_970, 499_995, 499_990]])
    masks = MaskSet.from_crops(boxes, [np.ones((10, 10)), np.ones((20, 15))], (500_000, 500_000))
    objects = Instances.from_masks(masks, scores=np.array([0.9, 0.5], np.float32))
    assert fuse([objects, objects], FusionOptions(method=method, score=0.3)).masks[:2] == masks


def test_boxes_alone_give_boxes() -> None:
    box = np.array([[2, 2, 12, 12]], np.float32)
    bare = [
        Instances.from_masks(MaskSet.from_dense(np.zeros((1, *HW))), scores=np.array([score]), boxes_xyxy=box + k)
        for k, score in enumerate((0.9, 0.6))
    ]
    fused = fuse(bare)
    np.testing.assert_allclose(fused.boxes_xyxy, box + 0.4, rtol=1e-6)
    assert fused.masks.areas.tolist() == [0]
    assert len(fuse(bare, FusionOptions(method="nms"))) == 1
    assert len(fuse(bare, FusionOptions(method="mask_nms"))) == 0


def test_scores_of_zero() -> None:
    members = [rectangles((2, 2, 12, 12, 0.0)), rectangles((2, 2, 12, 12, 0.0))]
    fused = fuse(members, FusionOptions(score=0.0))
    assert fused.scores.tolist() == [0.0]
    assert fused.masks == members[0].masks


def test_what_cannot_be_fused() -> None:
    with pytest.raises(UsageError, match="did you mean 'soft_nms'"):
        FusionOptions(method="softnms")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown `decay`"):
        FusionOptions(decay="square")  # type: ignore[arg-type]
    for changes in ({"iou": 1.0}, {"score": -0.1}, {"sigma": 0}, {"weights": (1, 0)}, {"weights": (1, float("nan"))}):
        with pytest.raises(UsageError, match=f"`{next(iter(changes))}` is out of range"):
            FusionOptions(**changes)
    with pytest.raises(UsageError, match="3 weights: 1, 2, 3\n  expected: 2, one per prediction"):
        fuse([rectangles(), rectangles()], FusionOptions(weights=(1, 2, 3)))
    with pytest.raises(InputError, match="got: 20 x 30, 9 x 9"):
        fuse([rectangles(), Instances.empty((9, 9), scored=True)])
    with pytest.raises(UsageError, match="no predictions to fuse"):
        fuse([])
