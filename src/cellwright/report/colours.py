"""Colours and line styles: the palette of Okabe and Ito (jfly.uni-koeln.de/color, 2008), safe for colour blindness.

In greyscale print classes differ by line style, and every picture has a legend.
"""

from __future__ import annotations

from dataclasses import dataclass

RGB = tuple[int, int, int]

BLACK: RGB = (0, 0, 0)
WHITE: RGB = (255, 255, 255)
GREY: RGB = (160, 160, 160)
ORANGE: RGB = (230, 159, 0)
SKY_BLUE: RGB = (86, 180, 233)
GREEN: RGB = (0, 158, 115)
YELLOW: RGB = (240, 228, 66)
BLUE: RGB = (0, 114, 178)
VERMILLION: RGB = (213, 94, 0)
PURPLE: RGB = (204, 121, 167)

# Bright colours first: they are visible on tissue and on black.
CLASS_COLOURS: tuple[RGB, ...] = (YELLOW, SKY_BLUE, VERMILLION, GREEN, ORANGE, PURPLE, BLUE)

# Numbers of pixels drawn and skipped along an outline, alternating; an empty tuple is a solid line.
SOLID: tuple[int, ...] = ()
DASHED: tuple[int, ...] = (6, 4)
DOTTED: tuple[int, ...] = (3, 2)
DASH_DOT: tuple[int, ...] = (7, 3, 2, 3)
PATTERNS: tuple[tuple[int, ...], ...] = (SOLID, DASHED, DOTTED, DASH_DOT)


@dataclass(frozen=True)
class LineStyle:
    """How one kind of object is outlined. name: for the legend."""

    name: str
    colour: RGB
    pattern: tuple[int, ...] = SOLID


def class_styles(class_names: tuple[str, ...]) -> tuple[LineStyle, ...]:
    """A style for each class: 7 colours and 4 patterns are cycled together, so 28 classes look different."""
    return tuple(
        LineStyle(name, CLASS_COLOURS[k % len(CLASS_COLOURS)], PATTERNS[k % len(PATTERNS)])
        for k, name in enumerate(class_names)
    )
