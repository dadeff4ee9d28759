"""Drawn objects, and checks of objects: what the suites have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet

CLASS_NAMES = ("Tumor: Positive", "lymphozyt ä")


def expect(condition: object, message: str) -> None:
    """Raise `AssertionError` with ``message`` unless ``condition`` is true."""
    if not condition:
        raise AssertionError(message)


def draw_shapes(rng: np.random.Generator, image_hw: tuple[int, int], n: int) -> np.ndarray:
    """Masks (n, H, W) bool: ellipses, every third with a hole, every fourth in two parts, some cut by the border."""
    height, width = image_hw
    y, x = np.mgrid[:height, :width] + 0.5
    masks = np.zeros((n, height, width), bool)
    for k in range(n):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        a, b = rng.uniform(2, 7, 2)
        r = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2
        masks[k] = (r <= 1) & ~((r < 0.2) & (k % 3 == 0))
        if k % 4 == 1:
            masks[k] |= (abs(y - (cy + 9) % height) < 2) & (abs(x - (cx + 12) % width) < 2)
        masks[k, int(cy), int(cx)] = True
    return masks


def draw_objects(
    seed: int, *, image_hw: tuple[int, int] = (41, 58), n: int = 9, overlaps: bool, scored: bool, n_classes: int = 2
) -> Instances:
    """Random objects whose ids have gaps and are in no particular order; the same for the same ``seed``."""
    rng = np.random.default_rng([7, seed])
    dense = draw_shapes(rng, image_hw, n)
    if not overlaps:
        taken = np.zeros(image_hw, bool)
        for k in range(n):
            dense[k] &= ~taken
            taken |= dense[k]
        dense = dense[dense.any((1, 2))]
    n = len(dense)
    ignore = np.zeros(n, bool)
    ignore[:1] = not scored
    return Instances.from_masks(
        MaskSet.from_dense(dense) if n else MaskSet.empty(image_hw),
        ids=rng.permutation(np.arange(1, 4 * n, 3))[:n],
        class_ids=rng.integers(0, n_classes, n),
        scores=rng.permutation(np.linspace(0.1, 0.9, n)).astype(np.float32) if scored else None,
        ignore=ignore,
    )


def save_dataset(folder: Path, objects: Mapping[str, Instances], class_names: Sequence[str] = CLASS_NAMES) -> Dataset:
    """A dataset whose sample ids are the keys of ``objects``, with a PNG image for each, saved below ``folder``."""
    samples = []
    for k, (name, instances) in enumerate(objects.items()):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 255, (*instances.image_hw, 3), dtype=np.uint8)
        path.write_bytes(imagecodecs.png_encode(pixels))
        samples.append(Sample(name, path, instances.image_hw, Loaded(instances)))
    return Dataset(tuple(samples), tuple(class_names), folder)


def by_position(instances: Instances) -> Instances:
    """The objects sorted by position and pixels, so that comparisons do not depend on their order in a file."""
    masks = instances.masks
    keys = [(masks.boxes[k].tolist(), masks.crop(k).tobytes()) for k in range(len(masks))]
    return instances[np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)]


def flattened(instances: Instances) -> Instances:
    """The objects without overlaps: shared pixels go to the higher score, or to the first object without scores."""
    rank = np.arange(len(instances)) if instances.scores is None else np.argsort(-instances.scores, kind="stable")
    dense = instances.masks.to_dense()
    taken = np.zeros(instances.image_hw, bool)
    for k in rank:
        dense[k] &= ~taken
        taken |= dense[k]
    kept = np.flatnonzero(dense.any((1, 2)))
    return replace(instances[kept], masks=MaskSet.from_dense(dense[kept]))


def check_prediction(instances: object, image_hw: tuple[int, int], what: str) -> None:
    """Check that ``instances`` is a valid prediction for an image of this size; ``what`` names it in messages."""
    expect(isinstance(instances, Instances), f"{what}: expected Instances, got {type(instances).__name__}")
    assert isinstance(instances, Instances)
    expect(instances.image_hw == image_hw, f"{what}: expected image_hw {image_hw}, got {instances.image_hw}")
    expect(instances.scores is not None, f"{what}: expected a score for each object, got scores=None")
    scores = np.asarray(instances.scores)
    expect((np.diff(scores) <= 0).all(), f"{what}: expected the objects in descending order of their scores")
    expect((instances.masks.areas > 0).all(), f"{what}: expected at least one pixel per object")


def check_equal(first: Instances, second: Instances, what: str = "two results") -> None:
    """Check that two results are the same to the last bit."""
    expect(len(first) == len(second), f"{what}: got {len(first)} objects, then {len(second)}")
    for name in ("ids", "boxes_xyxy", "class_ids", "scores", "ignore"):
        expect(np.array_equal(getattr(first, name), getattr(second, name)), f"{what}: {name} differ")
    expect(first.masks == second.masks, f"{what}: masks differ")
