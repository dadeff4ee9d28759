"""Lengths that are given in pixels or in microns, such as ``5``, ``"8px"`` and ``"2.5um"``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cellwright.core.errors import InputError, UsageError

_TEXT = re.compile(r"([0-9]*\.?[0-9]+)\s*(px|pixels?|um|µm|μm|microns?)?", re.IGNORECASE)
_LARGEST = 10_000  # of either unit


@dataclass(frozen=True)
class Distance:
    """A length of 0 or more.

    >>> str(Distance.of(8)), str(Distance.of("2.5 µm")), Distance.of("5um").in_pixels((0.5, 0.5))
    ('8px', '2.5um', (5.0, (0.5, 0.5)))
    """

    value: float
    in_um: bool = False

    @staticmethod
    def of(value: Distance | float | str, name: str = "expand") -> Distance:
        """From a number of pixels, or text with a unit. Raises `UsageError`, which calls the parameter ``name``."""
        if isinstance(value, Distance):
            return value
        match = _TEXT.fullmatch(str(value).strip())
        if isinstance(value, bool) or match is None or not math.isfinite(float(match[1])) or float(match[1]) > _LARGEST:
            expected = f"pixels or microns, 0 to {_LARGEST}, such as 8px or 5um"
            raise UsageError(f"invalid `{name}`", got=value, expected=expected)
        return Distance(float(match[1]), (match[2] or "px").lower()[0] != "p")

    def in_pixels(
        self, pixel_size_um: Sequence[float] | float | None, *, name: str = "expand", where: object = None
    ) -> tuple[float, tuple[float, float]]:
        """The length, and the size (y, x) of a pixel in its unit: both sides are 1 for a number of pixels.

        Raises `InputError` for microns without a pixel size; ``where`` is the image.
        """
        if not self.in_um:
            return self.value, (1.0, 1.0)
        if pixel_size_um is None:
            raise InputError(
                f"`{name}` in microns needs the pixel size of the image",
                where=where,
                got=f"`{name}={self}`, and a file that does not say how large its pixels are",
                remedy=f"give the microns per pixel as `pixel_size`, or `{name}` in pixels, such as 8px",
            )
        sizes = [pixel_size_um] if isinstance(pixel_size_um, int | float) else list(pixel_size_um)
        if len(sizes) not in (1, 2) or not all(math.isfinite(size) and size > 0 for size in sizes):
            expected = "microns per pixel, above 0: one number, or two (y, x)"
            raise UsageError("invalid `pixel_size`", got=", ".join(map(str, sizes)), expected=expected)
        return self.value, (float(sizes[0]), float(sizes[-1]))

    def __str__(self) -> str:
        return f"{self.value:g}{'um' if self.in_um else 'px'}"
