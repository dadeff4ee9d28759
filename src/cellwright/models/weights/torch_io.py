"""Model folders and torch: tensors are written and read, and loaded into a network. Loading is strict."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cellwright.core.errors import ModelError
from cellwright.core.files import atomic_path
from cellwright.models.build import network_to_fill
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.weights.model_folder import (
    INFO,
    WEIGHTS,
    ModelInfo,
    check_finite,
    misfit,
    model_folder,
    read_model_info,
    recipe_of,
    unreadable_weights,
    write_info,
)


def save_model(folder: Path | str, weights: Mapping[str, Tensor], info: ModelInfo) -> Path:
    """Write a model folder, file by file, each atomically; existing files are replaced. Returns the folder.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    with atomic_path(folder / WEIGHTS) as path:
        save_tensors(path, weights)
    write_info(folder, info)
    return folder


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` to a safetensors file, not atomically. Raises `OSError`."""
    # Copies, because safetensors rejects views and tensors that share memory. The file is written here, because
    # safetensors would write it under a temporary name of its own, which stays if the process is killed.
    owned = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    path.write_bytes(save(owned))


def read_weights(folder: Path | str) -> dict[str, Tensor]:
    """The tensors of a model folder, a run or a bundled model on the CPU, in the precision in which they are stored.

    A network into which they are loaded is always float32.

    Raises:
        ModelError: there is no model, its weights cannot be read, or some are not finite.
    """
    path = model_folder(folder) / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable_weights(folder, error) from error
    check_finite((name for name, tensor in tensors.items() if not tensor.isfinite().all()), path)
    return tensors


def in_half_precision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors as float16, half the size on disk; integer tensors are unchanged.

    Raises:
        ModelError: a value exceeds the range of float16, 65504.
    """
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    lost = [name for name, tensor in half.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if lost:
        raise ModelError(
            "these weights exceed the range of half precision", where=lost[0], expected="values up to 65504"
        )
    return half


def load_weights(
    network: nn.Module, weights: Mapping[str, Tensor], *, where: object, remedy: str | None = None
) -> None:
    """Copy ``weights`` into ``network``.

    Raises:
        ModelError: names or shapes differ from those of the network; the message lists the first five.
    """
    check_fit(network, weights, where=where, remedy=remedy)
    network.load_state_dict(dict(weights), strict=True)


def check_fit(network: nn.Module, weights: Mapping[str, Any], *, where: object, remedy: str | None = None) -> None:
    """Raise `ModelError` if names or shapes differ from those of the network; the message lists the first five.

    weights: tensors or arrays.
    """
    own = network.state_dict()
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in own]
    problems += [
        f"{name} is {tuple(weights[name].shape)} in the file, {tuple(tensor.shape)} in the network"
        for name, tensor in own.items()
        if name in weights and tuple(weights[name].shape) != tuple(tensor.shape)
    ]
    if problems:
        raise misfit(problems, where=where, remedy=remedy)


def load_network(folder: Path | str, *, kind: str | None = None) -> tuple[MaskRCNN | DenseNetwork, ModelInfo]:
    """The network of a model folder, a run or a bundled model, in evaluation mode on the CPU, and its ``model.json``.

    Raises:
        ModelError: there is no model, it is not of the family ``kind``, or its weights do not fit its recipe.
    """
    path, info = model_folder(folder), read_model_info(folder, kind=kind)
    recipe, weights = recipe_of(info, where=path / INFO), read_weights(folder)
    check = partial(check_fit, weights=weights, where=path / WEIGHTS)
    network = network_to_fill(recipe, len(info.class_names), check)
    network.load_state_dict(weights, strict=True)
    network.eval()
    return network, info
