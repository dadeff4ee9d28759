"""Augmenting 200 objects at 512 x 512: label layers against torchvision v2 on masks and on a label image, in one run.

    python benchmarks/augment.py [--objects 200] [--side 512] [--repeat 15] [--threads 1] [--out FILE.json]

The same change everywhere: mirror, then enlarge by 1.25 about the centre (a flip and an affine map), image and labels.
Ours includes the visible share, the new numbers and the tight boxes; torchvision's is given without boxes and with
`masks_to_boxes` (which needs one mask an object). Ways take turns; the median of the repeats is reported, and the share
of label pixels on which torchvision and we agree is checked to be above 99 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.augment import Geometry, warp_image, warp_labels
from cellwright.data.labels import Labels

SCALE = 1.25
OURS = "cellwright label layers"


def draw_field(side: int, n_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """A noise image (side, side, 3) uint8 and a label map (side, side) int32 of exactly ``n_objects`` discs."""
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[:side, :side]
    labels = np.zeros((side, side), np.int32)
    drawn = 0
    while drawn < n_objects:
        y, x, radius = rng.integers(0, side), rng.integers(0, side), rng.uniform(6, 14)
        disc = ((ys - y) ** 2 + (xs - x) ** 2 <= radius**2) & (labels == 0)
        if disc.sum() >= 20:
            drawn += 1
            labels[disc] = drawn
    return rng.integers(0, 255, (side, side, 3), dtype=np.uint8), labels


def ways(image: np.ndarray, label_map: np.ndarray) -> dict[str, Callable[[], torch.Tensor | np.ndarray]]:
    """Each way as a call that gives its label pixels: (side, side) ours, (1 or N, side, side) torchvision's."""
    side = image.shape[0]
    window = round(side / SCALE)
    start = (side - window) // 2
    geometry = Geometry((start, start, start + window, start + window), (side, side), horizontal_flip=True)
    masks, _ = MaskSet.from_label_map(label_map)
    labels = Labels.from_instances(Instances.from_masks(masks))
    numbers = torch.arange(1, len(masks) + 1, dtype=torch.int32)[:, None, None]
    pixels = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).contiguous())
    one_image = tv_tensors.Mask(torch.from_numpy(label_map)[None])
    one_each = tv_tensors.Mask((one_image == numbers).to(torch.uint8))

    def torchvision(target: torch.Tensor) -> torch.Tensor:
        for one in (pixels, target):
            kind = InterpolationMode.BILINEAR if one is pixels else InterpolationMode.NEAREST
            scale = side / window
            moved = tv.affine(
                tv.horizontal_flip(one), angle=0, translate=[0, 0], scale=scale, shear=[0.0, 0.0], interpolation=kind
            )
        return moved

    def with_boxes(target: torch.Tensor) -> torch.Tensor:
        moved = torchvision(target)
        per_object = moved == numbers if len(moved) == 1 else moved.bool()
        masks_to_boxes(per_object[per_object.flatten(1).any(1)])
        return moved

    def ours() -> np.ndarray:
        warp_image(image, geometry)
        # No object is dropped for its share, so that all ways do the same; numbers 1..n stay in order.
        return warp_labels(labels, geometry, 0.0).layers[0]

    return {
        OURS: ours,
        "torchvision, label image, no boxes": lambda: torchvision(one_image),
        "torchvision, label image, boxes": lambda: with_boxes(one_image),
        f"torchvision, {len(masks)} masks, no boxes": lambda: torchvision(one_each),
        f"torchvision, {len(masks)} masks, boxes": lambda: with_boxes(one_each),
    }


def agreement(results: dict[str, torch.Tensor | np.ndarray]) -> float:
    """Share of pixels where ours and torchvision's label image agree, after torchvision's is numbered as ours is."""
    theirs = np.asarray(results["torchvision, label image, no boxes"])[0]
    numbers = np.zeros(theirs.max() + 1, np.int32)
    present = np.unique(theirs[theirs > 0])
    numbers[present] = np.arange(1, len(present) + 1)
    return float((numbers[theirs] == results[OURS]).mean())


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--objects", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("work/bench/augment.json"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    cv2.setNumThreads(chosen.threads)
    calls = ways(*draw_field(chosen.side, chosen.objects))
    share = agreement({name: call() for name, call in calls.items()})
    assert share > 0.99, f"only {share:.3%} of the pixels agree: the ways do not do the same"
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(chosen.repeat):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: value / medians[OURS] for name, value in medians.items()}
    setting = f"{chosen.side} x {chosen.side}, {chosen.threads} thread(s), median of {chosen.repeat}"
    print(f"{chosen.objects} objects, {setting}")
    print(f"label pixels that agree with torchvision: {share:.3%}\n")
    print("| way | ms a sample | times ours |\n|---|---:|---:|")
    for name, value in medians.items():
        print(f"| {name} | {1000 * value:.2f} | {ratios[name]:.1f} |")
    result = {
        "objects": chosen.objects,
        "side_px": chosen.side,
        "threads": chosen.threads,
        "repeat": chosen.repeat,
        "agreement": share,
        "seconds": medians,
        "fastest_s": {name: min(values) for name, values in seconds.items()},
        "times_ours": ratios,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten: {chosen.out}")


if __name__ == "__main__":
    main()
