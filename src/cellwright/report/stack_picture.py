"""Pictures of stacks whose objects were joined: an object has the same colour in all planes and time points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellwright.report.draw import contact_sheet

# Steps of the hue from one number to the next: consecutive numbers have colours that are far apart.
_GOLDEN = (5**0.5 - 1) / 2


def draw_stack(planes: Sequence[tuple[str, np.ndarray]], title: str) -> np.ndarray:
    """Label images side by side, uint8 RGB: each number in a colour of its own, background black.

    planes: (caption, labels (H, W)).
    """
    return contact_sheet([(caption, number_colours(labels)) for caption, labels in planes], title=title)


def number_colours(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W) as colours, uint8 RGB (H, W, 3); 0 is black. The colour of a number is always the same.

    >>> number_colours(np.array([[0, 7], [7, 8]])).reshape(4, 3)[[0, 1]].tolist()
    [[0, 0, 0], [121, 255, 115]]
    """
    values, index = np.unique(labels, return_inverse=True)
    hue, level = 6 * (values * _GOLDEN % 1), np.where(values % 2 == 0, 0.2, 0.45)
    channels = [np.clip(np.abs((hue + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    colours = np.stack([level + (1 - level) * channel for channel in channels], axis=1)
    colours[values == 0] = 0
    return np.rint(255 * colours).astype(np.uint8)[index.reshape(labels.shape)]
