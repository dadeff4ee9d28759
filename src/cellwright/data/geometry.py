"""Where each pixel of a sample comes from: a `Geometry` is cut, resize, mirror, turn, affine and elastic map in one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cellwright.data.elastic import Elastic


@dataclass(frozen=True)
class Affine:
    """Turn, slant and shift about the centre of the image as it is after mirroring and quarter turns.

    rotation_deg: counter-clockwise as seen. shear_deg: x by y, then y by x. shift_px: right, down.
    """

    rotation_deg: float = 0.0
    shear_deg: tuple[float, float] = (0.0, 0.0)
    shift_px: tuple[float, float] = (0.0, 0.0)

    def matrix(self, hw: tuple[int, int]) -> np.ndarray:
        """(3, 3) float64 on (x, y, 1) of an (h, w) image, corners at 0 and w or h."""
        cosine, sine = np.cos(np.radians(self.rotation_deg)), np.sin(np.radians(self.rotation_deg))
        slant_x, slant_y = np.tan(np.radians(self.shear_deg))
        turn = np.array([[cosine, sine], [-sine, cosine]])
        linear = turn @ np.array([[1, 0], [slant_y, 1]]) @ np.array([[1, slant_x], [0, 1]])
        centre = np.array([hw[1] / 2, hw[0] / 2])
        whole = np.eye(3)
        whole[:2, :2], whole[:2, 2] = linear, centre + self.shift_px - linear @ centre
        return whole


@dataclass(frozen=True)
class Geometry:
    """Cut a window from the source, resize, mirror, turn, bend and pad it: in this order, as one map.

    Attributes:
        window: y0, x0, y1, x1 in source pixels, half open, inside the image.
        out_hw: size of the resized window in pixels, before the turn.
        horizontal_flip: mirror left and right.
        vertical_flip: mirror top and bottom.
        quarter_turns: 0..3 turns of 90 degrees as `numpy.rot90` (counter-clockwise).
        affine: about the centre; what it brings in is source where there is some beyond the window. None: nothing.
        elastic: after ``affine``. None: nothing.
        canvas_hw: size of the output, not below that of the turned window, which lies at its top left; None: its size.
    """

    window: tuple[int, int, int, int]
    out_hw: tuple[int, int]
    horizontal_flip: bool = False
    vertical_flip: bool = False
    quarter_turns: int = 0
    affine: Affine | None = None
    elastic: Elastic | None = None
    canvas_hw: tuple[int, int] | None = None

    @property
    def resizes(self) -> bool:
        """Whether the window changes its size; if not and nothing bends, every output pixel is one source pixel."""
        y0, x0, y1, x1 = self.window
        return self.out_hw != (y1 - y0, x1 - x0)

    @property
    def bends(self) -> bool:
        """Whether rows and columns of the output are no rows and columns of the source."""
        return self.affine is not None or self.elastic is not None

    @property
    def turned_hw(self) -> tuple[int, int]:
        """Size of the window after resizing and turning."""
        height, width = self.out_hw
        return (width, height) if self.quarter_turns % 2 else (height, width)

    @property
    def output_hw(self) -> tuple[int, int]:
        """Size of the sample."""
        return self.canvas_hw or self.turned_hw

    def output_from_source(self) -> np.ndarray:
        """(3, 3) float64: source to output (x, y, 1), both with pixel centres at integers, without the elastic part."""
        y0, x0, y1, x1 = self.window
        height, width = self.out_hw
        steps = [np.array([[1.0, 0, 0.5 - x0], [0, 1, 0.5 - y0], [0, 0, 1]])]
        steps.append(np.diag([width / (x1 - x0), height / (y1 - y0), 1.0]))
        if self.horizontal_flip:
            steps.append(np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]))
        if self.vertical_flip:
            steps.append(np.array([[1.0, 0, 0], [0, -1, height], [0, 0, 1]]))
        for _ in range(self.quarter_turns):
            steps.append(np.array([[0.0, 1, 0], [-1, 0, width], [0, 0, 1]]))
            height, width = width, height
        if self.affine is not None:
            steps.append(self.affine.matrix((height, width)))
        steps.append(np.array([[1.0, 0, -0.5], [0, 1, -0.5], [0, 0, 1]]))
        whole = np.eye(3)
        for step in steps:
            whole = step @ whole
        return whole

    @cached_property
    def source_from_output(self) -> np.ndarray:
        """(2, 3) float64: the inverse of `output_from_source`, without its last row."""
        return np.linalg.inv(self.output_from_source())[:2]

    @cached_property
    def window_xy(self) -> np.ndarray:
        """(2, h, w) float32: where each output pixel is read, x and y in source pixels from the window's first pixel.

        From there, not from the image's corner: float32 is exact to a hundredth of a pixel in windows of any size.
        """
        height, width = self.output_hw
        linear, start = self.source_from_output[:, :2], self.source_from_output[:, 2] - self.window[1::-1]
        along_x = np.multiply.outer(linear[:, 0], np.arange(width)) + start[:, None]
        along_y = np.multiply.outer(linear[:, 1], np.arange(height))
        xy = along_x.astype(np.float32)[:, None, :] + along_y.astype(np.float32)[:, :, None]
        if self.elastic is not None:
            xy += self.elastic.displacement((height, width), linear)
        return xy
