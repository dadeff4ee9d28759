"""Results of Cellpose on drawn weights, images and maps, for `test_cellpose.py`. Needs cellpose==3.1.1.3 and its torch:

python -m venv references && references/bin/pip install cellpose==3.1.1.3
references/bin/python tests/peers/make_cellpose.py tests/peers/cellpose.npz
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import drawn  # type: ignore[import-not-found]
import numpy as np
import torch
from cellpose import dynamics, models  # type: ignore[import-not-found]

SIZES = {"image": (180, 250), "small": (70, 90)}
STEP = 3  # of the pixels of maps that are stored


def network(folder: Path, channels: int, diameters: tuple[float, float]) -> models.CellposeModel:
    path = folder / "network"
    net = models.CellposeModel(pretrained_model=False, nchan=channels).net
    state = net.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if tensor.is_floating_point()}
    state |= {name: torch.from_numpy(array) for name, array in drawn.cellpose_weights(shapes).items()}
    state["diam_mean"], state["diam_labels"] = (torch.tensor([value]) for value in diameters)
    torch.save(state, path)
    return models.CellposeModel(pretrained_model=str(path), nchan=channels)


def main() -> None:
    torch.set_num_threads(1)
    stored: dict[str, np.ndarray] = {}
    for name, hw in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            model = network(Path(folder), 2, (30.0, 25.0))
        diameter = None if name == "image" else 30.0
        pixels = drawn.image(3, hw, 2)
        labels, (_, flows, cellprob), _ = model.eval(pixels, channel_axis=2, diameter=diameter, flow_threshold=0)
        maps = np.concatenate([flows, cellprob[None]]).astype(np.float32)
        stored[f"{name}_maps"], stored[f"{name}_labels"] = maps[:, ::STEP, ::STEP], labels.astype(np.uint16)
    for seed in range(4):
        flows, cellprob = np.split(drawn.flow_maps(seed), [2])
        for more in ({}, {"flow_threshold": 0.8, "cellprob_threshold": 1.0, "min_size": 40}):
            labels = dynamics.resize_and_compute_masks(flows, cellprob[0], niter=200, **more)
            stored[f"decoded_{seed}_{len(more)}"] = labels.astype(np.uint16)
    np.savez_compressed(sys.argv[1], **stored)


if __name__ == "__main__":
    main()
