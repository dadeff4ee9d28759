"""Overlays: drawn pixels compared with a dense computation, styles, sizes, legends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.synthetic import draw_field
from cellwright.report.colours import DASHED, PATTERNS, SKY_BLUE, YELLOW, class_styles
from cellwright.report.display import to_display_rgb
from cellwright.report.draw import contact_sheet, draw_overlay, outline_pixels

CROSS = ndimage.generate_binary_structure(2, 1)


def grey(shape, value=0):
    return Image.from_array(np.full((*shape, 3), value, np.uint8))


def square_cells(scores=None):
    dense = np.zeros((2, 30, 40), bool)
    dense[0, 5:15, 5:15] = True
    dense[1, 10:20, 12:30] = True
    return Instances.from_masks(MaskSet.from_dense(dense), class_ids=np.array([0, 1]), scores=scores)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_outlines_are_the_pixels_of_each_mask_with_a_neighbour_outside(seed, n):
    rng = np.random.default_rng(seed)
    dense = np.stack([ndimage.binary_closing(rng.random((12, 17)) < 0.4) for _ in range(n)])
    expected = np.zeros((12, 17), bool)
    for mask in dense:
        expected |= mask & ~ndimage.binary_erosion(mask, CROSS)
    drawn = np.zeros((12, 17), bool)
    drawn[outline_pixels(MaskSet.from_dense(dense))] = True
    assert np.array_equal(drawn, expected)


def test_a_dashed_outline_draws_six_of_ten_pixels_of_the_ring():
    dense = np.zeros((1, 40, 40), bool)
    dense[0, 10:30, 10:30] = True  # a ring of 80 unit edges
    masks = MaskSet.from_dense(dense)
    y, _ = outline_pixels(masks, DASHED)
    assert len(y) == 48
    solid = set(zip(*outline_pixels(masks), strict=True))
    assert set(zip(*outline_pixels(masks, DASHED), strict=True)) < solid


def test_overlays_change_only_the_outlines_inside_the_masks():
    picture = draw_overlay(grey((30, 40)), square_cells(), class_names=["a", "b"], legend=False)
    assert picture.shape == (30, 40, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[5, 5]) == YELLOW
    assert tuple(picture[9, 9]) == (0, 0, 0), "inside"
    assert tuple(picture[4, 5]) == (0, 0, 0), "outside"
    assert (picture == SKY_BLUE).all(-1).any()


def test_overlapping_objects_keep_both_outlines():
    picture = draw_overlay(grey((30, 40)), square_cells(), class_names=["a", "b"], legend=False)
    # The right edge of object 0 crosses object 1.
    assert tuple(picture[13, 14]) in (YELLOW, SKY_BLUE)
    assert tuple(picture[12, 14]) == YELLOW


def test_the_legend_is_below_the_image():
    with_legend = draw_overlay(grey((30, 300)), Instances.empty((30, 300)), class_names=["a", "b"])
    assert with_legend.shape[1:] == (300, 3)
    assert with_legend.shape[0] > 30
    assert (with_legend[:30] == 0).all()
    assert (with_legend[30:] == YELLOW).all(-1).any()


def test_fill_boxes_scores_and_width_change_the_picture():
    cells = square_cells(np.array([0.9, 0.4], np.float32))
    options = {"class_names": ["a", "b"], "legend": False}
    plain = draw_overlay(grey((30, 40)), cells, **options)
    filled = draw_overlay(grey((30, 40)), cells, fill_alpha=0.5, **options)
    assert tuple(filled[9, 8]) == tuple(np.round(np.array(YELLOW) / 2).astype(int))
    for extra in ({"show_boxes": True}, {"show_scores": True}, {"outline_px": 3}):
        assert not np.array_equal(plain, draw_overlay(grey((30, 40)), cells, **options, **extra)), extra
    without_outlines = draw_overlay(grey((30, 40)), cells, outline_px=0, **options)
    assert (without_outlines == 0).all()


def test_the_image_is_not_changed():
    image = grey((30, 40), 9)
    draw_overlay(image, square_cells(), show_scores=True)
    assert (image.data == 9).all()


def test_without_objects_the_picture_is_the_image():
    image, _ = draw_field(0, (40, 60), 3)
    picture = draw_overlay(image, Instances.empty((40, 60)), legend=False)
    assert np.array_equal(picture, image.data)


def test_other_sizes_and_classes_without_a_name_are_refused():
    with pytest.raises(InputError, match="size"):
        draw_overlay(grey((30, 41)), square_cells())
    with pytest.raises(UsageError, match="class id 1"):
        draw_overlay(grey((30, 40)), square_cells(), class_names=["a"])


def test_classes_differ_in_style_and_consecutive_ones_in_line_pattern():
    styles = class_styles(tuple(f"c{k}" for k in range(28)))
    assert len({(style.colour, style.pattern) for style in styles}) == 28
    assert all(a.pattern != b.pattern for a, b in itertools.pairwise(styles))
    assert {style.pattern for style in styles[:4]} == set(PATTERNS)


def test_8_bit_colour_is_not_changed_and_other_images_are_stretched():
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 255, (20, 20, 4), dtype=np.uint8)
    assert np.array_equal(to_display_rgb(Image.from_array(colour)), colour[..., :3])
    dim = rng.integers(100, 400, (50, 50), dtype=np.uint16)
    for array in (dim, dim.astype(np.float32) - 5e3, np.repeat((dim >> 4).astype(np.uint8)[..., None], 3, 2)):
        shown = to_display_rgb(Image.from_array(array))
        assert shown.shape == (50, 50, 3)
        assert (shown.min(), shown.max()) == (0, 255)
        assert (shown[..., 0] == shown[..., 1]).all()


def test_constant_non_finite_and_multichannel_images():
    assert (to_display_rgb(Image.from_array(np.full((5, 5), 70, np.uint16))) == 0).all()
    holes = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    holes[0, 0] = np.nan
    assert to_display_rgb(Image.from_array(holes)).max() == 255
    assert (to_display_rgb(Image.from_array(np.full((3, 3), np.nan, np.float32))) == 0).all()
    stack = np.zeros((8, 8, 5), np.uint16)
    stack[2, 2, 0] = stack[5, 5, 4] = 4000
    shown = to_display_rgb(Image.from_array(stack))
    assert shown[2, 2].argmax() == 2, "the first channel is blue"
    assert shown[5, 5].sum() > 0
    assert (shown[0, 0] == 0).all()


def test_contact_sheets_have_every_tile_or_say_that_there_is_none():
    tiles = [("a" * 300, np.full((10, 40, 3), 50, np.uint8)), ("b", np.full((700, 200, 3), 90, np.uint8))]
    sheet = contact_sheet(tiles, columns=2, tile_px=100, title="two")
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 2 * 108 + 8
    assert (sheet == 50).all(-1).sum() == 100 * 25
    assert (sheet == 90).all(-1).sum() > 100 * 27
    assert contact_sheet([], tile_px=200).min() < 128, "text on white"
