"""Changes of intensity, colour and stain, blur and noise. Integers are rounded once, after all changes.

Stains are changed by the colour deconvolution of Ruifrok & Johnston (2001): light that passes a stained section is
attenuated exponentially with the amount of stain, so -ln(intensity) is a sum of stains, each with its own colour.
Varying the amounts (HED jitter, Tellez et al. 2018) simulates another staining batch or laboratory.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Luma and the two chroma axes of YIQ (NTSC): saturation scales the chroma plane, and hue rotates it.
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


@dataclass(frozen=True)
class Colour:
    """A change of intensity and colour, applied in the order of the attributes. The defaults change nothing.

    Stains, saturation and hue apply to images with three channels only.

    Attributes:
        gamma: exponent, applied within the range of the image, which is kept.
        stain_factors: factors on the amounts of haematoxylin, eosin and DAB.
        stain_shifts: added to the three amounts, in natural-log optical density.
        brightness: factor.
        contrast: factor on the difference from the mean of the image.
        saturation: factor on the distance from grey; 0 gives greyscale.
        hue_turns: rotation of the hue, where 1 is a full turn.
        invert: swap dark and bright within the range of the image.
        blur_px: standard deviation of a Gaussian, in pixels.
        noise: standard deviation of Gaussian noise, as a share of the range of the image.
        noise_seed: seed of the noise.
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
        """Whether the linear part, brightness to invert, changes anything."""
        neutral = Colour()
        names = ("brightness", "contrast", "saturation", "hue_turns", "invert")
        return any(getattr(self, name) != getattr(neutral, name) for name in names)

    @property
    def stains(self) -> bool:
        """Whether the amounts of stain change."""
        return self.stain_factors != (1.0, 1.0, 1.0) or self.stain_shifts != (0.0, 0.0, 0.0)


def change_colour(
    image: np.ndarray,
    colour: Colour,
    *,
    full_range: float | None = None,
    value_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Apply a `Colour` to an image.

    Args:
        image: (H, W, C), H and W >= 1, of any real dtype; three channels are taken as RGB.
        colour: the change.
        full_range: the intensity of unstained glass; None: the maximum of an integer dtype, 1 for floats.
        value_range: lowest and highest value of the whole image, of which ``image`` is a part; None: of ``image``.

    Returns:
        A new array of the same shape and dtype, or ``image`` itself if nothing changes. Integers are rounded and
        clipped to the range of their dtype at the end.
    """
    has_colour = image.shape[2] == 3
    if not (colour.gamma != 1 or (colour.stains and has_colour) or colour.is_linear or colour.blur_px or colour.noise):
        return image
    low, high = value_range or cv2.minMaxLoc(image.reshape(len(image), -1))[:2]
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
    """``image`` as a new float32 array, with ``gamma`` applied within the range low..high."""
    if gamma == 1 or not high > low:
        return image.astype(np.float32)
    if image.dtype in (np.uint8, np.uint16):
        # A lookup table: one power per value instead of one per pixel.
        shares = ((np.arange(int(high) + 1) - low) / (high - low)).clip(0)
        return ((high - low) * shares**gamma + low).astype(np.float32)[image]
    shares = (image.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return shares.clip(0, 1) ** np.float32(gamma) * np.float32(high - low) + np.float32(low)


def _linear(values: np.ndarray, colour: Colour, turning_point: float) -> np.ndarray:
    """Brightness, contrast, saturation, hue and inversion (about half of ``turning_point``) as one linear map."""
    gain = colour.brightness * colour.contrast
    sign = -1.0 if colour.invert else 1.0
    if values.shape[2] != 3:
        mean = float(values.mean(dtype=np.float64))
        offset = colour.brightness * (1 - colour.contrast) * mean
        return values * np.float32(sign * gain) + np.float32(sign * offset + turning_point * colour.invert)
    matrix = _chroma_map(colour.saturation, colour.hue_turns)
    mean = float((matrix @ cv2.mean(values)[:3]).mean())
    offset = sign * colour.brightness * (1 - colour.contrast) * mean + turning_point * colour.invert
    # Not a matrix product: the rounding of BLAS may depend on the number of threads.
    return cv2.transform(values, np.column_stack([sign * gain * matrix, np.full(3, offset)]))


def _chroma_map(saturation: float, turns: float) -> np.ndarray:
    """(3, 3) float64 matrix that scales chroma by ``saturation``, rotates it by ``turns``, and keeps luma."""
    cosine, sine = saturation * np.cos(2 * np.pi * turns), saturation * np.sin(2 * np.pi * turns)
    chroma = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    return _YIQ_TO_RGB @ chroma @ _RGB_TO_YIQ


# Optical density in red, green and blue per unit of haematoxylin, eosin and DAB: Ruifrok & Johnston, table 1.
STAIN_RGB = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])

# Black transmits 1/256 of the light; otherwise its density would be infinite. (Ruifrok & Johnston add 1 to 8 bits.)
_DARKEST = 1 / 256


def change_stains(rgb: np.ndarray, factors: np.ndarray, shifts: np.ndarray, full_range: float) -> np.ndarray:
    """Change the amounts of stain in an RGB image (H, W, 3) float32; returns the same shape and dtype.

    factors, shifts: (3,) for haematoxylin, eosin and DAB. An amount a becomes ``factor * a + shift``, in natural-log
    optical density.
    full_range: the intensity of unstained glass. Values above it or below 1/256 of it are clipped first.
    """
    mixed = np.linalg.inv(STAIN_RGB) @ np.diag(factors) @ STAIN_RGB
    offset = shifts @ STAIN_RGB
    transmitted = np.clip(rgb * np.float32(1 / full_range), np.float32(_DARKEST), np.float32(1))
    # cv2.transform multiplies column vectors. log instead of -log: the sign of the shifts changes instead.
    changed = cv2.transform(cv2.log(transmitted), np.column_stack([mixed.T, -offset]))
    return cv2.exp(changed) * np.float32(full_range)
