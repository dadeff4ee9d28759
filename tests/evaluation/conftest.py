"""Fixtures for the tests of the evaluation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from drawn_pairs import Draw, disc, draw_pair, instances_of

from cellwright.core.instances import Instances


@pytest.fixture
def draw() -> Draw:
    """`draw_pair`."""
    return draw_pair


@pytest.fixture
def discs() -> Callable[..., Instances]:
    """Instances from ``(centre_yx, radius)`` on a 64 x 64 image."""

    def build(*shapes: tuple[tuple[float, float], float], **fields: object) -> Instances:
        return instances_of([disc((64, 64), centre, radius) for centre, radius in shapes], **fields)

    return build


@pytest.fixture
def boxes() -> Callable[..., Instances]:
    """Instances from rectangles ``(y0, x0, y1, x1)``, half open, on a 64 x 64 image."""

    def build(*shapes: tuple[int, int, int, int], **fields: object) -> Instances:
        masks = []
        for y0, x0, y1, x1 in shapes:
            mask = np.zeros((64, 64), bool)
            mask[y0:y1, x0:x1] = True
            masks.append(mask)
        return instances_of(masks, **fields)

    return build
