"""What `cellwright plan` measures in a dataset: the facts that decide the choices in `recipe_choices`.

Only training images are measured. Regions that are not annotated count for nothing, neither as area nor as background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError
from cellwright.core.ignored import annotated_px, counted_objects, resolve_ignored
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.core.progress import Track, no_progress
from cellwright.core.text import count
from cellwright.data.images.channels import RGB, UNNAMED, choose_channels
from cellwright.data.images.reading import Reading
from cellwright.data.info import adjacent_objects
from cellwright.measurement.table import shape_columns

Modality = Literal["fluorescence", "stained", "transmitted light"]
# Images whose objects and whose pixels are measured, evenly picked: more change a percentile little.
MAX_IMAGES, MAX_PIXEL_IMAGES = 300, 24
_SAMPLED_PX = 250_000  # of an image
# An object overlaps others if they share so much of it; a pixel or two along an outline are drawn inaccurately.
_OVERLAPPING = 0.1
# Major over minor axis of an elongated object.
_ELONGATED = 2.5
# Colour: the difference between the channels, as a share of the range of the image. Grey saved as RGB has none.
_COLOURED = 0.05
# Fluorescence: the background is dark, and objects are brighter. Values are shares of the range of the image. In phase
# contrast, the background is in the middle, and objects have parts that are darker and parts that are brighter.
_DARK, _BRIGHTER = 0.35, 0.1
# The density of an image with fewer objects says little.
_FEW = 10
# In fewer images than this share, another modality is an exception.
_MIXED = 0.9


@dataclass(frozen=True)
class ObjectFacts:
    """Sizes, shapes and numbers of the objects of the training images.

    Triples are the 5th, 50th and 95th percentile. diameter_px: of circles of the same area. image_diameter_px: of the
    median diameters of the images. box_px: square root of the area of the boxes. length_px: longest side of the boxes.
    class_diameter_px: median by class name, of classes with objects. least_area_px: the 1st percentile.
    elongated_share, overlapping_share, touching_share: of the objects. per_megapixel: objects in the densest image,
    per 10^6 annotated pixels. n_in_largest: objects in the largest image of the dataset, if it is as dense.
    short_side_px: median of the images. annotated_share: of the pixels.
    """

    n_images: int
    n_measured: int
    n_validation: int
    n_objects: int
    class_names: tuple[str, ...]
    diameter_px: tuple[float, float, float]
    image_diameter_px: tuple[float, float, float]
    box_px: tuple[float, float, float]
    length_px: tuple[float, float, float]
    class_diameter_px: dict[str, float]
    least_area_px: float
    elongated_share: float
    overlapping_share: float
    touching_share: float
    per_megapixel: float
    n_in_largest: int
    short_side_px: float
    annotated_share: float


@dataclass(frozen=True)
class PixelFacts:
    """What the training images look like.

    channels: their names, as the network sees them. modality: of most images; modalities: number of images of each.
    dtypes: their pixel types. mean, std: of red, green and blue as shares of full
    range, of 8-bit colour images; else (). notes: what was assumed about the images.
    """

    channels: tuple[str, ...]
    modality: Modality
    modalities: dict[str, int]
    dtypes: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def is_mixed(self) -> bool:
        """Whether many images are of another modality than most."""
        return max(self.modalities.values()) < _MIXED * sum(self.modalities.values())


def training_samples(dataset: Dataset) -> Dataset:
    """The training images. Raises `InputError` if there are none."""
    training = [sample for sample in dataset if sample.split == "train"] if dataset.splits else list(dataset)
    if not training:
        splits = ", ".join(dataset.splits)
        raise InputError(
            "there are no training images to plan a recipe for",
            where=dataset.root,
            got=f"splits {splits}" if splits else "0 images",
            expected="images of the split train, or images without splits",
            remedy="choose some with: cellwright data split",
        )
    return dataset.with_samples(training)


def object_facts(dataset: Dataset, track: Track = no_progress) -> ObjectFacts:
    """Measure the objects of the training images. Raises `InputError` without training images or objects."""
    training = training_samples(dataset)
    measured = [_measured(sample) for sample in track(evenly(training.samples, MAX_IMAGES), "measuring objects")]
    parts = [part for part in measured if len(part.diameters)]
    if not parts:
        raise InputError(
            "the training images have no annotated objects to plan a recipe for",
            where=dataset.root,
            got=count(len(training), "image"),
            remedy="annotate some objects first, for example on the page of cellwright serve",
        )
    class_ids = np.concatenate([part.class_ids for part in parts])
    diameters = np.concatenate([part.diameters for part in parts])
    boxes = np.concatenate([part.boxes for part in parts])
    names = dict(enumerate(dataset.class_names))
    by_class = {names[k]: float(np.median(diameters[class_ids == k])) for k in np.unique(class_ids).tolist()}
    densities = [len(part.diameters) / part.annotated_px * 1e6 for part in parts if len(part.diameters) >= _FEW]
    annotated = sum(part.annotated_px for part in measured)
    density = max(densities, default=len(diameters) / annotated * 1e6)
    largest_px = max(sample.image_hw[0] * sample.image_hw[1] for sample in dataset)
    return ObjectFacts(
        n_images=len(training),
        n_measured=len(measured),
        n_validation=sum(sample.split == "val" for sample in dataset),
        n_objects=len(diameters),
        class_names=dataset.class_names,
        diameter_px=_spread(diameters),
        image_diameter_px=_spread(np.array([np.median(part.diameters) for part in parts])),
        box_px=_spread(np.sqrt(boxes.prod(axis=1))),
        length_px=_spread(boxes.max(axis=1)),
        class_diameter_px=by_class,
        least_area_px=float(np.percentile(np.pi / 4 * diameters**2, 1)),
        elongated_share=float(np.mean(np.concatenate([part.elongation for part in parts]) > _ELONGATED)),
        overlapping_share=float(np.mean(np.concatenate([part.overlapping for part in parts]))),
        touching_share=float(np.mean(np.concatenate([part.touching for part in parts]))),
        per_megapixel=density,
        n_in_largest=max(int(np.ceil(density * largest_px / 1e6)), *(len(part.diameters) for part in parts)),
        short_side_px=float(np.median([min(sample.image_hw) for sample in training])),
        annotated_share=annotated / sum(part.image_px for part in measured),
    )


def evenly(samples: Sequence[Sample], n: int) -> list[Sample]:
    """At most ``n`` samples, evenly picked."""
    picked = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), n)).astype(int))
    return [samples[k] for k in picked]


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, (5, 50, 95)).tolist()
    return low, middle, high


@dataclass(frozen=True)
class _Measured:
    """One image: arrays (N,) of its objects, boxes (N, 2), and numbers of pixels."""

    diameters: np.ndarray
    boxes: np.ndarray
    class_ids: np.ndarray
    elongation: np.ndarray
    overlapping: np.ndarray
    touching: np.ndarray
    annotated_px: int
    image_px: int


def _measured(sample: Sample) -> _Measured:
    everything = sample.read_instances()
    instances = counted_objects(everything)
    instances = instances[instances.masks.areas > 0]
    masks = instances.masks
    shapes = shape_columns(masks)
    i, j, shared = masks.intersections(masks)
    other = i != j
    covered = np.bincount(i[other], shared[other], minlength=len(masks)) / masks.areas
    touching = adjacent_objects(masks.to_label_map(), len(masks)) | (covered > 0)
    return _Measured(
        diameters=shapes["equivalent_diameter_px"],
        boxes=(masks.boxes[:, 2:] - masks.boxes[:, :2]).astype(np.float64),
        class_ids=instances.class_ids,
        elongation=shapes["major_axis_px"] / np.maximum(shapes["minor_axis_px"], 1),
        overlapping=covered >= _OVERLAPPING,
        touching=touching,
        annotated_px=annotated_px(everything),
        image_px=instances.image_hw[0] * instances.image_hw[1],
    )


# --- pixels -------------------------------------------------------------------------------------------------------


def pixel_facts(dataset: Dataset, reading: Reading, track: Track = no_progress) -> PixelFacts:
    """Look at the pixels of some training images, with their annotations.

    reading: which part of each file is used. Raises `InputError` if the images have different channels, and for one
    that cannot be read.
    """
    training = training_samples(dataset)
    modalities: Counter[Modality] = Counter()
    channels: dict[tuple[str, ...], Sample] = {}
    seen = []
    for sample in track(evenly(training.samples, MAX_PIXEL_IMAGES), "looking at images"):
        image = read_sample(sample, reading)
        channels.setdefault(image.without_alpha().channels, sample)
        seen.append(_look(image, sample.read_instances()))
        modalities[seen[-1].modality] += 1
    _check_channels(channels)
    modality, _ = max(modalities.items(), key=lambda item: item[1])
    means = np.array([look.mean for look in seen if len(look.mean)]).reshape(-1, 3)
    is_plain = len(means) == len(seen) and all(look.dtype == "uint8" for look in seen)
    stds = np.array([look.std for look in seen]) if is_plain else np.zeros((0, 3))
    return PixelFacts(
        channels=next(iter(channels)),
        modality=modality,
        modalities=dict[str, int](modalities.most_common()),
        dtypes=tuple(sorted({look.dtype for look in seen})),
        mean=_rounded(means.mean(axis=0)) if is_plain else (),
        std=_rounded(np.sqrt((stds**2 + (means - means.mean(axis=0)) ** 2).mean(axis=0))) if is_plain else (),
        notes=tuple(note for look in seen for note in look.notes),
    )


def read_sample(sample: Sample, reading: Reading) -> Image:
    """The image of a sample with the channels that a network sees. Raises `InputError` for one that has none."""
    if sample.image_path is None:
        remedy = "use the dataset itself, not a file of results"
        raise InputError("this sample has no image to train on", where=sample.id, remedy=remedy)
    return choose_channels(
        reading.of(sample).read(sample.image_path), reading.channels, max(len(reading.channels), len(RGB))
    )


def _check_channels(channels: dict[tuple[str, ...], Sample]) -> None:
    """Grey and RGB images can be mixed; other channels must be the same in all."""
    if len(channels) < 2 or set(channels) <= {RGB, (UNNAMED,)}:
        return
    shown = [f"{', '.join(names)} in {sample.id}" for names, sample in channels.items()]
    raise InputError(
        "the training images have different channels",
        got="; ".join(shown[:4]),
        expected="the same channels in all images",
        remedy='choose one with `channel`, such as `channel="DAPI|Hoechst"`, or convert them separately',
    )


@dataclass(frozen=True)
class _Look:
    """What one image looks like; mean and std (3,) of an RGB image, else empty."""

    modality: Modality
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[Note, ...]


def _look(image: Image, everything: Instances) -> _Look:
    opaque = image.without_alpha()
    step = max(round((opaque.image_hw[0] * opaque.image_hw[1] / _SAMPLED_PX) ** 0.5), 1)
    data = opaque.data[::step, ::step].astype(np.float32)
    low, high = np.percentile(data, (1, 99.8))
    span = max(float(high - low), 1e-9)
    is_rgb = opaque.channels == RGB
    is_colour = bool(is_rgb and np.mean(data.max(axis=2) - data.min(axis=2)) > _COLOURED * span)
    grey = (data.mean(axis=2) - low) / span
    resolved = resolve_ignored(everything)
    ignored = resolved.masks[resolved.ignore].foreground()[::step, ::step].astype(bool)
    objects = resolved.masks[~resolved.ignore].foreground()[::step, ::step].astype(bool)
    outside = ~(objects | ignored)
    background = float(np.median(grey[outside])) if outside.any() else float(np.median(grey))
    inside = float(np.median(grey[objects])) if objects.any() else background
    modality: Modality = "transmitted light"
    if background < _DARK and inside > background + _BRIGHTER:
        modality = "fluorescence"
    elif is_colour:
        modality = "stained"
    full = 255.0 if image.data.dtype == np.uint8 else 0.0
    mean = tuple((data.mean(axis=(0, 1)) / full).tolist()) if is_rgb and full else ()
    std = tuple((data.std(axis=(0, 1)) / full).tolist()) if is_rgb and full else ()
    return _Look(modality, str(image.data.dtype), mean, std, image.notes)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(max(float(value), 0.01), 2) for value in values)
