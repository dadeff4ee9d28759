"""The U-Nets of the bundled models in PyTorch and in OpenVINO: time, memory and the largest difference of their maps.

    python benchmarks/backends.py [--models nuclei@1 nuclei-stained] [--sides 256 512 1008] [--repeat 3]

Each backend runs in its own process, with one thread. Seconds are CPU time: of the import, of loading the model with
its first image (256 x 256), and the shortest of the repeats for each size, of one image of random numbers. Memory is
the peak of the process up to that size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np


def image(side: int) -> np.ndarray:
    """(3, side, side) float32."""
    return np.random.default_rng(0).random((3, side, side), np.float32)


def measure(backend: str, name: str, sides: list[int], repeat: int, out: Path) -> None:
    """Write the maps of each size, and the times and memory of one backend."""
    start = time.process_time()
    from cellwright.prediction.backends.load import load_predictor

    if backend == "torch":
        import torch

        torch.set_num_threads(1)
        import cellwright.models.weights.torch_io  # noqa: F401 - counts as import
    else:
        from cellwright.models.openvino_graph import warm_up

        warm_up()
    imported = time.process_time()
    predictor, _ = load_predictor(name, backend=backend, device="cpu", threads=1)  # type: ignore[arg-type]
    rows = []
    with predictor.running():
        predictor.network.maps(predictor.as_input(image(256)[None]))
        loaded = time.process_time()
        for side in sides:
            seconds = []
            for _ in range(repeat):
                before = time.process_time()
                maps = predictor.network.maps(predictor.as_input(image(side)[None]))
                seconds.append(time.process_time() - before)
            np.save(out / f"{backend}_{side}.npy", maps)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append({"side": side, "seconds": min(seconds), "peak_mb": peak})
    facts = {"import": imported - start, "load": loaded - imported, "rows": rows}
    (out / f"{backend}.json").write_text(json.dumps(facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["nuclei@1", "nuclei-stained"])
    parser.add_argument("--sides", nargs="+", type=int, default=[256, 512, 1008])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # backend and folder, in a process of its own
    options = parser.parse_args()
    if options.only:
        backend, out = options.only
        measure(backend, options.models[0], options.sides, options.repeat, Path(out))
        return
    print("| model | side, px | PyTorch, s | OpenVINO, s | ratio | PyTorch, MB | OpenVINO, MB | largest difference |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    starts = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            sizes = ["--sides", *map(str, options.sides), "--repeat", str(options.repeat)]
            facts = {}
            for backend in ("torch", "openvino"):
                command = [sys.executable, __file__, "--models", name, *sizes, "--only", backend, folder]
                subprocess.run(command, check=True)
                facts[backend] = json.loads((Path(folder) / f"{backend}.json").read_text())
            for torch, own in zip(facts["torch"]["rows"], facts["openvino"]["rows"], strict=True):
                first, second = (np.load(Path(folder) / f"{backend}_{own['side']}.npy") for backend in facts)
                print(
                    f"| `{name}` | {own['side']} | {torch['seconds']:.3f} | {own['seconds']:.3f} "
                    f"| {own['seconds'] / torch['seconds']:.2f} | {torch['peak_mb']:.0f} | {own['peak_mb']:.0f} "
                    f"| {np.abs(first - second).max():.1e} |"
                )
            starts.append({backend: (fact["import"], fact["load"]) for backend, fact in facts.items()})
    for name, start in zip(options.models, starts, strict=True):
        for backend, (imported, loaded) in start.items():
            print(f"{name}, {backend}: import {imported:.2f} s, load and first image {loaded:.2f} s")


if __name__ == "__main__":
    main()
