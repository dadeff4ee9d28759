"""From an `Image` to the input of a network: channels, normalisation and size, as the recipe's ``input:`` section says.

What happens to the channels of an image (`network_channels`):

    image                     network with 3 channels             network with 1 channel
    1 channel                 repeated three times                used as it is
    R, G, B                   used; reversed if BGR               luma (BT.601)
    R, G, B, A or grey, A     alpha is dropped, then as above     alpha is dropped, then as above
    anything else             must have 3 channels                must have 1 channel, else `InputError`

With ``input.missing_channels: zeros``, channels that an image lacks are zero instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from cellwright.config.conventions import ResizeRule
from cellwright.config.input import InputConfig, Resampling
from cellwright.core.errors import InputError
from cellwright.core.geometry import Window
from cellwright.core.image import Image
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.resize import pillow_window, resized, resized_window
from cellwright.data.value_range import dtype_scale

# Pixel sizes that differ by less than this factor are the same; by more than the other, one of them is wrong.
_SAME_SIZE, _LARGEST_RESAMPLING = 1.05, 8.0
# ITU-R BT.601, the greyscale conversion of PIL and OpenCV.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# The background is bright if the median lies above this share of the range. Of 627 images of nuclei, 611 with a dark
# background have at most .20, and 16 with a bright one at least .85. In crops that nuclei fill, the share rises to .75.
_BRIGHT = 0.75
# A background whose median is so close to the end of the values, as a share of their range, has lost its noise: of 59
# images of nuclei all are above .02, and 54 of them below .005 after a gamma of 2.
_FLAT = 0.005
Limits: TypeAlias = Sequence[tuple[float, ...]]
"""Of each network channel the values (low, high) that become 0 and 1, low above high where the channel is inverted; or
(low, high, base), where the square root of the distance to ``base`` is taken first."""


def to_network(image: Image, config: InputConfig) -> np.ndarray:
    """Normalised network input (C, H, W) float32 at the size of the image.

    With percentile normalisation, an image whose percentiles are equal becomes zeros. Raises `InputError` if the
    network cannot use the channels of the image.
    """
    return normalised(network_channels(image, config), config)


def resize_for_network(image: Image, config: InputConfig, rule: ResizeRule) -> np.ndarray:
    """Normalised network input (C, h, w) float32 at the size that ``config`` requests.

    torchvision: bilinear without antialiasing, after normalisation (GeneralizedRCNNTransform).
    detectron2: PIL's antialiased bilinear in the dtype of the image, before normalisation (ResizeShortestEdge); after
    it where the range of the values is that of each image, as in training.
    """
    channels = network_channels(image, config)
    new_hw = network_hw(image.image_hw, config, rule)
    if new_hw == image.image_hw:
        return normalised(channels, config)
    if rule == "torchvision":
        return resize_bilinear(normalised(channels, config), new_hw)
    if config.normalise == "percentile":
        return resized(normalised(channels, config), new_hw)
    return normalised(resize_antialiased(channels, new_hw), config)


def network_window(
    read: Callable[[Window], Image],
    config: InputConfig,
    rule: ResizeRule,
    limits: Limits | None,
    hws: tuple[tuple[int, int], tuple[int, int]],
    window: Window,
) -> np.ndarray:
    """A window (C, h, w) float32 of what the network sees of a whole image, to rounding.

    Args:
        read: pixels of a window of the image.
        config: its ``full_range`` is that of the image.
        rule: see `resize_for_network`; not used where the size follows from a diameter, see `rescale`.
        limits: see `normalised`.
        hws: (H, W) of the image, (h, w) of the network's input for the whole image.
        window: inside the latter.
    """
    image_hw, new_hw = hws

    def pixels(part: Window) -> np.ndarray:
        return normalised(network_channels(read(part), config), config, limits)

    if new_hw == image_hw:
        return pixels(window)
    if config.diameter_px is None and rule == "torchvision":
        return resized_window(pixels, image_hw, new_hw, window, antialias=False)
    if config.diameter_px is not None or config.normalise == "percentile":
        antialias = config.diameter_px is None or config.resampling == "antialiased"
        return resized_window(pixels, image_hw, new_hw, window, antialias=antialias)
    dtypes: list[np.dtype] = []

    def channels(part: Window) -> np.ndarray:
        hwc = network_channels(read(part), config)
        dtypes.append(hwc.dtype)
        return hwc

    hwc = pillow_window(channels, image_hw, new_hw, window)
    return normalised(np.rint(hwc).astype(np.uint16) if dtypes == [np.uint16] else hwc, config)


def network_hw(image_hw: tuple[int, int], config: InputConfig, rule: ResizeRule) -> tuple[int, int]:
    """Size (h, w) of the network input for an image of size ``image_hw``."""
    if config.short_side is not None:
        return resize_hw(image_hw, config.short_side, config.max_side, rule)
    height, width = (max(1, int(side * config.scale + 0.5)) for side in image_hw)
    return height, width


def training_scale(image_hws: Sequence[tuple[int, int]], config: InputConfig, rule: ResizeRule) -> float | None:
    """Pixels of the network's input per pixel of the training images, the median; None if a diameter decides it.

    >>> training_scale([(500, 1000), (1000, 1000)], InputConfig(short_side=250), "torchvision")
    0.375
    """
    if config.diameter_px is not None or not image_hws:
        return None
    return float(np.median([network_hw(hw, config, rule)[0] / hw[0] for hw in image_hws]))


def pixel_size_of_training(sizes_um: Sequence[tuple[float, float] | None]) -> float | None:
    """The pixel size of training images, microns; None if one is not known, or if they differ by more than 5 %.

    >>> pixel_size_of_training([(0.5, 0.5), (0.51, 0.51)]), pixel_size_of_training([(0.5, 0.5), None])
    (0.505, None)
    """
    known = [math.sqrt(y * x) for y, x in (size for size in sizes_um if size is not None)]
    if not known or len(known) < len(sizes_um) or max(known) > _SAME_SIZE * min(known):
        return None
    return round(float(np.median(known)), 6)


def resampled(
    config: InputConfig, size_um: tuple[float, float] | None, trained_um: float | None
) -> tuple[InputConfig, tuple[Note, ...]]:
    """``config`` with the scale at which an image has the pixel size of the training images, and a note about it.

    size_um: (y, x) of the image; trained_um: of the training images. Unchanged if one is not known, if they are about
    the same, and for a ``config`` in which a diameter or a short side decides the scale. Sizes that differ more than
    8 times are not taken for true.
    """
    if size_um is None or trained_um is None or config.diameter_px is not None or config.short_side is not None:
        return config, ()
    own = math.sqrt(size_um[0] * size_um[1])
    ratio = own / trained_um
    if max(ratio, 1 / ratio) <= _SAME_SIZE:
        return config, ()
    sizes = f"pixels of {own:.3g} um, where the training images have {trained_um:.3g} um"
    if max(ratio, 1 / ratio) > _LARGEST_RESAMPLING:
        text = f"warning: {sizes}: the image is not scaled; if this is wrong, state the true size with `pixel_size`"
        return config, (Note("the pixel size is unlike that of the training images", text),)
    text = f"{sizes}: scaled by {ratio:.3g} for the network; state another size with `pixel_size`"
    note = Note("images were scaled to the pixel size of the training images", text)
    return config.model_copy(update={"scale": config.scale * ratio}), (note,)


def diameter_scale(diameter_px: float, config: InputConfig) -> float:
    """Scale factor, 1/8 to 8, for an image whose objects have the median diameter ``diameter_px``.

    1 if ``config`` sets no diameter.
    """
    if config.diameter_px is None:
        return 1.0
    return float(np.clip(config.diameter_px / diameter_px, 1 / 8, 8))


def scaled_hw(image_hw: tuple[int, ...], scale: float, resampling: Resampling) -> tuple[int, int]:
    """(h, w) of an image of size ``image_hw`` that a diameter scales by ``scale``; each side has at least one pixel."""
    rounding = 0.0 if resampling == "linear" else 0.5
    height, width = (max(1, int(side * scale + rounding)) for side in image_hw)
    return height, width


def rescale(chw: np.ndarray, scale: float, resampling: Resampling = "antialiased") -> np.ndarray:
    """(C, H, W) float32 resized by ``scale``, see `scaled_hw`; "antialiased" if it becomes smaller."""
    new_hw = scaled_hw(chw.shape[1:], scale, resampling)
    if new_hw == chw.shape[1:]:
        return chw
    return resized(chw, new_hw, antialias=resampling == "antialiased")


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
    small = np.stack([np.asarray(p.resize((width, height), Pillow.Resampling.BILINEAR)) for p in planes], axis=2)
    # uint16 stays uint16, because the full range of the values follows from the dtype.
    return np.rint(small).astype(hwc.dtype) if hwc.dtype == np.uint16 else small


def network_channels(image: Image, config: InputConfig) -> np.ndarray:
    """The pixels (H, W, C) with the channels that the network expects, in its colour order; the dtype is kept.

    The table in the module docstring lists the cases. Raises `InputError` if the numbers of channels do not match.
    """
    opaque = image.without_alpha()
    data, names = opaque.data, opaque.channels
    if config.missing_channels == "zeros" and data.shape[2] != config.channels:
        data, names = _with_zeros(data, names, config.channels), ()
    elif data.shape[2] == 1 and config.channels == 3:
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


def _with_zeros(data: np.ndarray, names: tuple[str, ...], n_channels: int) -> np.ndarray:
    """Pixels (H, W, C) with channels of zeros after their own; R, G and B that are too many become their mean."""
    if names == ("R", "G", "B") and n_channels < len(names):
        data = data.mean(axis=2, keepdims=True, dtype=np.float32)
    beyond = np.zeros((*data.shape[:2], max(n_channels - data.shape[2], 0)), data.dtype)
    return np.concatenate([data, beyond], axis=2)


def normalised(hwc: np.ndarray, config: InputConfig, limits: Limits | None = None) -> np.ndarray:
    """Pixels (H, W, C) with the network's channels as its input (C, H, W) float32.

    limits: the values of each channel that percentile normalisation maps to 0 and 1; None: percentiles of these pixels.
    """
    chw = np.ascontiguousarray(hwc.transpose(2, 0, 1)).astype(np.float32)
    if config.normalise == "percentile":
        return scaled(chw, percentile_limits(chw, config) if limits is None else limits)
    full = config.full_range or dtype_scale(hwc.dtype)
    # The order of operations of torchvision (x / 255, - mean, / std), for results that are equal to the last bit.
    chw /= np.float32(full)
    chw -= np.asarray(config.mean, np.float32)[:, None, None]
    chw /= np.asarray(config.std, np.float32)[:, None, None]
    return chw


def percentile_limits(chw: np.ndarray, config: InputConfig) -> Limits:
    """The limits of an image (C, H, W) float32."""
    percents = limit_percents(config)
    if config.percentiles_of == "image":
        together = np.percentile(chw, percents).astype(np.float32)
        return limits_from(np.repeat(together[None], len(chw), axis=0), config)
    return limits_from(np.percentile(chw.reshape(len(chw), -1), percents, axis=1).astype(np.float32).T, config)


def limit_percents(config: InputConfig) -> tuple[float, ...]:
    """The percentiles of each channel, or of all together, from which `limits_from` finds the limits."""
    low, high = config.percentiles
    return (low, high) if config.background != "dark" else (low, high, 100 - low, 100 - high, 0, 50, 100)


def limits_from(percentiles: Sequence[Sequence[float]] | np.ndarray, config: InputConfig) -> Limits:
    """The limits of channels with these `limit_percents`, (C, n).

    With ``input.background: dark``, all channels are inverted if their medians lie at the bright end of their range, on
    average. Where the median of each is the background itself, without any noise, dim objects are lifted by a square
    root. Channels of one value do not count.
    """
    table = np.asarray(percentiles)
    limits = table[:, :2]
    if config.background != "dark":
        return tuple(map(tuple, limits.tolist()))
    # The same share of pixels counts at both ends, so that an image and its inverse are judged alike.
    _, brightest, _, darkest, base, middle, highest = table.T
    counted = brightest > darkest
    if counted.any() and ((middle - darkest)[counted] / (brightest - darkest)[counted]).mean() > _BRIGHT:
        limits, base = table[:, 2:4], highest
    counted = limits[:, 0] != limits[:, 1]
    if counted.any() and (np.abs(middle - base)[counted] / np.abs(limits[:, 1] - base)[counted]).max() < _FLAT:
        limits = np.column_stack([limits, base])
    return tuple(map(tuple, limits.tolist()))


def scaled(chw: np.ndarray, limits: Limits) -> np.ndarray:
    """(C, H, W) float32 in units of the limits; a channel whose limits are equal becomes zeros."""
    low, high, *base = np.asarray(limits, np.float32).T[:, :, None, None]
    if base:
        sign = np.where(high < low, np.float32(-1), np.float32(1))
        chw, low, high = (np.sqrt(np.maximum((values - base[0]) * sign, 0)) for values in (chw, low, high))
    span = np.where(high != low, high - low, np.float32(np.inf))
    return (chw - low) / span
