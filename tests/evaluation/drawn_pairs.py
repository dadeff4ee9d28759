"""Drawn objects for the tests of the evaluation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet

Draw = Callable[..., tuple[Instances, Instances]]


def disc(image_hw: tuple[int, int], centre_yx: tuple[float, float], radius: float) -> np.ndarray:
    """One disc (H, W) bool."""
    y, x = np.ogrid[: image_hw[0], : image_hw[1]]
    return (y - centre_yx[0]) ** 2 + (x - centre_yx[1]) ** 2 <= radius**2


def instances_of(masks: list[np.ndarray], image_hw: tuple[int, int] = (64, 64), **fields: object) -> Instances:
    """Instances from a list of (H, W) masks."""
    dense = np.stack(masks) if masks else np.zeros((0, *image_hw), bool)
    return Instances.from_masks(MaskSet.from_dense(dense), **fields)  # type: ignore[arg-type]


def draw_pair(
    rng: np.random.Generator, *, n_truth: int = 12, n_classes: int = 3, size: int = 160, scored: bool = True
) -> tuple[Instances, Instances]:
    """Objects with crowds, and predictions that overlap, are moved, repeated or of another class, with equal scores."""
    image_hw = (size, size + 17)
    radii = rng.choice([3, 7, 14, 30, 55], n_truth, p=[0.25, 0.3, 0.2, 0.15, 0.1])
    centres = rng.uniform(0, size, (n_truth, 2))
    shapes = [disc(image_hw, c, r) for c, r in zip(centres, radii, strict=True)]
    kept = [k for k, shape in enumerate(shapes) if shape.any()]
    classes = rng.integers(0, n_classes, n_truth)
    truth = instances_of(
        [shapes[k] for k in kept], image_hw, class_ids=classes[kept], ignore=rng.random(len(kept)) < 0.15
    )
    source = rng.choice(kept, int(1.5 * len(kept))) if kept else np.zeros(0, np.int64)
    moved = [disc(image_hw, centres[k] + rng.normal(0, 0.15 * radii[k], 2), radii[k] * rng.uniform(0.8, 1.2))
             for k in source]  # fmt: skip
    stray = [disc(image_hw, rng.uniform(0, size, 2), rng.uniform(2, 20)) for _ in range(n_truth // 3)]
    labels = np.concatenate([classes[source], rng.integers(0, n_classes, len(stray))]).astype(np.int64)
    labels = np.where(rng.random(len(labels)) < 0.1, rng.integers(0, n_classes, len(labels)), labels)
    masks = [*moved, *stray]
    filled = [k for k, mask in enumerate(masks) if mask.any()]
    scores = np.round(rng.random(len(masks)), 1) if scored else None
    predicted = instances_of(
        [masks[k] for k in filled],
        image_hw,
        class_ids=labels[filled],
        scores=None if scores is None else scores[filled],
    )
    return truth, predicted
