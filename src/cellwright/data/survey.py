"""What the images of a training are like: the channels that the network sees, and their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellwright.config.input import InputConfig
from cellwright.core.dataset import Sample
from cellwright.core.image import Image
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.images.channels import RGB, TRAINED_ON, UNNAMED, choose_channels
from cellwright.data.images.reading import Reading
from cellwright.data.network_input import pixel_size_of_training
from cellwright.data.value_range import ImageValues, TrainingValues, depth_of, dtype_scale, full_scale

# Images that are read; of images with more than 8 bits, whose maximum decides the depth, more.
MAX_IMAGES, MAX_DEEP_IMAGES = 100, 1000
_TOO_DARK = 0.1

RANGE_SET = "the range of the values was taken from the training images"
RANGE_UNUSED = "the training images use little of the range of their values"
MIXED_TYPES = "the training images have different pixel types"


@dataclass(frozen=True)
class Survey:
    """The training images as the network sees them.

    config: ``input`` of the recipe with what the images decide: the names of their channels, and the value that is full
    scale. channels, pixel_size_um: see ``ModelInfo``. values: those of the images; None without images. notes: what was
    assumed, and what is unusual.
    """

    config: InputConfig
    channels: tuple[str, ...] = ()
    values: TrainingValues | None = None
    notes: tuple[Note, ...] = ()
    pixel_size_um: float | None = None


def survey_images(samples: Sequence[Sample], config: InputConfig, reading: Reading) -> Survey:
    """Read training images, evenly picked, as training will. Raises `InputError` for one that cannot be used.

    reading: the plane, time point and image of each file; the channels are those of ``config.channel``.
    """
    paths = [(one.image_path, one) for one in samples if one.image_path is not None]
    picked = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), MAX_IMAGES)).astype(int)).tolist()
    seen: dict[tuple[str, ...], None] = {}
    values, notes, sizes = [], [], []
    trained: tuple[str, ...] = ()
    for round_of in (picked, sorted(set(range(len(paths))) - set(picked))[: MAX_DEEP_IMAGES - len(picked)]):
        for k in round_of:
            path, sample = paths[k]
            image = choose_channels(reading.of(sample).read(path), config.channel, config.channels, trained=trained)
            image = image.without_alpha()
            values.append(ImageValues.of(image))
            sizes.append(image.pixel_size_um or sample.pixel_size_um)
            # A channel that is found by the name of the one that was assumed is no second assumption.
            assumed = [note for note in image.notes if note.kind != TRAINED_ON or image.n_channels > 1]
            notes += [dataclasses.replace(note, where=sample.id) for note in assumed]
            seen.setdefault(image.channels)
            # Images that are neither grey nor RGB have the same channels, in the same order, as the first of them.
            trained = trained or (() if _is_plain(image) else image.channels)
        if config.normalise == "percentile" or all(image.dtype == "uint8" for image in values):
            break
    if not values:
        return Survey(config)
    channels = _channel_names(config, list(seen))
    if not config.channel and trained and len(seen) == 1:
        config = config.model_copy(update={"channel": trained})
    config, of_range = _with_range(config, values)
    training = TrainingValues.of(values, config)
    return Survey(config, channels, training, (*notes, *of_range), pixel_size_of_training(sizes))


def _is_plain(image: Image) -> bool:
    return image.channels in (RGB, (UNNAMED,))


def _channel_names(config: InputConfig, seen: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The names of the channels that the network sees: as chosen by name, else as in the images; () if they differ."""
    if config.channel and not any(str(choice).isdecimal() for choice in config.channel):
        return tuple(map(str, config.channel))
    if len({len(names) for names in seen}) > 1:
        return ()
    return tuple("|".join(dict.fromkeys(names)) for names in zip(*seen, strict=True))


def _with_range(config: InputConfig, images: Sequence[ImageValues]) -> tuple[InputConfig, list[Note]]:
    """The config with the value that is full scale in these images, and notes where that is in doubt."""
    if config.normalise == "percentile":
        return config, []
    dtypes = sorted({image.dtype for image in images})
    by_type = {dtype: [image for image in images if image.dtype == dtype] for dtype in dtypes}
    depths = {dtype: depth_of(of_type) or max(image.highest for image in of_type) for dtype, of_type in by_type.items()}
    notes = []
    if len(dtypes) == 1 and config.full_range is None and depths[dtypes[0]] != dtype_scale(dtypes[0]):
        depth = depths[dtypes[0]]
        config = config.model_copy(update={"full_range": depth})
        highest = max(image.highest for image in images)
        text = f"the {dtypes[0]} values of the training images reach {highest:.5g}: input.full_range is {depth:g}"
        notes.append(Note(RANGE_SET, text))
    elif len(dtypes) > 1 and any(depths[dtype] != full_scale(config, dtype) for dtype in dtypes):
        shown = ", ".join(f"{dtype} up to {depths[dtype]:g}" for dtype in dtypes)
        scales = ", ".join(f"{full_scale(config, dtype):g}" for dtype in dtypes)
        text = f"the training images have different pixel types ({shown}), which are divided by {scales}"
        notes.append(Note(MIXED_TYPES, f"{text}; input.normalise percentile takes the range of each image"))
    else:
        for dtype in dtypes:
            scale = full_scale(config, dtype)
            if depths[dtype] != scale:
                text = f"the {dtype} values of the training images use 0 to {depths[dtype]:g}, not 0 to {scale:g}"
                notes.append(Note(RANGE_UNUSED, f"{text} as input.full_range says"))
    bright = max(image.bright / full_scale(config, image.dtype) for image in images)
    if bright < _TOO_DARK and not notes:
        text = (
            f"the brightest values of the training images are {bright:.2g} of full scale in "
            f"{count(len(images), 'image')}: input.normalise percentile takes the range of each image"
        )
        notes.append(Note(RANGE_UNUSED, text))
    return config, notes
