"""The semantic decoder: exact where objects do not touch, merging where they do; and the code all decoders share."""

from __future__ import annotations

import doctest
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
from cellwright.models.dense import labels as shared
from cellwright.models.dense import semantic
from cellwright.models.dense.labels import connected_components, to_instances
from cellwright.models.dense.semantic import CHANNELS, decode, encode


def scipy_components(foreground: np.ndarray) -> tuple[np.ndarray, int]:
    """SciPy's 8-connected components, and their number."""
    components = np.zeros(foreground.shape, np.int32)
    return components, int(ndimage.label(foreground, np.ones((3, 3)), output=components))  # type: ignore[arg-type]


def picture(*rows: str) -> np.ndarray:
    """A label map drawn by hand: digits are objects, dots are background."""
    return np.array([[int(c) if c != "." else 0 for c in row] for row in rows])


def round_trip(labels: np.ndarray) -> list[list[int]]:
    return decode(encode(labels))[0].tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_objects_that_do_not_touch_are_recovered_exactly(seed: int, height: int, width: int) -> None:
    foreground = np.random.default_rng(seed).random((height, width)) < 0.3
    labels, n = scipy_components(foreground)
    decoded, scores = decode(encode(labels), max_hole_share=0)
    assert np.array_equal(decoded, labels)
    assert np.array_equal(connected_components(labels)[0], labels)  # of integers, without SciPy
    assert connected_components(labels > 0)[1] == n
    assert scores.tolist() == [1.0] * n


def test_touching_objects_merge() -> None:
    assert round_trip(picture("1122", "1122", "....", "33..")) == picture("1111", "1111", "....", "22..").tolist()
    assert round_trip(picture("11.", "11.", "..2")) == picture("11.", "11.", "..1").tolist()  # also at a corner


def test_on_real_images_isolated_objects_are_recovered_exactly_and_others_merge(vrdl_root: Path) -> None:
    folder = sorted((vrdl_root / "train").iterdir())[0]
    truth = MaskFolderLoader(folder / "masks", image_hw_of(next((folder / "images").glob("*.png"))))().masks
    labels = truth.to_label_map().astype(np.int32)
    decoded = MaskSet.from_label_map(decode(encode(labels), max_hole_share=0)[0])[0]
    components, n = scipy_components(labels)
    assert len(decoded) == n < len(truth)
    pairs = np.unique(np.stack([labels[labels > 0], components[labels > 0]]), axis=1)
    per_label, per_component = (np.bincount(row) for row in pairs)
    isolated = pairs[0][(per_label[pairs[0]] == 1) & (per_component[pairs[1]] == 1)]
    assert len(isolated) > 100
    masks, _ = MaskSet.from_label_map(np.where(np.isin(labels, isolated), labels, 0))
    assert (masks.iou(decoded)[2] == 1).sum() == len(isolated)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(semantic).failed == doctest.testmod(shared).failed == 0


def test_scores_are_the_mean_body_probability() -> None:
    body = np.array([[0.9, 0.7, 0.4, 0.0, 0.5]], np.float32)
    labels, scores = decode(body[None])
    assert labels.tolist() == [[1, 1, 0, 0, 2]]
    assert scores == pytest.approx([0.8, 0.5])
    assert scores.dtype == np.float32


def test_small_objects_are_dropped_and_small_holes_filled() -> None:
    ring = np.ones((7, 7), int)
    ring[3, 3] = 0
    labels = np.zeros((12, 12), int)
    labels[:7, :7], labels[10, 10] = ring, 2
    decoded, scores = decode(encode(labels), min_area_px=2)
    assert np.array_equal(decoded, np.pad(np.ones((7, 7), int), (0, 5)))
    assert scores == pytest.approx([48 / 49])  # the filled hole counts, with a body of 0
    kept, _ = decode(encode(labels), max_hole_share=0.02)
    assert np.array_equal(kept, labels)
    assert decode(encode(labels), body_threshold=1.5)[0].max() == 0


def test_a_hole_that_contains_another_object_is_kept() -> None:
    labels = np.ones((9, 9), int)
    labels[3:6, 3:6] = 0
    labels[4, 4] = 2
    assert np.array_equal(decode(encode(labels), max_hole_share=1)[0], labels)


@pytest.mark.parametrize("hw", [(1, 1), (1, 9), (9, 1), (5, 6)])
def test_no_objects_a_single_pixel_and_a_full_image(hw: tuple[int, int]) -> None:
    empty, scores = decode(encode(np.zeros(hw, np.uint16)))
    assert empty.shape == hw
    assert empty.dtype == np.int32
    assert empty.max() == 0
    assert scores.shape == (0,)
    assert decode(encode(np.ones(hw, bool)))[0].tolist() == np.ones(hw, int).tolist()
    pixel = np.zeros(hw, int)
    pixel[-1, -1] = 77
    assert np.array_equal(decode(encode(pixel))[0], pixel > 0)
    assert len(to_instances(empty, scores)) == 0


def test_instances_are_sorted_by_score_and_have_the_class_of_most_of_their_pixels() -> None:
    labels = picture("111...", "111.22", "....22")
    truth = Instances.from_masks(MaskSet.from_label_map(labels)[0])
    maps = encode(labels)
    maps[0, :2, :3] *= 0.6
    class_probs = np.stack([labels == 1, labels == 2]).astype(np.float32)
    class_probs[:, 0, 0] = 0, 1  # one pixel of object 1 has class 1
    decoded = to_instances(*decode(maps), class_probs)
    assert decoded.ids.tolist() == [1, 2]
    assert decoded.class_ids.tolist() == [1, 0]
    assert decoded.scores == pytest.approx([1, 0.6])
    assert decoded.masks == truth.masks[[1, 0]]
    assert decoded.boxes_xyxy.tolist() == [[4, 1, 6, 3], [0, 0, 3, 2]]


def test_invalid_labels_and_maps_are_rejected() -> None:
    assert CHANNELS == ("body",)
    for labels in (np.zeros((2, 3, 4), int), np.zeros((3, 4))):
        with pytest.raises(InputError, match="2-D array of integers"):
            encode(labels)
    for shape in ((3, 4), (2, 3, 4)):
        with pytest.raises(InputError, match="do not fit the decoder"):
            decode(np.zeros(shape, np.float32))
    for bad in (np.nan, np.inf, -np.inf):
        maps = np.zeros((1, 3, 4), np.float32)
        maps[0, 1, 2] = bad
        with pytest.raises(InputError, match="not finite"):
            decode(maps)
