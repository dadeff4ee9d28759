"""`Instances`, `Dataset`, `Image`, geometry, files and errors."""

from __future__ import annotations

import errno
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellwright.core import errors, files
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.geometry import box_iou, clip_boxes, overlapping_pairs
from cellwright.core.image import Image
from cellwright.core.instances import Instances, concat
from cellwright.core.masks import MaskSet

boxes = hnp.arrays(np.int64, st.tuples(st.integers(0, 12), st.just(4)), elements=st.integers(0, 20))


def some_instances(n: int = 3) -> Instances:
    dense = np.zeros((n, 6, 8), bool)
    for k in range(n):
        dense[k, k, k : k + 2] = True
    return Instances.from_masks(MaskSet.from_dense(dense), scores=np.linspace(0.1, 0.9, n))


@settings(deadline=None)
@given(boxes, boxes)
def test_overlapping_pairs_equal_all_pairs(a: np.ndarray, b: np.ndarray) -> None:
    """Inverted and empty boxes too: they overlap nothing."""
    iou = box_iou(a, b)
    i, j = overlapping_pairs(a, b)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [tuple(p) for p in np.argwhere(iou > 0).tolist()]


def test_clip_keeps_the_dtype() -> None:
    clipped = clip_boxes(np.array([[-1, -1, 9, 9]], np.float32), (4, 6))
    assert clipped.tolist() == [[0, 0, 6, 4]]
    assert clipped.dtype == np.float32


def test_instances_index_sort_and_join() -> None:
    cells = some_instances()
    assert cells.by_score().ids.tolist() == [3, 2, 1]
    assert cells[np.array([True, False, True])].ids.tolist() == [1, 3]
    assert cells[[2]].masks == cells.masks[2:]
    joined = concat([cells, cells[:1]])
    assert joined.ids.tolist() == [1, 2, 3, 4]
    assert len(Instances.empty((3, 3))) == 0
    assert len(cells[[]]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.array([1, 1, 2])}, "unique"),
        ({"ids": np.array([0, 1, 2])}, "above 0"),
        ({"scores": np.array([0.1, np.nan, 0.2], np.float32)}, r"\[0, 1\]"),
        ({"scores": np.array([0.1, 2, 0.2], np.float32)}, r"\[0, 1\]"),
        ({"boxes_xyxy": np.zeros((2, 4), np.float32)}, "boxes_xyxy"),
        ({"class_ids": np.array([0, -1, 0])}, "negative"),
        ({"image_hw": (5, 5)}, "another image size"),
        ({"columns": {"area": np.zeros(2)}}, "area"),
    ],
)
def test_instances_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(errors.InputError, match=message):
        replace(some_instances(), **change)


def test_dataset_names_splits_and_samples() -> None:
    made = [Sample(f"s{k}", None, (6, 8), Loaded(some_instances()), split="val" if k else "train") for k in range(3)]
    data = Dataset(tuple(made), ("nucleus",))
    assert len(data.with_split("val")) == 2
    assert len(data[0].read_instances()) == 3
    with pytest.raises(errors.UsageError, match="train, val"):
        data.with_split("test")
    with pytest.raises(errors.UsageError, match="did you mean"):
        data.sample("s11")
    with pytest.raises(errors.UsageError, match="same id"):
        Dataset((made[0], made[0]), ("nucleus",))


def test_image_describes_itself() -> None:
    image = Image.from_array(np.zeros((10, 8, 3), np.uint16), pixel_size_um=(0.325, 0.325))
    assert image.describe() == "10 x 8, uint16, 3 channels (R, G, B), 0.325 um/px"
    assert Image.from_array(np.zeros((4, 4))).data.dtype == np.float32
    with pytest.raises(errors.InputError, match="three axes"):
        Image.from_array(np.zeros((0, 4)))


def test_atomic_files_are_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.json"
    files.write_json(target, {"x": 1})
    assert files.read_json(target) == {"x": 1}

    def write_half() -> None:
        with files.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(errors.OutputError, match="disk is full"):
        write_half()
    assert files.read_json(target) == {"x": 1}
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(target, float("nan"))


def test_json_errors_name_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1,\n  b}')
    with pytest.raises(errors.FormatError, match=r"a\.json, line 2, column 3"):
        files.read_json(path)
    with pytest.raises(errors.InputError, match="cannot read"):
        files.read_json(tmp_path / "absent.json")


def test_errors_survive_pickling_and_name_everything() -> None:
    error = errors.FormatError("broken", where="a.png", got=1, expected=2, remedy="mend it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.FormatError
    assert str(again) == str(error) == "broken\n  where: a.png\n  got: 1\n  expected: 2\n  fix: mend it"
