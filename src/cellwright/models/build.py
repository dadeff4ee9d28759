"""From a recipe's ``model`` section to a network: one literal `match`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cellwright.config.conventions import CONVENTIONS, Conventions
from cellwright.config.model_dense import CellposeConfig, StarDistConfig, UNetConfig
from cellwright.config.model_rcnn import C4Config, CascadeConfig, MaskRCNNConfig, PointRendConfig, RCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import CellwrightError, RecipeError
from cellwright.core.memory import check_memory
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.tiled import TiledNetwork
from cellwright.models.rcnn.c4 import C4MaskRCNN
from cellwright.models.rcnn.cascade import CascadeMaskRCNN
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.mask_scoring import MaskScoringCascade, MaskScoringRCNN
from cellwright.models.rcnn.pointrend import PointRend

SMALLER = "choose smaller widths and channels in the section model of the recipe"
# What training holds per byte of the weights: gradients, and two averages of the optimiser.
_TRAINED = 4


def build_network(recipe: Recipe, n_classes: int) -> MaskRCNN | DenseNetwork:
    """A new ``Network`` with random weights, drawn from torch's global generator (set its seed first).

    Raises:
        RecipeError: the recipe's model kind is not a network (the classical baseline needs no weights);
            ``model.encoder`` names no suitable network of timm; ``model.box_head.class_weights`` does not have one
            weight per class and one for background; or numbers do not fit together, such as channels and groups.
        UsageError: ``model.encoder`` needs the extra ``timm``, which is not installed.
        InputError: the weights need more memory than there is.
    """
    _check_memory(network_without_weights(recipe, n_classes))
    return _build(recipe, n_classes)


def network_to_fill(recipe: Recipe, n_classes: int, check: Callable[[nn.Module], object]) -> MaskRCNN | DenseNetwork:
    """A network whose weights are loaded next: their values are arbitrary. Raises as `build_network`.

    check: called with `network_without_weights` before memory is allocated for what the recipe claims.
    """
    shapes = network_without_weights(recipe, n_classes)
    check(shapes)
    _check_memory(shapes)
    with _NoRandomWeights():
        return _build(recipe, n_classes)


def network_without_weights(recipe: Recipe, n_classes: int) -> nn.Module:
    """The network with weights that have a shape but no values and take no memory. Raises as `build_network`."""
    try:
        with torch.device("meta"), _NoRandomWeights():
            return _build(recipe, n_classes)
    except CellwrightError:
        raise
    except Exception as error:  # each layer checks its numbers in its own way
        raise RecipeError(
            "the network of this recipe cannot be built",
            where=recipe.name,
            got=f"{type(error).__name__}: {error}"[:300],
            remedy="check the numbers in its section model",
        ) from error


class _NoRandomWeights(TorchFunctionMode):
    """Layers are made without drawing their weights, which takes most of the time."""

    _DRAWS = ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self._DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _check_memory(network: nn.Module) -> None:
    check_memory(weight_bytes(network), "the network of this recipe", remedy=SMALLER)


def weight_bytes(network: nn.Module) -> int:
    """Bytes of all weights and buffers of a network."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def check_training_memory(network: nn.Module) -> None:
    """Raise `InputError` if the weights, gradients and averages of training need more memory than there is."""
    check_memory((_TRAINED - 1) * weight_bytes(network), "training this network", remedy=SMALLER)


def _build(recipe: Recipe, n_classes: int) -> MaskRCNN | DenseNetwork:
    in_channels, conventions = recipe.input.channels, CONVENTIONS[recipe.conventions]
    match recipe.model:
        case MaskRCNNConfig() | C4Config() | CascadeConfig() | PointRendConfig() as config:
            network = build_mask_rcnn(config, conventions, in_channels=in_channels, n_classes=n_classes)
        case UNetConfig() | StarDistConfig() as config:
            network = DenseNetwork(config, in_channels=in_channels, n_classes=n_classes)
        case CellposeConfig() as config:
            network = TiledNetwork(config, in_channels=in_channels, n_classes=n_classes)
        case other:
            raise RecipeError(
                "this model kind has no network to build",
                where="model.kind",
                got=other.kind,
                remedy="choose a recipe that is trained: cellwright recipes list",
            )
    # Channels last saves 20% of a training step on the CPU; feature maps follow the layout of the weights.
    return network.to(memory_format=torch.channels_last)


def build_mask_rcnn(config: RCNNConfig, conventions: Conventions, *, in_channels: int, n_classes: int) -> MaskRCNN:
    """A new network of the R-CNN family; fields that are None in ``config`` follow ``conventions``.

    Raises:
        RecipeError: ``box_head.class_weights`` does not have one weight per class and one for background.
    """
    config = config.resolved(conventions)
    weights = config.box_head.class_weights
    if weights is not None and len(weights) != n_classes + 1:
        raise RecipeError(
            "the class weights do not match the classes",
            where="model.box_head.class_weights",
            got=f"{len(weights)} weights",
            expected=f"{n_classes + 1}: one per class, background last",
            remedy="give that many, or set it to null for equal weights",
        )
    sizes = {"in_channels": in_channels, "n_classes": n_classes}
    match config:
        case C4Config():
            return C4MaskRCNN(config, conventions, **sizes)
        case PointRendConfig():
            return PointRend(config, conventions, **sizes)
        case CascadeConfig(mask_scoring=None):
            return CascadeMaskRCNN(config, conventions, **sizes)
        case CascadeConfig():
            return MaskScoringCascade(config, conventions, **sizes)
        case MaskRCNNConfig(mask_scoring=None):
            return MaskRCNN(config, conventions, **sizes)
        case MaskRCNNConfig():
            return MaskScoringRCNN(config, conventions, **sizes)
