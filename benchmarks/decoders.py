"""The decoders of the dense models on 2048 x 2048 px with 9,000 touching cells, against other libraries.

    python benchmarks/decoders.py [--section watershed|flow] [--repeat 5] [--out work/bench/decoders.json]

Section watershed: the flooding, the whole decoder and the training targets, against scikit-image and SciPy. The methods
run alternately, and the shortest time of the repeats is reported, after one warm-up to compile. The table also has the
share of pixels for which the results are equal.

Section flow: the training targets, following the flow and the whole decoder, against plain torch and Cellpose 3.1,
with one thread each. Cellpose runs after ours, in its own environment, which pip creates in ``work/bench/cellpose``
the first time. "Equal" means: flows within 0.001, end points within 0.1 px, pixels of corresponding objects; both
remove objects below 15 px.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

SIDE_PX = 2048
CELLS = 9000


@dataclass(frozen=True)
class Row:
    """One method in one case. ``equal``: share of pixels, in [0, 1], that are equal to cellwright's result."""

    case: str
    method: str
    seconds: float
    equal: float


def draw_cells(side: int = SIDE_PX, n: int = CELLS, seed: int = 0) -> np.ndarray:
    """Labels (side, side) int32 of rounded cells on a jittered grid; most touch their neighbours."""
    rng = np.random.default_rng(seed)
    rows = round(n**0.5)
    spacing = side / rows
    y, x = np.divmod(np.arange(rows * -(-n // rows)), rows)
    points = (np.stack([y, x], 1)[:n] + 0.5) * spacing + rng.uniform(-spacing / 5, spacing / 5, (n, 2))
    radius = spacing * rng.uniform(0.4, 0.65, n)
    pixels = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    distance, nearest = KDTree(points).query(pixels)
    return np.where(distance < radius[nearest], nearest + 1, 0).reshape(side, side).astype(np.int32)


def compared(case: str, methods: dict[str, Callable[[], np.ndarray]], repeat: int) -> Iterator[Row]:
    """Rows of one case; the first method is cellwright's. They run alternately, so that other load affects all."""
    results = {method: run() for method, run in methods.items()}
    best = dict.fromkeys(methods, float("inf"))
    for _ in range(repeat):
        for method, run in methods.items():
            start = time.perf_counter()
            run()
            best[method] = min(best[method], time.perf_counter() - start)
    ours = next(iter(results.values()))
    for method, result in results.items():
        yield Row(case, method, best[method], float((result == ours).mean()))


# --- watershed ------------------------------------------------------------------------------------------------------


def watershed_rows(repeat: int) -> Iterator[Row]:
    from skimage.segmentation import watershed as skimage_watershed

    from cellwright.models.dense.labels import connected_components
    from cellwright.models.dense.watershed import decode, encode, flood

    truth = draw_cells()
    maps = as_a_network_gives(encode(truth))
    body, border, distance = maps
    mask = body >= 0.5
    cost = without_ties(border - body)
    core, _ = connected_components(mask & (body - border >= 0.5) & (distance >= 0.3))
    peaks = one_pixel_each(truth, distance, mask)

    for name, seeds in {"from one pixel per cell": peaks, "from the decoder's seeds": core}.items():
        methods = {
            "cellwright": lambda seeds=seeds: flood(cost, seeds, mask),
            "skimage": lambda seeds=seeds: skimage_watershed(cost, seeds, mask=mask, connectivity=2),
        }
        yield from compared(f"watershed {name}", methods, repeat)
    yield from compared(
        "maps to labels and scores",
        {"cellwright": lambda: decode(maps, max_hole_share=0)[0], "scipy and skimage": lambda: usual_decode(maps)},
        repeat,
    )
    yield from compared(
        "labels to maps",
        {"cellwright": lambda: encode(truth)[:2], "scipy, per object": lambda: usual_encode(truth)[:2]},
        repeat,
    )


def as_a_network_gives(maps: np.ndarray, seed: int = 0) -> np.ndarray:
    """Maps (3, H, W) in [0, 1] as a network would predict them: blurred, with smooth noise."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=maps.shape).astype(np.float32)
    soft = [
        cv2.GaussianBlur(values, (0, 0), 1.0) + 0.3 * cv2.GaussianBlur(n, (0, 0), 2.0)
        for values, n in zip(maps, noise, strict=True)
    ]
    return np.clip(soft, 0, 1).astype(np.float32)


def without_ties(values: np.ndarray) -> np.ndarray:
    """Values (H, W) float32 in the same order, but all different, because libraries resolve ties differently."""
    order = np.empty(values.size, np.int64)
    order[values.ravel().argsort(kind="stable")] = np.arange(values.size)
    return (order.reshape(values.shape) / values.size - 1).astype(np.float32)


def one_pixel_each(truth: np.ndarray, distance: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Seeds (H, W) int32: the deepest pixel of each cell."""
    seeds = np.zeros(truth.shape, np.int32)
    inside = np.flatnonzero(mask & (truth > 0))
    inside = inside[np.argsort(distance.flat[inside], kind="stable")]
    last = dict(zip(truth.flat[inside].tolist(), inside.tolist(), strict=True))
    seeds.flat[list(last.values())] = list(last)
    return seeds


def usual_decode(maps: np.ndarray) -> np.ndarray:
    """The same as `decode` with the functions of the libraries: labels (H, W); scores are computed, not returned."""
    from skimage.segmentation import watershed as skimage_watershed

    body, border, distance = maps
    mask = body >= 0.5
    seeds, n = ndimage.label(mask & (((body - border >= 0.5) & (distance >= 0.3)) | (distance >= 0.9)), np.ones((3, 3)))  # type: ignore[misc]
    labels = skimage_watershed(border - body, seeds, mask=mask, connectivity=2)
    rest, _ = ndimage.label(mask & (labels == 0), np.ones((3, 3)))  # type: ignore[misc]
    labels = np.where(rest > 0, rest + n, labels)
    ndimage.mean(body, labels, np.arange(1, labels.max() + 1))
    return labels


def usual_encode(labels: np.ndarray) -> np.ndarray:
    """The same as `encode` for cells this small (a border of 1 px), one object at a time."""
    distance = np.zeros(labels.shape, np.float32)
    for k, box in enumerate(ndimage.find_objects(labels), start=1):
        rows, columns = (slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        inside = labels[rows, columns] == k
        depth = np.asarray(ndimage.distance_transform_edt(inside))
        distance[rows, columns][inside] = (depth / depth.max())[inside]
    highest = ndimage.maximum_filter(labels, 3)
    lowest = ndimage.minimum_filter(np.where(labels == 0, labels.max() + 1, labels), 3)
    return np.stack([labels > 0, (highest > 0) & (lowest < highest), distance]).astype(np.float32)


# --- flow -----------------------------------------------------------------------------------------------------------

CELLPOSE = "cellpose==3.1.*"
STEPS = 200


def flow_rows(repeat: int) -> Iterator[Row]:
    from cellwright.models.dense.flow import decode, encode, follow

    truth = draw_cells()
    maps = noisy_flow(encode(truth))
    cases = {
        "labels to flow": {"cellwright": lambda: encode(truth)[:2]},
        "following, 200 steps": {
            "cellwright": lambda: follow(maps)[0],
            "cellwright, every step": lambda: follow(maps, steps=STEPS, tolerance_px=-1)[0],
            "torch grid_sample": lambda: torch_follow(maps),
        },
        "flow to labels": {"cellwright": lambda: decode(maps, min_area_px=15)[0]},
    }
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "truth.npy", truth)
        np.save(Path(folder) / "maps.npy", maps)
        python = cellpose_python()
        for case, methods in cases.items():
            ours: np.ndarray | None = None
            for row, result in timed(case, methods, repeat):
                ours = result if ours is None else ours
                yield Row(case, row.method, row.seconds, EQUAL[case](ours, result))
            command = [python, __file__, "--peer", case, folder, "--repeat", str(min(repeat, 2))]
            seconds = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            assert ours is not None
            yield Row(case, CELLPOSE, seconds, EQUAL[case](ours, np.load(Path(folder) / "peer.npy")))


def timed(case: str, methods: dict[str, Callable[[], np.ndarray]], repeat: int) -> list[tuple[Row, np.ndarray]]:
    """Shortest time and result of each method; ``equal`` is not yet known."""
    results = {method: run() for method, run in methods.items()}
    best = dict.fromkeys(methods, float("inf"))
    for _ in range(repeat):
        for method, run in methods.items():
            start = time.perf_counter()
            run()
            best[method] = min(best[method], time.perf_counter() - start)
    return [(Row(case, method, best[method], float("nan")), result) for method, result in results.items()]


def noisy_flow(maps: np.ndarray, seed: int = 0) -> np.ndarray:
    """Flow maps (3, H, W), blurred and with smooth noise, the body in [0, 1]."""
    rng = np.random.default_rng(seed)
    noise = [cv2.GaussianBlur(rng.normal(size=values.shape).astype(np.float32), (0, 0), 2.0) for values in maps]
    soft = np.stack([cv2.GaussianBlur(values, (0, 0), 1.0) + n for values, n in zip(maps, noise, strict=True)])
    soft[2] = soft[2].clip(0.001, 0.999)
    return soft


def torch_follow(maps: np.ndarray) -> np.ndarray:
    """End points (P, 2) of the body's pixels, with bilinear sampling in torch at every step."""
    import torch

    torch.set_num_threads(1)
    body = maps[2] >= 0.5
    field = torch.from_numpy(maps[:2] * body)[None]
    far = torch.tensor(body.shape) - 1.0
    places = torch.from_numpy(np.stack(np.nonzero(body), 1)).float()
    for _ in range(STEPS):
        grid = (2 * places / far - 1).flip(1)[None, None]
        step = torch.nn.functional.grid_sample(field, grid, padding_mode="border", align_corners=True)
        places = (places + step[0, :, 0].T).clamp(min=torch.zeros(2), max=far)
    return places.numpy()


def same_objects(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of pixels whose object in ``theirs`` is the one that covers most of their object in ``ours``."""
    pairs, counts = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1, return_counts=True)
    partner = np.zeros(int(ours.max()) + 1, np.int64)
    for k in np.argsort(counts, kind="stable"):
        partner[pairs[0, k]] = pairs[1, k]
    return float((partner[ours] == theirs).mean())


EQUAL: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "labels to flow": lambda ours, theirs: float((np.abs(ours - theirs).max(0) < 1e-3).mean()),
    "following, 200 steps": lambda ours, theirs: float((np.abs(ours - theirs).max(1) < 0.1).mean()),
    "flow to labels": same_objects,
}


def cellpose_python() -> str:
    """The interpreter of Cellpose's environment, which is created if it does not exist."""
    folder = Path("work/bench/cellpose")
    python = str(folder / "bin" / "python")
    if not Path(python).exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", CELLPOSE], check=True)
    return python


def peer(case: str, folder: Path, repeat: int) -> float:
    """Shortest time of Cellpose in this process, seconds; its result is written to ``peer.npy``."""
    import torch
    from cellpose import dynamics  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    truth, maps = np.load(folder / "truth.npy"), np.load(folder / "maps.npy")
    body = maps[2] >= 0.5
    logits = np.log(maps[2] / (1 - maps[2]))
    methods: dict[str, Callable[[], np.ndarray]] = {
        "labels to flow": lambda: dynamics.masks_to_flows(truth),
        "following, 200 steps": lambda: np.asarray(dynamics.follow_flows(maps[:2] * body, np.nonzero(body), STEPS)).T,
        "flow to labels": lambda: dynamics.compute_masks(maps[:2] * 5, logits, niter=STEPS, min_size=15),
    }
    np.save(folder / "peer.npy", methods[case]())  # the first call compiles
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        methods[case]()
        best = min(best, time.perf_counter() - start)
    return best


# --- main -------------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[int], Iterator[Row]]] = {"watershed": watershed_rows, "flow": flow_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", choices=sorted(SECTIONS), help="one section only")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("work/bench/decoders.json"))
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        print(peer(args.peer[0], Path(args.peer[1]), args.repeat))
        return
    from cellwright.core.files import write_json

    cv2.setNumThreads(1)
    rows = [row for name in ([args.section] if args.section else SECTIONS) for row in SECTIONS[name](args.repeat)]
    write_json(args.out, {"side_px": SIDE_PX, "cells": CELLS, "rows": [asdict(row) for row in rows]})
    print("| case | method | seconds | times ours | equal to ours |\n|---|---|---:|---:|---:|")
    for row in rows:
        ours = next(first for first in rows if first.case == row.case)
        share = f"{row.equal:.2%}" if row.method != ours.method else ""
        print(f"| {row.case} | {row.method} | {row.seconds:.3f} | {row.seconds / ours.seconds:.1f} | {share} |")


if __name__ == "__main__":
    sys.exit(main())
