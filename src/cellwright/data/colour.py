"""Colour of a training sample: what is drawn becomes a `Colour`, and an image is rounded once for all of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Luma and the two chroma axes of NTSC's YIQ: saturation scales the chroma plane and hue turns it.
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


@dataclass(frozen=True)
class Colour:
    """One change of colour, carried out in the order of the attributes; the defaults change nothing.

    Attributes:
        gamma: exponent over the image's own range, which stays.
        stain_factors: of haematoxylin, eosin and DAB; RGB only, as all that speaks of colours.
        stain_shifts: added to the three densities, natural log.
        brightness: factor.
        contrast: factor about the image's own mean.
        saturation: factor on the distance from grey; 0 is greyscale.
        hue_turns: colours are turned by it, 1 is a whole turn.
        invert: dark and bright change places in the image's own range.
        blur_px: standard deviation of a Gaussian, pixels.
        noise: standard deviation of Gaussian noise, as a share of the image's own range.
        noise_seed: of the noise.
    """

    gamma: float = 1.0
    stain_factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    stain_shifts: tuple[float, float, float] = (0.0, 0.0, 0.0)
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue_turns: float = 0.0
    invert: bool = False
    blur_px: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0

    @property
    def is_linear(self) -> bool:
        """Whether the linear map of the channels (brightness to invert) is more than the identity."""
        neutral = Colour()
        names = ("brightness", "contrast", "saturation", "hue_turns", "invert")
        return any(getattr(self, name) != getattr(neutral, name) for name in names)

    @property
    def stains(self) -> bool:
        """Whether amounts of stain change."""
        return self.stain_factors != (1.0, 1.0, 1.0) or self.stain_shifts != (0.0, 0.0, 0.0)


def change_colour(image: np.ndarray, colour: Colour, *, full_range: float | None = None) -> np.ndarray:
    """``image`` after ``colour``.

    Args:
        image: (H, W, C), H and W >= 1, of any real dtype. What speaks of colours applies to C = 3 only, taken as RGB.
        colour: what to do.
        full_range: the intensity of unstained glass; None: the largest value of an integer dtype, 1 for floats.

    Returns:
        A new array of the same shape and dtype, or ``image`` itself where nothing changes. Integers are rounded and
        clipped to their dtype's range, once at the end.
    """
    has_colour = image.shape[2] == 3
    if not (colour.gamma != 1 or (colour.stains and has_colour) or colour.is_linear or colour.blur_px or colour.noise):
        return image
    low, high = cv2.minMaxLoc(image.reshape(len(image), -1))[:2]
    values = _float32(image, colour.gamma, low, high)
    if colour.stains and has_colour:
        if full_range is None:
            full_range = float(np.iinfo(image.dtype).max) if np.issubdtype(image.dtype, np.integer) else 1.0
        values = change_stains(values, np.array(colour.stain_factors), np.array(colour.stain_shifts), full_range)
    if colour.is_linear:
        values = _linear(values, colour, low + high)
    if colour.blur_px:
        values = cv2.GaussianBlur(values, (0, 0), colour.blur_px).reshape(image.shape)
    if colour.noise and high > low:
        noise = np.random.default_rng(colour.noise_seed).standard_normal(image.shape, np.float32)
        values = values + noise * np.float32(colour.noise * (high - low))
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype)
        values = np.rint(values, out=values).clip(limits.min, limits.max, out=values)
    return values.astype(image.dtype, copy=False)


def _float32(image: np.ndarray, gamma: float, low: float, high: float) -> np.ndarray:
    """``image`` as a new float32 array, its range low..high bent by ``gamma``."""
    if gamma == 1 or not high > low:
        return image.astype(np.float32)
    if image.dtype in (np.uint8, np.uint16):
        # A table of the dtype's values: a power a value, not a pixel.
        shares = ((np.arange(int(high) + 1) - low) / (high - low)).clip(0)
        return ((high - low) * shares**gamma + low).astype(np.float32)[image]
    shares = (image.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return shares.clip(0, 1) ** np.float32(gamma) * np.float32(high - low) + np.float32(low)


def _linear(values: np.ndarray, colour: Colour, turning_point: float) -> np.ndarray:
    """Brightness, contrast, saturation, hue and inversion (about half of ``turning_point``) as one map."""
    gain = colour.brightness * colour.contrast
    sign = -1.0 if colour.invert else 1.0
    if values.shape[2] != 3:
        mean = float(values.mean(dtype=np.float64))
        offset = colour.brightness * (1 - colour.contrast) * mean
        return values * np.float32(sign * gain) + np.float32(sign * offset + turning_point * colour.invert)
    matrix = _chroma_map(colour.saturation, colour.hue_turns)
    mean = float((matrix @ cv2.mean(values)[:3]).mean())
    offset = sign * colour.brightness * (1 - colour.contrast) * mean + turning_point * colour.invert
    # cv2.transform, not a matrix product: BLAS may split the work, and so the rounding, by thread count.
    return cv2.transform(values, np.column_stack([sign * gain * matrix, np.full(3, offset)]))


def _chroma_map(saturation: float, turns: float) -> np.ndarray:
    """(3, 3) float64: scales chroma by ``saturation``, turns it by ``turns``, keeps luma."""
    cosine, sine = saturation * np.cos(2 * np.pi * turns), saturation * np.sin(2 * np.pi * turns)
    chroma = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    return _YIQ_TO_RGB @ chroma @ _RGB_TO_YIQ


# Optical density of red, green and blue a unit of haematoxylin, eosin and DAB: Ruifrok & Johnston's table 1.
STAIN_RGB = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])

# Black lets one part in 256 through, or its density would be infinite (Ruifrok & Johnston add 1 to 8-bit values).
_DARKEST = 1 / 256


def change_stains(rgb: np.ndarray, factors: np.ndarray, shifts: np.ndarray, full_range: float) -> np.ndarray:
    """(H, W, 3) float32 of an (H, W, 3) float32 RGB image whose stain amounts are changed.

    factors, shifts: (3,) haematoxylin, eosin, DAB: an amount a becomes ``factor a + shift``, in units of natural-log
    optical density. full_range: the intensity of unstained glass; what is brighter, or darker than 1/256 of it, is
    clipped first.
    """
    mixed = np.linalg.inv(STAIN_RGB) @ np.diag(factors) @ STAIN_RGB
    offset = shifts @ STAIN_RGB
    through = np.clip(rgb * np.float32(1 / full_range), np.float32(_DARKEST), np.float32(1))
    # cv2.transform multiplies column vectors; log and not -log: the sign of the shifts turns instead.
    changed = cv2.transform(cv2.log(through), np.column_stack([mixed.T, -offset]))
    return cv2.exp(changed) * np.float32(full_range)
