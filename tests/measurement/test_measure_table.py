"""Measurements compared with scikit-image, shapely and NumPy on dense masks, and on shapes with known values."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import distance_transform_edt
from skimage.measure import regionprops, regionprops_table

import cellwright as cw
from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.measurement.table import measure_instances, table_csv, write_measurements

# Random bits include overlaps, holes, disconnected parts, border pixels, 1-pixel and empty objects.
dense_masks = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).flatmap(
    lambda hw: hnp.arrays(bool, st.tuples(st.integers(0, 4), st.just(hw[0]), st.just(hw[1])))
)
quick = settings(deadline=None, max_examples=40)

SHAPE = (
    *("area_px", "centroid_y_px", "centroid_x_px", "bbox_x0_px", "bbox_y0_px", "bbox_x1_px", "bbox_y1_px"),
    *(
        "touches_border",
        "equivalent_diameter_px",
        "perimeter_px",
        "major_axis_px",
        "minor_axis_px",
        "eccentricity",
        "orientation_deg",
    ),
    *("solidity", "circularity"),
)


def measured(dense: np.ndarray, image: Image | None = None) -> pd.DataFrame:
    return measure_instances(Instances.from_masks(MaskSet.from_dense(dense)), image)


def hull_pixels(mask: np.ndarray) -> int:
    """Number of pixel centres in the convex hull of the pixel centres of the mask, by shapely."""
    y, x = np.nonzero(mask)
    hull = shapely.MultiPoint(np.stack([x, y], 1)).convex_hull.buffer(1e-9)
    return int(shapely.contains_xy(hull, *np.meshgrid(*map(np.arange, mask.shape[::-1]))).sum())


@quick
@given(dense_masks, st.integers(0, 2**32 - 1))
def test_measurements_equal_those_of_scikit_image_or_dense_counts(dense: np.ndarray, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 65536, (*dense.shape[1:], 2), np.uint16)
    table = measured(dense, Image(values, ("DAPI", "actin")))
    assert table.index.tolist() == list(range(1, len(dense) + 1))
    for (_, row), mask in zip(table.iterrows(), dense, strict=True):
        if not mask.any():
            assert row.area_px == row.bbox_x1_px == 0
            assert row[["centroid_y_px", "perimeter_px", "solidity", "circularity", "intensity_mean_DAPI"]].isna().all()
            continue
        (region,) = regionprops(mask.astype(np.uint8), values)
        y0, x0, y1, x1 = region.bbox
        assert row[["bbox_x0_px", "bbox_y0_px", "bbox_x1_px", "bbox_y1_px"]].tolist() == [x0, y0, x1, y1]
        expected = {
            "area_px": region.area,
            "centroid_y_px": region.centroid[0] + 0.5,
            "centroid_x_px": region.centroid[1] + 0.5,
            "equivalent_diameter_px": region.equivalent_diameter_area,
            "perimeter_px": region.perimeter_crofton,
            "major_axis_px": region.axis_major_length,
            "solidity": region.area / hull_pixels(mask),
            "circularity": min(4 * np.pi * region.area / region.perimeter_crofton**2, 1),
            "intensity_mean_DAPI": region.intensity_mean[0],
            "intensity_min_DAPI": region.intensity_min[0],
            "intensity_max_actin": region.intensity_max[1],
            "intensity_std_actin": region.intensity_std[1],
        }
        assert row[list(expected)].to_dict() == pytest.approx(expected, abs=1e-6)
        # scikit-image takes the root of a rounding error; ours is exact.
        assert row.minor_axis_px == pytest.approx(region.axis_minor_length, abs=1e-5)
        assert row.eccentricity == pytest.approx(region.eccentricity, abs=1e-5)
        if np.isnan(row.orientation_deg):
            assert region.axis_major_length == pytest.approx(region.axis_minor_length)
        else:
            turn = row.orientation_deg - (np.degrees(region.orientation) - 90)
            assert (turn + 90) % 180 - 90 == pytest.approx(0, abs=1e-4)
            assert -90 < row.orientation_deg <= 90


@quick
@given(dense_masks)
def test_rotation_and_translation_change_only_positions(dense: np.ndarray) -> None:
    masks = MaskSet.from_dense(dense)
    height, width = masks.image_hw
    moved = masks.shift(5, 900, (height + 5, width + 900)).rot90(1)
    a = measure_instances(Instances.from_masks(masks))
    b = measure_instances(Instances.from_masks(moved))
    same = ["area_px", "perimeter_px", "major_axis_px", "minor_axis_px", "eccentricity", "solidity", "circularity"]
    pd.testing.assert_frame_equal(a[same], b[same])
    turn = (b.orientation_deg - a.orientation_deg) % 180
    assert turn.dropna().to_numpy() == pytest.approx(90)
    for name in ("eccentricity", "solidity", "circularity"):
        assert b[name].dropna().between(0, 1).all()


@pytest.mark.parametrize("radius", [6, 15, 40.5])
def test_discs(radius: float) -> None:
    y, x = np.mgrid[:100, :120] + 0.5
    row = measured(((y - 50) ** 2 + (x - 60) ** 2 < radius**2)[None]).iloc[0]
    assert row.centroid_y_px == pytest.approx(50)
    assert row.centroid_x_px == pytest.approx(60)
    assert row.perimeter_px == pytest.approx(2 * np.pi * radius, rel=0.03)
    assert row.equivalent_diameter_px == pytest.approx(2 * radius, rel=0.01)
    assert row.major_axis_px == pytest.approx(2 * radius, rel=0.02)
    assert row.solidity == 1
    assert row.circularity > 0.97
    assert np.isnan(row.orientation_deg)


@pytest.mark.parametrize("degrees", [-60, 0, 20, 45, 90])
def test_orientation_of_ellipses(degrees: float) -> None:
    canvas = np.zeros((200, 200), np.uint8)
    cv2.ellipse(canvas, (100, 100), (60, 25), -degrees, 0, 360, 1, -1)  # OpenCV turns clockwise
    row = measured(canvas[None] > 0).iloc[0]
    assert (row.orientation_deg - degrees + 90) % 180 - 90 == pytest.approx(0, abs=0.3)
    assert row.major_axis_px == pytest.approx(120, rel=0.02)
    assert row.minor_axis_px == pytest.approx(50, rel=0.03)
    assert row.solidity > 0.99


def test_overlapping_objects_keep_all_their_pixels() -> None:
    dense = np.zeros((2, 10, 10), bool)
    dense[0, 2:8, 2:8] = dense[1, 5:10, 5:10] = True
    image = np.zeros((10, 10), np.uint8)
    image[5:8, 5:8] = 90
    table = measured(dense, Image.from_array(image))
    assert table.area_px.tolist() == [36, 25]
    assert table.intensity_mean_grey.tolist() == pytest.approx([90 * 9 / 36, 90 * 9 / 25])
    assert table.solidity.tolist() == [1, 1]


def test_values_of_every_kind_of_image() -> None:
    dense = np.ones((1, 300, 300), bool)
    rng = np.random.default_rng(0)
    bright = rng.integers(65000, 65536, (300, 300), np.uint16)  # their sum passes 32 bits
    row = measured(dense, Image.from_array(bright)).iloc[0]
    assert row.intensity_mean_grey == pytest.approx(bright.mean(dtype=float), rel=1e-12)
    assert row.intensity_std_grey == pytest.approx(bright.std(dtype=float), rel=1e-9)
    assert (row.intensity_min_grey, row.intensity_max_grey) == (bright.min(), bright.max())
    for converted in (
        bright.astype(">u2"),
        bright.astype(np.int32),
        bright[:, ::-1][:, ::-1],
        bright.astype(np.float32),
    ):
        repeated = measured(dense, Image.from_array(converted)).iloc[0]
        assert repeated.intensity_mean_grey == pytest.approx(row.intensity_mean_grey)
    holed = np.full((300, 300), -2.5)
    holed[7, 7] = np.nan
    assert measured(dense, Image.from_array(holed)).filter(like="intensity").isna().all(axis=None)


def test_channels_name_the_columns_and_alpha_is_omitted() -> None:
    dense, data = np.ones((1, 2, 2), bool), np.zeros((2, 2, 4), np.uint8)
    names = [f"intensity_{statistic}_{c}" for c in "RGB" for statistic in ("mean", "min", "max", "std")]
    assert list(measured(dense, Image.from_array(data)).filter(like="intensity")) == names
    repeated = measured(dense, Image(data[..., :2], ("DAPI", "DAPI"))).filter(like="intensity_mean")
    assert list(repeated) == ["intensity_mean_DAPI0", "intensity_mean_DAPI1"]
    assert list(measured(dense, Image(data[..., :1], ("A",))).filter(like="mean")) == ["intensity_mean_A"]


def test_without_objects_the_table_has_every_column() -> None:
    image = Image(np.zeros((5, 6, 1), np.uint16), ("DAPI",), pixel_size_um=(0.5, 0.25))
    full = measured(np.ones((1, 5, 6), bool), image)
    empty = measure_instances(Instances.empty((5, 6), scored=True), image)
    assert len(empty) == 0
    assert empty.index.name == "label"
    assert list(empty) == list(full) == ["class", "score", "area_px", "area_um2", *list(full)[4:]]
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    assert set(SHAPE) < set(full)
    assert full.area_um2.tolist() == [30 * 0.125]
    assert full.equivalent_diameter_um[1] == pytest.approx(np.sqrt(4 * 30 * 0.125 / np.pi))
    assert list(measured(np.ones((1, 5, 6), bool))) == ["class", "score", *SHAPE]


def test_other_image_sizes_and_missing_class_names_are_refused() -> None:
    cells = Instances.from_masks(MaskSet.from_dense(np.ones((1, 5, 6), bool)), class_ids=np.array([2]))
    with pytest.raises(InputError, match="image and objects have different sizes") as caught:
        cw.measure(cells, np.zeros((6, 5), np.uint8))
    assert "6 x 5" in str(caught.value)
    with pytest.raises(InputError, match="without a name"):
        cw.measure(cells, class_names=["a", "b"])
    assert cw.measure(cells, class_names=["a", "b", "c"])["class"].tolist() == ["c"]


def test_ids_scores_and_the_csv(tmp_path: Path) -> None:
    image, truth = draw_field(1, (90, 100), 8, FieldLook(stain="fluorescence", bit_depth=16))
    scores = np.linspace(0.1, 0.9, len(truth)).astype(np.float32)
    cells = Instances.from_masks(truth.masks, scores=scores, ids=truth.ids + 40)
    table = cw.measure(cells, image, class_names=["nucleus"])
    assert table.index.tolist() == cells.ids.tolist()
    assert table.score.tolist() == scores.tolist()
    (tmp_path / "a.csv").write_text(table_csv(table, "sub/a"))
    back = pd.read_csv(tmp_path / "a.csv")
    assert list(back)[:4] == ["image", "label", "class", "score"]
    assert back.score.tolist() == pytest.approx(scores.tolist(), rel=1e-6)
    assert "0.9," in (tmp_path / "a.csv").read_text()
    np.testing.assert_allclose(back[list(SHAPE)].astype(float), table[list(SHAPE)].astype(float), rtol=1e-6)
    assert set(back.image) == {"sub/a"}
    blank = table_csv(cw.measure(truth), "a").splitlines()[1]
    assert blank.startswith("a,1,0,,")
    with pytest.raises(InputError, match="unknown format"):
        cw.read_dataset(tmp_path)


def test_a_real_image_against_regionprops_table(vrdl_root: Path) -> None:
    sample = cw.read_dataset(vrdl_root / "train", format="mask_folder").sample("TCGA-CH-5767-01Z-00-DX1")
    assert sample.image_path is not None
    cells, image = sample.read_instances(), cw.read_image(sample.image_path)
    table = cw.measure(cells, image)
    names = {
        "area_px": "area",
        "perimeter_px": "perimeter_crofton",
        "major_axis_px": "axis_major_length",
        "minor_axis_px": "axis_minor_length",
        "eccentricity": "eccentricity",
        "intensity_mean_R": "intensity_mean-0",
        "intensity_std_G": "intensity_std-1",
        "intensity_max_B": "intensity_max-2",
    }
    labels = cells.masks.to_label_map(cells.ids).astype(np.int32)
    properties = ("label", *(name.split("-")[0] for name in names.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pd.DataFrame(regionprops_table(labels, image.data[..., :3], properties=properties)).set_index("label")
    whole = theirs.index[
        table.area_px.loc[theirs.index] == theirs.area
    ]  # a label map has only part of overlapping objects
    assert len(whole) > 0.8 * len(cells)
    for ours, name in names.items():
        np.testing.assert_allclose(table.loc[whole, ours], theirs.loc[whole, name], rtol=1e-6, atol=1e-6)


@quick
@given(dense_masks, st.integers(1, 4))
def test_rings_equal_distances_and_the_border_is_that_of_the_image(dense: np.ndarray, ring: int) -> None:
    values = np.random.default_rng(3).integers(0, 65536, (*dense.shape[1:], 2), np.uint16)
    cells = Instances.from_masks(MaskSet.from_dense(dense))
    table = measure_instances(cells, Image(values, ("DAPI", "actin")), ring_px=ring)
    foreground = dense.any(axis=0)
    for (_, row), mask in zip(table.iterrows(), dense, strict=True):
        edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]) if mask.size else np.zeros(1, bool)
        assert row.touches_border == edge.any()
        near = (distance_transform_edt(~mask) <= ring) & ~foreground if mask.any() else np.zeros_like(mask)
        assert row.ring_area_px == near.sum()
        expected = values[near].mean(axis=0) if near.any() else [np.nan, np.nan]
        np.testing.assert_allclose([row.ring_mean_DAPI, row.ring_mean_actin], expected)


def test_a_ring_below_1_is_refused() -> None:
    with pytest.raises(UsageError, match="invalid `ring`"):
        cw.measure(np.eye(4, dtype=int), np.eye(4), ring=0)


def test_measurements_are_written_as_pandas_would(tmp_path: Path) -> None:
    image, cells = draw_field(2, (90, 110), 9)
    image = Image(image.data[:, :, :1].astype(np.float32) / 7, ("=DAPI",))
    for objects, names in ((replace(cells, scores=None), ["-a, b"]), (cells[:0], None), (cells, ['"x"'])):
        write_measurements(
            objects, tmp_path / "a.csv", image_name="+plate, 1", image=image, class_names=names, ring_px=3
        )
        table = measure_instances(objects, image, class_names=names, ring_px=3)
        assert (tmp_path / "a.csv").read_text() == table_csv(table, "+plate, 1")
