"""Synthetic images: reproducibility, overlaps, stains and files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image as Pillow

from cellwright.core.errors import UsageError
from cellwright.data.synthetic import FieldLook, draw_field, write_demo_dataset


def test_images_are_reproducible_and_depend_on_the_seed():
    image, truth = draw_field(7, (96, 128), 20)
    again, truth_again = draw_field(7, (96, 128), 20)
    other, _ = draw_field(8, (96, 128), 20)
    assert np.array_equal(image.data, again.data)
    assert truth.masks == truth_again.masks
    assert not np.array_equal(image.data, other.data)


def test_ground_truth_has_ids_from_1_tight_boxes_and_no_scores():
    image, truth = draw_field(1, (100, 140), 30)
    assert image.data.shape == (100, 140, 3)
    assert image.data.dtype == np.uint8
    assert image.channels == ("R", "G", "B")
    assert truth.scores is None
    assert truth.ids.tolist() == list(range(1, len(truth) + 1))
    assert 20 <= len(truth) <= 30
    assert np.array_equal(truth.boxes_xyxy, truth.masks.boxes)
    assert truth.masks.areas.min() >= 12


@pytest.mark.parametrize("overlap", [0.0, 0.12, 0.3])
def test_nuclei_touch_and_overlap_at_most_as_much_as_allowed(overlap):
    look = FieldLook(diameter_px=16, touching=0.9, overlap=overlap)
    _, truth = draw_field(3, (128, 128), 70, look)
    dense = truth.masks.to_dense()
    cover = dense.sum(0)
    shared = (dense & (cover > 1)).sum((1, 2))
    assert cover.max() <= (1 if overlap == 0 else 2)
    assert (shared <= overlap * truth.masks.areas + 1e-9).all()
    touching = truth.masks.to_label_map()
    neighbours = (touching[:, 1:] != touching[:, :-1]) & (touching[:, 1:] > 0) & (touching[:, :-1] > 0)
    assert neighbours.sum() > 20


def test_both_stains_show_the_same_nuclei_dark_or_bright():
    he, truth = draw_field(5, (128, 128), 30)
    glow, truth_glow = draw_field(5, (128, 128), 30, FieldLook(stain="fluorescence", bit_depth=16))
    assert truth.masks == truth_glow.masks
    assert glow.data.dtype == np.uint16
    assert glow.channels == ("DAPI",)
    inside = truth.masks.foreground()
    red = he.data[..., 0].astype(float)
    assert red[inside].mean() < 0.75 * red[~inside].mean()
    assert glow.data[inside].mean() > 2 * glow.data[~inside].mean()


def test_an_image_without_nuclei_is_background():
    image, truth = draw_field(0, (40, 50), 0)
    assert len(truth) == 0
    assert image.data.std() > 0


def test_nuclei_without_a_free_position_are_not_drawn():
    _, truth = draw_field(0, (40, 40), 500, FieldLook(overlap=0.0))
    assert 1 <= len(truth) < 50


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"stain": "dapi"}, "stain"), ({"diameter_px": 2.0}, "diameter_px"), ({"bit_depth": 16}, "bit_depth")],
)
def test_an_invalid_field_of_the_look_is_named(changes, word):
    with pytest.raises(UsageError, match=word):
        FieldLook(**changes)


def test_the_demo_dataset_writes_the_drawn_images_as_png(tmp_path):
    data = write_demo_dataset(tmp_path, seed=4, splits=(("train", 2), ("val", 1)), image_hw=(64, 80), n_objects=8)
    assert [sample.split for sample in data] == ["train", "train", "val"]
    assert data.class_names == ("nucleus",)
    assert data[1].id == "images/field_001"
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert files == [f"images/field_{k:03d}.png" for k in range(3)]
    image, truth = draw_field(4 * 100_003 + 1, (64, 80), 8)
    assert np.array_equal(np.asarray(Pillow.open(data[1].image_path)), image.data)
    assert pickle.loads(pickle.dumps(data[1])).read_instances().masks == truth.masks


def test_an_image_of_the_demo_dataset_does_not_depend_on_their_number(tmp_path):
    few = write_demo_dataset(tmp_path / "a", splits=(("train", 1),), image_hw=(48, 48), n_objects=4)
    more = write_demo_dataset(tmp_path / "b", splits=(("train", 3),), image_hw=(48, 48), n_objects=4)
    assert few[0].image_path.read_bytes() == more[0].image_path.read_bytes()
