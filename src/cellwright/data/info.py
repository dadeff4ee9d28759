"""Statistics of a dataset: `describe_dataset`. Objects are read once; of images only the headers are read."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.ignored import annotated_px, counted_objects
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress
from cellwright.core.text import count
from cellwright.data.images.read import image_header
from cellwright.data.images.reading import Reading

QUANTILES = (5, 25, 50, 75, 95)
NO_SPLIT = "(none)"


@dataclass(frozen=True)
class Quantiles:
    """The 5th, 25th, 50th, 75th and 95th percentile of a quantity, and its smallest and largest value."""

    least: float
    percentiles: tuple[float, ...]
    greatest: float

    @staticmethod
    def of(values: np.ndarray) -> Quantiles | None:
        """The quantiles of values (n,), or None without values."""
        if not values.size:
            return None
        middle = tuple(float(v) for v in np.percentile(values, QUANTILES))
        return Quantiles(float(values.min()), middle, float(values.max()))

    def __str__(self) -> str:
        inner = " / ".join(f"{value:.3g}" for value in self.percentiles)
        return f"{inner}   (from {self.least:.4g} to {self.greatest:.4g})"


@dataclass(frozen=True)
class SplitInfo:
    """Numbers of images and objects of one split, and of objects per class."""

    n_images: int
    n_objects: int
    by_class: dict[str, int]


@dataclass(frozen=True)
class DatasetInfo:
    """Counts and distributions of a dataset. A distribution without values is None.

    by_class: objects per class name. splits: per split name (NO_SPLIT for samples without a split).
    diameter_px: diameter of the circle of the same area, sqrt(4 area / pi), of objects that are not empty.
    diameter_um: the same for images with a known pixel size.
    objects_per_image, objects_per_megapixel: distributions over the images.
    foreground_share: share of the pixels that belong to an object.
    n_overlapping: objects that share a pixel with another object.
    touching_share: share of the objects that share a pixel with another object or are adjacent to one (8-connected).
    image_sizes, pixel_types: number of images of each size and pixel type.
    """

    n_images: int
    n_objects: int
    n_images_without_objects: int
    n_ignored: int
    ignored_share: float
    n_empty_masks: int
    by_class: dict[str, int]
    splits: dict[str, SplitInfo]
    n_groups: int
    diameter_px: Quantiles | None
    diameter_um: Quantiles | None
    objects_per_image: Quantiles | None
    objects_per_megapixel: Quantiles | None
    foreground_share: float
    n_overlapping: int
    touching_share: float | None
    image_sizes: dict[str, int]
    pixel_types: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """All values as a dictionary for JSON."""
        return dataclasses.asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each row of the printed table."""
        share = "-" if self.touching_share is None else f"{self.touching_share:.1%}"
        rows = [
            ("images", f"{self.n_images} ({self.n_images_without_objects} without objects)"),
            ("objects", f"{self.n_objects} ({self.n_empty_masks} empty)"),
            ("not annotated", f"{self.ignored_share:.1%} of the pixels" if self.n_ignored else "-"),
            *((f"class {name}", _with_share(n, self.n_objects)) for name, n in self.by_class.items()),
            *((f"split {name}", _split_row(split)) for name, split in self.splits.items()),
            ("groups", str(self.n_groups) if self.n_groups else "-"),
            ("percentiles", " / ".join(map(str, QUANTILES))),
            ("diameter, px", str(self.diameter_px or "-")),
            ("diameter, um", str(self.diameter_um or "-")),
            ("objects per image", str(self.objects_per_image or "-")),
            ("objects per megapixel", str(self.objects_per_megapixel or "-")),
            ("foreground", f"{self.foreground_share:.1%}"),
            ("overlapping", _with_share(self.n_overlapping, self.n_objects)),
            ("touching", share),
            ("image sizes, h x w", _counted(self.image_sizes)),
            ("pixels", _counted(self.pixel_types)),
        ]
        return [row for row in rows if row[1] != "-"]


def describe_dataset(dataset: Dataset, *, track: Track = no_progress) -> DatasetInfo:
    """The statistics of a dataset. Raises the error of the first sample that cannot be read."""
    tracked = track(dataset.samples, "measuring", total=len(dataset))
    series = Reading.recorded(dataset.info).series
    measured = [_measure(sample, len(dataset.class_names), series) for sample in tracked]
    names = dataset.class_names
    by_class = sum((part.by_class for part in measured), np.zeros(len(names), np.int64))
    counts = np.array([part.n_objects for part in measured], np.int64)
    megapixels = np.array([part.annotated_px / 1e6 for part in measured])
    all_px = sum(sample.image_hw[0] * sample.image_hw[1] for sample in dataset)
    n_objects = int(counts.sum())
    n_touching = sum(part.n_touching for part in measured)
    return DatasetInfo(
        n_images=len(dataset),
        n_objects=n_objects,
        n_images_without_objects=int((counts == 0).sum()),
        n_ignored=sum(part.n_ignored for part in measured),
        ignored_share=1 - 1e6 * float(megapixels.sum()) / max(all_px, 1),
        n_empty_masks=sum(part.n_empty for part in measured),
        by_class=dict(zip(names, by_class.tolist(), strict=True)),
        splits=_splits(dataset, measured),
        n_groups=len({sample.group for sample in dataset if sample.group is not None}),
        diameter_px=Quantiles.of(_joined([part.diameters_px for part in measured])),
        diameter_um=Quantiles.of(_joined([part.diameters_um for part in measured])),
        objects_per_image=Quantiles.of(counts),
        objects_per_megapixel=Quantiles.of(counts[megapixels > 0] / megapixels[megapixels > 0]),
        foreground_share=sum(part.foreground_px for part in measured) / 1e6 / max(float(megapixels.sum()), 1e-6),
        n_overlapping=sum(part.n_overlapping for part in measured),
        touching_share=n_touching / n_objects if n_objects else None,
        image_sizes=dict(Counter(f"{h} x {w}" for h, w in (s.image_hw for s in dataset)).most_common()),
        pixel_types=dict(Counter(part.pixel_type for part in measured).most_common()),
    )


@dataclass(frozen=True)
class _SampleCounts:
    """The contribution of one sample to the statistics."""

    n_objects: int
    by_class: np.ndarray
    n_ignored: int
    annotated_px: int
    n_empty: int
    diameters_px: np.ndarray
    diameters_um: np.ndarray
    foreground_px: int
    n_overlapping: int
    n_touching: int
    pixel_type: str


def _measure(sample: Sample, n_classes: int, series: int | str | None) -> _SampleCounts:
    everything = sample.read_instances()
    instances = counted_objects(everything)
    areas = instances.masks.areas
    diameters = np.sqrt(4 * areas[areas > 0] / np.pi)
    micron = np.sqrt(sample.pixel_size_um[0] * sample.pixel_size_um[1]) if sample.pixel_size_um else None
    overlapping = _overlapping(instances)
    labels = instances.masks.to_label_map()
    return _SampleCounts(
        n_objects=len(instances),
        by_class=np.bincount(instances.class_ids, minlength=n_classes)[:n_classes],
        n_ignored=int(everything.ignore.sum()),
        annotated_px=annotated_px(everything),
        n_empty=int((areas == 0).sum()),
        diameters_px=diameters,
        diameters_um=diameters * micron if micron is not None else np.zeros(0),
        foreground_px=int(np.count_nonzero(labels)),
        n_overlapping=int(overlapping.sum()),
        n_touching=int((overlapping | adjacent_objects(labels, len(instances))).sum()),
        pixel_type=_pixel_type(sample, series),
    )


def _overlapping(instances: Instances) -> np.ndarray:
    """Which objects share a pixel with another object: (N,) bool."""
    i, j, _ = instances.masks.intersections(instances.masks)
    shared = np.zeros(len(instances), bool)
    shared[i[i != j]] = True
    return shared


def adjacent_objects(labels: np.ndarray, n_objects: int) -> np.ndarray:
    """Which labels 1..N of a label array (H, W) are adjacent to another label (8-connected): (N,) bool."""
    touching = np.zeros(n_objects + 1, bool)
    shifted = (
        (labels[:, :-1], labels[:, 1:]),
        (labels[:-1], labels[1:]),
        (labels[:-1, :-1], labels[1:, 1:]),
        (labels[:-1, 1:], labels[1:, :-1]),
    )
    for first, second in shifted:
        meet = (first != second) & (first != 0) & (second != 0)
        touching[first[meet]] = True
        touching[second[meet]] = True
    return touching[1:]


def _pixel_type(sample: Sample, series: int | str | None) -> str:
    if sample.image_path is None:
        return "no image file"
    header = image_header(sample.image_path, series)
    channels = count(header.n_channels - header.has_alpha, "channel")
    return f"{header.bits} bit, {channels}{' and transparency, which is not used' if header.has_alpha else ''}"


def _splits(dataset: Dataset, measured: list[_SampleCounts]) -> dict[str, SplitInfo]:
    splits = {}
    for name in dict.fromkeys(sample.split for sample in dataset):
        chosen = [part for sample, part in zip(dataset, measured, strict=True) if sample.split == name]
        by_class = sum((part.by_class for part in chosen), np.zeros(len(dataset.class_names), np.int64))
        splits[name or NO_SPLIT] = SplitInfo(
            len(chosen),
            sum(part.n_objects for part in chosen),
            dict(zip(dataset.class_names, by_class.tolist(), strict=True)),
        )
    return splits


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _with_share(n: int, total: int) -> str:
    return f"{n} ({n / total:.1%})" if total else str(n)


def _split_row(split: SplitInfo) -> str:
    classes = ", ".join(f"{name} {n}" for name, n in split.by_class.items())
    text = f"{count(split.n_images, 'image')}, {count(split.n_objects, 'object')}"
    return f"{text} ({classes})" if len(split.by_class) > 1 else text


def _counted(counts: dict[str, int]) -> str:
    shown = [f"{name} ({n})" for name, n in list(counts.items())[:6]]
    return ", ".join(shown) + (f", and {len(counts) - 6} more" if len(counts) > 6 else "")
