"""The semantic decoder: exact where objects stand apart, merging where they touch; what it shares with watershed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats.mask_folder import MaskFolderLoader
from cellwright.data.images.read import image_hw_of
from cellwright.models.dense.semantic import (
    CHANNELS,
    SemanticRules,
    decode,
    decode_instances,
    encode,
    encode_instances,
    parts_of,
)


def connected(foreground: np.ndarray) -> tuple[np.ndarray, int]:
    """SciPy's parts, corners being neighbours, and how many."""
    parts = np.zeros(foreground.shape, np.int32)
    return parts, int(ndimage.label(foreground, np.ones((3, 3)), output=parts))  # type: ignore[arg-type]


def picture(*rows: str) -> np.ndarray:
    """Labels drawn by hand: a digit is an object, a dot is background."""
    return np.array([[int(c) if c != "." else 0 for c in row] for row in rows])


def round_trip(labels: np.ndarray) -> list[list[int]]:
    return decode(encode(labels))[0].tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_objects_that_stand_apart_come_back_exactly(seed: int, height: int, width: int) -> None:
    foreground = np.random.default_rng(seed).random((height, width)) < 0.3
    labels, n = connected(foreground)
    found, scores = decode(encode(labels), SemanticRules(max_hole_share=0))
    assert np.array_equal(found, labels)
    assert np.array_equal(parts_of(labels)[0], labels)  # the way of labels, not SciPy's
    assert parts_of(labels > 0)[1] == n
    assert scores.tolist() == [1.0] * n


def test_touching_objects_merge() -> None:
    assert round_trip(picture("1122", "1122", "....", "33..")) == picture("1111", "1111", "....", "22..").tolist()
    assert round_trip(picture("11.", "11.", "..2")) == picture("11.", "11.", "..1").tolist()  # at a corner too


def test_on_real_images_objects_that_touch_none_come_back_exactly_and_others_merge(vrdl_root: Path) -> None:
    folder = sorted((vrdl_root / "train").iterdir())[0]
    truth = MaskFolderLoader(folder / "masks", image_hw_of(next((folder / "images").glob("*.png"))))().masks
    labels = truth.to_label_map().astype(np.int32)
    found = decode_instances(encode(labels), SemanticRules(max_hole_share=0)).masks
    parts, n = connected(labels)
    assert len(found) == n < len(truth)
    pairs = np.unique(np.stack([labels[labels > 0], parts[labels > 0]]), axis=1)
    of_label, of_part = (np.bincount(one) for one in pairs)
    alone = pairs[0][(of_label[pairs[0]] == 1) & (of_part[pairs[1]] == 1)]
    assert len(alone) > 100
    masks, _ = MaskSet.from_label_map(np.where(np.isin(labels, alone), labels, 0))
    assert (masks.iou(found)[2] == 1).sum() == len(alone)


def test_scores_are_the_mean_body_inside() -> None:
    body = np.array([[0.9, 0.7, 0.4, 0.0, 0.5]], np.float32)
    labels, scores = decode(body[None])
    assert labels.tolist() == [[1, 1, 0, 0, 2]]
    assert scores == pytest.approx([0.8, 0.5])
    assert scores.dtype == np.float32


def test_rules_drop_small_objects_and_fill_small_holes() -> None:
    ring = np.ones((7, 7), int)
    ring[3, 3] = 0
    labels = np.zeros((12, 12), int)
    labels[:7, :7], labels[10, 10] = ring, 2
    found, scores = decode(encode(labels), SemanticRules(min_area_px=2))
    assert np.array_equal(found, np.pad(np.ones((7, 7), int), (0, 5)))
    assert scores == pytest.approx([48 / 49])  # the filled hole counts, with its body of 0
    kept, _ = decode(encode(labels), SemanticRules(max_hole_share=0.02))
    assert np.array_equal(kept, labels)
    assert decode(encode(labels), SemanticRules(body_threshold=1.5))[0].max() == 0


def test_a_hole_with_another_object_in_it_stays() -> None:
    labels = np.ones((9, 9), int)
    labels[3:6, 3:6] = 0
    labels[4, 4] = 2
    assert np.array_equal(decode(encode(labels), SemanticRules(max_hole_share=1))[0], labels)


@pytest.mark.parametrize("hw", [(1, 1), (1, 9), (9, 1), (5, 6)])
def test_no_objects_one_pixel_and_nothing_but_object(hw: tuple[int, int]) -> None:
    empty, scores = decode(encode(np.zeros(hw, np.uint16)))
    assert empty.shape == hw
    assert empty.dtype == np.int32
    assert empty.max() == 0
    assert scores.shape == (0,)
    assert decode(encode(np.ones(hw, bool)))[0].tolist() == np.ones(hw, int).tolist()
    one = np.zeros(hw, int)
    one[-1, -1] = 77
    assert np.array_equal(decode(encode(one))[0], one > 0)
    assert len(decode_instances(encode(np.zeros(hw, int)))) == 0


def test_instances_go_through_sorted_by_score_with_the_class_of_most_of_their_pixels() -> None:
    labels = picture("111...", "111.22", "....22")
    truth = Instances.from_masks(MaskSet.from_label_map(labels)[0])
    maps = encode_instances(truth)
    maps[0, :2, :3] *= 0.6
    class_probs = np.stack([labels == 1, labels == 2]).astype(np.float32)
    class_probs[:, 0, 0] = 0, 1  # one pixel of object 1 votes for class 1
    found = decode_instances(maps, class_probs=class_probs)
    assert found.ids.tolist() == [1, 2]
    assert found.class_ids.tolist() == [1, 0]
    assert found.scores == pytest.approx([1, 0.6])
    assert found.masks == truth.masks[[1, 0]]
    assert found.boxes_xyxy.tolist() == [[4, 1, 6, 3], [0, 0, 3, 2]]


def test_what_is_no_label_map_and_what_are_no_maps_is_refused() -> None:
    assert CHANNELS == ("body",)
    for labels in (np.zeros((2, 3, 4), int), np.zeros((3, 4))):
        with pytest.raises(InputError, match="two axes of integers"):
            encode(labels)
    for shape in ((3, 4), (2, 3, 4)):
        with pytest.raises(InputError, match="do not fit"):
            decode(np.zeros(shape, np.float32))
    for bad in (np.nan, np.inf, -np.inf):
        maps = np.zeros((1, 3, 4), np.float32)
        maps[0, 1, 2] = bad
        with pytest.raises(InputError, match="not finite"):
            decode(maps)
