"""The size of a pixel, from everything that files say about it."""

from __future__ import annotations

from pathlib import Path

import drawn_images as drawn
import numpy as np
import pytest
import tifffile

import cellwright as cw
from cellwright.core.errors import UsageError
from cellwright.data.images.calibration import as_pixel_size, microns_per
from cellwright.data.images.read import read_image

MICRO, MU = "\u00b5", "\u03bc"


@pytest.mark.parametrize(
    ("unit", "pixels_per_unit"),
    [
        ("\\u00B5m", 2),
        ("um", 2),
        ("micron", 2),
        ("microns", 2),
        ("Micrometer", 2),
        ("mm", 2000),
        ("nm", 0.002),
        ("cm", 20000),
        ("inch", 50800),
    ],
)
def test_units_of_imagej(tmp_path: Path, unit: str, pixels_per_unit: float) -> None:
    path = tmp_path / "a.tif"
    resolution = (pixels_per_unit, pixels_per_unit / 2)  # x, y
    tifffile.imwrite(path, drawn.GREY, imagej=True, metadata={"unit": unit}, resolution=resolution)
    assert read_image(path).pixel_size_um == pytest.approx((1.0, 0.5), rel=1e-6)


@pytest.mark.parametrize("raw", [b"\xb5m", "\u00b5m".encode(), "\u03bcm".encode()], ids=["latin-1", "utf-8", "mu"])
def test_raw_micro_signs(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "a.tif"
    written = b"@" * len(raw)
    tifffile.imwrite(path, drawn.GREY, imagej=True, metadata={"unit": written.decode()}, resolution=(2, 2))
    path.write_bytes(path.read_bytes().replace(b"unit=" + written, b"unit=" + raw))
    assert read_image(path).pixel_size_um == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("unit", ["pixel", "", "furlong"])
def test_units_that_say_nothing(tmp_path: Path, unit: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", drawn.GREY, imagej=True, metadata={"unit": unit}, resolution=(2, 2))
    assert read_image(tmp_path / "a.tif").pixel_size_um is None


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        ((20000, 20000), "CENTIMETER", (0.5, 0.5)),
        ((50800, 50800), "INCH", (0.5, 0.5)),
        ((40000, 10000), "CENTIMETER", (1.0, 0.25)),
        ((72, 72), "INCH", None),
        ((96, 96), "INCH", None),
        ((300, 300), "INCH", None),
        ((1200, 1200), "INCH", None),
        ((118.11, 118.11), "CENTIMETER", None),  # 300 dpi
        ((1, 1), "CENTIMETER", None),
        ((20000, 20000), "NONE", None),
    ],
)
def test_resolution_tags_are_sizes_unless_they_are_for_printing(
    tmp_path: Path, resolution: tuple[float, float], unit: str, expected: tuple[float, float] | None
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", drawn.GREY, metadata=None, resolution=resolution, resolutionunit=unit)
    size = read_image(tmp_path / "a.tif").pixel_size_um
    assert size is None if expected is None else size == pytest.approx(expected)


def test_a_given_size_overrides_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, drawn.GREY, metadata=None, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    assert cw.read_image(path, pixel_size=0.25).pixel_size_um == (0.25, 0.25)
    assert cw.read_image(path, pixel_size=(0.5, 0.25)).pixel_size_um == (0.5, 0.25)
    for wrong in (0, -1, float("nan"), (1, 2, 3), ()):
        with pytest.raises(UsageError, match="invalid `pixel_size`"):
            cw.read_image(path, pixel_size=wrong)
    assert as_pixel_size(None) is None


@pytest.mark.parametrize("size", [(0.5, 0.5), (0.65, 0.325), (0.1102, 0.1102)])
def test_a_saved_label_image_keeps_the_size(tmp_path: Path, size: tuple[float, float]) -> None:
    image = cw.Image.from_array(drawn.GREY, pixel_size_um=size)
    path = cw.save(drawn.truth(), tmp_path / "a_masks.tif", image=image)
    assert read_image(path).pixel_size_um == pytest.approx(size, rel=1e-6)
    np.testing.assert_array_equal(cw.read_instances(path).masks.to_label_map(), drawn.truth())
    with pytest.raises(cw.InputError, match="different sizes"):
        cw.save(drawn.truth(), tmp_path / "a_masks.tif", image=drawn.GREY[:50])


def test_areas_are_measured_in_microns() -> None:
    table = cw.measure(drawn.truth(), pixel_size=0.5)
    areas = np.bincount(drawn.truth().ravel())[1:]
    np.testing.assert_allclose(table["area_um2"], areas * 0.25)
    image = cw.Image.from_array(drawn.GREY, pixel_size_um=(3, 3))
    np.testing.assert_allclose(cw.measure(drawn.truth(), image, pixel_size=(1, 0.5))["area_um2"], areas * 0.5)
    assert "area_um2" not in cw.measure(drawn.truth())


def test_both_micro_signs_mean_a_micron() -> None:
    assert microns_per(f"{MICRO}m") == microns_per(f"{MU}m") == microns_per(" UM ") == 1
