"""The range of an image's values: which value is full scale, and whether the values fit those of a training.

Networks with ``input.normalise: fixed`` divide all images by one value. But image files do not say how many of their
bits are used: the same picture may be stored as 0..255, as 12 bits in uint16, or as floating-point numbers. Networks
with ``percentile`` take the range of each image and need none of this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cellwright.config.input import InputConfig
from cellwright.core.errors import InputError
from cellwright.core.image import Image
from cellwright.core.notes import Note

# Full scale of the usual depths: float 0..1; 8, 10, 12, 14 and 16 bits.
FULL_SCALES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
# Floating-point values may exceed their range a little, by interpolation.
_OVERSHOOT = 1.05
# Percentiles that stand for the darkest and the brightest values of an image, and how far the brightest may be from
# those of the training images: between half of the darkest image and twice the brightest.
PERCENTILES = (1.0, 99.8)
_MARGIN = 2.0

ASSUMED_RANGE = "the range of the values was assumed"
# The brightest of 1,093 real images has 7.5 times the range between the percentiles that become 0 and 1.
# With 40 hot pixels in 256 x 256, objects are lost from 12 times on; a single one does nothing.
MOST_OF_RANGE, OUTLIER_PERCENTILE = 10.0, 99.99
OUTLIERS = "a few pixels are far brighter than all others"
OUTSIDE_RANGE = "the values do not fit the images that the model was trained on"


@dataclass(frozen=True)
class ImageValues:
    """The values of one image: pixel type, maximum, 1st percentile (dark) and 99.8th percentile (bright).

    Values that are not finite do not count.

    >>> ImageValues.of(Image.from_array(np.array([[160, 2600]], np.uint16))).highest
    2600.0
    """

    dtype: str
    highest: float
    dark: float
    bright: float

    @staticmethod
    def of(image: Image) -> ImageValues:
        """Of all channels of an image."""
        data = image.data
        values = data[np.isfinite(data)] if data.dtype.kind == "f" else data
        if not values.size:
            return ImageValues(str(data.dtype), 0.0, 0.0, 0.0)
        dark, bright = np.percentile(values, PERCENTILES)
        return ImageValues(str(data.dtype), float(values.max()), float(dark), float(bright))


@dataclass(frozen=True)
class TrainingValues:
    """The values of the images that a model was trained on; recorded in ``model.json``.

    dtype: the pixel type of the images, or "mixed". full_scale: the value that counts as full scale; 0 if mixed.
    dark: the smallest 1st percentile of an image. bright: the smallest and the largest 99.8th percentile of an image.
    Both are shares of full scale.
    """

    dtype: str
    full_scale: float
    dark: float
    bright: tuple[float, float]

    @staticmethod
    def of(images: Sequence[ImageValues], config: InputConfig) -> TrainingValues:
        """The values of at least one image, for a network with the input ``config``."""
        scales = [full_scale(config, image.dtype) for image in images]
        dtypes = {image.dtype for image in images}
        shares = np.array([[image.dark, image.bright] for image in images]) / np.array(scales)[:, None]
        dark, low, high = (
            round(float(value), 5) for value in (shares[:, 0].min(), shares[:, 1].min(), shares[:, 1].max())
        )
        same = len(dtypes) == 1
        return TrainingValues(dtypes.pop() if same else "mixed", scales[0] if same else 0.0, dark, (low, high))

    @staticmethod
    def from_dict(values: Mapping[str, Any], where: object = None) -> TrainingValues:
        """The opposite of `to_dict`. where: the file, for messages. Raises `InputError` for other values."""
        try:
            low, high = values["bright"]
            numbers = [float(value) for value in (values["full_scale"], values["dark"], low, high)]
            if not all(map(math.isfinite, numbers)):
                raise ValueError("a number is not finite")
            return TrainingValues(str(values["dtype"]), numbers[0], numbers[1], (numbers[2], numbers[3]))
        except (KeyError, TypeError, ValueError) as error:
            problem = "what this model records about the values of its training images is damaged"
            remedy = "copy the model folder again"
            raise InputError(problem, where=where, got=str(error), remedy=remedy) from error

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"bright": list(self.bright)}


def dtype_scale(dtype: np.dtype | str) -> float:
    """Full scale by the pixel type alone: the largest value of an unsigned integer, 1 for other types."""
    dtype = np.dtype(dtype)
    return float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0


def full_scale(config: InputConfig, dtype: np.dtype | str) -> float:
    """The value of images of a type that counts as full scale for a network, by its recipe alone."""
    if config.full_range is None:
        return dtype_scale(dtype)
    # A mean above 1 is that of 8-bit images in their own values, as in Detectron2.
    return 255.0 * config.full_range if max(config.mean) > 1 else config.full_range


def depth_of(images: Sequence[ImageValues]) -> float | None:
    """The smallest of the usual full scales that covers the values of all images; None if none does.

    Full scale of 8-bit images is 255 whatever their values.

    >>> depth_of([ImageValues("uint16", 2600, 160, 2500)]), depth_of([ImageValues("float32", 155.1, 0.2, 150)])
    (4095.0, 255.0)
    """
    if all(image.dtype == "uint8" for image in images):
        return 255.0
    is_float = any(image.dtype.startswith("float") for image in images)
    highest = max(image.highest for image in images) / (_OVERSHOOT if is_float else 1)
    # Integers are never 0..1, however dark they are.
    return next((scale for scale in FULL_SCALES[0 if is_float else 1 :] if highest <= scale), None)


def input_for(
    image: Image, config: InputConfig, training: TrainingValues | None
) -> tuple[InputConfig, tuple[Note, ...]]:
    """The ``config`` with the value that is full scale in this image, and notes about what was assumed.

    training: the values of the images that the network was trained on; None if they are not known. An image of the same
    type and within the same range has the full scale of the training. For any other image it is the depth that its
    values use, with a note. The config is returned as it is where it says the same.
    """
    if config.normalise == "percentile":
        return config, ()
    return input_for_values(ImageValues.of(image), config, training, image.path or "")


def input_for_values(
    values: ImageValues, config: InputConfig, training: TrainingValues | None, where: str
) -> tuple[InputConfig, tuple[Note, ...]]:
    """`input_for` an image with these values, for fixed normalisation. where: the file."""
    if training is not None and not training.full_scale:
        training = None  # images of several types: each by its own
    expected = full_scale(config, values.dtype) if training is None else training.full_scale
    trained_dtype = ("uint8" if expected == 255 else "uint16") if training is None else training.dtype
    is_known = training is not None or config.full_range is not None
    if is_known and values.dtype == trained_dtype and values.highest <= expected * _OVERSHOOT:
        scale = expected
    else:
        # Without a usual depth, the brightest value counts as full scale.
        scale = depth_of([values]) or values.highest
    notes = []
    if scale != expected and values.dtype != "uint8":
        text = f"its {values.dtype} values up to {values.highest:.5g} were read as 0 to {scale:g}"
        if training is not None:
            text += f"; the model was trained on {training.dtype} images of 0 to {expected:g}"
        notes.append(Note(ASSUMED_RANGE, text, where))
    if training is not None and (text := _misfit(values.bright / scale, training)):
        notes.append(Note(OUTSIDE_RANGE, text, where))
    own = full_scale(config, values.dtype)
    if scale == own:
        return config, tuple(notes)
    return config.model_copy(update={"full_range": scale / own * (config.full_range or own)}), tuple(notes)


def outlier_notes(level: float) -> tuple[Note, ...]:
    """A note about pixels such as hot ones and dust.

    level: the `OUTLIER_PERCENTILE` of the values after percentile normalisation, of the channel with the largest.

    >>> [note.text[:93] for note in outlier_notes(16.0)], outlier_notes(7.5)
    (['a few pixels are far brighter than all others (1 in 10,000 has over 16 times the range of the'], ())
    """
    if level <= MOST_OF_RANGE:
        return ()
    text = (
        f"{OUTLIERS} (1 in 10,000 has over {level:.2g} times the range of the others), such as hot pixels or dust: "
        "objects around them may be missed; cut off such values in the image"
    )
    return (Note(OUTLIERS, text),)


def _misfit(bright: float, training: TrainingValues) -> str:
    """Why an image is unlike the training images, given its brightest values in full scales; "" if it is not."""
    low, high = training.bright
    if low / _MARGIN <= bright <= high * _MARGIN:
        return ""
    return (
        f"it is {'darker' if bright < low else 'brighter'} than the images that the model was trained on: its "
        f"brightest values are {bright:.2g} of full scale, theirs {low:.2g} to {high:.2g}"
    )
