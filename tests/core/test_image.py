"""`Image`: checks, channel names and description."""

from __future__ import annotations

import numpy as np
import pytest

from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image, channel_index


def test_an_image_describes_itself() -> None:
    image = Image.from_array(np.zeros((10, 8, 3), np.uint16), pixel_size_um=(0.325, 0.325))
    assert image.describe() == "10 x 8, uint16, 3 channels (R, G, B), 0.325 um/px"
    assert repr(image) == f"Image({image.describe()})"
    stained = Image(np.zeros((10, 8, 1), np.uint8), ("DAPI",), (0.5, 0.25), "a.tif")
    assert repr(stained) == "Image(10 x 8, uint8, 1 channel (DAPI), 0.5 x 0.25 um/px (y x), a.tif)"


def test_arrays_become_images() -> None:
    assert Image.from_array(np.zeros((4, 4))).data.dtype == np.float32
    assert Image.from_array(np.ones((4, 4), bool)).data.max() == 255
    assert Image.from_array(np.zeros((4, 5, 2), np.uint8)).channels == ("c0", "c1")
    with pytest.raises(InputError, match="three axes"):
        Image.from_array(np.zeros((0, 4)))
    with pytest.raises(InputError, match=r"got: 1 name\n  expected: 2 channels"):
        Image(np.zeros((4, 5, 2), np.uint8), ("DAPI",))


def test_alpha_is_removed_unless_it_is_the_only_channel() -> None:
    pixels = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    image = Image.from_array(pixels, pixel_size_um=(1, 2)).without_alpha()
    assert image.channels == ("R", "G", "B")
    assert image.pixel_size_um == (1, 2)
    np.testing.assert_array_equal(image.data, pixels[:, :, :3])
    assert image.without_alpha() is image
    alone = Image(pixels[:, :, :1], ("A",))
    assert alone.without_alpha() is alone


def test_a_channel_is_chosen_by_name_or_index() -> None:
    names = ("DAPI", "1", "actin")
    assert [channel_index(names, channel) for channel in ("actin", "1", 1, 0, "2")] == [2, 1, 1, 0, 2]
    for channel in ("GFP", 3, "3", -1):
        with pytest.raises(UsageError, match=r"no such channel\n  where: a\.tif(.|\n)*DAPI, 1, actin \(or 0 to 2\)"):
            channel_index(names, channel, "a.tif")
