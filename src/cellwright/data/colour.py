"""Colour jitter as one linear map of the channels, so that each image is read and rounded once."""

from __future__ import annotations

import cv2
import numpy as np

from cellwright.config.sample_schema import AugmentConfig

# Luma and the two chroma axes of NTSC's YIQ: saturation scales the chroma plane and hue turns it.
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


def jitter_colour(image: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of ``image`` by random amounts.

    Args:
        image: (H, W, C) of any real dtype. Saturation and hue apply to C = 3 only, taken as RGB (BGR turns the hue the
            other way, which is as likely).
        config: the half-widths of the four uniform draws; all 0 returns ``image`` itself.
        rng: four numbers are drawn whatever ``config`` says, so that switching one off leaves the others as they were.

    Returns:
        A new array of the same shape and dtype; integers are rounded and clipped to their dtype's range. Contrast is
        scaled about the image's own mean.
    """
    draws = rng.uniform(-1, 1, size=4)
    brightness = 1 + config.brightness * draws[0]
    contrast = 1 + config.contrast * draws[1]
    if not (config.brightness or config.contrast or config.saturation or config.hue):
        return image
    matrix = np.eye(image.shape[2])
    if image.shape[2] == 3:
        matrix = _chroma_map(1 + config.saturation * draws[2], config.hue * draws[3])
    mean = matrix @ image.reshape(-1, image.shape[2]).mean(axis=0, dtype=np.float64)
    gain = brightness * contrast
    offset = brightness * (1 - contrast) * mean.mean()
    return _apply_linear(image, gain * matrix, offset)


def _chroma_map(saturation: float, turns: float) -> np.ndarray:
    """(3, 3) float64: scales chroma by ``saturation``, turns it by ``turns``, keeps luma."""
    cosine, sine = saturation * np.cos(2 * np.pi * turns), saturation * np.sin(2 * np.pi * turns)
    chroma = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    return _YIQ_TO_RGB @ chroma @ _RGB_TO_YIQ


def _apply_linear(image: np.ndarray, matrix: np.ndarray, offset: float) -> np.ndarray:
    """``matrix @ pixel + offset`` for every pixel; ``matrix`` (C, C) is diagonal unless C is 3."""
    values = image.astype(np.float32)
    if image.shape[2] == 3:
        # cv2.transform, not a matrix product: BLAS may split the work, and so the rounding, by thread count.
        changed = cv2.transform(values, np.column_stack([matrix, np.full(3, offset)]))
    else:
        changed = values * np.float32(matrix[0, 0]) + np.float32(offset)
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype)
        changed = np.clip(np.rint(changed), limits.min, limits.max)
    return changed.astype(image.dtype)
