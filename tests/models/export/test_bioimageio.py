"""Packages for BioImage.IO: the network in PyTorch without cellwright, and what ``rdf.yaml`` says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellwright.config.recipe import Recipe
from cellwright.models.build import build_network
from cellwright.models.export import bioimageio
from cellwright.models.export.standalone import unet
from cellwright.models.weights.model_folder import BUNDLED, model_folder

NETWORKS = {
    "plain": {"target": {"kind": "watershed"}},
    "residual": {"style": "residual", "norm": "none", "deep_supervision": True},
    "nested": {"skips": "nested", "deep_supervision": True, "style": "residual"},
    "stars": {"target": {"kind": "stars", "n_rays": 8}},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_without_cellwright_gives_the_same_maps(name: str) -> None:
    torch.manual_seed(0)
    recipe = {"name": "t", "classes": 2, "model": {"kind": "unet", "width": 4, "depth": 2, **NETWORKS[name]}}
    network = build_network(Recipe.model_validate(recipe), 2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    network.eval()
    own = unet.UNet(**bioimageio.standalone_options(network))
    own.load_state_dict(bioimageio.standalone_state(network), strict=True)
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        np.testing.assert_allclose(own.eval()(images).numpy(), network.compute(images), atol=1e-5)


def test_authors_with_and_without_an_institute() -> None:
    card = "# Mine\n\n- author: A. B. (Institute, Town)\n- author: C. D. \n- classes: nucleus\n"
    assert bioimageio.from_card(card, "author") == ("A. B. (Institute, Town)", "C. D.")
    assert bioimageio.from_card(card, "licence of the weights") == ()


@pytest.mark.parametrize("name", [*BUNDLED])
def test_cards_of_bundled_models_name_what_a_package_needs(name: str) -> None:
    card = (model_folder(name) / "README.md").read_text()
    assert bioimageio.from_card(card, "author")
    assert bioimageio.from_card(card, "licence of the weights") == ("BSD-3-Clause",)
    assert len(bioimageio.cited(card)) == len(bioimageio.from_card(card, "cite")) > 0


def test_fixed_normalisation_is_a_gain_and_an_offset() -> None:
    section = {"channels": 1, "full_range": 4095, "mean": [0.25], "std": [0.5]}
    recipe = Recipe.model_validate({"name": "t", "input": section, "model": {"kind": "unet"}})
    said = bioimageio.preprocessing(recipe)
    (gain,), (offset,) = said["kwargs"]["gain"], said["kwargs"]["offset"]
    assert said["id"] == "scale_linear"
    assert (2000 * gain + offset) == pytest.approx((2000 / 4095 - 0.25) / 0.5)
