"""Masks of a crowded image: our crops against pycocotools, torchvision and dense arrays.

    python benchmarks/masks.py [--image TCGA-HE-7130-01Z-00-DX1] [--repeat 3] [--out work/bench/masks.json]

Every case runs in its own process. The table has the time (median of the repeats, after a warm-up that loads the
compiled kernels) and the peak memory above the memory of the process before the case, which includes the inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tables import reset_peak, status_mb

IMAGE = "TCGA-HE-7130-01Z-00-DX1"
CASES = {
    "label map to RLE": ("cellwright", "pycocotools", "dense"),
    "pairwise IoU": ("cellwright", "pycocotools", "dense"),
    "paste 28 x 28 masks": ("cellwright", "torchvision"),
    "mask targets of 512 boxes": ("cellwright", "torchvision"),
}


def dense_of(labels: np.ndarray, ids: np.ndarray, dtype: type = np.uint8) -> np.ndarray:
    """A dense N x H x W array, filled object by object."""
    masks = np.zeros((len(ids), *labels.shape), dtype)
    for k, label in enumerate(ids):
        masks[k] = labels == label
    return masks


def to_rle(method: str, labels: np.ndarray) -> Callable[[], object]:
    from pycocotools import mask as coco_mask

    from cellwright.core.masks import MaskSet

    ids = np.unique(labels)[1:]
    if method == "cellwright":

        def ours() -> object:
            return MaskSet.from_label_map(labels)[0].to_rle()

        return ours
    if method == "pycocotools":  # one full-size mask at a time: slow, but uses little memory
        return lambda: [coco_mask.encode(np.asfortranarray(labels == label, np.uint8)) for label in ids]
    return lambda: coco_mask.encode(np.asfortranarray(dense_of(labels, ids).transpose(1, 2, 0)))


def pairwise(method: str, labels: np.ndarray) -> Callable[[], object]:
    from pycocotools import mask as coco_mask

    from cellwright.core.masks import MaskSet

    a, _ = MaskSet.from_label_map(labels)
    b, _ = MaskSet.from_label_map(np.roll(labels, (3, 2), (0, 1)))
    if method == "cellwright":
        return lambda: a.iou(b)
    if method == "pycocotools":
        first, second = ([{**r, "counts": r["counts"].encode()} for r in masks.to_rle()] for masks in (a, b))
        return lambda: coco_mask.iou(first, second, [0] * len(second))

    def product() -> np.ndarray:
        flat = dense_of(labels, np.unique(labels)[1:], np.float32).reshape(len(a), -1)
        inter = flat @ flat.T
        return inter / (a.areas[:, None] + a.areas[None] - inter)

    return product


def paste(method: str, labels: np.ndarray) -> Callable[[], object]:
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    from cellwright.core.masks import MaskSet
    from cellwright.ops.paste import paste_masks

    masks, _ = MaskSet.from_label_map(labels)
    boxes = torch.from_numpy(masks.boxes.astype(np.float32))
    probs = torch.rand(len(masks), 28, 28, generator=torch.Generator().manual_seed(0))
    if method == "cellwright":
        return lambda: paste_masks(probs, boxes, labels.shape, rule="torchvision", threshold=0.5)
    return lambda: paste_masks_in_image(probs[:, None], boxes, labels.shape) > 0.5


def targets(method: str, labels: np.ndarray) -> Callable[[], object]:
    import torch
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    from cellwright.core.masks import MaskSet
    from cellwright.ops.roi import sample_mask_targets

    masks, ids = MaskSet.from_label_map(labels)
    chosen = torch.randint(len(masks), (512,), generator=torch.Generator().manual_seed(0))
    boxes = torch.from_numpy(masks.boxes.astype(np.float32))[chosen]
    if method == "cellwright":

        def ours() -> torch.Tensor:
            layers, layer_of = masks.to_layers()
            layer, value = torch.from_numpy(layer_of)[chosen], (chosen + 1).int()
            return sample_mask_targets(torch.from_numpy(layers), layer, value, boxes, 28, aligned=False)

        return ours
    return lambda: project_masks_on_boxes(torch.from_numpy(dense_of(labels, ids)), boxes, chosen, 28)


MAKERS = {
    "label map to RLE": to_rle,
    "pairwise IoU": pairwise,
    "paste 28 x 28 masks": paste,
    "mask targets of 512 boxes": targets,
}


def measure(case: str, method: str, labels_file: str, repeat: int) -> dict[str, float]:
    """Seconds and peak MB of one case in this process."""
    labels = np.load(labels_file)
    MAKERS[case](method, _corner(labels))()  # compiles and loads everything needed, on a small corner
    work = MAKERS[case](method, labels)
    reset_peak()
    before = status_mb("VmRSS")
    seconds = []
    for _ in range(repeat if method == "cellwright" else 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "peak_mb": max(status_mb("VmHWM") - before, 0.1)}


def _corner(labels: np.ndarray) -> np.ndarray:
    """A small label map with ids 1..K for the warm-up, so that it leaves no large buffers behind."""
    corner = labels[:150, :150]
    return np.unique(corner, return_inverse=True)[1].reshape(corner.shape).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="work/vrdl", help="the converted VRDL dataset")
    parser.add_argument("--image", default=IMAGE)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("work/bench/masks.json"))
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(*args.case, args.repeat)))
        return
    from cellwright import read_dataset
    from cellwright.core.files import write_json

    labels = read_dataset(args.data).sample(args.image).read_instances().masks.to_label_map().astype(np.int32)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "labels.npy")
        np.save(file, labels)
        for case, methods in CASES.items():
            for method in methods:
                command = [sys.executable, __file__, "--repeat", str(args.repeat), "--case", case, method, file]
                done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
                if done.returncode:
                    raise SystemExit(f"{case}, {method}: {done.stderr}")
                rows.append({"case": case, "method": method, **json.loads(done.stdout.splitlines()[-1])})
    write_json(args.out, {"image": args.image, "objects": int(labels.max()), "rows": rows})
    print(f"{args.image}: {labels.max()} objects\n")
    print("| case | method | seconds | times ours | peak MB | times ours |\n|---|---|---:|---:|---:|---:|")
    for row in rows:
        ours = next(r for r in rows if r["case"] == row["case"] and r["method"] == "cellwright")
        ratio = (
            f"{row['seconds'] / ours['seconds']:.1f} | {row['peak_mb']:.1f} | {row['peak_mb'] / ours['peak_mb']:.1f}"
        )
        print(f"| {row['case']} | {row['method']} | {row['seconds']:.4f} | {ratio} |")


if __name__ == "__main__":
    main()
