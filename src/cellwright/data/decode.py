"""Decode a training sample: read its image and objects, and cache them in memory up to a limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellwright.config.conventions import ResizeRule
from cellwright.config.input import DataConfig, InputConfig
from cellwright.core.dataset import Sample
from cellwright.core.errors import InputError
from cellwright.core.ignored import counted_objects
from cellwright.core.image import Image
from cellwright.data.augment import Frame, WholeImage
from cellwright.data.images.channels import choose_channels
from cellwright.data.images.reading import Reading
from cellwright.data.labels import Labels, filter_areas
from cellwright.data.network_input import diameter_scale, to_network
from cellwright.data.value_range import dtype_scale


@dataclass(frozen=True)
class Decoded:
    """A sample in memory, before augmentation.

    Attributes:
        pixels: (H, W, C) without alpha; in the dtype of the file, or float32 network input if ``is_normalised``.
        channels: C names.
        is_normalised: whether `to_network` has been applied. This is the case for normalisation by percentiles of the
            whole image, so that a crop is normalised like the image that it is cut from.
        labels: the objects, after the filters of the recipe.
        whole: what normalisation needs of the whole image after a change; None if not ``is_normalised``.
    """

    pixels: np.ndarray
    channels: tuple[str, ...]
    is_normalised: bool
    labels: Labels
    whole: WholeImage | None = None

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, in bytes."""
        return self.pixels.nbytes + self.labels.nbytes + (0 if self.whole is None else self.whole.sample.nbytes)


def decode_sample(
    sample: Sample,
    input_config: InputConfig,
    data_config: DataConfig,
    reading: Reading = Reading(),  # noqa: B008 - frozen
) -> Decoded:
    """Read the image and the objects of a sample.

    reading: the plane, time point and image of the file; the channels are those of ``input_config``.

    Raises `InputError` that names the sample if it has no image, if the image cannot be read, or if the image and the
    objects differ in size.
    """
    if sample.image_path is None:
        raise InputError(
            "this sample has no image to train on",
            where=sample.id,
            remedy="use the dataset itself, not a file of results",
        )
    image = choose_channels(reading.of(sample).read(sample.image_path), input_config.channel, input_config.channels)
    instances = sample.read_instances()
    if instances.image_hw != image.image_hw:
        raise InputError(
            "an image and its objects differ in size",
            where=f"sample {sample.id} ({sample.image_path})",
            got=f"image {image.image_hw}, objects {instances.image_hw} (height, width)",
            remedy="run cellwright data check, and fix or remove this sample",
        )
    labels = Labels.from_instances(instances, min_area_px=data_config.min_area_px, max_area_px=data_config.max_area_px)
    if input_config.normalise == "percentile":
        pixels = np.ascontiguousarray(to_network(image, input_config).transpose(1, 2, 0))
        names = tuple(f"c{i}" for i in range(pixels.shape[2]))
        return Decoded(pixels, names, True, labels, WholeImage.of(pixels, image.without_alpha().data))
    opaque = image.without_alpha()
    return Decoded(np.ascontiguousarray(opaque.data), opaque.channels, False, labels)


def network_pixels(pixels: np.ndarray, decoded: Decoded, input_config: InputConfig) -> np.ndarray:
    """Network input (C, h, w) float32 from ``pixels`` (h, w, C), a crop or warp of ``decoded.pixels``."""
    if decoded.is_normalised:
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return np.ascontiguousarray(to_network(Image(pixels, decoded.channels), input_config))


def frame_of(decoded: Decoded, input_config: InputConfig, rule: ResizeRule) -> Frame:
    """The `Frame` for augmenting a sample. With ``diameter_px``, a sample without objects keeps its size."""
    areas = decoded.labels.areas[~decoded.labels.ignore]
    scale = diameter_scale(2 * float(np.sqrt(np.median(areas) / np.pi)), input_config) if len(areas) else 1.0
    return Frame(input_config, rule, padding_pixel(decoded, input_config), scale, decoded.whole)


def padding_pixel(decoded: Decoded, input_config: InputConfig) -> tuple[float, ...]:
    """The pixel (C,) of ``decoded`` that becomes 0 in the network input, like the padding of a batch."""
    n_channels = decoded.pixels.shape[2]
    if decoded.is_normalised:
        return (0.0,) * n_channels
    full = input_config.full_range or dtype_scale(decoded.pixels.dtype)
    mean = input_config.mean[::-1] if input_config.colour_order == "bgr" else input_config.mean
    if len(mean) != n_channels:
        # Greyscale that is repeated, or colour that is converted to greyscale: the same value for all channels.
        mean = (sum(mean) / len(mean),) * n_channels
    return tuple(full * value for value in mean)


def trained_classes(sample: Sample, data_config: DataConfig) -> np.ndarray:
    """Class ids (n,) int64 of the objects of a sample that are training targets, after the filters of the recipe."""
    instances = counted_objects(sample.read_instances())
    fits = filter_areas(instances.masks.areas, data_config.min_area_px, data_config.max_area_px)
    return instances.class_ids[fits]


class DecodeCache:
    """The decoded samples of one process: the first ones, up to ``limit_bytes``.

    No sample is evicted: in random order every sample is equally likely to be needed next. A copy that is sent to
    another process is empty, so that starting a process does not transfer gigabytes.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._samples: dict[int, Decoded] = {}
        self._used_bytes = 0

    def __len__(self) -> int:
        return len(self._samples)

    def __getstate__(self) -> dict[str, object]:
        return {"limit_bytes": self.limit_bytes, "_samples": {}, "_used_bytes": 0}

    def get(self, index: int) -> Decoded | None:
        """The sample at ``index``, or None if it is not cached."""
        return self._samples.get(index)

    def offer(self, index: int, decoded: Decoded) -> None:
        """Cache ``decoded`` if there is room."""
        if index not in self._samples and self._used_bytes + decoded.nbytes <= self.limit_bytes:
            self._samples[index] = decoded
            self._used_bytes += decoded.nbytes
