"""Dataset statistics against objects with known properties, scipy, and the known numbers of real datasets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from small_sets import counted_dataset, drawn_sample, squares

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import read_dataset
from cellwright.data.info import adjacent_objects, describe_dataset

HW = (50, 100)


def test_objects_with_known_properties(tmp_path: Path) -> None:
    # Two objects that touch at a corner, two that overlap, a separate one, and a separate one that is ignored.
    masks = squares([(0, 0), (4, 4), (20, 20), (22, 22), (40, 60), (40, 80)], 4, HW)
    instances = Instances.from_masks(masks, class_ids=np.array([0, 1, 0, 0, 0, 0]), ignore=np.arange(6) == 5)
    first = dataclasses.replace(drawn_sample(tmp_path, "a", instances, 0), split="train", pixel_size_um=(0.5, 0.5))
    second = dataclasses.replace(drawn_sample(tmp_path, "b", Instances.empty(HW), 1), split="val", group="g")
    info = describe_dataset(Dataset((first, second), ("x", "y")))
    assert (info.n_images, info.n_objects, info.n_images_without_objects) == (2, 5, 1)
    assert (info.n_ignored, info.n_empty_masks, info.n_groups) == (1, 0, 1)
    assert info.by_class == {"x": 4, "y": 1}
    assert info.splits["train"].by_class == {"x": 4, "y": 1}
    assert info.ignored_share == pytest.approx(16 / 10_000)
    assert (info.splits["val"].n_images, info.splits["val"].n_objects) == (1, 0)
    assert info.n_overlapping == 2
    assert info.touching_share == pytest.approx(4 / 5)
    assert info.foreground_share == pytest.approx((5 * 16 - 4) / (2 * 50 * 100 - 16))
    assert info.diameter_px is not None
    assert info.diameter_um is not None
    assert info.diameter_px.percentiles[2] == pytest.approx(np.sqrt(64 / np.pi))
    assert info.diameter_um.percentiles[2] == pytest.approx(np.sqrt(64 / np.pi) / 2)
    assert info.objects_per_megapixel is not None
    assert info.objects_per_megapixel.greatest == pytest.approx(5 / (0.005 - 16e-6))
    assert info.image_sizes == {"50 x 100": 2}
    assert info.pixel_types == {"8 bit, 3 channels": 2}
    assert json.loads(json.dumps(info.to_dict()))["splits"]["train"]["n_objects"] == 5
    assert ("split train", "1 image, 5 objects (x 4, y 1)") in info.rows()


def test_datasets_without_objects_or_with_empty_masks_have_no_quantiles() -> None:
    info = describe_dataset(counted_dataset([[0], [0]]))
    assert info.diameter_px is None
    assert info.touching_share is None
    assert dict(info.rows())["objects"] == "0 (0 empty)"
    empty = Instances.from_masks(MaskSet.from_dense(np.zeros((1, *HW), bool)))
    info = describe_dataset(Dataset((Sample("a", None, HW, Loaded(empty)),), ("x",)))
    assert (info.n_empty_masks, info.diameter_px) == (1, None)


@pytest.mark.parametrize("seed", range(4))
def test_touching_equals_dilation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, n = ndimage.label(rng.random((30, 40)) < 0.35)
    expected = []
    for k in range(1, n + 1):
        ring = ndimage.binary_dilation(labels == k, np.ones((3, 3))) & (labels != k)
        expected.append(bool(labels[ring].any()))
    assert adjacent_objects(labels, n).tolist() == expected


@pytest.mark.slow
def test_known_numbers_of_real_datasets(vrdl_root: Path, dsb_root: Path) -> None:
    vrdl, dsb = (describe_dataset(read_dataset(root)) for root in (vrdl_root / "train", dsb_root))
    assert (vrdl.n_images, vrdl.n_objects, vrdl.n_overlapping) == (24, 14_597, 0)
    assert (dsb.n_images, dsb.n_objects) == (664, 28_986)
    assert vrdl.objects_per_image is not None
    assert (vrdl.objects_per_image.least, vrdl.objects_per_image.greatest) == (294, 1862)
    for info, expected in ((vrdl, (9, 18.5, 36)), (dsb, (7, 20, 49))):
        assert info.diameter_px is not None
        assert np.array(info.diameter_px.percentiles)[[0, 2, 4]] == pytest.approx(expected, abs=0.5)
