"""The files about a stack: classes, overlaps, missing sizes, and more tracks than 16 bits hold."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.prediction import stacks
from cellwright.prediction.sources import Stack
from cellwright.prediction.stacks import not_joined, stack_files, stack_notes, write_stack

NAMES = ("round", "long")


def squares(*of_plane: tuple[int, int, int, int, float]) -> Instances:
    """Squares (y, x, side, class, score) in 20 x 30 pixels."""
    dense = np.zeros((len(of_plane), 20, 30), bool)
    for mask, (y, x, side, *_) in zip(dense, of_plane, strict=True):
        mask[y : y + side, x : x + side] = True
    scores, class_ids = np.array([one[4] for one in of_plane]), np.array([one[3] for one in of_plane], int)
    return Instances.from_masks(MaskSet.from_dense(dense), scores=scores, class_ids=class_ids)


def written(root: Path, *planes: Instances, t: bool = False, z_um: float | None = 2.0, **options):
    numbers = tuple((k,) for k in range(len(planes))) if t else (tuple(range(len(planes))),)
    every = tuple(range(len(planes)))
    stack = Stack("deep/a", Path("a.tif"), numbers, None if t else every, every if t else None, z_um)
    how = {"class_names": NAMES, "pixel_size_um": (0.5, 0.25), **options}
    return stack, write_stack(root, stack, lambda number: planes[number], 0.25, **how)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_class_of_most_voxels(tmp_path: Path) -> None:
    """Overlap decides what is one object, whatever the classes."""
    stack, report = written(
        tmp_path, squares((2, 2, 6, 0, 0.9)), squares((2, 2, 8, 1, 0.5)), squares((2, 2, 5, 0, 0.4))
    )
    (row,) = rows(tmp_path / "deep" / "a_objects.csv")
    assert (row["image"], row["class"], row["volume_voxels"]) == ("deep/a", "long", str(36 + 64 + 25))
    assert float(row["score"]) == pytest.approx(0.6)
    assert float(row["volume_um3"]) == pytest.approx(125 * 2 * 0.5 * 0.25)
    assert report.objects == {0: {1: 1}, 1: {1: 1}, 2: {1: 1}}
    assert set(stack_files(stack)) >= {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}


def test_what_an_object_is_in_the_label_image(tmp_path: Path) -> None:
    """Shared pixels belong to the higher score; an object that is covered has no number in the stack."""
    plane = squares((2, 2, 8, 0, 0.5), (3, 3, 4, 0, 0.4), (6, 6, 8, 0, 0.9))
    _, report = written(tmp_path, plane)
    labels = tifffile.imread(tmp_path / "deep" / "a_masks.tif")
    assert report.objects == {0: {1: 1, 3: 2}}
    sizes = [int(row["volume_voxels"]) for row in rows(tmp_path / "deep" / "a_objects.csv")]
    assert sizes == [64 - 16, 64] == [(labels == 1).sum(), (labels == 2).sum()]


def test_without_sizes_volumes_are_in_voxels(tmp_path: Path) -> None:
    plane = squares((2, 2, 6, 0, 0.9))
    for k, options in enumerate(({}, {"z_um": None}, {"pixel_size_um": None})):
        _, report = written(tmp_path / str(k), plane, plane, **options)
        (row,) = rows(tmp_path / str(k) / "deep" / "a_objects.csv")
        assert ("volume_um3" in row) == (k == 0)
        assert any("in voxels only" in note for note in stack_notes([report])) == (k > 0)


def test_nothing_in_a_stack(tmp_path: Path) -> None:
    nothing = Instances.empty((20, 30), scored=True)
    _, report = written(tmp_path, nothing, nothing, t=True)
    assert rows(tmp_path / "deep" / "a_tracks.csv") == []
    assert (tmp_path / "deep" / "a_ctc/01_RES/res_track.txt").read_text() == ""
    assert tifffile.imread(tmp_path / "deep" / "a_masks.tif").shape == (2, 20, 30)
    (note,) = stack_notes([report])
    assert note.startswith("deep/a: 0 objects in 2 images joined to 0 tracks")


def test_more_tracks_than_16_bits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "MAX_LABEL", 2)
    plane = squares((1, 1, 5, 0, 0.9), (1, 10, 5, 0, 0.9), (10, 1, 5, 0, 0.9))
    _, report = written(tmp_path, plane, plane, t=True)
    assert not (tmp_path / "deep" / "a_ctc").exists()
    assert len(rows(tmp_path / "deep" / "a_tracks.csv")) == 6
    assert "3 tracks do not fit the 16-bit label images" in stack_notes([report])[0]


def test_a_stack_with_a_failure() -> None:
    stack = Stack("a", Path("a.tif"), ((0, 1),), (0, 1), None)
    assert stack_notes([not_joined(stack, 0.25, 1)]) == ["a: not joined: 1 plane could not be predicted"]
