"""One training step of Cellpose 3.1's own network, of ours with its layers, and of our flow U-Net.

    python benchmarks/unet_train_step.py work/bench/cellpose/bin/python [--repeat 3] [--profile]

A step is forward, loss, backward and an update of AdamW with 8 crops of 224 x 224 px, two channels and drawn cells;
all networks have 32 channels at full resolution. The first argument is the interpreter of an environment with Cellpose
3.1 (``nuclei.py`` makes one). Its network trains as it is made for a CPU, with ``mkldnn=True``, and without. Ours with
its layers starts from its weights. Flows and all other targets are made before. Each row is a process of one thread
that keeps freed memory: the median CPU time of the repeats after one step that does not count, and the peak memory.
``--profile`` prints the operations that take most of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tables import KEEP_FREED_MEMORY, cpu_seconds, in_kernels, markdown, processor

CROPS, SIDE, CELLS, DIAMETER_PX = 8, 224, 40, 28.0
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-5
THEIRS = ("Cellpose 3.1", "Cellpose 3.1, mkldnn=False")
OURS = ("cellwright, layers of Cellpose", "cellwright, flow U-Net")


def prepare(folder: Path) -> None:
    """Crops with two channels, their label images and their maps; and the precisions to measure."""
    import torch

    from cellwright.data.synthetic import FieldLook, draw_field
    from cellwright.models.dense import flow
    from cellwright.training.precision import is_bf16_fast

    look = FieldLook(stain="fluorescence", diameter_px=DIAMETER_PX, overlap=0.0)
    drawn = [draw_field(seed, (SIDE, SIDE), CELLS, look) for seed in range(CROPS)]
    first = np.stack([image.data[:, :, 0] for image, _ in drawn]).astype(np.float32) / 255
    labels = np.stack([objects.masks.to_layers()[0][0] for _, objects in drawn])
    pixels = np.stack([first, np.roll(first, 1, axis=0)], axis=1)
    np.savez(folder / "crops.npz", pixels=pixels, labels=labels, maps=np.stack([flow.encode(own) for own in labels]))
    # float32, and what ``auto`` picks on this machine if that is another
    listed = ["float32", "bf16"] if is_bf16_fast(torch.device("cpu")) else ["float32"]
    (folder / "precisions.json").write_text(json.dumps(listed))


def their_step(folder: Path, peer: str) -> Callable[[], float]:
    """Cellpose's network, loss and optimiser; its weights are kept for ours."""
    import torch
    from cellpose import models, train  # type: ignore[import-not-found]

    torch.manual_seed(0)
    net = models.CellposeModel(gpu=False, pretrained_model=False, nchan=2, mkldnn=peer == THEIRS[0]).net
    net.save_model(folder / "theirs.pt")
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    crops, device = np.load(folder / "crops.npz"), torch.device("cpu")
    pixels, maps = torch.from_numpy(crops["pixels"]), crops["maps"][:, [2, 0, 1]]
    net.train()

    def step() -> float:
        loss = train._loss_fn_seg(maps, net(pixels)[0], device)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def our_step(folder: Path, peer: str, precision: str) -> Callable[[], float]:
    """One of our networks."""
    import torch

    from cellwright.config.model_dense import CellposeConfig, UNetConfig
    from cellwright.config.training import TrainConfig
    from cellwright.models.dense.dense import DenseNetwork
    from cellwright.models.weights.initial import start_from
    from cellwright.ops.batch import Batch
    from cellwright.training.state import TrainState
    from cellwright.training.step import take_step

    torch.manual_seed(0)
    network = DenseNetwork(CellposeConfig() if peer == OURS[0] else UNetConfig(), in_channels=2, n_classes=1)
    network = network.to(memory_format=torch.channels_last)  # as `build_network` does
    if peer == OURS[0]:
        start_from(network, f"cellpose:{folder / 'theirs.pt'}")
    values = {"optimiser": "adamw", "lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "precision": precision}
    config = TrainConfig.model_validate(values | {"threads": 1})
    crops = np.load(folder / "crops.npz")
    counts = [int(labels.max()) for labels in crops["labels"]]
    batch = Batch(
        images=torch.from_numpy(crops["pixels"]),
        image_hws=[(SIDE, SIDE)] * CROPS,
        boxes=[torch.zeros((n, 4)) for n in counts],
        class_ids=[torch.zeros(n, dtype=torch.long) for n in counts],
        ignore=[torch.zeros(n, dtype=torch.bool) for n in counts],
        layers=[torch.from_numpy(labels)[None] for labels in crops["labels"]],
        layer_of=[torch.zeros(n, dtype=torch.long) for n in counts],
        seed=0,
    )
    targets, state = network.targets(batch), TrainState.initial(network, config)
    network.targets = lambda _: targets  # type: ignore[method-assign]
    return lambda: take_step(state, [batch], config, LEARNING_RATE).loss


def measure(peer: str, precision: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a step of one row needs."""
    import torch

    torch.set_num_threads(1)
    if peer in THEIRS:
        step = their_step(folder, peer)
    else:
        torch.use_deterministic_algorithms(True)  # as in our training
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        step = our_step(folder, peer, precision)
    loss = step()
    seconds = cpu_seconds(step, options.repeat)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    profile = in_kernels(step) if options.profile else ""
    return {"seconds": statistics.median(seconds), "peak_mb": peak, "loss": loss, "profile": profile}


def row(peer: str, precision: str, facts: dict[str, Any], first: dict[str, Any]) -> dict[str, str]:
    """One line of the table; ``first``: what Cellpose needs."""
    return {
        "network": peer,
        "precision": precision,
        "CPU s": f"{facts['seconds']:.2f}",
        "ratio": f"{facts['seconds'] / first['seconds']:.2f}",
        "peak MB": f"{facts['peak_mb']:.0f}",
        "ratio of memory": f"{facts['peak_mb'] / first['peak_mb']:.2f}",
        "loss of the first step": f"{facts['loss']:.4f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="of the environment with Cellpose 3.1")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)  # peer, precision, folder, in a process of its own
    options = parser.parse_args()
    if options.only:
        peer, precision, folder = options.only
        if peer == "prepare":
            prepare(Path(folder))
        else:
            facts = measure(peer, precision, Path(folder), options)
            (Path(folder) / "facts.json").write_text(json.dumps(facts))
        return
    environment, rows, profiles = os.environ | KEEP_FREED_MEMORY | {"OMP_NUM_THREADS": "1"}, [], []
    with tempfile.TemporaryDirectory() as folder:
        words = [__file__, *sys.argv[1:], "--only"]
        subprocess.run([sys.executable, *words, "prepare", "", folder], check=True, env=environment)
        first: dict[str, Any] = {}
        listed = json.loads((Path(folder) / "precisions.json").read_text())
        pairs = [(peer, "float32") for peer in THEIRS] + [(peer, how) for peer in OURS for how in listed]
        for peer, precision in pairs:
            interpreter = options.python if peer in THEIRS else sys.executable
            subprocess.run([interpreter, *words, peer, precision, folder], check=True, env=environment)
            facts = json.loads((Path(folder) / "facts.json").read_text())
            first = first or facts
            rows.append(row(peer, precision, facts, first))
            profiles.append((f"{peer}, {precision}", facts["profile"]))
    print(f"{processor()}\n\n{markdown(rows)}")
    for title, profile in profiles:
        print(f"\n{title}\n\n{profile}" if profile else "", end="")


if __name__ == "__main__":
    main()
