"""Geometric changes: how the pixels of an image and of its label layers move.

A `Geometry` combines crop, resize, mirroring, 90-degree rotations, an affine map and an elastic deformation into one
map. Without an affine or elastic part, rows and columns stay rows and columns, and pixels are cropped, resized,
mirrored and rotated. Otherwise everything is a single remap, which reads only the visible part of the source.

The elastic deformation is free-form deformation (Rueckert et al. 1999): the points of a coarse grid are displaced
independently, and cubic B-splines interpolate between them. A spline of values within +-a has a slope of at most
2 a / spacing. Below a quarter of the spacing the map therefore keeps its orientation everywhere: no object is folded,
torn or duplicated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from cellwright.config.conventions import ResizeRule
from cellwright.data.labels import Labels, count_pixels, relabel
from cellwright.data.network_input import resize_antialiased

# The spline is evaluated at every fourth pixel and interpolated linearly in between: visually equivalent, with the same
# bound on the slope, at a sixteenth of the cost.
_STEP_PX = 4


@dataclass(frozen=True)
class Elastic:
    """An elastic deformation.

    Attributes:
        amplitude_px: the largest displacement along x or y, in output pixels; below a quarter of ``smoothness_px``.
        smoothness_px: spacing of the grid points, in output pixels.
        seed: of the displacements of the grid points.
    """

    amplitude_px: float
    smoothness_px: float
    seed: int

    def displacement(self, hw: tuple[int, int], linear: np.ndarray) -> np.ndarray:
        """``linear`` (2, 2) times the displacement (x, y) of each pixel of an (h, w) image: (2, h, w) float32."""
        coarse_hw = tuple(-(-side // _STEP_PX) for side in hw)
        (ys, y_weights), (xs, x_weights) = (_spline(n, self.smoothness_px) for n in coarse_hw)
        moves = np.random.default_rng(self.seed).uniform(-1, 1, (ys[-1] + 4, xs[-1] + 4, 2))
        moves = np.moveaxis(moves @ (self.amplitude_px * linear.T), 2, 0)
        rows = np.sum([y_weights[k][:, None] * moves[:, ys + k] for k in range(4)], axis=0)
        planes = np.sum([x_weights[k] * rows[:, :, xs + k] for k in range(4)], axis=0).astype(np.float32)
        size_wh = coarse_hw[1] * _STEP_PX, coarse_hw[0] * _STEP_PX
        full = [cv2.resize(plane, size_wh, interpolation=cv2.INTER_LINEAR) for plane in planes]
        return np.stack([plane[: hw[0], : hw[1]] for plane in full])


def _spline(n_samples: int, spacing_px: float) -> tuple[np.ndarray, np.ndarray]:
    """The first of the four grid points (n,) around each coarse sample, and their cubic B-spline weights (4, n)."""
    positions = ((np.arange(n_samples) + 0.5) * _STEP_PX - 0.5) / spacing_px
    cells = np.floor(positions).astype(np.int64)
    t = positions - cells
    return cells, np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6


@dataclass(frozen=True)
class Affine:
    """Rotation, shear and shift about the centre of the image, after mirroring and 90-degree rotations.

    rotation_deg: counter-clockwise as displayed. shear_deg: x by y, then y by x. shift_px: to the right, down.
    """

    rotation_deg: float = 0.0
    shear_deg: tuple[float, float] = (0.0, 0.0)
    shift_px: tuple[float, float] = (0.0, 0.0)

    def matrix(self, hw: tuple[int, int]) -> np.ndarray:
        """(3, 3) float64 matrix for (x, y, 1) in an (h, w) image whose corners are at 0 and w or h."""
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
    """Crop a window of the source, then resize, mirror, rotate, deform and pad it: in this order, as one map.

    Attributes:
        window: y0, x0, y1, x1 in source pixels, half open, inside the image.
        out_hw: size of the resized window in pixels, before rotation.
        horizontal_flip: swap left and right.
        vertical_flip: swap top and bottom.
        quarter_turns: 0..3 rotations by 90 degrees counter-clockwise, as `numpy.rot90`.
        affine: affine map about the centre, or None. It shows source pixels outside the window where there are any.
        elastic: elastic deformation after ``affine``, or None.
        canvas_hw: size of the output, at least that of the rotated window, which is at the top left; None: that size.
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
        """Whether the window is resized."""
        y0, x0, y1, x1 = self.window
        return self.out_hw != (y1 - y0, x1 - x0)

    @property
    def deforms(self) -> bool:
        """Whether rows and columns of the output are not rows and columns of the source."""
        return self.affine is not None or self.elastic is not None

    @property
    def rotated_hw(self) -> tuple[int, int]:
        """Size of the window after resizing and rotation."""
        height, width = self.out_hw
        return (width, height) if self.quarter_turns % 2 else (height, width)

    @property
    def output_hw(self) -> tuple[int, int]:
        """Size of the output."""
        return self.canvas_hw or self.rotated_hw

    def output_from_source(self) -> np.ndarray:
        """(3, 3) float64 matrix from source to output (x, y, 1), pixel centres at integers, without ``elastic``."""
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
        """The inverse of `output_from_source` without its last row, (2, 3) float64."""
        return np.linalg.inv(self.output_from_source())[:2]

    @cached_property
    def window_xy(self) -> np.ndarray:
        """Source position (x, y) of each output pixel, relative to the first pixel of the window: (2, h, w) float32.

        Relative to the window, because float32 coordinates of a large image would be less accurate.
        """
        height, width = self.output_hw
        linear, start = self.source_from_output[:, :2], self.source_from_output[:, 2] - self.window[1::-1]
        along_x = np.multiply.outer(linear[:, 0], np.arange(width)) + start[:, None]
        along_y = np.multiply.outer(linear[:, 1], np.arange(height))
        xy = along_x.astype(np.float32)[:, None, :] + along_y.astype(np.float32)[:, :, None]
        if self.elastic is not None:
            xy += self.elastic.displacement((height, width), linear)
        return xy


# OpenCV supports constant borders for up to four channels.
_MAX_CHANNELS = 4


def warp_image(
    image: np.ndarray,
    geometry: Geometry,
    *,
    rule: ResizeRule = "torchvision",
    fill: tuple[float, ...] | None = None,
) -> np.ndarray:
    """Apply a `Geometry` to an image (H, W, C). Returns a new array (h, w, C) of the same dtype.

    Args:
        image: uint8, int16, uint16, float32 or float64.
        geometry: the map. Without resizing and deformation, pixel values are copied unchanged.
        rule: pixels are interpolated linearly; with "detectron2" an image that shrinks is first averaged, as its
            resizing at prediction does.
        fill: (C,) values outside the image; None: zeros.
    """
    outside = (0.0,) * image.shape[2] if fill is None else fill
    if geometry.deforms:
        return _remap_image(image, geometry, outside, shrink_first=rule == "detectron2")
    y0, x0, y1, x1 = geometry.window
    window = image[y0:y1, x0:x1]
    if geometry.resizes:
        window = _resize(window, geometry.out_hw, rule)
    return _padded(_mirrored(window, geometry), geometry.output_hw, outside)


def warp_labels(labels: Labels, geometry: Geometry, min_visible: float) -> Labels:
    """Apply a `Geometry` to label layers, by nearest-neighbour sampling; boxes and areas are computed again.

    Objects of which less than ``min_visible`` of the area remains are dropped. This share is counted in source pixels
    before the elastic deformation, so it does not depend on the scale. Ignored regions are kept if a pixel remains.
    """
    visible = count_pixels(_visible_part(labels.layers, geometry), len(labels))
    keep = (visible >= min_visible * labels.areas) | labels.ignore
    y0, x0, y1, x1 = geometry.window
    if geometry.deforms:
        layers = np.stack([_remap_layer(layer, geometry) for layer in labels.layers])
        return relabel(labels, layers, keep)
    window = labels.layers[:, y0:y1, x0:x1]
    if geometry.resizes:
        rows, columns = (
            ((2 * np.arange(new) + 1) * old) // (2 * new)
            for new, old in zip(geometry.out_hw, window.shape[1:], strict=True)
        )
        window = window.take(rows, axis=1).take(columns, axis=2)
    layers = _padded(_mirrored(np.moveaxis(window, 0, 2), geometry), geometry.output_hw, (0,) * len(window))
    return relabel(labels, np.ascontiguousarray(np.moveaxis(layers, 2, 0)), keep)


def _mirrored(window: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A view of (h, w, C) pixels, mirrored and rotated."""
    window = window[:, ::-1] if geometry.horizontal_flip else window
    window = window[::-1] if geometry.vertical_flip else window
    return np.rot90(window, geometry.quarter_turns)


def _padded(pixels: np.ndarray, output_hw: tuple[int, int], fill: tuple[float, ...]) -> np.ndarray:
    """A new array of size ``output_hw`` with ``pixels`` at its top left."""
    height, width = pixels.shape[:2]
    if (height, width) == output_hw:
        # Copy even if nothing changes: the arrays of the caller are a cache, which must not be modified.
        return pixels.copy()
    canvas = np.empty((*output_hw, pixels.shape[2]), pixels.dtype)
    canvas[:] = _in_dtype(np.array(fill), pixels.dtype)
    canvas[:height, :width] = pixels
    return canvas


def _resize(window: np.ndarray, hw: tuple[int, int], rule: ResizeRule) -> np.ndarray:
    """(h, w, C) pixels resized like the network input at prediction; the dtype is kept."""
    if rule == "detectron2":
        return _in_dtype(resize_antialiased(window, hw), window.dtype)
    planes = [np.ascontiguousarray(part) for part in _by_channels(window)]
    return _joined([cv2.resize(part, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR) for part in planes], hw)


def _remap_image(image: np.ndarray, geometry: Geometry, fill: tuple[float, ...], *, shrink_first: bool) -> np.ndarray:
    y0, x0, y1, x1 = _read_window(geometry, image.shape[:2])
    source = image[y0:y1, x0:x1]
    (x, y), (top, left, _, _) = geometry.window_xy, geometry.window
    shrink = 1 / np.sqrt(abs(np.linalg.det(geometry.source_from_output[:, :2])))
    factor_x = factor_y = 1.0
    if shrink_first and shrink < 1:
        small_hw = max(1, round((y1 - y0) * shrink)), max(1, round((x1 - x0) * shrink))
        factor_y, factor_x = small_hw[0] / (y1 - y0), small_hw[1] / (x1 - x0)
        source = _in_dtype(resize_antialiased(source, small_hw), image.dtype)
    x = (x + np.float32(left - x0 + 0.5)) * np.float32(factor_x) - np.float32(0.5)
    y = (y + np.float32(top - y0 + 0.5)) * np.float32(factor_y) - np.float32(0.5)
    parts = []
    for k, part in enumerate(_by_channels(source)):
        border = tuple(fill[k * _MAX_CHANNELS : (k + 1) * _MAX_CHANNELS])
        parts.append(cv2.remap(np.ascontiguousarray(part), x, y, cv2.INTER_LINEAR, None, cv2.BORDER_CONSTANT, border))
    return _joined(parts, geometry.output_hw)


def _remap_layer(layer: np.ndarray, geometry: Geometry) -> np.ndarray:
    y0, x0, y1, x1 = _read_window(geometry, layer.shape)
    (x, y), (top, left, _, _) = geometry.window_xy, geometry.window
    x, y = x + np.float32(left - x0), y + np.float32(top - y0)
    source = np.ascontiguousarray(layer[y0:y1, x0:x1])
    return cv2.remap(source, x, y, cv2.INTER_NEAREST, None, cv2.BORDER_CONSTANT, (0,))


def _read_window(geometry: Geometry, image_hw: tuple[int, ...]) -> tuple[int, int, int, int]:
    """y0, x0, y1, x1 of the visible part of the source plus a margin of one pixel; contains at least one pixel."""
    bounds = []
    for values, start, side in zip(geometry.window_xy[::-1], geometry.window[:2], image_hw, strict=True):
        low = min(max(start + int(np.floor(values.min())) - 1, 0), side - 1)
        bounds.append((low, max(min(start + int(np.ceil(values.max())) + 2, side), low + 1)))
    return bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1]


def _visible_part(layers: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The part of ``layers`` whose pixel centres are inside the output, without the elastic part: (L, h, w)."""
    if geometry.affine is None:
        y0, x0, y1, x1 = geometry.window
        return layers[:, y0:y1, x0:x1]
    y0, x0, y1, x1 = _read_window(geometry, layers.shape[1:])
    matrix = geometry.output_from_source()
    ys, xs = np.arange(y0, y1), np.arange(x0, x1)
    first, last = np.full(len(ys), -np.inf), np.full(len(ys), np.inf)
    # Each row of the source is visible in one interval: where both output coordinates are between -.5 and side - .5.
    for (per_x, per_y, start), side in zip(matrix[:2], geometry.output_hw[::-1], strict=True):
        offset = per_y * ys + start
        if abs(per_x) * max(layers.shape) < 1e-6:  # the row is parallel to the edge: all inside or all outside
            inside = (offset >= -0.5) & (offset < side - 0.5)
            ends = np.where(inside, [[-np.inf], [np.inf]], [[np.inf], [-np.inf]])
        else:
            ends = np.sort(np.stack([(-0.5 - offset) / per_x, (side - 0.5 - offset) / per_x]), axis=0)
        first, last = np.maximum(first, ends[0]), np.minimum(last, ends[1])
    shown = (xs >= first[:, None]) & (xs < last[:, None])
    return layers[:, y0:y1, x0:x1] * shown


def _by_channels(pixels: np.ndarray) -> list[np.ndarray]:
    return [pixels[:, :, k : k + _MAX_CHANNELS] for k in range(0, pixels.shape[2], _MAX_CHANNELS)]


def _joined(parts: list[np.ndarray], hw: tuple[int, int]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0].reshape(*hw, -1)
    return np.concatenate([part.reshape(*hw, -1) for part in parts], axis=2)


def _in_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``values`` converted to ``dtype``; integers are rounded and clipped."""
    if values.dtype == dtype or not np.issubdtype(dtype, np.integer):
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
