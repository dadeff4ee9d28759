"""The convolutional part of a network (backbone, pyramid, proposal head): ONNX Runtime against eager torch.

    python benchmarks/export.py [--side 1000] [--repeat 7] [--threads 2] [--out FILE.json]

Networks: the recipe `vrdl_nuclei/quick`, and ResNet-50 with a 256-channel pyramid (torchvision's Mask R-CNN). The
weights are random, which does not affect the time. Both runtimes get the same image, zero-padded to a multiple of 32,
and the same number of threads; they run alternately, and the median of the repeats is reported. The export has already
checked that their outputs agree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch

from cellwright.config.recipe import Recipe, load
from cellwright.models.build import build_network
from cellwright.models.export.onnx import write_graph
from cellwright.models.export.rcnn import graphs_of


def recipes() -> dict[str, Recipe]:
    """The networks to measure."""
    r50 = {"name": "r50", "classes": 1, "model": {"kind": "mask_rcnn", "backbone": {"depth": 50}}}
    return {"vrdl_nuclei/quick": load("vrdl_nuclei/quick"), "R50-FPN": Recipe.model_validate(r50)}


def measure(recipe: Recipe, side: int, threads: int, repeat: int) -> dict[str, float]:
    """Median time of both runtimes, seconds, and the time of torch divided by that of ONNX Runtime."""
    torch.manual_seed(0)
    network = build_network(recipe, recipe.classes or 1).eval()
    features = graphs_of(network)[0]
    with tempfile.TemporaryDirectory() as folder:
        graph = write_graph(features, Path(folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = Path(folder) / graph["file"]
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    padded = -(-side // network.stride) * network.stride
    image = torch.zeros((1, recipe.input.channels, padded, padded))
    image[:, :, :side, :side] = torch.randn((side, side))
    pixels, seconds = image.numpy(), {"torch": [], "onnxruntime": []}
    for turn in range(repeat + 1):
        started = time.perf_counter()
        with torch.inference_mode():
            features.module(image)
        between = time.perf_counter()
        session.run(None, {"images": pixels})
        ended = time.perf_counter()
        if turn:  # the first repeat is a warm-up
            seconds["torch"].append(between - started)
            seconds["onnxruntime"].append(ended - between)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["torch"] / medians["onnxruntime"]
    return {**medians, "torch_over_onnxruntime": ratio, "largest_difference": graph["largest_difference"]}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--side", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("work/bench/export.json"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"{chosen.side} x {chosen.side}, {chosen.threads} threads, median of {chosen.repeat}\n")
    print("| network | torch s | ONNX Runtime s | times faster | largest difference |\n|---|---:|---:|---:|---:|")
    results = {}
    for name, recipe in recipes().items():
        results[name] = result = measure(recipe, chosen.side, chosen.threads, chosen.repeat)
        times = f"{result['torch']:.3f} | {result['onnxruntime']:.3f} | {result['torch_over_onnxruntime']:.2f}"
        print(f"| {name} | {times} | {result['largest_difference']:.1e} |", flush=True)
    settings = {"side_px": chosen.side, "threads": chosen.threads, "repeat": chosen.repeat}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({**settings, "networks": results}, indent=1) + "\n")
    print(f"\nwritten: {chosen.out}")


if __name__ == "__main__":
    main()
