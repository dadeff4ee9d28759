"""The predictor of a model folder, with the backend that runs its network: OpenVINO or PyTorch.

`load_predictor` imports only what is used. OpenVINO runs U-Nets without PyTorch; of Mask R-CNN it runs the layers, and
PyTorch the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from cellwright.config.conventions import CONVENTIONS
from cellwright.config.model_dense import DenseConfig, UNetConfig
from cellwright.config.model_rcnn import MaskRCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import ModelError, UsageError, did_you_mean
from cellwright.core.needs_torch import require_torch, torch_is_installed
from cellwright.data.value_range import TrainingValues
from cellwright.models import openvino_graph
from cellwright.models.dense import openvino_network
from cellwright.models.openvino_graph import Precision
from cellwright.models.rcnn.openvino_parts import why_not
from cellwright.models.weights.model_folder import (
    INFO,
    WEIGHTS,
    ModelInfo,
    misfit,
    model_folder,
    read_arrays,
    read_model_info,
    recipe_of,
)
from cellwright.prediction.backends import Backend
from cellwright.prediction.network import NetworkPredictor, settings_of

if TYPE_CHECKING:
    from cellwright.models.rcnn.openvino_rcnn import OpenVINOMaskRCNN

# Files that say that a GPU may be there: of drivers for NVIDIA, on Linux and in WSL, and for AMD.
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def load_predictor(
    name: Path | str, *, backend: Backend = "auto", device: str = "auto", threads: int | None = None
) -> tuple[NetworkPredictor, ModelInfo]:
    """The predictor of a model folder, a run or a bundled model, and its ``model.json``.

    threads: of the processor; None: as the backend chooses.

    Raises:
        ModelError: there is no model, or its weights do not fit its recipe.
        UsageError: ``backend`` or ``device`` is not available, or does not support the network.
    """
    info = read_model_info(name)
    recipe = recipe_of(info, where=model_folder(name) / INFO)
    facts = settings_of(recipe) | {
        "training": None if info.values is None else TrainingValues.from_dict(info.values, name),
        "trained_channels": info.channels,
        "scale": info.scale,
        "pixel_size_um": info.pixel_size_um,
    }
    ran_with = chosen_backend(recipe, backend, device)
    precision: Precision = "bf16" if ran_with == "openvino-bf16" else "f32"
    if ran_with != "torch" and isinstance(recipe.model, UNetConfig):
        ranges = _int8_ranges(name, info) if ran_with == "openvino-int8" else None
        unet = openvino_unet(name, recipe, info, threads=threads, ranges=ranges, precision=precision)
        return NetworkPredictor(unet, **facts), info
    import torch

    from cellwright.models.weights.torch_io import load_network
    from cellwright.prediction.backends.torch import TorchPredictor, resolve_device

    if threads is not None:
        torch.set_num_threads(threads)
    if ran_with != "torch":
        return TorchPredictor(_openvino_rcnn(name, recipe, info, threads, precision), device="cpu", **facts), info
    chosen = resolve_device(device)
    network, _ = load_network(name)
    return TorchPredictor(network.to(chosen), device=chosen, **facts), info


def _int8_ranges(name: Path | str, info: ModelInfo) -> openvino_network.Ranges:
    if info.int8_ranges is None:
        raise ModelError(
            "this model was not prepared for int8",
            where=model_folder(name) / INFO,
            got="no int8_ranges",
            remedy='make a copy that is: cellwright model export, with `to="int8"` and training images as `data`',
        )
    return info.int8_ranges


def chosen_backend(
    recipe: Recipe, backend: Backend = "auto", device: str = "auto"
) -> Literal["openvino", "openvino-int8", "openvino-bf16", "torch"]:
    """What runs a network. Raises `UsageError` if that is not available, or does not support the network."""
    if backend not in get_args(Backend):
        remedy = did_you_mean(backend, get_args(Backend))
        raise UsageError("unknown `backend`", got=backend, expected=", ".join(get_args(Backend)), remedy=remedy)
    problem = _openvino_problem(recipe, device)
    if backend == "openvino-int8" and problem is None and not isinstance(recipe.model, UNetConfig):
        problem = "int8 is for U-Nets"
    if backend == "openvino-bf16" and problem is None and not openvino_graph.has_bf16():
        problem = "this processor has no bf16 (AVX512-BF16 or AMX)"
    if backend.startswith("openvino") and problem is not None:
        raise UsageError(f"OpenVINO cannot be used: {problem}", got=f'`backend="{backend}"`', remedy="omit `backend`")
    if backend == "auto" and problem is None and not (device == "auto" and _has_gpu()):
        backend = "openvino"
    if backend not in ("auto", "torch"):
        if not isinstance(recipe.model, UNetConfig):
            require_torch("this model (a network of the R-CNN family)")
        return backend
    require_torch("this model" if problem is None or backend == "torch" else f"this model ({problem})")
    return "torch"


def _openvino_problem(recipe: Recipe, device: str) -> str | None:
    """Why OpenVINO cannot run a network on a device; None if it can."""
    if not openvino_graph.is_installed():
        return "it is not installed"
    if device not in ("auto", "cpu"):
        return f'`device="{device}"` needs PyTorch'
    if not isinstance(recipe.model, DenseConfig):
        reason = why_not(recipe.model)
        return None if reason is None else f"networks {reason} run in PyTorch"
    if not openvino_network.supports(recipe.model):
        encoder = getattr(recipe.model, "encoder", None)
        own = f"of the kind {recipe.model.kind}" if encoder is None else f"with an encoder of timm ({encoder})"
        return f"networks {own} run in PyTorch"
    return None


def _has_gpu() -> bool:
    """Whether PyTorch finds a GPU; it is only imported where one may be."""
    may_have = sys.platform in ("darwin", "win32") or any(Path(file).exists() for file in _GPU_FILES)
    if not may_have or not torch_is_installed():
        return False
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def openvino_unet(
    name: Path | str,
    recipe: Recipe,
    info: ModelInfo,
    *,
    threads: int | None = None,
    ranges: openvino_network.Ranges | None = None,
    precision: Precision = "f32",
    make: type[openvino_network.OpenVINONetwork] = openvino_network.OpenVINONetwork,
) -> openvino_network.OpenVINONetwork:
    """The U-Net of a model folder in OpenVINO."""
    assert isinstance(recipe.model, UNetConfig)  # checked by `chosen_backend`
    arrays, sizes = read_arrays(name), {"in_channels": recipe.input.channels, "n_classes": len(info.class_names)}
    if problems := openvino_network.differences(arrays, recipe.model, **sizes):
        raise misfit(problems, where=model_folder(name) / WEIGHTS)
    return make(recipe.model, arrays, **sizes, threads=threads, ranges=ranges, precision=precision)


def _openvino_rcnn(
    name: Path | str, recipe: Recipe, info: ModelInfo, threads: int | None, precision: Precision
) -> OpenVINOMaskRCNN:
    from cellwright.models.build import network_without_weights
    from cellwright.models.rcnn.openvino_rcnn import OpenVINOMaskRCNN
    from cellwright.models.weights.torch_io import check_fit

    assert isinstance(recipe.model, MaskRCNNConfig)  # checked by `chosen_backend`
    arrays, n_classes = read_arrays(name), len(info.class_names)
    check_fit(network_without_weights(recipe, n_classes), arrays, where=model_folder(name) / WEIGHTS)
    sizes = {"in_channels": recipe.input.channels, "n_classes": n_classes}
    how = {"threads": threads, "precision": precision}
    return OpenVINOMaskRCNN(recipe.model, CONVENTIONS[recipe.conventions], arrays, **sizes, **how)


def backend_of(predictor: Any) -> str | None:
    """Which backend a predictor uses: "openvino" or "torch", both joined by a plus in an ensemble, None without one."""
    members = getattr(predictor, "members", None)
    if members is not None:
        backends = sorted({own for member in members if (own := backend_of(member)) is not None})
        return " + ".join(backends) or None
    if isinstance(predictor, NetworkPredictor):
        return getattr(predictor.network, "backend", "torch")
    inner = getattr(predictor, "predictor", None)
    return None if inner is None else backend_of(inner)
