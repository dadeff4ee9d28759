"""`MaskSet` against pycocotools, shapely, dense numpy arrays and its own inverses."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from cellwright.core.errors import FormatError, InputError
from cellwright.core.masks import MaskSet, SoftMasks, concat

# Random bits include overlaps, holes, several parts, border pixels, 1-pixel objects and empty objects.
dense_masks = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).flatmap(
    lambda hw: hnp.arrays(bool, st.tuples(st.integers(0, 5), st.just(hw[0]), st.just(hw[1])))
)
quick = settings(deadline=None, max_examples=150)


@quick
@given(dense_masks)
def test_dense_round_trip_and_tight_boxes(dense: np.ndarray) -> None:
    masks = MaskSet.from_dense(dense)
    np.testing.assert_array_equal(masks.to_dense(), dense)
    np.testing.assert_array_equal(masks.areas, dense.sum((1, 2)))
    np.testing.assert_array_equal(masks.foreground(), dense.any(0))
    for box, mask in zip(masks.boxes, dense, strict=True):
        y, x = np.nonzero(mask)
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if x.size else [0, 0, 0, 0]
        assert box.tolist() == expected


@quick
@given(dense_masks)
def test_rle_equals_pycocotools_both_ways(dense: np.ndarray) -> None:
    masks = MaskSet.from_dense(dense)
    runs = masks.to_rle()
    for mask, run in zip(dense, runs, strict=True):
        reference = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert run == {"size": list(reference["size"]), "counts": reference["counts"].decode()}
    image_hw = dense.shape[1:]
    assert MaskSet.from_rle(runs, image_hw) == masks
    assert MaskSet.from_rle([{**run, "counts": run["counts"].encode()} for run in runs], image_hw) == masks
    plain = [{"size": image_hw, "counts": counts} for counts in masks.to_rle_counts()]
    assert MaskSet.from_rle(plain, image_hw) == masks
    mixed = [a if k % 2 else b for k, (a, b) in enumerate(zip(runs, plain, strict=True))]
    assert MaskSet.from_rle(mixed, image_hw) == masks


@quick
@given(dense_masks)
def test_polygons_are_valid_and_fill_the_same_pixels(dense: np.ndarray) -> None:
    masks = MaskSet.from_dense(dense)
    outlines = masks.to_polygons()
    for mask, polygons in zip(dense, outlines, strict=True):
        shapes = [shapely.Polygon(exterior, holes) for exterior, *holes in polygons]
        assert all(shape.is_valid for shape in shapes)
        assert sum(shape.area for shape in shapes) == mask.sum()
    assert MaskSet.from_polygons(outlines, dense.shape[1:]) == masks


def test_a_ring_that_meets_itself_at_a_corner_is_split() -> None:
    """A simple tracer would return a ring that touches itself: the ends of a 4-connected path meet at a corner."""
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 1, 1, 1]], bool)
    (polygons,) = MaskSet.from_dense(mask[None]).to_polygons()
    assert len(polygons) == 1
    assert sorted(len(ring) for ring in polygons[0])[0] == 4
    assert shapely.Polygon(polygons[0][0], polygons[0][1:]).is_valid


@quick
@given(dense_masks, dense_masks)
def test_intersections_equal_dense_products(a: np.ndarray, b: np.ndarray) -> None:
    hw = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    a, b = a[:, : hw[0], : hw[1]], b[:, : hw[0], : hw[1]]
    first, second = MaskSet.from_dense(a), MaskSet.from_dense(b)
    expected = np.einsum("iyx,jyx->ij", a.astype(int), b.astype(int))
    i, j, area = first.intersections(second)
    got = np.zeros_like(expected)
    got[i, j] = area
    np.testing.assert_array_equal(got, expected)
    assert (area > 0).all()
    assert list(zip(i, j, strict=True)) == sorted(zip(i, j, strict=True))


def test_iou_equals_pycocotools_and_iom_is_over_the_smaller() -> None:
    rng = np.random.default_rng(3)
    dense = rng.random((12, 20, 30)) < 0.4
    masks = MaskSet.from_dense(dense)
    runs = [{**run, "counts": run["counts"].encode()} for run in masks.to_rle()]
    i, j, iou = masks.iou(masks)
    got = np.zeros((12, 12))
    got[i, j] = iou
    np.testing.assert_allclose(got, coco_mask.iou(runs, runs, [0] * 12), atol=1e-15)
    i, j, iom = masks.iom(masks)
    shared = (dense[i] & dense[j]).sum((1, 2))
    np.testing.assert_allclose(iom, shared / np.minimum(dense[i].sum((1, 2)), dense[j].sum((1, 2))))


@quick
@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=10), elements=st.integers(0, 6)))
def test_label_map_round_trip_with_gaps_and_large_ids(labels: np.ndarray) -> None:
    for spread in (1, 10**9):
        masks, ids = MaskSet.from_label_map(labels * spread)
        assert ids.tolist() == [k * spread for k in np.unique(labels) if k]
        np.testing.assert_array_equal(masks.to_dense(), labels[None] == (ids // spread)[:, None, None])
        if spread == 1:
            np.testing.assert_array_equal(masks.to_label_map(ids), labels)


@quick
@given(dense_masks)
def test_layers_separate_all_overlaps(dense: np.ndarray) -> None:
    masks = MaskSet.from_dense(dense)
    layers, layer_of = masks.to_layers()
    back, ids = MaskSet.from_layers(layers)
    filled = np.flatnonzero(masks.areas)
    assert back == masks[filled]
    assert ids.tolist() == (filled + 1).tolist()
    overlaps = np.triu(np.einsum("iyx,jyx->ij", dense.astype(int), dense.astype(int)), 1) > 0
    assert overlaps.any() or len(layers) == 1
    assert not (overlaps & (layer_of[:, None] == layer_of[None])).any()


@quick
@given(dense_masks, st.integers(-9, 9), st.integers(-9, 9), st.integers(-3, 7))
def test_geometry_equals_numpy(dense: np.ndarray, dy: int, dx: int, k: int) -> None:
    masks = MaskSet.from_dense(dense)
    np.testing.assert_array_equal(masks.flip("horizontal").to_dense(), dense[:, :, ::-1])
    np.testing.assert_array_equal(masks.flip("vertical").to_dense(), dense[:, ::-1])
    np.testing.assert_array_equal(masks.rot90(k).to_dense(), np.rot90(dense, k, (1, 2)))
    out_hw = 7, 9
    padded = np.pad(dense, ((0, 0), (20, 20), (20, 20)))[:, 20 - dy : 27 - dy, 20 - dx : 29 - dx]
    moved = masks.shift(dy, dx, out_hw)
    np.testing.assert_array_equal(moved.to_dense(), padded)
    assert moved == MaskSet.from_dense(padded)


@quick
@given(dense_masks, st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_resize_samples_pixel_centres(dense: np.ndarray, out_hw: tuple[int, int]) -> None:
    height, width = dense.shape[1:]
    y = np.minimum(((np.arange(out_hw[0]) + 0.5) * (height / out_hw[0])).astype(int), height - 1)
    x = np.minimum(((np.arange(out_hw[1]) + 0.5) * (width / out_hw[1])).astype(int), width - 1)
    resized = MaskSet.from_dense(dense).resize(out_hw)
    assert resized == MaskSet.from_dense(dense[:, y][:, :, x])


@quick
@given(dense_masks, st.data())
def test_index_union_concat_pack(dense: np.ndarray, data: st.DataObject) -> None:
    masks = MaskSet.from_dense(dense)
    chosen = data.draw(st.lists(st.integers(0, max(len(dense) - 1, 0)), max_size=6 if len(dense) else 0))
    index = np.array(chosen, int)
    assert masks[index] == MaskSet.from_dense(dense[index])
    groups = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(dense), max_size=len(dense))), int)
    unions = [dense[groups == g].any(0) for g in np.unique(groups)]
    assert masks.union(groups) == MaskSet.from_dense(np.array(unions, bool).reshape(-1, *dense.shape[1:]))
    assert concat([masks, masks]) == MaskSet.from_dense(np.concatenate([dense, dense]))
    assert MaskSet.unpack(masks.image_hw, masks.boxes, masks.pack()) == masks


def test_coco_polygons_equal_pycocotools() -> None:
    rng = np.random.default_rng(0)
    height, width = 40, 50
    objects = [[(rng.random(2 * n) * 60 - 5).round(2).tolist() for n in rng.integers(3, 9, 2)] for _ in range(20)]
    expected = [coco_mask.merge(coco_mask.frPyObjects(parts, height, width)) for parts in objects]
    masks = MaskSet.from_coco_polygons(objects, (height, width))
    assert [run["counts"].encode() for run in masks.to_rle()] == [run["counts"] for run in expected]


def test_the_first_object_is_on_top_in_a_label_map() -> None:
    masks = MaskSet.from_dense(np.array([[[1, 1, 0]], [[0, 1, 1]]], bool))
    assert masks.to_label_map().tolist() == [[1, 1, 2]]
    assert masks.to_label_map(np.array([7, 9])).dtype == np.uint32


def test_soft_masks_are_thresholded_at_a_probability() -> None:
    soft = SoftMasks((2, 4), np.array([[1, 0, 4, 1]], np.int32), np.array([0, 3]), np.array([127, 128, 255], np.uint8))
    assert soft.threshold(0.5).to_dense()[0].tolist() == [[False, False, True, True], [False] * 4]
    assert len(soft[np.zeros(0, int)]) == 0


def test_sets_without_masks() -> None:
    masks = MaskSet.empty((3, 4))
    assert masks.to_rle() == masks.to_polygons() == masks.to_rle_counts() == []
    assert masks.to_label_map().shape == (3, 4)
    assert masks.to_layers()[0].shape == (1, 3, 4)
    assert masks.rot90(1).image_hw == (4, 3)
    assert MaskSet.from_rle([], (3, 4)) == MaskSet.from_polygons([], (3, 4)) == masks[:0] == masks


@pytest.mark.parametrize(
    ("counts", "message"),
    [([3, 4], "sum 7"), ([-1, 13], "no negative"), ([1.5], "not integers"), ("~~", "RLE string"), ("P", "RLE string")],
)
def test_an_invalid_rle_is_named(counts: object, message: str) -> None:
    good = MaskSet.from_dense(np.ones((1, 3, 4), bool)).to_rle()
    with pytest.raises(FormatError, match=message) as caught:
        MaskSet.from_rle([*good, {"size": [3, 4], "counts": counts}], (3, 4))
    assert "object 1" in str(caught.value)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(FormatError, match="RLE and its image differ in size"):
        MaskSet.from_rle([{"size": [4, 3], "counts": [12]}], (3, 4))
    with pytest.raises(InputError, match="beyond its image"):
        MaskSet.from_crops(np.array([[0, 0, 5, 1]]), [np.ones((1, 5))], (3, 4))
    with pytest.raises(InputError, match="different sizes"):
        MaskSet.empty((3, 4)).intersections(MaskSet.empty((4, 3)))
    with pytest.raises(InputError, match="labels must not be negative"):
        MaskSet.from_label_map(np.array([[-1]]))
    with pytest.raises(FormatError, match="at least 3 vertices"):
        MaskSet.from_polygons([[[[(0, 0), (1, 1)]]]], (3, 4))


BIG = 2**33


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaskSet.from_rle([{"size": [1, BIG], "counts": [2**32 + 5, 3, BIG - 2**32 - 8]}], (1, BIG)),
        lambda: MaskSet.from_rle([{"size": [4, 4], "counts": [8, 2**62, 2**62, 2**62, 2**62 - 8, 16]}], (4, 4)),
        lambda: MaskSet.from_rle([{"size": None, "counts": [16]}], (4, 4)),
        lambda: MaskSet.from_rle([{"size": [10**4] * 2, "counts": [0, 1, 10**8 - 2, 1]}] * 200, (10**4, 10**4)),
        lambda: MaskSet.from_polygons([[[np.array([[0, 0], [9000, 0], [0, 9000]])]]] * 100, (9000, 9000)),
        lambda: MaskSet.from_polygons([[[np.array([[0, 0], [1000, 9], [0, 9]] * 10_000)]]], (10, 1000)),
        lambda: MaskSet.from_coco_polygons([[[0, 0, 1000, 9, 0, 9] * 10_000]], (10, 1000)),
        lambda: MaskSet.from_crops(np.array([[2**32, 0, 2**32 + 2, 2]]), [np.ones((2, 2))], (4, 4)),
        lambda: MaskSet.from_flat((4, 4), np.array([[0, 0, 2, 2]]), np.array([-4, 0]), np.ones(0, np.uint8)),
        lambda: MaskSet((4, 4), np.array([[0, 0, 9, 9]], np.int32), np.array([0, 81]), np.ones(81, np.uint8)),
        lambda: SoftMasks((4, 4), np.array([[0, 0, 2, 2]]), np.array([0, 4]), np.ones(3, np.uint8)),
        lambda: MaskSet.from_dense(np.ones((1, 2, 2))).to_layers(np.array([2**31])),
        lambda: MaskSet.from_dense(np.ones((1, 2, 2))).union(np.zeros(3)),
        lambda: MaskSet.from_dense(np.ones((1, 2, 2))).resize((2**30, 2)),
        lambda: MaskSet.empty((2**24, 2**24)).to_label_map(),
    ],
)
def test_sizes_out_of_range_are_refused_before_a_loop_runs(make) -> None:
    with pytest.raises(InputError):
        make()


def test_labels_beyond_int32_keep_their_numbers() -> None:
    labels = np.array([[0, 2**32 - 1], [2**31 + 7, 0]], np.uint32)
    masks, ids = MaskSet.from_label_map(labels)
    assert ids.tolist() == [2**31 + 7, 2**32 - 1]
    np.testing.assert_array_equal(masks.to_label_map(ids), labels)


def test_many_polygons_far_apart_are_one_object() -> None:
    corners = [(x, y) for x in (0, 9990) for y in (0, 9990)]
    object_ = [[np.array([[x, y], [x + 4, y], [x + 4, y + 4], [x, y + 4]])] for x, y in corners]
    assert MaskSet.from_polygons([object_], (10_000, 10_000)).areas.tolist() == [64]
