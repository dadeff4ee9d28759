"""From an `Image` to the input of a network: channels, normalisation and size, as the recipe's ``input:`` section says.

What happens to the channels of an image (`network_channels`):

    image                     network with 3 channels             network with 1 channel
    1 channel                 repeated three times                used as it is
    R, G, B                   used; reversed if BGR               luma (BT.601)
    R, G, B, A or grey, A     alpha is dropped, then as above     alpha is dropped, then as above
    anything else             must have 3 channels                must have 1 channel, else `InputError`
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellwright.config.conventions import ResizeRule
from cellwright.config.input import InputConfig
from cellwright.core.errors import InputError
from cellwright.core.image import Image
from cellwright.core.text import count
from cellwright.data.resize import resized
from cellwright.data.value_range import dtype_scale

# ITU-R BT.601, the greyscale conversion of PIL and OpenCV.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def to_network(image: Image, config: InputConfig) -> np.ndarray:
    """Normalised network input (C, H, W) float32 at the size of the image.

    With percentile normalisation, an image whose percentiles are equal becomes zeros. Raises `InputError` if the
    network cannot use the channels of the image.
    """
    return normalised(network_channels(image, config), config)


def resize_for_network(image: Image, config: InputConfig, rule: ResizeRule) -> np.ndarray:
    """Normalised network input (C, h, w) float32 at the size that ``config`` requests.

    torchvision: bilinear without antialiasing, after normalisation (GeneralizedRCNNTransform).
    detectron2: PIL's antialiased bilinear in the dtype of the image, before normalisation (ResizeShortestEdge).
    """
    channels = network_channels(image, config)
    new_hw = network_hw(image.image_hw, config, rule)
    if new_hw == image.image_hw:
        return normalised(channels, config)
    if rule == "detectron2":
        return normalised(resize_antialiased(channels, new_hw), config)
    return resize_bilinear(normalised(channels, config), new_hw)


def network_hw(image_hw: tuple[int, int], config: InputConfig, rule: ResizeRule) -> tuple[int, int]:
    """Size (h, w) of the network input for an image of size ``image_hw``."""
    if config.short_side is not None:
        return resize_hw(image_hw, config.short_side, config.max_side, rule)
    height, width = (max(1, int(side * config.scale + 0.5)) for side in image_hw)
    return height, width


def diameter_scale(diameter_px: float, config: InputConfig) -> float:
    """Scale factor, 1/8 to 8, for an image whose objects have the median diameter ``diameter_px``.

    1 if ``config`` sets no diameter.
    """
    if config.diameter_px is None:
        return 1.0
    return float(np.clip(config.diameter_px / diameter_px, 1 / 8, 8))


def rescale(chw: np.ndarray, scale: float) -> np.ndarray:
    """(C, H, W) float32 resized by ``scale``, antialiased if smaller; each side keeps at least one pixel."""
    new_hw = max(1, int(chw.shape[1] * scale + 0.5)), max(1, int(chw.shape[2] * scale + 0.5))
    if new_hw == chw.shape[1:]:
        return chw
    return resized(chw, new_hw)


def resize_hw(image_hw: tuple[int, int], short_side: int, max_side: int | None, rule: ResizeRule) -> tuple[int, int]:
    """Size (h, w) of an image resized to ``short_side``, or to ``max_side`` if the long side would exceed that.

    torchvision rounds down, Detectron2 rounds half up. Both are reproduced exactly, because weights of these frameworks
    were trained on exactly these sizes.
    """
    short, long = min(image_hw), max(image_hw)
    if rule == "torchvision":
        scale = short_side / short if max_side is None else min(short_side / short, max_side / long)
        height, width = (max(1, int(side * scale)) for side in image_hw)
        return height, width
    scale = short_side / short
    sides = [float(short_side) if side == short else scale * side for side in image_hw]
    if max_side is not None and max(sides) > max_side:
        shrink = max_side / max(sides)
        sides = [side * shrink for side in sides]
    return int(sides[0] + 0.5), int(sides[1] + 0.5)


def resize_bilinear(chw: np.ndarray, new_hw: tuple[int, int]) -> np.ndarray:
    """(C, H, W) float32 to (C, h, w), bilinear at half-pixel centres without antialiasing, like torch interpolate."""
    import cv2

    height, width = new_hw
    planes = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in chw]
    return np.stack(planes)


def resize_antialiased(hwc: np.ndarray, new_hw: tuple[int, int]) -> np.ndarray:
    """(H, W, C) to (h, w, C) with PIL's antialiased bilinear filter: uint8 as such, other dtypes as float32."""
    from PIL import Image as Pillow

    height, width = new_hw
    pixels = hwc if hwc.dtype == np.uint8 else hwc.astype(np.float32)
    planes = [Pillow.fromarray(np.ascontiguousarray(pixels[:, :, c])) for c in range(pixels.shape[2])]
    resized = np.stack([np.asarray(p.resize((width, height), Pillow.Resampling.BILINEAR)) for p in planes], axis=2)
    # uint16 stays uint16, because the full range of the values follows from the dtype.
    return np.rint(resized).astype(hwc.dtype) if hwc.dtype == np.uint16 else resized


def network_channels(image: Image, config: InputConfig) -> np.ndarray:
    """The pixels (H, W, C) with the channels that the network expects, in its colour order; the dtype is kept.

    The table in the module docstring lists the cases. Raises `InputError` if the numbers of channels do not match.
    """
    opaque = image.without_alpha()
    data, names = opaque.data, opaque.channels
    if data.shape[2] == 1 and config.channels == 3:
        return np.repeat(data, 3, axis=2)
    if names == ("R", "G", "B") and config.channels == 1:
        grey = data.astype(np.float32) @ LUMA
        return (grey if data.dtype.kind == "f" else np.rint(grey).astype(data.dtype))[:, :, None]
    if data.shape[2] != config.channels:
        raise InputError(
            "the channels of this image do not match the network",
            where=image.path,
            got=image.describe(),
            expected=f"{count(config.channels, 'channel')} (input.channels of the recipe)",
            remedy="choose one with `channel`, or use a model that was trained on such images",
        )
    return data[:, :, ::-1] if config.colour_order == "bgr" else data


def normalised(hwc: np.ndarray, config: InputConfig, limits: Sequence[tuple[float, float]] | None = None) -> np.ndarray:
    """Pixels (H, W, C) with the network's channels as its input (C, H, W) float32.

    limits: the values of each channel that percentile normalisation maps to 0 and 1; None: percentiles of these pixels.
    """
    chw = np.ascontiguousarray(hwc.transpose(2, 0, 1)).astype(np.float32)
    if config.normalise == "percentile":
        if limits is None:
            low, high = np.percentile(chw.reshape(len(chw), -1), config.percentiles, axis=1).astype(np.float32)
        else:
            low, high = np.asarray(limits, np.float32).T
        span = np.where(high > low, high - low, np.float32(np.inf))
        return (chw - low[:, None, None]) / span[:, None, None]
    full = config.full_range or dtype_scale(hwc.dtype)
    # The order of operations of torchvision (x / 255, - mean, / std), for results that are equal to the last bit.
    chw /= np.float32(full)
    chw -= np.asarray(config.mean, np.float32)[:, None, None]
    chw /= np.asarray(config.std, np.float32)[:, None, None]
    return chw
