"""Decode a training sample once: its image and label layers, kept in memory as far as the limit allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellwright.config.input import DataConfig, InputConfig
from cellwright.core.dataset import Sample
from cellwright.core.errors import InputError
from cellwright.core.image import Image
from cellwright.data.augment import Frame
from cellwright.data.images.read import read_image
from cellwright.data.labels import Labels, filter_areas
from cellwright.data.network_input import ResizeRule, diameter_scale, to_network


@dataclass(frozen=True)
class Decoded:
    """A sample in memory, before augmentation.

    Attributes:
        pixels: (H, W, C); the file's own dtype, or float32 network input where ``is_normalised``. No alpha.
        channels: C names.
        is_normalised: whether `to_network` has been applied. It is where normalisation looks at the whole image
            (percentiles), so that a crop is normalised as the image it was cut from.
        labels: the objects, after the recipe's filters.
    """

    pixels: np.ndarray
    channels: tuple[str, ...]
    is_normalised: bool
    labels: Labels

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, bytes."""
        return self.pixels.nbytes + self.labels.nbytes


def decode_sample(sample: Sample, input_config: InputConfig, data_config: DataConfig) -> Decoded:
    """Read image and objects of ``sample``.

    Raises `InputError` naming the sample where it has no image, the image cannot be read, or image and objects differ
    in size.
    """
    if sample.image_path is None:
        raise InputError(
            "this sample has no image to train on",
            where=sample.id,
            remedy="give the dataset itself, not a file of results",
        )
    image = read_image(sample.image_path)
    instances = sample.read_instances()
    if instances.image_hw != image.image_hw:
        raise InputError(
            "an image and its objects differ in size",
            where=f"sample {sample.id} ({sample.image_path})",
            got=f"image {image.image_hw}, objects {instances.image_hw} (height, width)",
            remedy="run cellwright data check, and mend or remove this sample",
        )
    labels = Labels.from_instances(instances, min_area_px=data_config.min_area_px, max_area_px=data_config.max_area_px)
    if input_config.normalise == "percentile":
        pixels = np.ascontiguousarray(to_network(image, input_config).transpose(1, 2, 0))
        return Decoded(pixels, tuple(f"c{i}" for i in range(pixels.shape[2])), True, labels)
    pixels, channels = image.data, image.channels
    if len(channels) > 1 and channels[-1] == "A":
        pixels, channels = pixels[:, :, :-1], channels[:-1]
    return Decoded(np.ascontiguousarray(pixels), channels, False, labels)


def network_pixels(pixels: np.ndarray, decoded: Decoded, input_config: InputConfig) -> np.ndarray:
    """(C, h, w) float32 network input of ``pixels`` (h, w, C), a crop or warp of ``decoded.pixels``."""
    if decoded.is_normalised:
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return np.ascontiguousarray(to_network(Image(pixels, decoded.channels), input_config))


def frame_of(decoded: Decoded, input_config: InputConfig, rule: ResizeRule) -> Frame:
    """What the network asks of ``decoded`` before it is augmented; a sample without objects keeps its size."""
    areas = decoded.labels.areas[~decoded.labels.ignore]
    scale = diameter_scale(2 * float(np.sqrt(np.median(areas) / np.pi)), input_config) if len(areas) else 1.0
    return Frame(input_config, rule, padding_pixel(decoded, input_config), scale)


def padding_pixel(decoded: Decoded, input_config: InputConfig) -> tuple[float, ...]:
    """(C,) the pixel of ``decoded`` that becomes 0 in the network's input, as the padding of a batch is."""
    n_channels = decoded.pixels.shape[2]
    if decoded.is_normalised:
        return (0.0,) * n_channels
    full = input_config.full_range
    if full is None:
        full = float(np.iinfo(decoded.pixels.dtype).max) if decoded.pixels.dtype.kind == "u" else 1.0
    mean = input_config.mean[::-1] if input_config.colour_order == "bgr" else input_config.mean
    if len(mean) != n_channels:
        # Grey that is repeated, or colour that becomes grey: one value for all.
        mean = (sum(mean) / len(mean),) * n_channels
    return tuple(full * value for value in mean)


def trained_classes(sample: Sample, data_config: DataConfig) -> np.ndarray:
    """(n,) int64: class ids of the objects of ``sample`` that are targets, after the recipe's filters."""
    instances = sample.read_instances()
    fits = filter_areas(instances.masks.areas, data_config.min_area_px, data_config.max_area_px)
    return instances.class_ids[fits & ~instances.ignore]


class DecodeCache:
    """Decoded samples of one process, first come, until ``limit_bytes`` are full.

    Nothing is thrown out: in shuffled order every sample is as likely to be next as any other. A copy that is sent to
    another process starts empty, so a process that is spawned is not sent gigabytes.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: dict[int, Decoded] = {}
        self._used_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __getstate__(self) -> dict[str, object]:
        return {"limit_bytes": self.limit_bytes, "_kept": {}, "_used_bytes": 0}

    def get(self, index: int) -> Decoded | None:
        """The sample at ``index``, or None where it is not kept."""
        return self._kept.get(index)

    def offer(self, index: int, decoded: Decoded) -> None:
        """Keep ``decoded`` if there is room."""
        if index not in self._kept and self._used_bytes + decoded.nbytes <= self.limit_bytes:
            self._kept[index] = decoded
            self._used_bytes += decoded.nbytes
