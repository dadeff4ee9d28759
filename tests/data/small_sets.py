"""Small datasets in memory for the tests of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet


def squares(corners: Sequence[tuple[int, int]], side: int, image_hw: tuple[int, int]) -> MaskSet:
    """Square masks with the given top-left corners (y, x)."""
    boxes = np.array([(x, y, x + side, y + side) for y, x in corners], np.int32).reshape(-1, 4)
    return MaskSet.from_crops(boxes, [np.ones((side, side), bool)] * len(corners), image_hw)


def counted_dataset(counts: Sequence[Sequence[int]], groups: Sequence[str | None] | None = None) -> Dataset:
    """Samples ``s0``, ``s1`` of 100 x 100 px with ``counts[k][c]`` one-pixel objects of class c, without images."""
    samples = []
    for k, by_class in enumerate(counts):
        class_ids = np.repeat(np.arange(len(by_class)), by_class)
        corners = [(i // 100, i % 100) for i in range(len(class_ids))]
        instances = Instances.from_masks(squares(corners, 1, (100, 100)), class_ids=class_ids)
        group = groups[k] if groups is not None else None
        samples.append(Sample(f"s{k}", None, (100, 100), Loaded(instances), k + 1, group=group))
    return Dataset(tuple(samples), tuple(f"c{c}" for c in range(len(counts[0]))))


def drawn_sample(folder: Path, name: str, instances: Instances, seed: int) -> Sample:
    """A sample whose image is random noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*instances.image_hw, 3), np.uint8)
    path = folder / f"{name}.png"
    Pillow.fromarray(pixels).save(path)
    return Sample(name, path, instances.image_hw, Loaded(instances))
