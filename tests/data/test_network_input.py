"""Normalisation and resizing against the transform of torchvision and recorded outputs of Detectron2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cellwright.config.input import InputConfig
from cellwright.core.errors import InputError
from cellwright.core.image import Image
from cellwright.data.network_input import (
    network_hw,
    rescale,
    resize_antialiased,
    resize_for_network,
    resize_hw,
    to_network,
)

RNG = np.random.default_rng(0)
RGB8 = RNG.integers(0, 256, (37, 61, 3), np.uint8)


def test_fixed_normalisation_by_its_formula() -> None:
    config = InputConfig(normalise="fixed")
    expected = (RGB8.transpose(2, 0, 1) / 255 - np.reshape(config.mean, (3, 1, 1))) / np.reshape(config.std, (3, 1, 1))
    np.testing.assert_allclose(to_network(Image.from_array(RGB8), config), expected, atol=1e-6)
    sixteen = Image.from_array(RGB8.astype(np.uint16) * 257)
    np.testing.assert_allclose(to_network(sixteen, config), expected, atol=1e-6)


def test_detectron2_units_and_bgr() -> None:
    config = InputConfig(colour_order="bgr", full_range=1.0, mean=(103.53, 116.28, 123.675), std=(1, 1, 1))
    got = to_network(Image.from_array(RGB8), config)
    np.testing.assert_allclose(got[0], RGB8[:, :, 2] - np.float32(103.53), rtol=1e-6)
    np.testing.assert_allclose(got[2], RGB8[:, :, 0] - np.float32(123.675), rtol=1e-6)


def test_percentiles_become_0_and_1_and_a_constant_image_becomes_0() -> None:
    config = InputConfig(normalise="percentile", percentiles=(10, 90))
    pixels = RNG.normal(50, 9, (40, 40, 3)).astype(np.float32)
    got = to_network(Image.from_array(pixels), config)
    np.testing.assert_allclose(np.percentile(got.reshape(3, -1), (10, 90), axis=1), [[0] * 3, [1] * 3], atol=1e-5)
    flat = to_network(Image.from_array(np.full((8, 9, 3), 7, np.uint8)), config)
    assert not flat.any()
    assert flat.dtype == np.float32


def test_percentiles_of_all_channels_together_keep_the_colours() -> None:
    config = InputConfig(normalise="percentile", percentiles=(10, 90), percentiles_of="image")
    pixels = RNG.normal((50, 90, 200), 9, (40, 40, 3)).astype(np.float32)
    low, high = np.percentile(pixels, (10, 90))
    got = to_network(Image.from_array(pixels), config)
    np.testing.assert_allclose(got, (pixels.transpose(2, 0, 1) - low) / (high - low), atol=1e-5)


def test_channels_are_converted_or_refused() -> None:
    config, grey = InputConfig(), RGB8[:, :, :1]
    rgba = np.concatenate([RGB8, grey], axis=2)
    np.testing.assert_array_equal(
        to_network(Image.from_array(rgba), config), to_network(Image.from_array(RGB8), config)
    )
    repeated = np.repeat(grey, 3, axis=2)
    np.testing.assert_array_equal(
        to_network(Image.from_array(grey), config), to_network(Image.from_array(repeated), config)
    )
    single = InputConfig(channels=1, mean=(0.0,), std=(1.0,))
    luma = np.rint(RGB8 @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(to_network(Image.from_array(RGB8), single)[0] * 255 - luma).max() < 1.01
    with pytest.raises(InputError, match=r"got: 37 x 61, uint8, 2 channels(.|\n)*expected: 3 channels"):
        to_network(Image(RGB8[:, :, :2], ("DAPI", "actin")), config)


def test_sizes_and_pixels_equal_those_of_detectron2(fixtures_root: Path) -> None:
    with np.load(fixtures_root / "micro" / "micro.npz") as micro:
        for height, width, short, longest, new_h, new_w in micro["resize_table_h_w_short_max_newh_neww"].tolist():
            assert resize_hw((height, width), short, longest, "detectron2") == (new_h, new_w)
        for name in ("resize_out_400x500", "resize_out_100x125"):
            expected = micro[name]
            np.testing.assert_array_equal(resize_antialiased(micro["resize_in"], expected.shape[:2]), expected)


def test_sizes_and_pixels_equal_those_of_torchvision() -> None:
    torch = pytest.importorskip("torch")
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    config = InputConfig(normalise="fixed", short_side=50, max_side=80)
    transform = GeneralizedRCNNTransform(50, 80, list(config.mean), list(config.std), size_divisible=1)
    transform.eval()
    for hw in ((37, 61), (61, 37), (20, 200), (200, 60), (100, 100)):
        pixels = RNG.integers(0, 256, (*hw, 3), np.uint8)
        expected = transform([torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))])[0].tensors[0].numpy()
        got = resize_for_network(Image.from_array(pixels), config, "torchvision")
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_sizes_equal_those_of_torchvision_for_many_images() -> None:
    torch = pytest.importorskip("torch")
    for height, width in RNG.integers(300, 2000, (40, 2)).tolist():
        scale = min(800 / min(height, width), 1333 / max(height, width))
        blank = torch.zeros(1, 1, height, width)
        sized = torch.nn.functional.interpolate(blank, scale_factor=scale, recompute_scale_factor=True)
        assert resize_hw((height, width), 800, 1333, "torchvision") == tuple(sized.shape[-2:])


def test_scale_and_no_change() -> None:
    assert network_hw((101, 50), InputConfig(scale=0.5), "torchvision") == (51, 25)
    image = Image.from_array(RGB8)
    for rule in ("torchvision", "detectron2"):
        np.testing.assert_array_equal(resize_for_network(image, InputConfig(), rule), to_network(image, InputConfig()))


def test_16_bit_is_resized_without_losing_bits() -> None:
    config = InputConfig(scale=2.0)
    sixteen = Image.from_array(RGB8.astype(np.uint16) * 257)
    for rule in ("torchvision", "detectron2"):
        got, expected = (resize_for_network(image, config, rule) for image in (sixteen, Image.from_array(RGB8)))
        # PIL rounds 8-bit pixels between its two passes: an error of up to one level, in standard deviations.
        assert np.abs(got - expected).max() < (1.01 / 255 / 0.224 if rule == "detectron2" else 1e-4)


def test_shrinking_averages_pixels() -> None:
    fine = np.indices((60, 90)).sum(axis=0)[None].astype(np.float32) % 2
    small = rescale(np.repeat(fine, 3, axis=0), 0.1)
    assert small.shape == (3, 6, 9)
    np.testing.assert_allclose(small, 0.5, atol=0.02)
    assert rescale(fine, 1.0) is fine
    assert rescale(fine, 0.001).shape == (1, 1, 1)
    large = rescale(np.float32([[[0, 1]]]), 2.0)
    np.testing.assert_allclose(large, [[[0, 0.25, 0.75, 1]] * 2], atol=1e-6)
