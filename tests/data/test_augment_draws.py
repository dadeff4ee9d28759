"""Random draws: sizes by the rules of the frameworks, independent changes, reproducibility."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwright.config.input import AugmentConfig, InputConfig
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.augment import Frame, augment, draw_colour, draw_geometry
from cellwright.data.labels import Labels
from cellwright.data.network_input import resize_for_network, resize_hw, to_network

PLAIN = AugmentConfig(horizontal_flip=0)
EVERYTHING = AugmentConfig(
    crop_relative=0.9,
    short_sides_px=(60, 70, 80),
    max_side_px=110,
    scale_min=0.5,
    scale_max=1.5,
    crop_px=48,
    pad_to_crop=True,
    vertical_flip=0.5,
    quarter_turns=True,
    rotation_deg=20,
    shear_deg=10,
    translation=0.1,
    elastic_amplitude_px=3,
    elastic_smoothness_px=16,
    brightness=0.2,
    contrast=0.2,
    gamma=0.3,
    saturation=0.2,
    hue=0.05,
    stain=0.1,
    stain_shift=0.02,
    blur_px=1,
    noise=0.03,
    greyscale=0.3,
    invert=0.3,
)
NEUTRAL = {name: getattr(PLAIN, name) for name in AugmentConfig.model_fields}
# The attributes of `Geometry` and `Colour` that a field affects.
AFFECTS = {
    "crop_relative": {"window", "out_hw", "affine"},
    "short_sides_px": {"window", "out_hw", "affine"},
    "scale_min": {"window", "out_hw", "affine"},
    "scale_max": {"window", "out_hw", "affine"},
    "horizontal_flip": {"horizontal_flip"},
    "vertical_flip": {"vertical_flip"},
    "quarter_turns": {"quarter_turns", "affine"},
    "rotation_deg": {"affine"},
    "shear_deg": {"affine"},
    "translation": {"affine"},
    "elastic_amplitude_px": {"elastic"},
    "brightness": {"brightness"},
    "contrast": {"contrast"},
    "gamma": {"gamma"},
    "saturation": {"saturation"},
    "hue": {"hue_turns"},
    "stain": {"stain_factors"},
    "stain_shift": {"stain_shifts"},
    "blur_px": {"blur_px"},
    "noise": {"noise"},
    "greyscale": {"saturation"},
    "invert": {"invert"},
}


def drawn(config: AugmentConfig, seed: int) -> dict[str, object]:
    """All attributes drawn for a 90 x 100 image."""
    rng = np.random.default_rng(seed)
    parts = (draw_geometry((90, 100), config, rng), draw_colour(config, rng))
    return {field.name: getattr(part, field.name) for part in parts for field in dataclasses.fields(part)}


@pytest.mark.parametrize("name", sorted(AFFECTS))
def test_disabling_one_change_does_not_affect_the_others(name: str) -> None:
    changed = {name: NEUTRAL[name]} | ({"max_side_px": None} if name == "short_sides_px" else {})
    without = AugmentConfig.model_validate(EVERYTHING.model_dump() | changed)
    differing: set[str] = set()
    for seed in range(30):
        before, after = drawn(EVERYTHING, seed), drawn(without, seed)
        differing |= {key for key in before if before[key] != after[key]}
    assert differing <= AFFECTS[name]
    assert differing


def test_every_field_that_changes_a_sample_is_covered() -> None:
    limits = {"crop_source_px", "max_side_px", "scale_draw", "crop_px", "pad_to_crop", "elastic_smoothness_px"}
    assert set(AFFECTS) | limits | {"min_visible", "renormalise"} == set(AugmentConfig.model_fields)


@settings(max_examples=60, deadline=None)
@given(
    hw=st.tuples(st.integers(16, 400), st.integers(16, 400)),
    sides=st.lists(st.integers(16, 300), min_size=1, max_size=3),
    rule=st.sampled_from(["torchvision", "detectron2"]),
    relative=st.none() | st.floats(0.3, 1),
    seed=st.integers(0, 999),
)
def test_the_short_side_is_one_of_the_list(
    hw: tuple[int, int], sides: list[int], rule: str, relative: float | None, seed: int
) -> None:
    config = AugmentConfig(short_sides_px=tuple(sides), max_side_px=320, crop_relative=relative)
    geometry = draw_geometry(hw, config, np.random.default_rng(seed), Frame(rule=rule))  # type: ignore[arg-type]
    y0, x0, y1, x1 = geometry.window
    cut = (y1 - y0, x1 - x0)
    # Detectron2's RandomCrop("relative"): int(side * share + .5).
    assert cut == (hw if relative is None else tuple(max(1, int(side * relative + 0.5)) for side in hw))
    assert geometry.out_hw in {resize_hw(cut, side, 320, rule) for side in sides}  # type: ignore[arg-type]
    assert 0 <= y0 <= y1 <= hw[0]
    assert 0 <= x0 <= x1 <= hw[1]


def test_short_sides_are_equally_likely_and_override_the_input_section() -> None:
    config = AugmentConfig(short_sides_px=(400, 600, 800, 1000), max_side_px=1333)
    frame = Frame(InputConfig(short_side=64, max_side=64))
    rng = np.random.default_rng(0)
    shorts = [min(draw_geometry((700, 900), config, rng, frame).out_hw) for _ in range(2000)]
    assert set(shorts) == {400, 600, 800, 1000}
    assert np.bincount(shorts)[[400, 600, 800, 1000]] / 2000 == pytest.approx([0.25] * 4, abs=0.04)


def test_the_source_is_cropped_before_resizing() -> None:
    """Detectron2 crops 500 px of the source and then enlarges them."""
    config = AugmentConfig(crop_source_px=500, short_sides_px=(800,), max_side_px=1333)
    frame = Frame(rule="detectron2")
    geometries = [draw_geometry((1000, 1000), config, np.random.default_rng(k), frame) for k in range(200)]
    assert {geometry.out_hw for geometry in geometries} == {(800, 800)}
    starts = np.array([geometry.window[:2] for geometry in geometries])
    assert {(g.window[2] - g.window[0], g.window[3] - g.window[1]) for g in geometries} == {(500, 500)}
    assert starts.min() < 20
    assert starts.max() > 480
    assert draw_geometry((300, 700), config, np.random.default_rng(0), frame).window[0::2] == (0, 300)


def test_large_scale_jitter() -> None:
    """An image fitted into the crop, scaled by .1 to 2, then cropped or padded to its size (Ghiasi et al. 2021)."""
    config = AugmentConfig(
        short_sides_px=(256,),
        max_side_px=256,
        scale_min=0.1,
        scale_max=2,
        scale_draw="uniform",
        crop_px=256,
        pad_to_crop=True,
    )
    rng = np.random.default_rng(0)
    scales = []
    for _ in range(600):
        geometry = draw_geometry((100, 200), config, rng, Frame(rule="detectron2"))
        assert geometry.output_hw == (256, 256)
        _, x0, _, x1 = geometry.window
        scales.append((geometry.out_hw[1] / (x1 - x0)) / (256 / 200))
    assert np.quantile(scales, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx([0.1, 0.575, 1.05, 1.525, 2], abs=0.1)
    labels = Labels.from_instances(Instances.from_masks(MaskSet.from_label_map(np.ones((100, 200), np.int32))[0]))
    image = np.full((100, 200, 3), 200, np.uint8)
    small = config.model_copy(update={"scale_max": 0.1, "horizontal_flip": 0.0})
    pixels, out = augment(image, labels, small, rng, Frame(rule="detectron2", fill=(10, 20, 30)))
    assert pixels.shape == (256, 256, 3)
    assert out.boxes.tolist() == [[0, 0, 26, 13]]
    assert out.areas.tolist() == [26 * 13]
    assert pixels[200, 100].tolist() == [10, 20, 30]
    assert pixels[5, 5].tolist() == [200, 200, 200]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from([np.uint8, np.uint16, np.float32]), n=st.integers(0, 9))
def test_all_changes_together_give_a_consistent_sample(seed: int, dtype: type, n: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.array([[x, y, x + 12, y + 9] for y, x in rng.integers(0, 70, (n, 2))]).reshape(-1, 4)
    masks = MaskSet.from_crops(boxes, [np.ones((9, 12), bool)] * n, (90, 100))
    labels = Labels.from_instances(Instances.from_masks(masks, ignore=rng.random(n) < 0.3))
    image = (rng.random((90, 100, 3)) * (1 if dtype == np.float32 else 250)).astype(dtype)
    pixels, out = augment(image, labels, EVERYTHING, np.random.default_rng([seed, 1]))
    again, same = augment(image, labels, EVERYTHING, np.random.default_rng([seed, 1]))
    assert pixels.dtype == dtype
    assert pixels.shape == (48, 48, 3)
    assert out.layers.shape[1:] == (48, 48)
    assert np.array_equal(pixels, again)
    assert np.array_equal(out.layers, same.layers)
    for k in range(len(out)):
        ys, xs = np.nonzero(out.layers[out.layer_of[k]] == k + 1)
        assert out.areas[k] == len(ys) == np.count_nonzero(out.layers == k + 1) > 0
        assert out.boxes[k].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("rule", ["torchvision", "detectron2"])
def test_a_sample_without_changes_equals_the_input_at_prediction(rule: str) -> None:
    image = Image.from_array(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    config = InputConfig(normalise="fixed", short_side=64, max_side=100)
    labels = Labels.from_instances(Instances.empty((90, 120)))
    frame = Frame(config, rule)  # type: ignore[arg-type]
    pixels, _ = augment(image.data, labels, PLAIN, np.random.default_rng(0), frame)
    trained = to_network(Image(pixels, image.channels), config)
    predicted = resize_for_network(image, config, rule)  # type: ignore[arg-type]
    # The rule of torchvision resizes after normalisation; in training the pixels are rounded before it.
    assert np.abs(trained - predicted).max() < (1e-6 if rule == "detectron2" else 0.02)


def test_draws_cover_their_ranges() -> None:
    config = AugmentConfig(
        brightness=0.3,
        contrast=0.2,
        gamma=1,
        saturation=0.4,
        hue=0.1,
        stain=0.2,
        stain_shift=0.05,
        blur_px=2,
        noise=0.1,
        greyscale=0.25,
        invert=0.5,
    )
    rng = np.random.default_rng(0)
    colours = [draw_colour(config, rng) for _ in range(2000)]
    spans = {
        "brightness": (0.7, 1.3),
        "contrast": (0.8, 1.2),
        "gamma": (0.5, 2),
        "hue_turns": (-0.1, 0.1),
        "blur_px": (0, 2),
        "noise": (0, 0.1),
    }
    for name, (low, high) in spans.items():
        values = np.array([getattr(colour, name) for colour in colours])
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high >= values.max() > high - 0.02 * (high - low)
    factors = np.array([colour.stain_factors for colour in colours])
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.1
    assert factors.min(axis=0) == pytest.approx([0.8] * 3, abs=0.01)
    assert np.abs([colour.stain_shifts for colour in colours]).max() == pytest.approx(0.05, abs=0.001)
    assert np.median([colour.gamma for colour in colours]) == pytest.approx(1, abs=0.05)
    assert np.mean([colour.saturation == 0 for colour in colours]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([colour.invert for colour in colours]) == pytest.approx(0.5, abs=0.04)
    assert len({colour.noise_seed for colour in colours}) == 2000


@pytest.mark.parametrize(
    "config", [AugmentConfig(crop_px=16), AugmentConfig(crop_source_px=40, crop_px=16, rotation_deg=0)]
)
def test_crops_are_drawn_where_the_image_is_annotated(config: AugmentConfig) -> None:
    counted = np.zeros((90, 120), bool)
    counted[5:15, 100:110], counted[60:64, 20:25] = True, True  # 100 and 20 px
    n_in = []
    for seed in range(300):
        y0, x0, y1, x1 = draw_geometry(counted.shape, config, np.random.default_rng(seed), counted=counted).window
        assert 0 <= y0 < y1 <= 90
        assert 0 <= x0 < x1 <= 120
        assert (y1 - y0, x1 - x0) == (16, 16)
        n_in.append(int(counted[y0:y1, x0:x1].sum()))
        assert n_in[-1]
    at_first = sum(n > 20 for n in n_in)
    assert 0.6 < at_first / 300 < 0.9  # 5 of 6, less those that show a corner of the first place
    nothing = np.zeros_like(counted)  # then any crop is as good as another
    geometries = [draw_geometry(counted.shape, config, np.random.default_rng(7), counted=c) for c in (None, nothing)]
    assert geometries[0] == geometries[1]
