"""Augmentation of 200 objects at 512 x 512: our label layers against torchvision v2 on masks and on a label image.

    python benchmarks/augment.py [--objects 200] [--side 512] [--repeat 9] [--threads 1] [--out FILE.json]

Every method flips, rotates (up to 30 degrees) and elastically deforms image and labels, with new random parameters
each time. Ours includes the visible share, the renumbering and the tight boxes of the objects; torchvision is
measured without boxes and with `masks_to_boxes` (which needs one mask per object). The methods run alternately, and
the median of the repeats is reported. First, both transform the same labels with the same parameters, and more than
98 % of the label pixels must agree: torchvision resamples twice, once per transform, so that some outlines differ by
a pixel.
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
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from cellwright.config.input import AugmentConfig
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.augment import augment
from cellwright.data.labels import Labels
from cellwright.data.warp import Affine, Elastic, Geometry, warp_labels

OURS = "cellwright label layers"
CONFIG = AugmentConfig(horizontal_flip=0.5, rotation_deg=30, elastic_amplitude_px=8, elastic_smoothness_px=64)


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


def methods(image: np.ndarray, label_map: np.ndarray) -> dict[str, Callable[[], object]]:
    """Functions that augment the sample once, by the name of the method."""
    masks, _ = MaskSet.from_label_map(label_map)
    labels = Labels.from_instances(Instances.from_masks(masks))
    numbers = torch.arange(1, len(masks) + 1, dtype=torch.int32)[:, None, None]
    pixels = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).contiguous())
    one_image = tv_tensors.Mask(torch.from_numpy(label_map)[None])
    one_each = tv_tensors.Mask((one_image == numbers).to(torch.uint8))
    change = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomAffine([-30, 30], interpolation=InterpolationMode.BILINEAR),
            # With its default strength: a field as smooth as ours would need a kernel of 257 x 257 instead of 41 x 41.
            v2.ElasticTransform(),
        ]
    )
    rng = np.random.default_rng(0)

    def with_boxes(target: torch.Tensor) -> torch.Tensor:
        moved = change(pixels, target)[1]
        per_object = moved == numbers if len(moved) == 1 else moved.bool()
        return masks_to_boxes(per_object[per_object.flatten(1).any(1)])

    return {
        OURS: lambda: augment(image, labels, CONFIG, rng),
        "torchvision, label image, no boxes": lambda: change(pixels, one_image),
        "torchvision, label image, boxes": lambda: with_boxes(one_image),
        f"torchvision, {len(masks)} masks, no boxes": lambda: change(pixels, one_each),
        f"torchvision, {len(masks)} masks, boxes": lambda: with_boxes(one_each),
    }


def agreement(label_map: np.ndarray) -> float:
    """Share of label pixels that are equal after the same transform by torchvision and by cellwright."""
    height, width = label_map.shape
    elastic = Elastic(CONFIG.elastic_amplitude_px, CONFIG.elastic_smoothness_px, 0)
    geometry = Geometry(
        (0, 0, height, width), (height, width), horizontal_flip=True, affine=Affine(17.0), elastic=elastic
    )
    masks, ids = MaskSet.from_label_map(label_map)
    # Keep objects of any visible share, so that both do the same. The class ids hold the original labels.
    moved = warp_labels(Labels.from_instances(Instances.from_masks(masks, class_ids=ids)), geometry, 0.0)
    ours = np.concatenate([[0], moved.class_ids])[moved.layers[0]]
    moves = elastic.displacement((height, width), np.diag([2 / width, 2 / height]))
    # torchvision's angles are clockwise.
    turned = tv.affine(
        tv.horizontal_flip(tv_tensors.Mask(torch.from_numpy(label_map)[None])), -17.0, [0, 0], 1.0, [0.0, 0.0]
    )
    theirs = np.asarray(tv.elastic(turned, torch.from_numpy(moves).permute(1, 2, 0)[None]))[0]
    return float((theirs == ours).mean())


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--objects", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("work/bench/augment.json"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    cv2.setNumThreads(chosen.threads)
    torch.manual_seed(0)
    image, label_map = draw_field(chosen.side, chosen.objects)
    share = agreement(label_map)
    assert share > 0.98, f"only {share:.3%} of the pixels agree: the methods are not equivalent"
    calls = methods(image, label_map)
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(chosen.repeat):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: value / medians[OURS] for name, value in medians.items()}
    setting = f"{chosen.side} x {chosen.side}, {chosen.threads} threads, median of {chosen.repeat}"
    print(f"{chosen.objects} objects, {setting}")
    print(f"label pixels that agree with torchvision: {share:.3%}\n")
    print("| method | ms per sample | times ours |\n|---|---:|---:|")
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
