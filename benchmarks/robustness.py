"""Robustness of a model to changes of the image: accuracy@0.5 on each kind of image, and its drop for each change.

    python benchmarks/robustness.py --data work/dsb2018 [--split test] [--model nuclei] [--out FILE.json]

A colour image counts as ``H&E``, a grey and mostly bright image as ``bright field``, all others as ``fluorescence``.
Every change has a fixed strength and is applied to 8-bit pixels with clipping, as in a camera. ``scale`` resizes image
and ground truth; the model estimates the diameter of each image.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

import cellwright as cw
from cellwright.data.colour import Colour, change_colour
from tables import markdown

METRICS = ("accuracy@0.5", "accuracy@0.75", "accuracy@0.9", "aji", "pq")
CHANGES = {
    "brightness x 0.5": Colour(brightness=0.5),
    "brightness x 1.5": Colour(brightness=1.5),
    "contrast x 0.5": Colour(contrast=0.5),
    "contrast x 1.5": Colour(contrast=1.5),
    "gamma 0.5": Colour(gamma=0.5),
    "gamma 2": Colour(gamma=2.0),
    "inverted brightness": Colour(invert=True),
    "blur, 1 px": Colour(blur_px=1.0),
    "blur, 2 px": Colour(blur_px=2.0),
    "noise, 5 % of the range": Colour(noise=0.05, noise_seed=1),
    "noise, 15 % of the range": Colour(noise=0.15, noise_seed=1),
    "stains x 0.6": Colour(stain_factors=(0.6, 0.6, 0.6)),
    "stains x 1.5": Colour(stain_factors=(1.5, 1.5, 1.5)),
    "hue shifted by 0.1": Colour(hue_turns=0.1),
}
SCALES = (0.5, 2.0)
ONLY_COLOUR = ("stains", "hue")


def kind_of(rgb: np.ndarray) -> str:
    """The kind of an image (H, W, 3) uint8."""
    if np.abs(rgb[:, :, 0].astype(int) - rgb[:, :, 2]).mean() > 2:
        return "H&E"
    return "bright field" if np.median(rgb) > 127 else "fluorescence"


def rescaled(rgb: np.ndarray, truth: cw.Instances, scale: float) -> tuple[np.ndarray, cw.Instances]:
    """Image and ground truth at ``scale`` times their size, without objects that vanish."""
    height, width = (max(round(side * scale), 1) for side in truth.image_hw)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    labels = truth.masks.to_label_map().astype(np.float32)  # holds whole numbers up to 2^24
    moved = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)
    masks, _ = cw.MaskSet.from_label_map(moved)
    return cv2.resize(rgb, (width, height), interpolation=interpolation), cw.Instances.from_masks(masks)


def evaluated(model, pairs: list[tuple[np.ndarray, cw.Instances]]) -> dict[str, float]:
    predictions = [model.predict(rgb) for rgb, _ in pairs]
    report = cw.evaluate(predictions, [truth for _, truth in pairs], metrics=["accuracy", "aji", "pq"])
    return {name: round(float(report[name]), 4) for name in METRICS}


def by_kind(model, pairs: list[tuple[np.ndarray, cw.Instances]]) -> list[dict]:
    """One row per kind of image, and one for all images."""
    kinds = [kind_of(rgb) for rgb, _ in pairs]
    chosen = {"all": pairs}
    for kind in sorted(set(kinds)):
        chosen[kind] = [pair for pair, of in zip(pairs, kinds, strict=True) if of == kind]
    return [
        {"kind": kind, "images": len(some), "nuclei": sum(len(truth) for _, truth in some), **evaluated(model, some)}
        for kind, some in chosen.items()
    ]


def by_change(model, pairs: list[tuple[np.ndarray, cw.Instances]]) -> list[dict]:
    """One row per change: accuracy@0.5 without and with it, on the images that it applies to."""
    colour = [pair for pair in pairs if kind_of(pair[0]) == "H&E"]
    plain = {id(some): evaluated(model, some)["accuracy@0.5"] for some in (pairs, colour) if some}
    rows = []
    for name, change in CHANGES.items():
        some = colour if name.startswith(ONLY_COLOUR) else pairs
        if some:
            after = evaluated(model, [(change_colour(rgb, change), truth) for rgb, truth in some])["accuracy@0.5"]
            rows.append({"change": name, "images": len(some), "without": plain[id(some)], "with": after})
    for scale in SCALES:
        after = evaluated(model, [rescaled(rgb, truth, scale) for rgb, truth in pairs])["accuracy@0.5"]
        rows.append({"change": f"scale x {scale:g}", "images": len(pairs), "without": plain[id(pairs)], "with": after})
    return [{**row, "drop": round(row["without"] - row["with"], 4)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    model = cw.load_model(args.model)
    samples = [sample for sample in cw.read_dataset(args.data) if sample.split == args.split]
    pairs = [
        (cw.read_image(sample.image_path).data[:, :, :3], sample.read_instances())
        for sample in samples
        if sample.image_path
    ]
    kinds = by_kind(model, pairs)
    print(markdown(kinds), "\n", flush=True)
    changes = by_change(model, pairs)
    print(markdown(changes))
    if args.out:
        args.out.write_text(json.dumps({"kinds": kinds, "changes": changes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
