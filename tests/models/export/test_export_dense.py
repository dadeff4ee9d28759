"""An exported U-Net: names of the maps, and steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cellwright.config.recipe import Recipe
from cellwright.core.errors import UsageError
from cellwright.models.build import build_network
from cellwright.models.export.networks import graphs_of, rules_of


def test_the_maps_are_named_in_order() -> None:
    model = {"kind": "unet", "width": 4, "depth": 2, "target": {"kind": "watershed"}}
    network = build_network(Recipe.model_validate({"name": "t", "classes": 2, "model": model}), 2)
    (graph,) = graphs_of(network)
    rules = rules_of(network)
    assert graph.outputs == {"maps": ("batch", 5, "height", "width")}
    assert rules["channels"] == ["body", "border", "distance", "class_0", "class_1"]
    assert rules["stride"] == 4
    assert len(rules["steps"]) == 3
    assert (rules["decoder"]["target"], rules["decoder"]["maps"]) == ("watershed", 3)


def test_the_graph_gives_the_maps_in_their_units() -> None:
    torch.manual_seed(0)
    model = {"kind": "unet", "width": 4, "depth": 2, "target": {"kind": "stars", "n_rays": 8}}
    network = build_network(Recipe.model_validate({"name": "t", "classes": 2, "model": model}), 2).eval()
    images = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        maps = graphs_of(network)[0].module(images)
    np.testing.assert_array_equal(maps.numpy(), network.maps(images))


def test_rays_have_a_unit() -> None:
    model = {"kind": "unet", "width": 4, "depth": 2, "target": {"kind": "stars", "n_rays": 8}}
    network = build_network(Recipe.model_validate({"name": "t", "model": model}), 1)
    rules = rules_of(network)
    assert rules["channels"] == ["probability", *(f"ray_{k}" for k in range(8))]
    assert "rays are px of the maps" in rules["steps"][1]


def test_other_networks_are_rejected() -> None:
    for describe in (graphs_of, rules_of):
        with pytest.raises(UsageError, match=r"(?s)cannot be exported.*got: Linear"):
            describe(nn.Linear(2, 2))  # type: ignore[arg-type]
