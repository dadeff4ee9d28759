"""From an `Image` to what a network sees: channels, normalisation and size, by the recipe's ``input:`` section."""

from __future__ import annotations

from typing import Literal

import numpy as np

from cellwright.config.input import InputConfig
from cellwright.core.errors import InputError
from cellwright.core.image import Image

ResizeRule = Literal["torchvision", "detectron2"]

# ITU-R BT.601, what "grey" has meant since: PIL and OpenCV use the same weights.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def to_network(image: Image, config: InputConfig) -> np.ndarray:
    """Normalised network input (C, H, W) float32 at the image's own size.

    Alpha is dropped, grey is repeated to three channels, RGB becomes grey where the network has one channel.
    A flat image (percentiles equal) becomes zeros. `InputError` where the channels cannot be made to fit.
    """
    return _normalise(network_channels(image, config), config)


def resize_for_network(image: Image, config: InputConfig, rule: ResizeRule) -> np.ndarray:
    """Normalised network input (C, h, w) float32 at the size that ``config`` asks for.

    torchvision: bilinear without antialiasing, after normalising (GeneralizedRCNNTransform).
    detectron2: PIL's antialiased bilinear on the image's own dtype, before normalising (ResizeShortestEdge).
    """
    channels = network_channels(image, config)
    new_hw = network_hw(image.image_hw, config, rule)
    if new_hw == image.image_hw:
        return _normalise(channels, config)
    if rule == "detectron2":
        return _normalise(resize_antialiased(channels, new_hw), config)
    return resize_bilinear(_normalise(channels, config), new_hw)


def network_hw(image_hw: tuple[int, int], config: InputConfig, rule: ResizeRule) -> tuple[int, int]:
    """(h, w) at which the network sees an image of ``image_hw``."""
    if config.short_side is not None:
        return resize_hw(image_hw, config.short_side, config.max_side, rule)
    height, width = (max(1, int(side * config.scale + 0.5)) for side in image_hw)
    return height, width


def diameter_scale(diameter_px: float, config: InputConfig) -> float:
    """Factor, 1/8 to 8, on the size of an image whose objects have the median diameter ``diameter_px``.

    1 where ``config`` asks for no diameter.
    """
    if config.diameter_px is None:
        return 1.0
    return float(np.clip(config.diameter_px / diameter_px, 1 / 8, 8))


def rescale(chw: np.ndarray, scale: float) -> np.ndarray:
    """(C, H, W) float32 at ``scale`` times its size, antialiased where that is smaller; at least one pixel a side."""
    new_hw = max(1, int(chw.shape[1] * scale + 0.5)), max(1, int(chw.shape[2] * scale + 0.5))
    if new_hw == chw.shape[1:]:
        return chw
    return np.ascontiguousarray(resize_antialiased(chw.transpose(1, 2, 0), new_hw).transpose(2, 0, 1))


def resize_hw(image_hw: tuple[int, int], short_side: int, max_side: int | None, rule: ResizeRule) -> tuple[int, int]:
    """(h, w) of an image whose short side becomes ``short_side`` unless its long side would pass ``max_side``.

    torchvision floors, Detectron2 rounds half up. Both are kept to the last pixel,
    because foreign weights were tuned on exactly these sizes.
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
    """(C, H, W) float32 to (C, h, w) at half-pixel centres without antialiasing, as torch's interpolate."""
    import cv2

    height, width = new_hw
    planes = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in chw]
    return np.stack(planes)


def resize_antialiased(hwc: np.ndarray, new_hw: tuple[int, int]) -> np.ndarray:
    """(H, W, C) to (h, w, C) by PIL's antialiased bilinear; uint8 is rounded as PIL does, other types go as float32."""
    from PIL import Image as Pillow

    height, width = new_hw
    own = hwc if hwc.dtype == np.uint8 else hwc.astype(np.float32)
    planes = [Pillow.fromarray(np.ascontiguousarray(own[:, :, c])) for c in range(own.shape[2])]
    resized = np.stack([np.asarray(p.resize((width, height), Pillow.Resampling.BILINEAR)) for p in planes], axis=2)
    # Whole-number types stay whole, so that the full range still follows from the dtype.
    return np.rint(resized).astype(hwc.dtype) if hwc.dtype == np.uint16 else resized


def network_channels(image: Image, config: InputConfig) -> np.ndarray:
    """The image's data (H, W, C) with the channels that the network takes, in its colour order, own dtype."""
    data, names = image.data, image.channels
    if names[-1] == "A" and len(names) > 1:
        data, names = data[:, :, :-1], names[:-1]
    if data.shape[2] == 1 and config.channels == 3:
        return np.repeat(data, 3, axis=2)
    if names == ("R", "G", "B") and config.channels == 1:
        grey = data.astype(np.float32) @ LUMA
        return (grey if data.dtype.kind == "f" else np.rint(grey).astype(data.dtype))[:, :, None]
    if data.shape[2] != config.channels:
        raise InputError(
            "the image's channels do not fit the network",
            where=image.path,
            got=image.describe(),
            expected=f"{config.channels} channel{'' if config.channels == 1 else 's'} (input.channels)",
            remedy="choose channels with --channel, or a model that was trained on such images",
        )
    return data[:, :, ::-1] if config.colour_order == "bgr" else data


def _normalise(hwc: np.ndarray, config: InputConfig) -> np.ndarray:
    chw = np.ascontiguousarray(hwc.transpose(2, 0, 1)).astype(np.float32)
    if config.normalise == "percentile":
        low, high = np.percentile(chw.reshape(len(chw), -1), config.percentiles, axis=1).astype(np.float32)
        span = np.where(high > low, high - low, np.float32(np.inf))
        return (chw - low[:, None, None]) / span[:, None, None]
    full = config.full_range
    if full is None:
        full = float(np.iinfo(hwc.dtype).max) if hwc.dtype.kind == "u" else 1.0
    # In torchvision's order of operations (x / 255, - mean, / std), so that parity holds to the last bits.
    chw /= np.float32(full)
    chw -= np.asarray(config.mean, np.float32)[:, None, None]
    chw /= np.asarray(config.std, np.float32)[:, None, None]
    return chw
