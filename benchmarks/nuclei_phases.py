"""Where the time of the bundled model of stained nuclei goes: phases, and levels of its U-Net; for `crowd_rcnn.py`.

The drawn image of `crowd_rcnn.py` is predicted with OpenVINO and one thread, with the model's own estimate of the
diameter: the CPU time of the fastest repeat, after one that does not count. The second table has the levels of the
U-Net for the input of that image, by the shares of its layers that OpenVINO reports; the sides of level k are divided
by 2^k. The work is that of direct convolutions.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from crowd_rcnn import picture
from tables import Part, roofline, timed

MODEL = "nuclei-stained"
HW = tuple[int, int]


def parts_of(network: Any) -> list[Part]:
    """The functions whose time is taken."""
    from cellwright.models.dense import prediction as dense
    from cellwright.prediction import network as predictor

    return [
        ("estimate of the diameter", predictor, "estimate_diameter"),
        ("U-Net", network, "compute"),
        ("resizing", predictor, "rescale"),
        ("resizing", dense, "resized"),
        ("decoding", network, "decode"),
    ]


@contextmanager
def recorded(network: Any) -> Iterator[list[HW]]:
    """Fills a list with the sizes of the network's inputs."""
    compute, seen = network.compute, []

    def call(images: np.ndarray) -> np.ndarray:
        seen.extend([images.shape[2:]] * len(images))
        return compute(images)

    network.compute = call
    yield seen
    del network.compute


def work_of(network: Any, hw: HW) -> dict[int, float]:
    """GFLOP of the convolutions for an input, by the level of their output; an addition counts as one too."""
    from cellwright.models.dense.openvino_network import shapes_of

    config, gflop = network.config, defaultdict(float)
    assert config.skips == "plain"
    last = config.depth - 1 if config.deep_supervision else 0
    for name, shape in shapes_of(config, network.in_channels, network.n_maps):
        _, part, number, *_ = name.split(".")
        if len(shape) < 4 or (part == "maps" and int(number) != last):
            continue
        level = {"encoder": int(number), "maps": 0}.get(part, config.depth - 1 - int(number))
        side_of = level + 1 if part == "upsample" else level  # a transposed convolution multiplies its input
        gflop[level] += 2 * math.prod(shape) * hw[0] * hw[1] / 4**side_of / 1e9
    return gflop


def seconds_of_levels(network: Any, hw: HW, repeat: int) -> dict[int, float]:
    """CPU seconds by the level of the output: those of the fastest repeat, shared out as OpenVINO times its layers."""
    import openvino

    from cellwright.models.openvino_graph import save

    how = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False, "INFERENCE_NUM_THREADS": 1}
    with tempfile.TemporaryDirectory() as folder:
        save(network.nodes(), Path(folder) / "network.xml")
        model = openvino.Core().read_model(Path(folder) / "network.xml")
    shape = [1, network.in_channels, *hw]
    model.reshape(shape)
    compiled = openvino.Core().compile_model(model, "CPU", how | {"PERF_COUNT": True})
    request, runs = compiled.create_infer_request(), []
    pixels = np.random.default_rng(0).random(shape, np.float32)
    for _ in range(repeat + 1):
        before = time.process_time()
        request.infer({0: pixels})
        whole, layers = time.process_time() - before, defaultdict(float)
        for layer in compiled.get_runtime_model().get_ops():
            spent = layer.get_rt_info()["execTimeMcs"].astype(str)
            if spent.isdecimal():
                layers[round(math.log2(hw[0] / layer.output(0).get_shape()[2]))] += int(spent)
        runs.append({level: whole * spent / sum(layers.values()) for level, spent in layers.items()})
    return min(runs[1:], key=lambda run: sum(run.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rate", type=float, required=True, help="GFLOP/s of matrix products")
    options = parser.parse_args()
    import cellwright as cw

    model, image, runs = cw.load_model(MODEL, device="cpu", backend="openvino"), picture(options.side), []
    network: Any = model.predictor.network  # type: ignore[attr-defined]
    with recorded(network) as seen:
        prediction = model.predictions(image)
    assert prediction.diameter is not None
    px = prediction.diameter.px
    with recorded(network) as own:
        model.with_options(diameter=px).predictions(image)
    for _ in range(options.repeat):
        with timed(parts_of(network)) as phases:
            model.predictions(image)
        runs.append(phases)
    best = min(runs, key=lambda phases: phases["whole"])
    whole, last = (sum(sum(work_of(network, hw).values()) for hw in hws) for hws in (seen, own))
    gflop = {"U-Net": last, "estimate of the diameter: U-Net": whole - last, "whole": whole}
    found = f"{len(prediction.instances)} objects, {len(seen) - len(own)} windows for the diameter, {px:.1f} px"
    print(
        f"\n`{MODEL}`, {options.side} x {options.side}: {found}\n\n{roofline(gflop, {'OpenVINO': best}, options.rate)}"
    )
    work, seconds = work_of(network, own[0]), seconds_of_levels(network, own[0], options.repeat)
    names = {level: f"{level}: {network.config.width * 2**level} channels" for level in sorted(work)}
    gflop = {name: work[level] for level, name in names.items()} | {"whole": sum(work.values())}
    named = {name: seconds[level] for level, name in names.items()} | {"whole": sum(seconds.values())}
    print(f"\nits levels, input {own[0][0]} x {own[0][1]}\n\n{roofline(gflop, {'OpenVINO': named}, options.rate)}")


if __name__ == "__main__":
    main()
