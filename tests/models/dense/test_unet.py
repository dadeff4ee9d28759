"""The U-Net: sizes, skips, and its arithmetic with plain torch functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cellwright.config.model_dense import UNetConfig
from cellwright.models.dense.unet import UNet


def unet(*, in_channels: int = 3, **options: Any) -> UNet:
    config = UNetConfig(**({"width": 4, "depth": 2, "norm": "none"} | options))
    torch.manual_seed(0)
    return UNet(config, in_channels=in_channels, out_channels=2)


def test_plain_blocks_follow_the_paper() -> None:
    """Depth 2, layer by layer with torch functions and the weights of the network."""
    network = unet().eval()
    w = dict(network.named_parameters())

    def convs(x: torch.Tensor, name: str) -> torch.Tensor:
        for conv in ("conv1", "conv2"):
            x = F.relu(F.conv2d(x, w[f"{name}.{conv}.conv.weight"], w[f"{name}.{conv}.conv.bias"], padding=1))
        return x

    def up(x: torch.Tensor, skip: torch.Tensor, stage: int) -> torch.Tensor:
        grown = F.conv_transpose2d(x, w[f"upsample.{stage}.weight"], w[f"upsample.{stage}.bias"], stride=2)
        return convs(torch.cat([skip, grown], dim=1), f"decoder.{stage}")

    images = torch.randn(2, 3, 16, 24)
    fine = convs(images, "encoder.0")
    middle = convs(F.max_pool2d(fine, 2), "encoder.1")
    coarse = convs(F.max_pool2d(middle, 2), "encoder.2")
    top = up(up(coarse, middle, 0), fine, 1)
    expected = F.conv2d(top, w["maps.0.weight"], w["maps.0.bias"])
    (maps,) = network(images)
    assert torch.allclose(maps, expected, atol=1e-6)


def test_parameter_count_of_the_paper() -> None:
    """64 channels, four halvings, 1 -> 2 channels: the network of the paper, counted from its figure 1."""
    widths = [64, 128, 256, 512, 1024]
    encoder = sum(9 * a * b + b + 9 * b * b + b for a, b in zip([1, *widths], widths, strict=False))
    decoder = sum(4 * 2 * c * c + c + 9 * 2 * c * c + c + 9 * c * c + c for c in widths[:-1])
    network = unet(in_channels=1, width=64, depth=4)
    assert sum(p.numel() for p in network.parameters()) == encoder + decoder + 64 * 2 + 2 == 31_030_658


def test_residual_blocks_add_their_input() -> None:
    block = unet(style="residual", in_channels=4).encoder[0]
    with torch.no_grad():
        for parameter in block.conv2.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    x = torch.rand(1, 4, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("deep", [False, True])
def test_coarse_stages_predict_maps_in_training_only(deep: bool) -> None:
    network = unet(deep_supervision=deep, depth=3, norm="batch_norm")
    images = torch.randn(2, 3, 32, 40)
    sizes = [tuple(maps.shape) for maps in network(images)]
    assert sizes == [(2, 2, 32, 40), (2, 2, 16, 20), (2, 2, 8, 10)][: 3 if deep else 1]
    assert [tuple(maps.shape) for maps in network.eval()(images)] == [(2, 2, 32, 40)]
    assert network.stride == 8


@pytest.mark.parametrize("style", ["plain", "residual"])
@pytest.mark.parametrize(("height", "width"), [(8, 24), (128, 40), (296, 40)])
def test_maps_in_strips_are_those_of_the_whole_to_the_bit(style: str, height: int, width: int) -> None:
    torch.manual_seed(0)
    network = unet(style=style, depth=3, norm="batch_norm").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        assert torch.equal(network.maps_in_strips(images), network(images)[0])
