"""Networks of StarDist 2-D: a folder with ``config.json``, ``weights_best.h5`` and ``thresholds.json``.

Source: StarDist 0.9 (BSD-3-Clause), https://github.com/stardist/stardist. The layers before the grid have names that
Keras counted in the session of the training (``conv2d_2``), so their order counts. Reading needs the extra ``h5py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellwright.core.errors import ModelError, UsageError
from cellwright.core.files import read_json
from cellwright.core.memory import check_memory

CONFIG, THRESHOLDS = "config.json", "thresholds.json"
WEIGHTS = ("weights_best.h5", "weights_last.h5")
# Values of config.json that our network has; others are refused.
_FIXED: dict[str, tuple[Any, ...]] = {
    "n_dim": (2,),
    "backbone": ("unet",),
    "n_classes": (None,),
    "unet_kernel_size": ([3, 3],),
    "unet_pool": ([2, 2],),
    "unet_activation": ("relu",),
    "unet_last_activation": ("relu",),
    "unet_batch_norm": (False,),
}
_DEFAULT_THRESHOLDS = {"prob": 0.5, "nms": 0.4}
# StarDist takes no candidates from so many points of its grid at the edge of the image.
_BORDER = 2


def is_folder(path: Path) -> bool:
    """Whether this is the folder of a StarDist model."""
    return (path / CONFIG).is_file() and any((path / name).is_file() for name in WEIGHTS)


def weights_file(folder: Path) -> Path:
    """The file of weights in the folder of a model. Raises `ModelError` if there is none."""
    for name in WEIGHTS:
        if (folder / name).is_file() and (folder / CONFIG).is_file():
            return folder / name
    raise ModelError("no StarDist model here", where=folder, expected=f"a folder with {CONFIG} and {WEIGHTS[0]}")


def read_layers(path: Path) -> dict[str, Tensor]:
    """The weights in a Keras file by layer, such as ``down_level_0_no_0/kernel``, in the order of PyTorch.

    Only datasets in the file itself are read.

    Raises:
        UsageError: h5py is not installed.
        ModelError: the file is damaged, no file of Keras, or refers to other files.
    """
    try:
        import h5py
    except ImportError as error:
        remedy = "pip install 'cellwright[h5py]'"
        raise UsageError("reading weights of StarDist needs h5py, which is not installed", remedy=remedy) from error
    layers: dict[str, Tensor] = {}

    def read(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.external or item.is_virtual or item.dtype.kind != "f":
            got = f"{name}, {item.dtype}"
            raise ModelError("this file contains more than weights", where=path, got=got, expected="arrays of numbers")
        check_memory((item.size or 0) * 8, "the weights in this file", where=path)
        array = np.asarray(item[()], np.float32)
        layer, _, leaf = name.removesuffix(":0").rpartition("/")
        # Kernels are (h, w, in, out) in Keras.
        turned = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        layers[f"{layer.rpartition('/')[2]}/{leaf}"] = torch.from_numpy(np.ascontiguousarray(turned))

    try:
        with h5py.File(path, "r") as file:
            is_inside = isinstance(file.get("model_weights", getlink=True), h5py.HardLink)
            root: Any = file["model_weights"] if is_inside else file
            root.visititems(read)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # h5py raises all of them
        raise ModelError(
            "cannot read these weights", where=path, got=str(error)[:200], expected="a file that StarDist wrote"
        ) from error
    return layers


def read_settings(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """``config.json`` and ``thresholds.json``, checked. Raises `ModelError` for a network that ours cannot be."""
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise ModelError(
            "this is not the configuration of a StarDist model",
            where=folder / CONFIG,
            got=type(config).__name__,
            expected="names and values",
        )
    for key, allowed in _FIXED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise ModelError(
                "this network of StarDist cannot be imported",
                where=folder / CONFIG,
                got=f"{key}: {config[key]}",
                expected=str(allowed[0]),
            )
    grid = config.get("grid", [1, 1])
    if grid not in ([1, 1], [2, 2], [4, 4], [8, 8], [16, 16]):
        expected = "the same power of 2 in y and x, up to 16"
        raise ModelError("this grid cannot be imported", where=folder / CONFIG, got=f"grid: {grid}", expected=expected)
    path = folder / THRESHOLDS
    thresholds = read_json(path) if path.is_file() else _DEFAULT_THRESHOLDS
    if not isinstance(thresholds, dict) or not all(
        isinstance(thresholds.get(key), int | float) and 0 <= thresholds[key] <= 1 for key in _DEFAULT_THRESHOLDS
    ):
        raise ModelError("these thresholds are damaged", where=path, got=str(thresholds)[:100], expected="prob and nms")
    return config, thresholds


def recipe_values(folder: Path) -> dict[str, Any]:
    """The values of the recipe that fits a model; prediction with it equals that of StarDist. Raises `ModelError`."""
    config, thresholds = read_settings(folder)
    grid = int(config.get("grid", [1, 1])[0])
    return {
        "name": "stardist",
        "description": "A network of StarDist 2-D, with its decoder and its thresholds.",
        "input": {
            "channels": config.get("n_channel_in", 1),
            "normalise": "percentile",
            "percentiles": (1.0, 99.8),
            "percentiles_of": "channel",
        },
        "model": {
            "kind": "stardist",
            "width": config.get("unet_n_filter_base", 32),
            "depth": config.get("unet_n_depth", 3),
            "convs": config.get("unet_n_conv_per_depth", 2),
            "grid": grid,
            "features": config.get("net_conv_after_unet", 128),
            "target": {
                "kind": "stars",
                "n_rays": config.get("n_rays", 32),
                "probability_threshold": float(thresholds["prob"]),
                "max_overlap": float(thresholds["nms"]),
                "overlap": "polygons",
                "grid": grid,
                "border_px": _BORDER * grid,
            },
        },
        "predict": {"score_threshold": 0.0},
    }


def our_names(layers: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, str | None]:
    """Our name of each weight; None where it is unknown."""
    prefix, n = str(config.get("unet_prefix", "")), int(config.get("unet_n_conv_per_depth", 2))
    counted = {name.partition("/")[0] for name in layers if re.fullmatch(r"conv2d(_\d+)?/\w+", name)}
    order = sorted(counted, key=lambda layer: int(layer.partition("_")[2] or 0))
    names: dict[str, str | None] = {}
    for name in layers:
        layer, _, leaf = name.partition("/")
        place: str | None = None
        own = layer.removeprefix(prefix)
        if layer in order:
            place = "shrink.{}.{}".format(*divmod(order.index(layer), n))
        elif match := re.fullmatch(r"(down|up)_level_(\d)_no_(\d)", own):
            place = f"{'encoder' if match[1] == 'down' else 'decoder'}.{match[2]}.{_position(int(match[3]), n)}"
            if match[1] == "down":
                place = f"encoder.{match[2]}.{match[3]}"
        elif match := re.fullmatch(r"middle_(\d)", own):
            place = f"middle.{_position(int(match[1]), n)}"
        elif layer in _LAST:
            place = _LAST[layer]
        leaf = {"kernel": "weight", "bias": "bias"}.get(leaf, "")
        names[name] = f"unet.{place}.{leaf}" if place and leaf else None
    return names


_LAST = {"features": "features.0", "prob": "maps.0", "dist": "maps.1"}


def _position(number: int, n: int) -> int:
    """The place of a convolution among those of its resolution: the last one is called ``n``, not ``n - 1``."""
    return n - 1 if number == n else number
