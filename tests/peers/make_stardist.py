"""A small StarDist model with drawn weights, and what StarDist finds with it, for `test_stardist.py`; stardist 0.9.2:

python -m venv references && references/bin/pip install stardist==0.9.2 "tensorflow-cpu<2.16" "numpy<2"
references/bin/python tests/peers/make_stardist.py tests/peers
"""

from __future__ import annotations

import sys
from pathlib import Path

import drawn  # type: ignore[import-not-found]
import numpy as np
from csbdeep.utils import normalize  # type: ignore[import-not-found]
from stardist.models import Config2D, StarDist2D  # type: ignore[import-not-found]

SIZES = {"odd": (93, 110), "whole": (160, 240)}
NETWORK = {"n_rays": 32, "grid": (2, 2), "n_channel_in": 1, "unet_n_depth": 2, "unet_n_filter_base": 4}
# Factor of the last kernels, and what is added to their biases, so that there are polygons.
PROB, DIST = (150.0, 9.0), (30.0, 6.0)


def main() -> None:
    folder = Path(sys.argv[1])
    StarDist2D(Config2D(**NETWORK), name=None, basedir=None)  # so that Keras counts on from its layers
    model = StarDist2D(Config2D(net_conv_after_unet=8, **NETWORK), name="stardist_model", basedir=str(folder))
    number = 0
    for layer in model.keras_model.layers:
        if not layer.weights:
            continue
        known, number = (f"conv2d_{number}", number + 1) if layer.name.startswith("conv2d") else (layer.name, number)
        shapes = {
            f"{known}/{leaf}": tuple(array.shape)
            for leaf, array in zip(("kernel", "bias"), layer.get_weights(), strict=True)
        }
        weights = drawn.weights(shapes, gain=1.0)
        if layer.name in ("prob", "dist"):
            weights[f"{layer.name}/kernel"] *= np.float32(PROB[0] if layer.name == "prob" else DIST[0])
            weights[f"{layer.name}/bias"] += np.float32(PROB[1] if layer.name == "prob" else DIST[1])
        layer.set_weights(list(weights.values()))
    model.keras_model.save_weights(str(folder / "stardist_model" / "weights_best.h5"))
    model.thresholds = {"prob": 0.55, "nms": 0.3}
    (folder / "stardist_model" / "thresholds.json").write_text('{"prob": 0.55, "nms": 0.3}\n')
    stored = {}
    for name, hw in SIZES.items():
        pixels = normalize(drawn.image(7, hw, 1)[:, :, 0], 1, 99.8)
        probability, rays = model.predict(pixels)
        labels, _ = model.predict_instances(pixels, prob_thresh=0.55, nms_thresh=0.3)
        stored[f"{name}_probability"], stored[f"{name}_labels"] = probability[::2, ::2], labels.astype(np.uint16)
        stored[f"{name}_rays"] = rays[::6, ::6]
    np.savez_compressed(folder / "stardist.npz", **stored)


if __name__ == "__main__":
    main()
