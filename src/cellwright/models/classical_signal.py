"""Where the nuclei are, as one number a pixel: stain by its optical density, or brightness of either polarity."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from skimage.filters import threshold_otsu

from cellwright.config.model_classical import SignalKind
from cellwright.core.errors import InputError
from cellwright.core.image import Image

# Eosin absorbs hardly any red and much green (Ruifrok and Johnston 2001), so the red density is nearly haematoxylin
# alone; a little green density taken off removes what eosin leaves there. On 24 H&E and purple-stained training images
# this beat the full deconvolution matrix, which is tied to one laboratory's dyes.
_EOSIN_SHARE = 0.15
_COLOURFUL = 0.03  # mean chroma, share of white, from which an RGB image counts as coloured
_BRIGHT_FIELD = 0.2  # median luminance, share of white, from which light was absorbed rather than emitted
_DARKEST = 1.0 / 255.0  # light is cut here before the logarithm


def nuclear_signal(image: Image, kind: SignalKind = "auto") -> tuple[np.ndarray, Literal["stain", "bright", "dark"]]:
    """The signal (H, W) float32, high in nuclei, and the kind that it is.

    "stain" needs R, G, B; "auto" chooses it for colour images on a bright ground, else the grey image's polarity: the
    objects are whichever side of Otsu's level covers less. A constant image gives zeros.
    Raises `InputError` for channels that are neither grey nor RGB(A), for "stain" on grey, for non-finite pixels.
    """
    rgb, grey = _channels(image)
    if kind == "stain" and rgb is None:
        raise InputError(
            "the signal 'stain' needs a colour image",
            where=image.path,
            got=image.describe(),
            expected="channels R, G, B",
            remedy="use model.signal: dark, bright or auto",
        )
    if rgb is not None and (kind == "stain" or (kind == "auto" and _is_stained(rgb))):
        density = -np.log(np.maximum(rgb, np.float32(_DARKEST)))
        signal = density[..., 0] - np.float32(_EOSIN_SHARE) * density[..., 1]
        return np.ascontiguousarray(signal - signal.min()), "stain"
    polarity = _polarity(grey) if kind == "auto" else kind
    if polarity == "dark":
        return grey.max() - grey, "dark"
    # The root brings dim and bright nuclei of a fluorescence image closer, as it does for shot noise (Anscombe 1948).
    return np.sqrt(grey - grey.min()), "bright"


def otsu_level(values: np.ndarray) -> float | None:
    """Otsu's level of some float values, or None where they are all the same but for rounding."""
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    if not high - low > 1e-5 * max(abs(low), abs(high)):
        return None
    return float(threshold_otsu(values.astype(np.float64)))  # 256 bins need more digits than float32 may have


def _channels(image: Image) -> tuple[np.ndarray | None, np.ndarray]:
    """RGB (H, W, 3) or None, and grey (H, W); float32, 1 being the image's own white."""
    data, names = image.data, image.channels
    if names[-1] == "A" and len(names) > 1:
        data, names = data[:, :, :-1], names[:-1]
    if len(names) != 1 and names != ("R", "G", "B"):
        raise InputError(
            "the classical method takes one channel or R, G, B",
            where=image.path,
            got=image.describe(),
            remedy="choose the nuclear channel with --channel",
        )
    values = data.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(
            "the image holds pixels that are not finite",
            where=image.path,
            got=image.describe(),
            remedy="replace NaN and infinity by numbers",
        )
    values -= min(float(values.min()), 0.0)
    white = float(np.percentile(values, 99.8)) or float(values.max())
    values = np.minimum(values / white, 1.0) if white > 0 else values
    return (values, values.mean(axis=2)) if len(names) == 3 else (None, values[:, :, 0])


def _is_stained(rgb: np.ndarray) -> bool:
    chroma = rgb.max(axis=2) - rgb.min(axis=2)
    return float(chroma.mean()) > _COLOURFUL and float(np.median(rgb.mean(axis=2))) > _BRIGHT_FIELD


def _polarity(grey: np.ndarray) -> Literal["bright", "dark"]:
    smooth = cv2.GaussianBlur(grey, (0, 0), 2.0)
    level = otsu_level(smooth)
    return "bright" if level is None or float((smooth > level).mean()) < 0.5 else "dark"
