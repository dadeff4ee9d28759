"""Bilinear resizing of images, whole or by windows: a window equals the same window of the whole image, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cellwright.core.geometry import Window

# Of the weights with which Pillow resizes uint8.
_BITS = 22
Read = Callable[[Window], np.ndarray]
"""Pixels (C, H, W) float32 of a window of the source."""


def resized_window(
    read: Read, source_hw: tuple[int, int], resized_hw: tuple[int, int], window: Window, *, antialias: bool = True
) -> np.ndarray:
    """A window (C, h, w) float32 of the source resized to ``resized_hw``, which contains it and is not empty.

    Bilinear, antialiased where the image becomes smaller: the filter of Pillow; without ``antialias``, that of PyTorch
    and OpenCV. Only the source pixels that the filter needs are read.

    >>> pixels = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    >>> resized_window(lambda window: window.of(pixels), (3, 4), (6, 8), Window(1, 2, 2, 5)).tolist()
    [[[1.75, 2.25, 2.75]]]
    """
    if source_hw == resized_hw:
        return read(window)
    from cellwright.data._resize_kernels import weigh_rows

    (tops, rows, top, bottom), (lefts, columns, left, right) = (
        _weights(source_hw[axis], resized_hw[axis], window[axis], window[axis + 2], antialias) for axis in (0, 1)
    )
    needed = Window(top, left, bottom, right)
    region = read(needed)
    n_channels, height, width = region.shape
    if (height, width) != needed.hw:  # the kernel would read beyond it
        raise ValueError(f"got {height} x {width} pixels of {needed}")
    # Columns first, as in Pillow, where they are rows of the transposed image.
    turned = np.ascontiguousarray(region.transpose(2, 0, 1), np.float32).reshape(width, n_channels * height)
    narrow = weigh_rows(turned, lefts - left, columns).reshape(-1, n_channels, height)
    turned = np.ascontiguousarray(narrow.transpose(2, 1, 0)).reshape(height, -1)
    resized = weigh_rows(turned, tops - top, rows).reshape(len(rows), n_channels, -1)
    return np.ascontiguousarray(resized.transpose(1, 0, 2))


def resized(chw: np.ndarray, new_hw: tuple[int, int], *, antialias: bool = True) -> np.ndarray:
    """(C, H, W) float32 to (C, h, w): the window that is the whole image, see `resized_window`."""
    whole = Window(0, 0, *new_hw)
    return resized_window(
        lambda window: window.of(chw), (chw.shape[1], chw.shape[2]), new_hw, whole, antialias=antialias
    )


def pillow_window(
    read: Callable[[Window], np.ndarray], source_hw: tuple[int, int], resized_hw: tuple[int, int], window: Window
) -> np.ndarray:
    """A window (h, w, C) of the source resized by Pillow's antialiased bilinear filter, to the bit.

    read: pixels (H, W, C) of a window of the source, uint8 or other numbers. The result is uint8, or else float32.
    """
    (tops, rows, top, bottom), (lefts, columns, left, right) = (
        _weights(source_hw[axis], resized_hw[axis], window[axis], window[axis + 2], True) for axis in (0, 1)
    )
    region = read(Window(top, left, bottom, right))
    narrow = _pillow_pass(region, lefts - left, columns, axis=1)
    return _pillow_pass(narrow, tops - top, rows, axis=0)


def _pillow_pass(pixels: np.ndarray, first: np.ndarray, weights: np.ndarray, *, axis: int) -> np.ndarray:
    """Along one axis: the weighted sum from each first pixel on; of uint8 as Pillow does it in whole numbers."""
    is_uint8, shape = pixels.dtype == np.uint8, (-1, 1, 1) if axis == 0 else (1, -1, 1)
    if is_uint8:
        weights = (weights * (1 << _BITS) + 0.5).astype(np.int32)
    total: np.ndarray | None = None
    for k in range(weights.shape[1]):
        taken = pixels.take(np.minimum(first + k, pixels.shape[axis] - 1), axis=axis)
        part = taken.astype(np.int32 if is_uint8 else np.float64) * weights[:, k].reshape(shape)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None  # every pixel has at least one weight
    return (
        ((total + (1 << (_BITS - 1))) >> _BITS).clip(0, 255).astype(np.uint8) if is_uint8 else total.astype(np.float32)
    )


def _weights(whole: int, resized: int, low: int, high: int, antialias: bool) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Along one axis, for the pixels [low, high) of the resized image: first source pixel and weights of each (n, K).

    And the first and the last source pixel of all, half open.
    """
    ratio = whole / resized
    reach = max(ratio, 1.0) if antialias else 1.0
    centres = (np.arange(low, high) + 0.5) * ratio
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.int64), whole)
    taps = first[:, None] + np.arange(int((last - first).max()))
    weights = np.maximum(1 - np.abs((taps - centres[:, None] + 0.5) * (1 / reach)), 0) * (taps < last[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    return first, weights, int(first.min()), int(last.max())
