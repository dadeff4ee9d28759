"""`nuclei` on the VRDL validation images and the densest image of the dataset, against Cellpose 3.1: time and memory.

    python benchmarks/nuclei_speed.py work/bench/cellpose/bin/python --data work/vrdl [--threads 2] [--repeat 3]

Every image is predicted in a process of its own, with ``--threads`` threads: the shortest wall time of the repeats,
after one that does not count, and the peak memory of the process. `nuclei` estimates the diameter. It runs in float32,
and, for the columns that ``--backends`` names, in bf16 and int8. The first argument
is the interpreter of an environment with Cellpose 3.1 (``nuclei.py`` makes one); "none" leaves it out. Its network has
random weights and all its settings are the defaults, so that images are not resized: at the diameter of these nuclei
it would enlarge them. What it finds is noise, so the time without finding objects is in the table too.

The second table has the phases of ``cellwright predict`` on each image, with all the files that it writes: a second run
in one process, without loading and compiling the network. "all else" is reading, the rest of the estimate of the
diameter, resizing, and what is written once for all images, such as the report.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tables import Part, markdown, processor, status_mb, timed

PEER = "Cellpose 3.1"


def fastest(run: Any, repeat: int) -> tuple[float, float, Any]:
    """The shortest wall time after one run that does not count, its CPU time, and the result."""
    run()
    times, result = [], None
    for _ in range(repeat):
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        result = run()
        times.append((time.perf_counter() - wall_s, time.process_time() - cpu_s))
    return *min(times), result


def cellwright(image: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of `nuclei`, with its own estimate of the diameter."""
    import cellwright as cw

    model = cw.load_model("nuclei", device="cpu", backend=options.backend)
    wall_s, cpu_s, prediction = fastest(lambda: model.predictions(image), options.repeat)
    facts = {"objects": len(prediction.instances), "diameter": prediction.diameter.px}
    return facts | {"seconds": wall_s, "cpu": cpu_s, "peak_mb": status_mb("VmHWM")}


def cellpose(image: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of Cellpose's own network and of all, with its defaults."""
    import torch
    from cellpose import models  # type: ignore[import-not-found]

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = models.CellposeModel(gpu=False, pretrained_model=False)
    network_s, *_ = fastest(lambda: model.eval(image, channels=[0, 0], compute_masks=False), options.repeat)
    wall_s, cpu_s, _ = fastest(lambda: model.eval(image, channels=[0, 0]), options.repeat)
    return {"network": network_s, "seconds": wall_s, "cpu": cpu_s, "peak_mb": status_mb("VmHWM")}


def phases(image: np.ndarray) -> dict[str, float]:
    """Wall seconds of the phases of a whole `predict`."""
    import tifffile

    from cellwright.api import predict
    from cellwright.models.dense.openvino_network import OpenVINONetwork
    from cellwright.models.openvino_graph import CompiledGraph
    from cellwright.prediction.image_writer import ImageWriter

    parts: list[Part] = [
        ("loading", predict, "load_model"),
        ("network", OpenVINONetwork, "compute"),
        ("compiling", CompiledGraph, "_compile"),
        ("decoding", OpenVINONetwork, "decode"),
        ("measuring, writing", ImageWriter, "write"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.tif"
        tifffile.imwrite(path, image)
        predict.run(predict.PredictPlan((path,), out=Path(folder) / "first"))
        with timed(parts, time.perf_counter) as seconds:
            predict.run(predict.PredictPlan((path,), out=Path(folder) / "second"))
    whole = seconds["whole"] - seconds.pop("loading") - seconds.pop("network: compiling")
    return {**seconds, "whole": whole}


def in_process(
    python: str, what: str, image: Path, options: argparse.Namespace, backend: str = "openvino"
) -> dict[str, Any]:
    """What a function of this module returns for an image, in a process of its own."""
    words = ["--backend", backend]
    words += ["--threads", str(options.threads), "--repeat", str(options.repeat), "--only", what, str(image)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run([python, __file__, "", *words], check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def row(ours: dict[str, Any], theirs: dict[str, Any] | None, others: dict[str, dict[str, Any]]) -> dict[str, object]:
    """What was measured for an image, without its name."""
    cells: dict[str, object] = {
        "found": ours["objects"],
        "diameter, px": f"{ours['diameter']:.1f}",
        "cellwright, s": f"{ours['seconds']:.2f}",
        "CPU s": f"{ours['cpu']:.2f}",
        "MB": f"{ours['peak_mb']:.0f}",
    }
    cells |= {f"{name.removeprefix('openvino-')}, s": f"{own['seconds']:.2f}" for name, own in others.items()}
    if theirs is not None:
        cells |= {
            f"{PEER}, s": f"{theirs['seconds']:.2f}",
            "its network, s": f"{theirs['network']:.2f}",
            "its MB": f"{theirs['peak_mb']:.0f}",
            "times ours": f"{theirs['seconds'] / ours['seconds']:.1f}",
            "its network, times ours": f"{theirs['network'] / ours['seconds']:.1f}",
        }
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="of the environment with Cellpose 3.1, or none")
    parser.add_argument("--data", type=Path, default=Path("work/vrdl"), help="the converted and split VRDL dataset")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--side", type=int, help="only a corner of each image, for trying the script")
    parser.add_argument("--backends", nargs="*", default=["openvino-bf16", "openvino-int8"], help="besides float32")
    parser.add_argument("--backend", help=argparse.SUPPRESS)  # of a process of its own
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # what and image, in a process of its own
    options = parser.parse_args()
    if options.only:
        what, image = options.only[0], np.load(options.only[1])
        facts = phases(image) if what == "phases" else {"ours": cellwright, "theirs": cellpose}[what](image, options)
        print(json.dumps(facts))
        return
    import cellwright as cw

    dataset = cw.read_dataset(options.data)
    numbers = {sample.id: len(sample.read_instances()) for sample in dataset}
    names = [sample.id for sample in dataset.with_split("val")]
    densest = max(numbers, key=lambda name: numbers[name])
    table, shares = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.npy"
        for name in [*names, *({densest} - {*names})]:
            np.save(path, cw.read_image(dataset.sample(name).image_path).data[: options.side, : options.side, :3])
            ours = in_process(sys.executable, "ours", path, options)
            theirs = None if options.python == "none" else in_process(options.python, "theirs", path, options)
            others = {own: in_process(sys.executable, "ours", path, options, own) for own in options.backends}
            first = {"image": name, "nuclei": numbers[name]}
            table.append(first | row(ours, theirs, others))
            own = in_process(sys.executable, "phases", path, options)
            share = (own["decoding"] + own["measuring, writing"]) / own["whole"]
            cells = {key: f"{value:.2f}" for key, value in own.items()}
            shares.append(first | cells | {"decoding, measuring, writing": f"{share:.0%}"})
            print(json.dumps([table[-1], shares[-1]]), flush=True)
    print(f"\n{processor()}; {options.threads} threads\n\n{markdown(table)}\n\n{markdown(shares)}")


if __name__ == "__main__":
    main()
