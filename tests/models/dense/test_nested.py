"""U-Net++: against the equations of the paper, and pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cellwright.config.recipe import Recipe
from cellwright.core.errors import ModelError, RecipeError, UsageError
from cellwright.models.build import build_network
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.nested import NestedUNet
from cellwright.models.weights.initial import start_from
from cellwright.models.weights.model_folder import ModelInfo
from cellwright.models.weights.torch_io import save_model

NESTED = {"kind": "unet", "width": 4, "depth": 3, "skips": "nested", "deep_supervision": True}


def network(**changes: Any) -> DenseNetwork:
    torch.manual_seed(0)
    dense = build_network(Recipe.model_validate({"name": "small", "model": {**NESTED, **changes}}), 1)
    assert isinstance(dense, DenseNetwork)
    for module in dense.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return dense.eval()


def nodes_of_the_paper(dense: DenseNetwork, images: Tensor, depth: int) -> dict[tuple[int, int], Tensor]:
    """X[i,j] for i + j <= depth: equation 1 of the paper, with torch functions and the weights of the network."""
    w = dense.unet.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        if f"{name}.norm.weight" not in w:
            return x
        of_norm = (w[f"{name}.norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *of_norm)

    def conv(x: Tensor, name: str) -> Tensor:
        kernel = w[f"{name}.conv.weight"]
        return norm(F.conv2d(x, kernel, w.get(f"{name}.conv.bias"), padding=kernel.shape[-1] // 2), name)

    def block(x: Tensor, name: str) -> Tensor:
        hidden = conv(F.relu(conv(x, f"{name}.conv1")), f"{name}.conv2")
        if dense.config.style == "plain":
            return F.relu(hidden)
        return F.relu(hidden + (conv(x, f"{name}.shortcut") if f"{name}.shortcut.conv.weight" in w else x))

    def up(x: Tensor, name: str) -> Tensor:
        return F.conv_transpose2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2)

    nodes: dict[tuple[int, int], Tensor] = {}
    for j in range(depth + 1):
        for i in range(depth + 1 - j):
            if j == 0:
                nodes[i, 0] = block(F.max_pool2d(nodes[i - 1, 0], 2) if i else images, f"encoder.{i}")
            else:
                row = [nodes[i, k] for k in range(j)]
                below = up(nodes[i + 1, j - 1], f"decoder.upsample.{i}_{j}")
                nodes[i, j] = block(torch.cat([*row, below], dim=1), f"decoder.blocks.{i}_{j}")
    return nodes


def maps_of_the_paper(dense: DenseNetwork, images: Tensor, depth: int) -> Tensor:
    """The maps of the network L^depth of the paper: the nodes beyond it do not exist."""
    w, last = dense.unet.state_dict(), nodes_of_the_paper(dense, images, depth)[0, depth]
    return F.conv2d(last, w[f"maps.{depth}.weight"], w[f"maps.{depth}.bias"])


@pytest.mark.parametrize("style", ["plain", "residual"])
@pytest.mark.parametrize("norm", ["none", "batch_norm"])
def test_whole_and_pruned_networks_follow_the_paper(style: str, norm: str) -> None:
    dense, images = network(style=style, norm=norm), torch.randn(2, 3, 40, 24)
    with torch.no_grad():
        for depth in (1, 2, 3):
            pruned = dense.pruned(depth)
            expected = maps_of_the_paper(dense, images, depth)
            torch.testing.assert_close(pruned.unet(images)[0], expected, atol=1e-6, rtol=1e-5)
            assert expected.abs().max() > 1e-3
            assert (pruned.stride, len(pruned.unet(images))) == (2**depth, 1)
            if norm == "none":  # where training and prediction are the same
                columns = dense.train().unet(images)
                assert torch.equal(pruned.unet(images)[0], columns[3 - depth])
                dense.eval()


def test_parameter_counts() -> None:
    """Width 64, depth 4, one map: counted from figure 1 of the paper, with bilinear maps as transposed convolutions."""
    widths = [64 * 2**i for i in range(5)]
    blocks = sum(9 * a * b + b + 9 * b * b + b for a, b in zip([3, *widths], widths, strict=False))
    for i in range(4):
        c = widths[i]
        for j in range(1, 5 - i):
            blocks += (9 * (j + 1) * c * c + c) + (9 * c * c + c) + (4 * 2 * c * c + c)
    with torch.device("meta"):
        unet = NestedUNet(network(width=64, depth=4, norm="none").config, in_channels=3, out_channels=1)
    assert sum(p.numel() for p in unet.parameters()) == blocks + 4 * (64 + 1)


@pytest.mark.parametrize("style", ["plain", "residual"])
@pytest.mark.parametrize("hw", [(8, 24), (128, 40), (296, 40)])
def test_maps_in_strips_are_those_of_the_whole_to_the_bit(style: str, hw: tuple[int, int]) -> None:
    unet, images = network(style=style).unet, torch.randn(2, 3, *hw)
    with torch.no_grad():
        assert torch.equal(unet.maps_in_strips(images), unet(images)[0])  # type: ignore[operator]


def test_maps_depend_on_the_image_within_reach() -> None:
    for depth in (1, 3):
        dense = network(norm="none").pruned(depth)
        reach = dense.reach_px
        assert reach is not None
        side = 8 * (-(-(2 * reach + 16) // 8))
        images = torch.rand(1, 3, side, side, requires_grad=True)
        row = dense.stride * (side // 2 // dense.stride)
        dense.unet(images)[0][0, :, row].abs().sum().backward()
        rows = images.grad.abs().sum((0, 1, 3)).nonzero()  # type: ignore[union-attr]
        assert row - rows.min() <= reach
        assert rows.max() - row <= reach
        assert row - rows.min() > reach - 2 * dense.stride


def test_what_cannot_be_pruned_is_refused() -> None:
    for changes in ({"skips": "plain"}, {"deep_supervision": False}):
        with pytest.raises(UsageError, match=r"(?s)cannot be pruned.*got: model\.skips"):
            network(**changes).pruned(2)
    for depth in (0, 4):
        with pytest.raises(UsageError, match=r"(?s)invalid `pruned_to`.*1 to 3"):
            network().pruned(depth)


def test_does_not_start_from_other_skips(tmp_path: Path) -> None:
    for skips, other in (("nested", "plain"), ("plain", "nested")):
        recipe = Recipe.model_validate({"name": "small", "model": {**NESTED, "skips": skips}})
        weights = build_network(recipe, 1).state_dict()
        info = ModelInfo(kind="unet", recipe=recipe.to_dict(), class_names=("cell",), normalisation={})
        folder = save_model(tmp_path / skips, weights, info)
        fresh = network(skips=skips)
        start_from(fresh, str(folder))
        assert all(torch.equal(tensor, weights[name]) for name, tensor in fresh.state_dict().items())
        for parts in ((), ("maps",)):
            with pytest.raises(ModelError, match=f"(?s)other skip connections.*got: model.skips: {skips}"):
                start_from(network(skips=other), str(folder), fresh=parts)


def test_with_an_encoder_of_timm() -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    dense, images = network(encoder="timm:resnet10t"), torch.randn(1, 3, 24, 40)
    blocks = {name.split(".")[2] for name in dense.unet.state_dict() if name.startswith("decoder.blocks.")}
    assert blocks == {"0_1", "0_2", "0_3", "1_1", "1_2", "2_1"}
    dense.unet.training = True  # all columns predict, while the layers stay as they are
    with torch.no_grad():
        columns = dense.unet(images)
        for depth in (1, 2, 3):
            assert torch.equal(dense.pruned(depth).eval().unet(images)[0], columns[3 - depth])
    with pytest.raises(RecipeError, match=r"(?s)nested skips.*none of stride 2.*model\.skips: plain"):
        network(encoder="timm:convnext_atto")
