"""A folder of images of 512 x 512 px through `cellwright predict`: images per second, and what is not the network.

    python benchmarks/folder.py --images FOLDER [--number 200] [--workers 1 2] [--backends openvino openvino-int8]

Images are cut from those of the folder, in order, until there are enough. Each case is a command in a process of its
own, which reads, predicts with `nuclei` and its own estimate of the diameter, measures, and writes label images,
overlays, outlines, ROIs, tables and the report. Wall time includes the start. CPU seconds are those of the command and
its workers, with one thread each; those of the network are measured around its calls, with one worker. What is not the
network includes the start, reading and the report.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import cellwright as cw
from tables import markdown, processor

SIDE, SUFFIXES = 512, (".jpg", ".png", ".tif", ".tiff")
# The command, in which the calls of the network are timed.
TIMED = """
import atexit, json, os, sys, time
from cellwright.models.openvino_graph import CompiledGraph
spent, call = [0.0], CompiledGraph.__call__
def timed(self, *args, **kwargs):
    start = time.thread_time()  # another thread writes
    try:
        return call(self, *args, **kwargs)
    finally:
        spent[0] += time.thread_time() - start
CompiledGraph.__call__ = timed
atexit.register(lambda: open(os.environ["SPENT"], "w").write(json.dumps(spent[0])))
from cellwright.__main__ import main
main()
"""


def crops(folder: Path) -> Iterator[np.ndarray]:
    """Parts of 512 x 512 px of the images of a folder."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        image = cw.read_image(path).data
        for y, x in itertools.product(
            range(0, image.shape[0] - SIDE + 1, SIDE), range(0, image.shape[1] - SIDE + 1, SIDE)
        ):
            yield image[y : y + SIDE, x : x + SIDE]


def predict(images: Path, out: Path, *options: str) -> dict[str, float]:
    """Wall and CPU seconds of the command, and those of the network in this process."""
    command = [sys.executable, "-c", TIMED, "predict", str(images), "--out", str(out), *options, "--quiet"]
    spent = out.with_suffix(".json")
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "SPENT": str(spent)}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - start, "cpu": cpu, "network": json.loads(spent.read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backends", nargs="+", default=["openvino", "openvino-int8"])
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        import tifffile

        for k, image in enumerate(itertools.islice(crops(args.images), args.number)):
            tifffile.imwrite(folder / "images" / f"{k:04}.tif", image)
        number = len(list((folder / "images").iterdir()))
        for backend, workers in itertools.product(args.backends, args.workers):
            seconds = predict(
                folder / "images", folder / f"{backend}_{workers}", "--backend", backend, "--workers", str(workers)
            )
            rows.append(
                {
                    "backend": backend,
                    "workers": workers,
                    "images per second": round(number / seconds["wall"], 2),
                    "CPU s per image": round(seconds["cpu"] / number, 3),
                    "not the network": f"{1 - seconds['network'] / seconds['cpu']:.0%}" if workers == 1 else "",
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    print(f"\n{processor()}; {number} images\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
