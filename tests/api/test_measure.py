"""`cellwright.measure`: label arrays, paths and lists; what it refuses. The measurements: tests/measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

import cellwright as cw
from cellwright.core.errors import InputError, UsageError

HW = (20, 30)
LABELS = np.zeros(HW, np.int64)
LABELS[2:6, 3:8], LABELS[10:18, 15:25] = 4, 7
IMAGE = (10 * LABELS).astype(np.uint8)


def instances() -> cw.Instances:
    masks, ids = cw.MaskSet.from_label_map(LABELS)
    return cw.Instances.from_masks(masks, ids=ids)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_label_arrays_give_the_table_of_their_instances(dtype: str) -> None:
    table = cw.measure(LABELS.astype(dtype), IMAGE)
    pd.testing.assert_frame_equal(table, cw.measure(instances(), cw.Image.from_array(IMAGE)))
    assert table.index.tolist() == [4, 7]
    assert table.area_px.tolist() == [20, 80]
    assert table.intensity_mean_grey.tolist() == [40, 70]


def test_paths(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "labels.tif", LABELS.astype(np.uint16))
    tifffile.imwrite(tmp_path / "image.tif", IMAGE)
    table = cw.measure(tmp_path / "labels.tif", str(tmp_path / "image.tif"))
    assert table.filter(like="intensity_mean").to_numpy().ravel().tolist() == [40, 70]


def test_a_list_gives_a_list_of_tables() -> None:
    first, second = cw.measure([LABELS, instances()], [IMAGE, IMAGE * 2])
    assert second.intensity_max_grey.tolist() == (first.intensity_max_grey * 2).tolist()
    assert [len(table) for table in cw.measure([LABELS, np.zeros(HW, int)])] == [2, 0]
    assert cw.measure([]) == []
    with pytest.raises(InputError, match=r"got: 1 image\n[\s\S]*expected: 2 images"):
        cw.measure([LABELS, LABELS], [IMAGE])
    with pytest.raises(InputError, match=r"got: 2 images\n[\s\S]*expected: 1 image,"):
        cw.measure(LABELS, [IMAGE, IMAGE])  # type: ignore[call-overload]


def test_other_types_are_refused() -> None:
    for value in (None, 3, {"labels": LABELS}):
        with pytest.raises(UsageError, match=r"not the objects of an image[\s\S]*label array \(H, W\)"):
            cw.measure(value)  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"not a label array[\s\S]*list\(labels\)"):
        cw.measure(np.stack([LABELS, LABELS]))
    with pytest.raises(UsageError, match="not an image"):
        cw.measure(LABELS, 3)  # type: ignore[call-overload]
