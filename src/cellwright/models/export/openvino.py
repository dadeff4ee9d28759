"""A U-Net as OpenVINO's files, ``maps.xml`` and ``maps.bin``, built from the arrays of a model folder: no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cellwright.config.model_dense import UNetConfig
from cellwright.core.errors import ModelError, UsageError
from cellwright.models import openvino_graph
from cellwright.models.dense import openvino_network
from cellwright.models.dense.openvino_network import OpenVINONetwork
from cellwright.models.export.program import TOLERANCE
from cellwright.models.weights.model_folder import (
    WEIGHTS,
    ModelInfo,
    misfit,
    model_folder,
    read_arrays,
    read_model_info,
    recipe_of,
)

_FILE = "maps.xml"


def model_of(name: Path | str) -> tuple[OpenVINONetwork, ModelInfo]:
    """The network of a model folder, a run or a bundled model, and its ``model.json``.

    Raises:
        ModelError: there is no model, or its weights do not fit its recipe.
        UsageError: OpenVINO is not installed, or cannot be given this network.
    """
    info = read_model_info(name)
    recipe = recipe_of(info, where=model_folder(name))
    if not isinstance(recipe.model, UNetConfig) or not openvino_network.supports(recipe.model):
        raise UsageError(
            "this network cannot be exported to OpenVINO",
            got=getattr(recipe.model, "encoder", None) or recipe.model.kind,
            expected="a U-Net without an encoder of timm",
            remedy='export it with `to="onnx"`, which OpenVINO reads',
        )
    if not openvino_graph.is_installed():
        raise UsageError("OpenVINO is not installed", remedy="pip install openvino")
    arrays, n_channels, n_classes = read_arrays(name), recipe.input.channels, len(info.class_names)
    if problems := openvino_network.differences(arrays, recipe.model, in_channels=n_channels, n_classes=n_classes):
        raise misfit(problems, where=model_folder(name) / WEIGHTS)
    return OpenVINONetwork(recipe.model, arrays, in_channels=n_channels, n_classes=n_classes), info


def write_model(network: OpenVINONetwork, folder: Path) -> dict[str, Any]:
    """Write ``maps.xml`` and ``maps.bin``, and run them.

    Returns:
        Their entry in ``export.json``: file, inputs, outputs, and the largest difference.

    Raises:
        ModelError: what was written gives other numbers.
        OutputError: the files cannot be written.
    """
    openvino_graph.save(network.nodes(), folder / _FILE)
    side = 2 * network.stride
    images = np.random.default_rng(1).standard_normal((1, network.in_channels, side, 3 * side)).astype(np.float32)
    maps, again = network.compute(images), openvino_graph.compiled(folder / _FILE)(images)[0]
    difference = float(np.abs(maps - again).max() / max(np.abs(maps).max(), np.finfo(np.float32).tiny))
    if not difference <= TOLERANCE:  # true for NaN, too
        got = f"{difference:.2g} of the largest value"
        problem = "OpenVINO's file and the network give different results"
        raise ModelError(problem, where=folder / _FILE, got=got, expected=f"<= {TOLERANCE:g}")
    inputs = {"images": ["batch", network.in_channels, "height", "width"]}
    outputs = {"maps": ["batch", network.n_maps, "height", "width"]}
    return {"file": _FILE, "inputs": inputs, "outputs": outputs, "largest_difference": difference}
