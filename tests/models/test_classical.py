"""The classical baseline on drawn images of every kind, on invalid input and on real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pydantic import ValidationError
from skimage import data as samples

from cellwright.config.model_classical import ClassicalConfig
from cellwright.core.errors import InputError
from cellwright.core.geometry import Window
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.models.classical import ClassicalSegmenter, Region, _solidity, nuclear_signal


def f1(truth: MaskSet, instances: Instances, iou: float = 0.5) -> float:
    """F1 at an IoU threshold of at least 0.5, above which no object can match two."""
    matched = (truth.iou(instances.masks)[2] > iou).sum()
    return 2 * matched / (len(truth) + len(instances))


@pytest.fixture(scope="module")
def fields():
    """The same nuclei in H&E and fluorescence: (RGB uint8, DAPI uint16, ground truth masks)."""
    he, truth = draw_field(11, (256, 256), 50, FieldLook(touching=0.3))
    glow, _ = draw_field(11, (256, 256), 50, FieldLook(touching=0.3, stain="fluorescence", bit_depth=16))
    return he.data, glow.data[:, :, 0], truth.masks


def variants(he, glow):
    alpha = np.full((*he.shape[:2], 1), 255, np.uint8)
    eight = (glow >> 8).astype(np.uint8)
    yield "H&E RGB uint8", he
    yield "H&E RGBA uint8", np.concatenate([he, alpha], 2)
    yield "H&E RGB uint16", he.astype(np.uint16) * 257
    yield "H&E RGB float", he.astype(np.float32) / 255
    yield "fluorescence uint16", glow
    yield "fluorescence 12 bits in uint16", glow >> 4
    yield "fluorescence uint8", eight
    yield "fluorescence float, any range", glow.astype(np.float32) * 0.3 - 1000
    yield "fluorescence as grey RGBA", np.concatenate([np.repeat(eight[:, :, None], 3, 2), alpha], 2)
    yield "bright field grey", 255 - eight


def test_every_kind_of_image_is_segmented(fields):
    he, glow, truth = fields
    for name, array in variants(he, glow):
        instances = ClassicalSegmenter().predict([Image.from_array(array)])[0]
        assert f1(truth, instances) > 0.8, name
        assert instances.image_hw == (256, 256)
        assert instances.scores is not None
        assert (np.diff(instances.scores) <= 0).all(), name
        assert instances.ids.tolist() == list(range(1, len(instances) + 1))
        assert instances.masks.areas.sum() == instances.masks.foreground().sum(), "masks must not overlap"


def test_touching_discs_are_split_and_holes_filled():
    y, x = np.mgrid[:80, :120]
    picture = np.zeros((80, 120), np.uint8)
    for centre in (35, 57, 79):
        picture[np.hypot(y - 40, x - centre) < 12] = 200
    picture[38:42, 33:37] = 0  # a hole
    instances = ClassicalSegmenter().segment(Image.from_array(picture))
    assert len(instances) == 3
    centres = sorted(((box[0] + box[2]) / 2) for box in instances.boxes_xyxy)
    assert np.allclose(centres, [35.5, 57.5, 79.5], atol=2)
    assert instances.masks.foreground()[39, 35]


def test_a_given_diameter_sets_the_size_of_objects():
    y, x = np.mgrid[:100, :100]
    blob = (np.hypot((y - 50) / 1.0, (x - 50) / 1.6) < 22).astype(np.uint8) * 180
    whole = ClassicalSegmenter(ClassicalConfig(diameter_px=60)).segment(Image.from_array(blob))
    assert len(whole) == 1
    small = ClassicalSegmenter(ClassicalConfig(diameter_px=200, min_area_share=0.5)).segment(Image.from_array(blob))
    assert len(small) == 0, "much smaller than an object should be"


@pytest.mark.parametrize("diameter", [10, 18, 40])
def test_diameter_is_estimated_within_a_third(diameter):
    look = FieldLook(diameter_px=diameter, diameter_spread=0.05, stain="fluorescence")
    image, _ = draw_field(2, (300, 300), int(0.15 * 300**2 / diameter**2), look)
    facts = ClassicalSegmenter().facts([Region(lambda: image, Window(0, 0, *image.image_hw))])
    assert facts.diameter == pytest.approx(diameter, rel=1 / 3)


@pytest.mark.parametrize("value", [0, 17, 255])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (40, 40), (40, 40, 3), (40, 40, 4)])
def test_a_constant_image_has_no_objects(shape, value):
    instances = ClassicalSegmenter().segment(Image.from_array(np.full(shape, value, np.uint8)))
    assert len(instances) == 0
    assert instances.scores is not None


def test_tiny_and_binary_images_are_segmented():
    for array in (np.array([[0, 255]], np.uint8), np.eye(7, dtype=np.uint8), np.zeros((3, 90), np.uint16)):
        assert ClassicalSegmenter().segment(Image.from_array(array)).image_hw == array.shape


def test_polarity_is_detected_and_can_be_set(fields):
    _, glow, truth = fields
    assert nuclear_signal(Image.from_array(glow))[1] == "bright"
    assert nuclear_signal(Image.from_array(65535 - glow))[1] == "dark"
    wrong = ClassicalSegmenter(ClassicalConfig(signal="dark")).segment(Image.from_array(glow))
    assert f1(truth, wrong) < 0.2


def test_haematoxylin_is_separated_from_eosin():
    red, both = np.array([0.12, 0.80, 0.42]), np.array([0.65, 0.70, 0.29])
    density = np.zeros((20, 30, 3))
    density[:, 10:20], density[:, 20:] = red, both
    signal, kind = nuclear_signal(Image.from_array(np.round(255 * np.exp(-density)).astype(np.uint8)))
    assert kind == "stain"
    white, eosin, haematoxylin = signal[10, [5, 15, 25]]
    assert abs(eosin - white) < 0.1 * (haematoxylin - white)


def test_errors_name_wrong_channels_and_pixels():
    with pytest.raises(InputError, match="`channel`"):
        ClassicalSegmenter().segment(Image(np.zeros((4, 4, 2), np.uint8), ("DAPI", "actin")))
    with pytest.raises(InputError, match="R, G, B"):
        nuclear_signal(Image.from_array(np.zeros((4, 4), np.uint8)), "stain")
    with pytest.raises(InputError, match="not finite"):
        nuclear_signal(Image.from_array(np.array([[0.0, np.nan]], np.float32)))


def test_solidity_is_the_share_of_the_convex_hull():
    assert _solidity(np.ones((7, 4), np.uint8)) == 1.0
    assert _solidity(np.ones((1, 1), np.uint8)) == 1.0
    corner = np.ones((6, 6), np.uint8)
    corner[3:, 3:] = 0  # an L of 27 pixels in a hull of 36 less a triangle with legs of 3
    assert _solidity(corner) == pytest.approx(27 / (36 - 4.5))


def test_unknown_recipe_keys_are_refused():
    with pytest.raises(ValidationError, match="diameter"):
        ClassicalConfig(diameter=3)


def test_scores_correlate_with_iou():
    image, truth = draw_field(21, (400, 400), 160, FieldLook(touching=0.9, overlap=0.2, noise=0.05))
    instances = ClassicalSegmenter().segment(image)
    i, _, iou = instances.masks.iou(truth.masks)
    best = np.zeros(len(instances))
    np.maximum.at(best, i, iou)
    assert np.corrcoef(best, instances.scores)[0, 1] > 0.25


def test_coins_of_scikit_image():
    coins = ClassicalSegmenter(ClassicalConfig(signal="bright")).segment(Image.from_array(samples.coins()))
    assert 15 <= len(coins) <= 35  # 24 coins on an uneven background


# Lower limits, below the values measured when the defaults were chosen.


def test_real_fluorescence(dsb_root):
    assert mean_f1(dsb_root, 3) > 0.6


@pytest.mark.slow
def test_real_h_and_e(vrdl_root):
    assert mean_f1(vrdl_root / "train", 2) > 0.3


def mean_f1(root: Path, n: int) -> float:
    """Mean F1 over the first images of a mask folder."""
    scores = []
    for folder in [folder for folder in sorted(root.iterdir()) if (folder / "images").is_dir()][:n]:
        picture = np.asarray(Pillow.open(folder / "images" / f"{folder.name}.png"))
        labels = np.zeros(picture.shape[:2], np.int32)
        for k, path in enumerate(sorted((folder / "masks").glob("*.png"))):
            labels[np.asarray(Pillow.open(path).convert("L")) > 0] = k + 1
        instances = ClassicalSegmenter().segment(Image.from_array(picture))
        scores.append(f1(MaskSet.from_label_map(labels)[0], instances))
    return float(np.mean(scores))
