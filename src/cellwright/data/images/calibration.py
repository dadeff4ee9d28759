"""The size of a pixel: from units and resolution tags, or as the user gives it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from cellwright.core.errors import UsageError

PixelSize = tuple[float, float]

# Microns per unit, by the names of OME and ImageJ in lower case; "µ" stands for both micro signs.
MICRONS = {
    **dict.fromkeys(("um", "µm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-3),
    **dict.fromkeys(("pm", "picometer"), 1e-6),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 1e4),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("inch", "inches", "in"), 25400.0),
    "thou": 25.4,
}
# TIFF resolution tags of pixels larger than this are print settings: 2400 dots per inch are 10.6 um.
LARGEST_TAGGED_UM = 10.0
# Sizes that files state in a unit of length are taken up to 1 mm; example files state 1 cm.
LARGEST_UM, SMALLEST_UM = 1000.0, 1e-5


def microns_per(unit: str) -> float | None:
    r"""Microns per unit of length; None for what is no known unit, such as "pixel".

    >>> microns_per("micron"), microns_per("\u03bcm"), microns_per("\\u00B5m"), microns_per("nm"), microns_per("pixel")
    (1.0, 1.0, 1.0, 0.001, None)
    """
    name = unit.replace("\\u00B5", "µ").replace("\\u00b5", "µ").replace("μ", "µ").replace("Âµ", "µ")
    return MICRONS.get(name.strip().lower())


def pixel_size(y: float | None, x: float | None) -> PixelSize | None:
    """Sizes in microns as (y, x), one for both where only one is known; None where they cannot be true."""
    known = [size for size in (y, x) if size is not None]
    if not known or not all(length(size) is not None for size in known):
        return None
    return (known[0], known[-1])


def length(microns: float) -> float | None:
    """The side of a pixel or the distance of two planes in microns; None where it cannot be true."""
    return float(microns) if math.isfinite(microns) and SMALLEST_UM <= microns <= LARGEST_UM else None


def size_from_tags(x_resolution: Any, y_resolution: Any, microns_per_unit: float) -> PixelSize | None:
    """The pixel size from TIFF's pixels per unit, as fractions (pixels, units); None if a value is 0."""
    sizes = []
    for pixels, units in (y_resolution, x_resolution):
        if not pixels or not units:
            return None
        sizes.append(float(Fraction(int(units), int(pixels)) * Fraction(microns_per_unit)))
    return pixel_size(*sizes)


def as_pixel_size(value: float | Sequence[float] | None) -> PixelSize | None:
    """The parameter `pixel_size`: one size in microns, or (y, x). Raises `UsageError` for anything else.

    >>> as_pixel_size(0.5), as_pixel_size((0.5, 0.25)), as_pixel_size(None)
    ((0.5, 0.5), (0.5, 0.25), None)
    """
    if value is None:
        return None
    sizes = [value] if isinstance(value, int | float) else list(value)
    if len(sizes) not in (1, 2) or not all(SMALLEST_UM <= size <= LARGEST_UM for size in sizes):
        raise UsageError(
            "invalid `pixel_size`",
            got=", ".join(map(str, sizes)),
            expected=f"microns per pixel, {SMALLEST_UM:g} to {LARGEST_UM:g}: one number, or two (y, x)",
        )
    return (float(sizes[0]), float(sizes[-1]))
