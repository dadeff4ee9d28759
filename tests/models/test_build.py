"""Which network a recipe's ``model`` section builds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cellwright.config.recipe import Recipe, load
from cellwright.core.errors import InputError, RecipeError
from cellwright.models.build import build_network
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.rcnn.c4 import C4MaskRCNN
from cellwright.models.rcnn.cascade import CascadeMaskRCNN
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.mask_scoring import MaskScoringCascade, MaskScoringRCNN
from cellwright.models.rcnn.pointrend import PointRend


@pytest.mark.parametrize(
    ("model", "network"),
    [
        ({"kind": "mask_rcnn"}, MaskRCNN),
        ({"kind": "mask_rcnn", "mask_scoring": {}}, MaskScoringRCNN),
        ({"kind": "cascade_mask_rcnn"}, CascadeMaskRCNN),
        ({"kind": "cascade_mask_rcnn", "mask_scoring": {}}, MaskScoringCascade),
        ({"kind": "pointrend"}, PointRend),
        ({"kind": "mask_rcnn_c4"}, C4MaskRCNN),
        ({"kind": "unet"}, DenseNetwork),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_each_kind_builds_its_network(model: dict[str, Any], network: type) -> None:
    with torch.device("meta"):
        built = build_network(Recipe.model_validate({"name": "any", "model": model}), n_classes=2)
    assert type(built) is network


def test_the_classical_baseline_is_not_a_network() -> None:
    with pytest.raises(RecipeError, match=r"(?s)no network to build.*got: classical"):
        build_network(Recipe.model_validate({"name": "any", "model": {"kind": "classical"}}), n_classes=1)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("nuclei/finetune", ["model.width=512", "model.depth=7"]), ("synthetic/demo", ["classes=1000000000"])],
)
def test_gigabyte_networks_are_refused_before_they_are_built(
    name: str, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELLWRIGHT_MEMORY_GB", "16")
    recipe = load(name, changes)
    with pytest.raises(InputError, match="the network of this recipe needs more memory than there is"):
        build_network(recipe, recipe.classes or 1)


def test_numbers_that_no_network_can_have_are_one_error() -> None:
    with pytest.raises(RecipeError, match=r"cannot be built\n  where: synthetic/demo"):
        build_network(load("synthetic/demo", ["classes=1000000000000000000"]), 10**18)
