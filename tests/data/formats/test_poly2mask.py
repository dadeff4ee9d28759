"""`poly2mask`: squares, the border of the image, and random outlines compared with pixel centres."""

from __future__ import annotations

import numpy as np

from cellwright.data.formats.poly2mask import poly2mask

SQUARE = [(1, 1), (4, 1), (4, 4), (1, 4)]


def test_poly2mask_contains_the_pixels_whose_centres_are_inside():
    # From 0.5 to 3.5: the centres 1.5 and 2.5 are inside, 0.5 and 3.5 on the border, of which one side counts.
    box, crop = poly2mask([np.array(SQUARE) - 0.5], (20, 30))
    assert box.tolist() == [1, 1, 4, 4]
    assert crop.all()


def test_poly2mask_cuts_off_what_is_outside_the_image():
    square = np.array([(-5.0, -5), (100, -5), (100, 100), (-5, 100)])
    box, crop = poly2mask([square], (20, 30))
    assert box.tolist() == [0, 0, 30, 20]
    assert crop.all()
    assert poly2mask([square + 200], (20, 30))[1].size == 0
    assert poly2mask([square[:2]], (20, 30))[1].size == 0


def test_poly2mask_compared_with_pixel_centres():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:40, :40] + 0.5
    for _ in range(30):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
        ring = 20 + rng.uniform(5, 18, (12, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1)
        inside = np.zeros((40, 40), bool)
        for (ax, ay), (bx, by) in zip(ring, np.roll(ring, -1, 0), strict=True):
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) / (by - ay) * (bx - ax))
        (x0, y0, x1, y1), crop = poly2mask([ring], (40, 40))
        mask = np.zeros((40, 40), bool)
        mask[y0:y1, x0:x1] = crop
        # They differ only if a centre is so close to a side that rounding matters: a few of about 300 pixels.
        assert (mask != inside).sum() <= 0.1 * inside.sum()
