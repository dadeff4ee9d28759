"""Stains of a histology image: the colour deconvolution of Ruifrok & Johnston (2001), as one map of optical densities.

Light that passes a stained section falls off exponentially with the amount of stain, so that -ln(intensity) is a sum
of stains, each with a colour of its own. Jittering the amounts (Tellez et al. 2018, HED jitter) gives what another
batch of stain, or another laboratory, would have made of the same tissue.
"""

from __future__ import annotations

import cv2
import numpy as np

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
