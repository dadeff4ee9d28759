"""What a dataset holds, in numbers: `describe_dataset`. One pass; images are opened for their headers only."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.read import image_header

QUANTILES = (5, 25, 50, 75, 95)
NO_SPLIT = "(none)"


@dataclass(frozen=True)
class Quantiles:
    """The 5th, 25th, 50th, 75th and 95th percentile of a quantity, its least and its greatest value."""

    least: float
    percentiles: tuple[float, ...]
    greatest: float

    @staticmethod
    def of(values: np.ndarray) -> Quantiles | None:
        """Of values (n,); None where there is none."""
        if not values.size:
            return None
        middle = tuple(float(v) for v in np.percentile(values, QUANTILES))
        return Quantiles(float(values.min()), middle, float(values.max()))

    def __str__(self) -> str:
        inner = " / ".join(f"{value:.3g}" for value in self.percentiles)
        return f"{inner}   (from {self.least:.4g} to {self.greatest:.4g})"


@dataclass(frozen=True)
class SplitInfo:
    """Images and objects of one split, objects also by class."""

    n_images: int
    n_objects: int
    by_class: dict[str, int]


@dataclass(frozen=True)
class DatasetInfo:
    """Counts and distributions of a dataset. A quantity of which there is no value is None.

    by_class, splits: objects by class name; by split name (NO_SPLIT for samples without one).
    diameter_px: equivalent circle, sqrt(4 area / pi), of objects with a pixel; ``diameter_um`` where pixel sizes are
        known. objects_per_image, objects_per_megapixel: over images.
    foreground_share: pixels in any object over all pixels.
    n_overlapping: objects that share a pixel with another. touching_share: share of objects that have a pixel of
        another object among the eight neighbours of their pixels, or share one.
    image_sizes, pixel_types: how many images of each.
    """

    n_images: int
    n_objects: int
    n_images_without_objects: int
    n_ignored: int
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
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of every line of the printed table."""
        share = "-" if self.touching_share is None else f"{self.touching_share:.1%}"
        rows = [
            ("images", f"{self.n_images} ({self.n_images_without_objects} without objects)"),
            ("objects", f"{self.n_objects} ({self.n_ignored} ignored, {self.n_empty_masks} empty)"),
            *((f"class {name}", _part(count, self.n_objects)) for name, count in self.by_class.items()),
            *((f"split {name}", _split_row(split)) for name, split in self.splits.items()),
            ("groups", str(self.n_groups) if self.n_groups else "-"),
            ("percentiles", " / ".join(map(str, QUANTILES))),
            ("diameter, px", str(self.diameter_px or "-")),
            ("diameter, um", str(self.diameter_um or "-")),
            ("objects an image", str(self.objects_per_image or "-")),
            ("objects a megapixel", str(self.objects_per_megapixel or "-")),
            ("foreground", f"{self.foreground_share:.1%}"),
            ("overlapping", _part(self.n_overlapping, self.n_objects)),
            ("touching", share),
            ("image sizes, h x w", _counted(self.image_sizes)),
            ("pixels", _counted(self.pixel_types)),
        ]
        return [row for row in rows if row[1] != "-"]


def describe_dataset(dataset: Dataset, *, track: Track = no_progress) -> DatasetInfo:
    """Measure a dataset. Raises what a sample's reader raises; ``cellwright data check`` lists all such samples."""
    measured = [
        _measure(sample, len(dataset.class_names)) for sample in track(dataset.samples, "measuring", total=len(dataset))
    ]
    names = dataset.class_names
    by_class = sum((one.by_class for one in measured), np.zeros(len(names), np.int64))
    counts = np.array([one.n_objects for one in measured], np.int64)
    megapixels = np.array([sample.image_hw[0] * sample.image_hw[1] / 1e6 for sample in dataset])
    n_objects = int(counts.sum())
    n_touching = sum(one.n_touching for one in measured)
    return DatasetInfo(
        n_images=len(dataset),
        n_objects=n_objects,
        n_images_without_objects=int((counts == 0).sum()),
        n_ignored=sum(one.n_ignored for one in measured),
        n_empty_masks=sum(one.n_empty for one in measured),
        by_class=dict(zip(names, by_class.tolist(), strict=True)),
        splits=_splits(dataset, measured),
        n_groups=len({sample.group for sample in dataset if sample.group is not None}),
        diameter_px=Quantiles.of(_joined([one.diameters_px for one in measured])),
        diameter_um=Quantiles.of(_joined([one.diameters_um for one in measured])),
        objects_per_image=Quantiles.of(counts),
        objects_per_megapixel=Quantiles.of(counts / megapixels),
        foreground_share=sum(one.foreground_px for one in measured) / 1e6 / max(float(megapixels.sum()), 1e-6),
        n_overlapping=sum(one.n_overlapping for one in measured),
        touching_share=n_touching / n_objects if n_objects else None,
        image_sizes=dict(Counter(f"{h} x {w}" for h, w in (s.image_hw for s in dataset)).most_common()),
        pixel_types=dict(Counter(one.pixel_type for one in measured).most_common()),
    )


@dataclass(frozen=True)
class _Measured:
    """What one sample adds to the sums."""

    n_objects: int
    by_class: np.ndarray
    n_ignored: int
    n_empty: int
    diameters_px: np.ndarray
    diameters_um: np.ndarray
    foreground_px: int
    n_overlapping: int
    n_touching: int
    pixel_type: str


def _measure(sample: Sample, n_classes: int) -> _Measured:
    instances = sample.read_instances()
    areas = instances.masks.areas
    diameters = np.sqrt(4 * areas[areas > 0] / np.pi)
    micron = np.sqrt(sample.pixel_size_um[0] * sample.pixel_size_um[1]) if sample.pixel_size_um else None
    overlapping = _overlapping(instances)
    labels = instances.masks.to_label_map()
    return _Measured(
        n_objects=len(instances),
        by_class=np.bincount(instances.class_ids, minlength=n_classes)[:n_classes],
        n_ignored=int(instances.ignore.sum()),
        n_empty=int((areas == 0).sum()),
        diameters_px=diameters,
        diameters_um=diameters * micron if micron is not None else np.zeros(0),
        foreground_px=int(np.count_nonzero(labels)),
        n_overlapping=int(overlapping.sum()),
        n_touching=int((overlapping | adjacent_objects(labels, len(instances))).sum()),
        pixel_type=_pixel_type(sample),
    )


def _overlapping(instances: Instances) -> np.ndarray:
    """Which objects (N,) bool share a pixel with another."""
    i, j, _ = instances.masks.intersections(instances.masks)
    shared = np.zeros(len(instances), bool)
    shared[i[i != j]] = True
    return shared


def adjacent_objects(labels: np.ndarray, n_objects: int) -> np.ndarray:
    """Which labels 1..N of a label map (H, W) have another label among the eight neighbours of a pixel: (N,) bool."""
    touching = np.zeros(n_objects + 1, bool)
    shifted = (
        (labels[:, :-1], labels[:, 1:]),
        (labels[:-1], labels[1:]),
        (labels[:-1, :-1], labels[1:, 1:]),
        (labels[:-1, 1:], labels[1:, :-1]),
    )
    for one, other in shifted:
        meet = (one != other) & (one != 0) & (other != 0)
        touching[one[meet]] = True
        touching[other[meet]] = True
    return touching[1:]


def _pixel_type(sample: Sample) -> str:
    if sample.image_path is None:
        return "no image file"
    header = image_header(sample.image_path)
    return f"{header.bits} bit, {header.n_channels} channel{'' if header.n_channels == 1 else 's'}"


def _splits(dataset: Dataset, measured: list[_Measured]) -> dict[str, SplitInfo]:
    splits = {}
    for name in dict.fromkeys(sample.split for sample in dataset):
        chosen = [one for sample, one in zip(dataset, measured, strict=True) if sample.split == name]
        by_class = sum((one.by_class for one in chosen), np.zeros(len(dataset.class_names), np.int64))
        splits[name or NO_SPLIT] = SplitInfo(
            len(chosen),
            sum(one.n_objects for one in chosen),
            dict(zip(dataset.class_names, by_class.tolist(), strict=True)),
        )
    return splits


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _part(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else str(count)


def _split_row(split: SplitInfo) -> str:
    classes = ", ".join(f"{name} {count}" for name, count in split.by_class.items())
    return f"{split.n_images} images, {split.n_objects} objects" + (f" ({classes})" if len(split.by_class) > 1 else "")


def _counted(counts: dict[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:6]]
    return ", ".join(shown) + (f", and {len(counts) - 6} more" if len(counts) > 6 else "")
