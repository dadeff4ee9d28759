"""Random geometry and colour of a training sample: image and label layers change together, in one warp.

Cost follows pixels and layers, not objects: 2,000 nuclei cost what 20 do. Everything is drawn from the ``rng`` that is
passed in, so a sample is a pure function of its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cellwright.config.sample_schema import AugmentConfig
from cellwright.data.colour import jitter_colour
from cellwright.data.labels import Labels, count_pixels, relabel


@dataclass(frozen=True)
class Geometry:
    """Cut a window from the source, resize it to ``out_hw``, mirror it, turn it: in this order, as one affine map.

    Attributes:
        window: y0, x0, y1, x1 in source pixels, half open, inside the image.
        out_hw: size of the resized window in pixels, before the turn.
        horizontal_flip: mirror left and right.
        vertical_flip: mirror top and bottom.
        quarter_turns: 0..3 turns of 90 degrees as `numpy.rot90` (counter-clockwise).
    """

    window: tuple[int, int, int, int]
    out_hw: tuple[int, int]
    horizontal_flip: bool = False
    vertical_flip: bool = False
    quarter_turns: int = 0

    @property
    def resizes(self) -> bool:
        """Whether pixels are interpolated; if not, every output pixel is one source pixel."""
        y0, x0, y1, x1 = self.window
        return self.out_hw != (y1 - y0, x1 - x0)

    def output_from_window(self) -> np.ndarray:
        """(3, 3) float64: window coordinates (x, y, 1) to output coordinates, both with pixel centres at integers."""
        y0, x0, y1, x1 = self.window
        height, width = self.out_hw
        scale_x, scale_y = width / (x1 - x0), height / (y1 - y0)
        steps = [np.diag([scale_x, scale_y, 1.0])]
        if self.horizontal_flip:
            steps.append(np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]))
        if self.vertical_flip:
            steps.append(np.array([[1.0, 0, 0], [0, -1, height], [0, 0, 1]]))
        for _ in range(self.quarter_turns):
            steps.append(np.array([[0.0, 1, 0], [-1, 0, width], [0, 0, 1]]))
            height, width = width, height
        to_corner, to_centre = np.eye(3), np.eye(3)
        to_corner[:2, 2], to_centre[:2, 2] = 0.5, -0.5
        whole = to_corner
        for step in steps:
            whole = step @ whole
        return to_centre @ whole


def augment(
    image: np.ndarray, labels: Labels, config: AugmentConfig, rng: np.random.Generator, base_scale: float = 1.0
) -> tuple[np.ndarray, Labels]:
    """One random variant of a sample.

    Args:
        image: (H, W, C), H and W >= 1, uint8, int16, uint16, float32 or float64.
        labels: its objects; ``labels.layers`` is (L, H, W). N = 0 is fine.
        config: what may be drawn.
        rng: the source of every draw.
        base_scale: fixed factor from the source to the network's input, times which the random scale is taken.

    Returns:
        The image (h, w, C) in its own dtype and its objects. h and w are at most ``config.crop_px``; an image smaller
        than the crop stays smaller. Objects that keep less than ``config.min_visible`` of their area, or no pixel, are
        gone from layers and lists; ignored regions stay while a pixel of them does.
    """
    geometry = draw_geometry((image.shape[0], image.shape[1]), config, rng, base_scale)
    labels = warp_labels(labels, geometry, config.min_visible)
    return jitter_colour(warp_image(image, geometry), config, rng), labels


def draw_geometry(
    image_hw: tuple[int, int], config: AugmentConfig, rng: np.random.Generator, base_scale: float = 1.0
) -> Geometry:
    """Draw scale, window, mirroring and turn for an image of ``image_hw`` pixels.

    Seven numbers are drawn whatever ``config`` says, so that switching one change off leaves the others as they were.
    """
    draws = rng.random(6)
    low, high = np.log(config.scale_min), np.log(config.scale_max)
    scale = base_scale * float(np.exp(low + draws[0] * (high - low)))
    starts, stops, sizes = [], [], []
    for side, draw in zip(image_hw, draws[1:3], strict=True):
        cut = side if config.crop_px is None else min(side, max(1, round(config.crop_px / scale)))
        # A window as wide as asked gives exactly the crop's size, not one that is rounded twice.
        full = config.crop_px is not None and cut == round(config.crop_px / scale)
        starts.append(min(int(draw * (side - cut + 1)), side - cut))
        stops.append(starts[-1] + cut)
        sizes.append(config.crop_px if full and config.crop_px is not None else max(1, round(cut * scale)))
    return Geometry(
        window=(starts[0], starts[1], stops[0], stops[1]),
        out_hw=(sizes[0], sizes[1]),
        horizontal_flip=bool(draws[3] < config.horizontal_flip),
        vertical_flip=bool(draws[4] < config.vertical_flip),
        quarter_turns=int(draws[5] * 4) if config.quarter_turns else 0,
    )


def warp_image(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The (h, w, C) output of ``geometry`` for an (H, W, C) image: linear where it resizes, else the very pixels."""
    return _warp(image, geometry, cv2.INTER_LINEAR)


def warp_labels(labels: Labels, geometry: Geometry, min_visible: float) -> Labels:
    """The objects of ``labels`` after ``geometry``: nearest pixels, boxes tight anew, numbers 1..n in the old order.

    The visible share is counted in source pixels inside the window, so it does not depend on the scale.
    """
    y0, x0, y1, x1 = geometry.window
    visible = count_pixels(labels.layers[:, y0:y1, x0:x1], len(labels))
    keep = (visible >= min_visible * labels.areas) | labels.ignore
    channels_last = np.moveaxis(labels.layers, 0, 2)
    warped = np.moveaxis(_warp(channels_last, geometry, cv2.INTER_NEAREST), 2, 0)
    return relabel(labels, np.ascontiguousarray(warped), keep)


def _warp(pixels: np.ndarray, geometry: Geometry, interpolation: int) -> np.ndarray:
    y0, x0, y1, x1 = geometry.window
    window = pixels[y0:y1, x0:x1]
    if not geometry.resizes:
        if geometry.horizontal_flip:
            window = window[:, ::-1]
        if geometry.vertical_flip:
            window = window[::-1]
        # A copy even where nothing changes: the caller's arrays are a cache that must stay as it is.
        return np.rot90(window, geometry.quarter_turns).copy()
    height, width = geometry.out_hw[:: -1 if geometry.quarter_turns % 2 else 1]
    window_from_output = np.linalg.inv(geometry.output_from_window())[:2]
    # Beyond the window its edge is repeated: half a pixel of it is read when an image is enlarged.
    warped = cv2.warpAffine(
        np.ascontiguousarray(window),
        window_from_output,
        (width, height),
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return warped.reshape(height, width, pixels.shape[2])
