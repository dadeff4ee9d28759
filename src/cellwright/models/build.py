"""From a recipe's ``model`` section to a network: one literal `match`."""

from __future__ import annotations

import torch

from cellwright.config.conventions import CONVENTIONS, Conventions
from cellwright.config.model_dense import UNetConfig
from cellwright.config.model_rcnn import C4Config, CascadeConfig, MaskRCNNConfig, PointRendConfig, RCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import RecipeError
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.rcnn.c4 import C4MaskRCNN
from cellwright.models.rcnn.cascade import CascadeMaskRCNN
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.mask_scoring import MaskScoringCascade, MaskScoringRCNN
from cellwright.models.rcnn.pointrend import PointRend


def build_network(recipe: Recipe, n_classes: int) -> MaskRCNN | DenseNetwork:
    """A new ``Network`` with random weights, drawn from torch's global generator (set its seed first).

    Raises:
        RecipeError: the recipe's model kind is not a network (the classical baseline needs no weights);
            ``model.encoder`` names no suitable network of timm; or ``model.box_head.class_weights`` does not have one
            weight per class and one for background.
        UsageError: ``model.encoder`` needs the extra ``timm``, which is not installed.
    """
    in_channels, conventions = recipe.input.channels, CONVENTIONS[recipe.conventions]
    match recipe.model:
        case MaskRCNNConfig() | C4Config() | CascadeConfig() | PointRendConfig() as config:
            network = build_mask_rcnn(config, conventions, in_channels=in_channels, n_classes=n_classes)
        case UNetConfig() as config:
            network = DenseNetwork(config, in_channels=in_channels, n_classes=n_classes)
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
