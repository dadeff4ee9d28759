"""Measurements of a crowded image: `cellwright.measure` against `regionprops_table` of scikit-image, one thread.

    python benchmarks/measure.py [--data work/vrdl] [--image TCGA-HE-7130-01Z-00-DX1] [--repeat 3] [--out FILE.json]

Both start from their own input (objects; a label map and the image), make the same measurements and return a pandas
table. The shortest CPU time of the repeats is reported, after one warm-up. The largest relative difference is over the
objects without overlaps and the measurements that both define alike (without solidity, because the convex hull of
scikit-image is half a pixel wider).
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from skimage.measure import regionprops_table

import cellwright as cw
from cellwright.core.files import write_json

IMAGE = "TCGA-HE-7130-01Z-00-DX1"
SHAPE = {
    "area": "area_px",
    "equivalent_diameter_area": "equivalent_diameter_px",
    "perimeter_crofton": "perimeter_px",
    "axis_major_length": "major_axis_px",
    "axis_minor_length": "minor_axis_px",
    "eccentricity": "eccentricity",
}
PLACE = ("bbox", "centroid", "orientation")
VALUES = ("intensity_mean", "intensity_min", "intensity_max", "intensity_std")


def best_of(work: Callable[[], pd.DataFrame], repeat: int) -> tuple[float, pd.DataFrame]:
    """The shortest CPU time, seconds, and the table."""
    table, seconds = work(), float("inf")
    for _ in range(repeat):
        start = time.process_time()
        work()
        seconds = min(seconds, time.process_time() - start)
    return seconds, table


def largest_difference(ours: pd.DataFrame, theirs: pd.DataFrame, channels: tuple[str, ...]) -> float:
    """The largest relative difference, over the objects that have the same area in both tables."""
    rows = theirs.index[ours.area_px.loc[theirs.index] == theirs.area]
    names = SHAPE | {f"{kind}-{c}": f"{kind}_{name}" for kind in VALUES for c, name in enumerate(channels)}
    a = ours.loc[rows, [*names.values()]].to_numpy(float)
    b = theirs.loc[rows, [*names]].to_numpy(float)
    return float((np.abs(a - b) / np.maximum(np.abs(b), 1)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="work/vrdl", help="the converted VRDL dataset")
    parser.add_argument("--image", default=IMAGE)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("work/bench/measure.json"))
    args = parser.parse_args()
    sample = cw.read_dataset(args.data).sample(args.image)
    assert sample.image_path is not None
    cells, image = sample.read_instances(), cw.read_image(sample.image_path)
    image = cw.Image(image.data[..., :3], image.channels[:3])
    labels = cells.masks.to_label_map(cells.ids).astype(np.int32)

    def theirs(properties: tuple[str, ...]) -> pd.DataFrame:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about convex hulls of objects with a few pixels
            return pd.DataFrame(regionprops_table(labels, image.data, properties=properties)).set_index("label")

    plain = ("label", *SHAPE, *PLACE, *VALUES)
    ours_s, ours = best_of(lambda: cw.measure(cells, image), args.repeat)
    hull_s, _ = best_of(lambda: theirs((*plain, "solidity")), args.repeat)
    plain_s, table = best_of(lambda: theirs(plain), args.repeat)
    difference = largest_difference(ours, table, image.channels)
    rows = [
        {"method": "cellwright, all measurements", "seconds": ours_s},
        {"method": "skimage, the same measurements", "seconds": hull_s},
        {"method": "skimage, without solidity", "seconds": plain_s},
    ]
    write_json(args.out, {"image": args.image, "objects": len(cells), "rows": rows, "largest_difference": difference})
    print(f"{args.image}: {len(cells)} objects; largest relative difference {difference:.1e}\n")
    print("| method | seconds | times ours |\n|---|---:|---:|")
    for row in rows:
        print(f"| {row['method']} | {row['seconds']:.4f} | {row['seconds'] / ours_s:.0f} |")


if __name__ == "__main__":
    main()
