"""Augmentation: which random changes are drawn for a training sample.

`draw_geometry` and `draw_colour` draw the parameters, `cellwright.data.warp` moves the pixels of image and labels in a
single resampling, and `cellwright.data.colour` changes the intensities. The cost depends on the number of pixels and
label layers, not on the number of objects. All draws come from the given random generator, so an augmented sample is a
pure function of its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from cellwright.config.conventions import ResizeRule
from cellwright.config.input import AugmentConfig, InputConfig
from cellwright.data.colour import Colour, change_colour
from cellwright.data.labels import Labels
from cellwright.data.network_input import network_hw, percentile_limits, resize_hw, scaled
from cellwright.data.warp import Affine, Elastic, Geometry, warp_image, warp_labels

# Pixels of a whole image whose percentiles stand for its own.
_SAMPLE_SIDE_PX = 128


@dataclass(frozen=True)
class WholeImage:
    """What is known of a whole image that is normalised by its percentiles, when a crop of it is changed.

    Attributes:
        sample: (n, m, C) float32, evenly spaced pixels of it, normalised.
        value_range: its lowest and highest value, normalised.
        levels: number of steps between the two in a file of integers; 0 for floats.
    """

    sample: np.ndarray
    value_range: tuple[float, float]
    levels: int

    @staticmethod
    def of(pixels: np.ndarray, data: np.ndarray) -> WholeImage:
        """Of normalised pixels (H, W, C) float32 and those of the file (H, W, any number of channels)."""
        rows, columns = (max(side // _SAMPLE_SIDE_PX, 1) for side in pixels.shape[:2])
        is_integer = data.dtype.kind in "iu" and data.size > 0
        levels = int(data.max()) - int(data.min()) if is_integer else 0
        ends = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
        return WholeImage(pixels[rows // 2 :: rows, columns // 2 :: columns].copy(), ends, levels)


@dataclass(frozen=True)
class Frame:
    """What the network requires of each sample, with or without augmentation.

    Attributes:
        input: the size if ``short_sides_px`` is empty, and the full range of the values.
        rule: the framework whose rounding and interpolation are used for resizing.
        fill: (C,) the pixel value outside the image; None: zeros.
        scale: factor on the size that ``input`` requests, from ``diameter_px`` and the objects of this sample.
        whole: for `AugmentConfig.renormalise`; None: what is changed is not normalised by percentiles.
    """

    input: InputConfig = field(default_factory=InputConfig)
    rule: ResizeRule = "torchvision"
    fill: tuple[float, ...] | None = None
    scale: float = 1.0
    whole: WholeImage | None = None


def augment(
    image: np.ndarray, labels: Labels, config: AugmentConfig, rng: np.random.Generator, frame: Frame | None = None
) -> tuple[np.ndarray, Labels]:
    """One random variant of a sample.

    Args:
        image: (H, W, C), H and W >= 1, uint8, int16, uint16, float32 or float64.
        labels: its objects; ``labels.layers`` is (L, H, W). There may be none.
        config: the ranges of the changes.
        rng: the source of all draws.
        frame: by default that of a network that takes images at their own size.

    Returns:
        The image (h, w, C) in the same dtype, and its objects. h and w are at most ``config.crop_px``; an image smaller
        than the crop stays smaller unless ``config.pad_to_crop`` is set. Objects of which less than
        ``config.min_visible`` of the area or no pixel remains are dropped; ignored regions are kept if a pixel remains.
    """
    frame = frame or Frame()
    geometry = draw_geometry((image.shape[0], image.shape[1]), config, rng, frame, counted=labels.counted_pixels())
    colour = draw_colour(config, rng)
    labels = warp_labels(labels, geometry, config.min_visible)
    pixels = warp_image(image, geometry, rule=frame.rule, fill=frame.fill)
    if config.renormalise and frame.whole is not None:
        return renormalised(pixels, colour, frame.whole, frame.input), labels
    return change_colour(pixels, colour, full_range=frame.input.full_range), labels


def renormalised(pixels: np.ndarray, colour: Colour, whole: WholeImage, config: InputConfig) -> np.ndarray:
    """Change a crop as its whole image would be changed before it is normalised by its percentiles.

    A camera's image has values between two ends, rounded if they are integers, so noise is cut off at them, here in
    half of the samples. Brightness and contrast would be undone by the normalisation; they are changed after it.

    pixels: (h, w, C) float32, normalised. Returns the same shape and dtype.
    """
    tone = replace(colour, brightness=1.0, contrast=1.0)
    low, high = whole.value_range
    if not high > low:
        return change_colour(pixels, colour)
    # Blur moves percentiles little, and the pixels of the sample are not neighbours.
    changed = [
        change_colour(values, own, value_range=whole.value_range)
        for values, own in ((whole.sample, replace(tone, blur_px=0.0)), (pixels, tone))
    ]
    if whole.levels:
        # A dimmer image has fewer levels.
        step = np.float32((high - low) / whole.levels / min(colour.brightness * colour.contrast, 1.0))
        changed = [np.rint((values - np.float32(low)) / step) * step + np.float32(low) for values in changed]
    if tone.noise_seed % 2:
        changed = [values.clip(low, high) for values in changed]
    sample, crop = (np.ascontiguousarray(values.transpose(2, 0, 1)) for values in changed)
    crop = np.ascontiguousarray(scaled(crop, percentile_limits(sample, config)).transpose(1, 2, 0))
    return change_colour(crop, Colour(brightness=colour.brightness, contrast=colour.contrast))


def draw_geometry(
    image_hw: tuple[int, int],
    config: AugmentConfig,
    rng: np.random.Generator,
    frame: Frame | None = None,
    *,
    counted: np.ndarray | None = None,
) -> Geometry:
    """Draw crop, size, mirroring, rotation, shear, shift and elastic deformation for an image of size ``image_hw``.

    counted: the pixels (H, W) bool that are annotated. Every crop then contains one of them, drawn at random, so places
    with many are drawn more often than places with few. None: every crop is as likely.

    The same random numbers are drawn for every ``config``, so that disabling one change does not affect the others.
    """
    frame = frame or Frame()
    draws, affine_draws, seed = rng.random(9), rng.uniform(-1, 1, size=5), int(rng.integers(2**63))
    cut_hw = _cut_hw(image_hw, config)
    low, high = config.scale_min, config.scale_max
    log_uniform = config.scale_draw == "log_uniform"
    scale = low * (high / low) ** draws[0] if log_uniform else low + draws[0] * (high - low)
    scale *= frame.scale
    window, sizes = [], []
    wanted, again = _wanted_pixel(counted, draws)
    resized_hw = _resized_hw(cut_hw, draws[8], config, frame)
    for axis in (0, 1):
        cut, resized = cut_hw[axis], resized_hw[axis] * scale
        shown = cut if config.crop_px is None else min(cut, max(1, round(config.crop_px * cut / resized)))
        # A window that is not limited by the image gives exactly the size of the crop, without rounding twice.
        full = config.crop_px is not None and shown == round(config.crop_px * cut / resized)
        if wanted is None:
            start = _start(draws[6 + axis], image_hw[axis] - cut) + _start(draws[1 + axis], cut - shown)
        else:
            outer = _start_around(draws[6 + axis], wanted[axis], cut, image_hw[axis])
            start = outer + _start_around(again[axis], wanted[axis] - outer, shown, cut)
        window.append((start, start + shown))
        sizes.append(config.crop_px if full and config.crop_px is not None else max(1, round(resized * shown / cut)))
    turns = int(draws[5] * 4) if config.quarter_turns else 0
    return Geometry(
        window=(window[0][0], window[1][0], window[0][1], window[1][1]),
        out_hw=(sizes[0], sizes[1]),
        horizontal_flip=bool(draws[3] < config.horizontal_flip),
        vertical_flip=bool(draws[4] < config.vertical_flip),
        quarter_turns=turns,
        affine=_affine(affine_draws, config, (sizes[1], sizes[0]) if turns % 2 else (sizes[0], sizes[1])),
        elastic=(
            Elastic(config.elastic_amplitude_px, config.elastic_smoothness_px, seed)
            if config.elastic_amplitude_px
            else None
        ),
        canvas_hw=(config.crop_px, config.crop_px) if config.pad_to_crop and config.crop_px is not None else None,
    )


def _cut_hw(image_hw: tuple[int, int], config: AugmentConfig) -> tuple[int, int]:
    """Size of the crop of the source image before resizing, in pixels; relative crops are rounded as in Detectron2."""
    if config.crop_relative is not None:
        height, width = (max(1, int(side * config.crop_relative + 0.5)) for side in image_hw)
        return height, width
    side = max(image_hw) if config.crop_source_px is None else config.crop_source_px
    return min(image_hw[0], side), min(image_hw[1], side)


def _resized_hw(hw: tuple[int, int], draw: float, config: AugmentConfig, frame: Frame) -> tuple[int, int]:
    """Size of ``hw`` after resizing, before the random scale; ``draw`` (0..1) chooses the short side."""
    if not config.short_sides_px:
        return network_hw(hw, frame.input, frame.rule)
    short_side = config.short_sides_px[int(draw * len(config.short_sides_px))]
    return resize_hw(hw, short_side, config.max_side_px, frame.rule)


def _wanted_pixel(counted: np.ndarray | None, draws: np.ndarray) -> tuple[tuple[int, int] | None, np.ndarray]:
    """A pixel that the crop contains, one of those that count, and two more draws; None if any crop will do.

    Made from ``draws`` [1] and [2], which place the crop otherwise.
    """
    rng = np.random.default_rng((draws[1:3] * 2**53).astype(np.uint64))
    choices = np.zeros(0, np.int64) if counted is None else np.flatnonzero(counted)
    if counted is None or not len(choices):
        return None, np.zeros(2)
    y, x = divmod(int(choices[rng.integers(len(choices))]), counted.shape[1])
    return (y, x), rng.random(2)


def _start_around(draw: float, position: int, side: int, length: int) -> int:
    """A start of an interval of ``side`` pixels inside ``length`` that contains ``position``, all equally likely."""
    first = max(0, position - side + 1)
    return first + _start(draw, min(position, length - side) - first)


def _start(draw: float, last: int) -> int:
    """A start in 0..last, all equally likely for ``draw`` in 0..1."""
    return min(int(draw * (last + 1)), last)


def _affine(draws: np.ndarray, config: AugmentConfig, hw: tuple[int, int]) -> Affine | None:
    """The affine map for five ``draws`` in -1..1, or None if the configuration sets no affine change."""
    if not (config.rotation_deg or config.shear_deg or config.translation):
        return None
    rotation, shear_x, shear_y, right, down = draws.tolist()
    return Affine(
        rotation_deg=rotation * config.rotation_deg,
        shear_deg=(shear_x * config.shear_deg, shear_y * config.shear_deg),
        shift_px=(right * config.translation * hw[1], down * config.translation * hw[0]),
    )


def draw_colour(config: AugmentConfig, rng: np.random.Generator) -> Colour:
    """Draw the change of intensities and colours.

    The same random numbers are drawn for every ``config``, so that disabling one change does not affect the others.
    """
    draws = rng.uniform(-1, 1, size=11).tolist()
    chances = rng.random(4).tolist()
    seed = int(rng.integers(2**63))
    grey = chances[0] < config.greyscale
    return Colour(
        gamma=(1 + config.gamma) ** draws[4],
        stain_factors=(1 + config.stain * draws[5], 1 + config.stain * draws[6], 1 + config.stain * draws[7]),
        stain_shifts=(config.stain_shift * draws[8], config.stain_shift * draws[9], config.stain_shift * draws[10]),
        brightness=1 + config.brightness * draws[0],
        contrast=1 + config.contrast * draws[1],
        saturation=0.0 if grey else 1 + config.saturation * draws[2],
        hue_turns=config.hue * draws[3],
        invert=chances[1] < config.invert,
        blur_px=config.blur_px * chances[2],
        noise=config.noise * chances[3],
        noise_seed=seed,
    )
